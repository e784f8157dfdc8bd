"""README.md and OPERATING.md keep their word: snippets run; commands and files that they name are there."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import stat
import sys
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wsrecover import Credentials, TokenError
from wsrecover.cli.main import commands
from wsrecover.config import load_config
from wsrecover.demo.agents import readme
from wsrecover.testing import local_server

if TYPE_CHECKING:
    from .conftest import Cli

README = readme().read_text(encoding="utf-8")
CHECKOUT = Path(__file__).parents[2]
OPERATING = CHECKOUT / "wsrecover/OPERATING.md"
TEXT = README + OPERATING.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
AGENT, EMBEDDED, TEST, CLIENT, KEEPER, SHOP, BUYER, BROADCAST, MANAGER, BY_KEY = (
    text for language, text in BLOCKS if language == "python"
)
(TAILED,) = (text for language, text in BLOCKS if language == "text" and text.startswith("following"))
SHELL = [line.strip() for language, text in BLOCKS if language == "sh" for line in text.splitlines()]

URL = "ws://127.0.0.1:8765"


def said(start: str) -> str:
    """The one shell line that begins so."""
    (line,) = [line for line in SHELL if line.startswith(start)]
    return line


def stages(tailed: str) -> list[str]:
    """The types that `tail` shows; how many deltas come in a row depends on how fast the model is."""
    types = re.findall(r"^[0-9:]{8} +\d+ (\w+)", tailed, re.MULTILINE)
    return [kind for kind, _ in groupby(types)]


def mentioned() -> set[str]:
    """Every `wsrecover …` in the shell blocks, the text and the tables."""
    inline = re.findall(r"`(wsrecover [^`]+)`", TEXT)
    typed = [part.strip() for line in SHELL for part in line.split("&&")]
    return {text.partition(" > ")[0] for text in [*inline, *typed] if text.startswith("wsrecover ")}


@pytest.fixture
def folder(cli: Cli) -> Cli:
    """A current folder with `triage.py`, the secret and the tokens, made as the README says."""
    (cli.home / "triage.py").write_text(AGENT)
    cli.shell(said("python3 -c").replace("python3", shlex.quote(sys.executable), 1))
    for user in ("ada", "backend", "root"):
        cli.shell(said(f"wsrecover token --tenant acme --user {user} "))
    return cli


def test_what_is_secret_is_written_for_its_owner_alone_and_the_readers_shell_stays_as_it_was(
    cli: Cli,
) -> None:
    cli.secret_file.unlink()
    for text in (text for language, text in BLOCKS if language == "sh" and "umask" in text):
        lines = text.replace("python3", shlex.quote(sys.executable)).partition("wsrecover serve")[0]
        assert cli.shell(f"umask 022\n{lines}umask").stdout == "0022\n"
    for name in ("secret", "token", "service-token", "operator-token"):
        assert stat.S_IMODE((cli.home / name).stat().st_mode) == 0o600


def test_the_embedded_server_runs(folder: Cli) -> None:
    (folder.home / "main.py").write_text(EMBEDDED)
    done = folder.shell(f"{shlex.quote(sys.executable)} main.py")
    assert re.fullmatch(
        r"listening at ws://127\.0\.0\.1:\d+, logged as 1\n", done.stdout.splitlines(True)[-1]
    )


def test_the_agents_test_passes_and_can_fail(folder: Cli) -> None:
    check = f"{shlex.quote(sys.executable)} -m pytest -q -o trio_mode=true -p no:cacheprovider test_triage.py"
    (folder.home / "test_triage.py").write_text(TEST)
    folder.shell(check)
    (folder.home / "triage.py").write_text(AGENT.replace("42", "43"))
    assert "1 failed" in folder.shell(check, code=1).stdout


def test_a_broadcast_is_sent_and_counted(folder: Cli) -> None:
    (folder.home / "many.py").write_text(BROADCAST)
    done = folder.shell(f"{shlex.quote(sys.executable)} many.py")
    assert done.stdout.endswith("0 of 0 have it; 0 are not connected\n")


def test_the_server_says_who_is_there(folder: Cli) -> None:
    (folder.home / "manager.py").write_text(MANAGER)
    done = folder.shell(f"{shlex.quote(sys.executable)} manager.py")
    assert done.stdout.endswith("ada is away\n{}\n")


def test_the_agent_the_server_the_client_and_the_terminal_work_together(folder: Cli) -> None:
    serve = shlex.split(said("wsrecover serve --app"))[1:]
    with folder.start(*serve, "--port", "0", "--store", "memory", "--log-format", "json") as process:
        url = process.ready()["url"]
        assert URL in CLIENT
        (folder.home / "client.py").write_text(CLIENT.replace(URL, url))
        lines = folder.shell(f"{shlex.quote(sys.executable)} client.py").stdout.splitlines()
        types = [line.split()[1] for line in lines]
        assert types[0] == "agent_started"
        assert {"agent_thinking", "tool_executing", "tool_completed", "message_delta"} < set(types)
        assert "order_shipped" in types
        assert "'answer': 42" in lines[-3]
        assert lines[-2:] == [
            "assistant: Turn it off and on again.",
            "search {'q': 'It blinks.'} completed {'hits': 3}",
        ]
        tail = shlex.split(said("wsrecover tail"))[1:]
        with folder.start(*tail, "--url", url, "--since", "0") as follower:
            folder.shell(f"{said('wsrecover send --token-file token ')} --url {url}")
            follower.wait_for("agent_completed", stream="stdout")
            follower.said.clear()
            follower.wait_for("agent_completed", stream="stdout")
            assert stages("".join(follower.said)) == stages(TAILED)


def test_who_keeps_its_position_with_what_it_does_does_it_once_over_its_own_crash(
    folder: Cli, kept_port: int
) -> None:
    serve = [*shlex.split(said("wsrecover serve --app"))[1:], "--store", "memory", "--log-format", "json"]
    for _ in range(2):  # In memory: the second server has another history.
        with folder.start(*serve, "--port", str(kept_port)) as process:
            url = process.ready()["url"]
            assert URL in KEEPER
            (folder.home / "keeper.py").write_text(KEEPER.replace(URL, url))
            start = f"{said('wsrecover send --token-file token ')} --url {url}"
            to_all = f"{said('wsrecover send --token-file service-token')} --url {url}"
            folder.shell(to_all)
            for last in ("message_delta", "message_delta", "agent_completed"):
                with folder.start("keeper.py", program=sys.executable) as keeper:
                    folder.shell(start)
                    keeper.wait_for(last, stream="stdout")
        with closing(sqlite3.connect(folder.home / "ada.db")) as db:
            told = [*db.execute("SELECT first, seq FROM told WHERE stream = 'user' ORDER BY seq")]
        assert [first for first, _ in told] == [1, *(seq + 1 for _, seq in told[:-1])]


def test_nor_does_it_forget_what_it_did_where_the_log_was_trimmed_meanwhile(folder: Cli) -> None:
    (folder.home / "short.toml").write_text("[retention]\nevents = 4\n")
    with folder.serving("--config", "short.toml") as (_, url):
        (folder.home / "keeper.py").write_text(KEEPER.replace(URL, url))
        publication = json.dumps({"user": "ada", "events": [{"type": "noted", "data": {}}] * 10})
        for last in (10, 20):
            folder.run("send", "--url", url, "--token-file", "service-token", "publish", publication)
            with folder.start("keeper.py", program=sys.executable) as keeper:
                keeper.wait_for(f"user {last} ", stream="stdout")
    with closing(sqlite3.connect(folder.home / "ada.db")) as db:
        told = {seq for (seq,) in db.execute("SELECT seq FROM told")}
    # Each time it is killed about when it keeps the last one.
    assert told - {10, 20} >= {7, 8, 9, 17, 18, 19}


def test_nor_does_it_stumble_where_a_role_was_lost_and_is_regained(folder: Cli) -> None:
    notice = json.dumps({"to": "role:ops", "type": "notice", "data": {}})
    sign = said("wsrecover token --tenant acme --user ada ")
    with folder.serving() as (_, url):
        (folder.home / "keeper.py").write_text(KEEPER.replace(URL, url))
        folder.run("send", "--url", url, "--token-file", "service-token", "broadcast", notice)
        for number, role in enumerate((" --role ops", "", " --role ops"), start=1):
            folder.shell(sign.replace(" > ", f"{role} > "))
            with folder.start("keeper.py", program=sys.executable) as keeper:
                if role:
                    keeper.wait_for("role:ops 1 ", stream="stdout")
                folder.run("publish", "--url", url, "--token-file", "service-token", "ada", "noted", "{}")
                keeper.wait_for(f"user {number} ", stream="stdout")  # What came before is committed.


def test_a_command_of_the_apps_own_starts_an_agent_that_asks(folder: Cli) -> None:
    (folder.home / "shop.py").write_text(SHOP)
    serve = shlex.split(said("wsrecover serve --app").replace("triage:app", "shop:app"))[1:]
    with folder.start(*serve, "--port", "0", "--store", "memory", "--log-format", "json") as process:
        assert URL in BUYER
        (folder.home / "buyer.py").write_text(BUYER.replace(URL, process.ready()["url"]))
        bought = folder.shell(f"{shlex.quote(sys.executable)} buyer.py").stdout
        assert bought == "completed {'shipped': True}\n"


def test_a_service_speaks_to_its_tenant_and_an_operator_to_all(folder: Cli) -> None:
    serve = shlex.split(said("wsrecover serve --operator-issuer"))[1:]
    with folder.start(*serve, "--port", "0", "--store", "memory", "--log-format", "json") as process:
        url = process.ready()["url"]
        send = f"{said('wsrecover send --token-file service-token')} --url {url}"
        folder.shell(send)
        to_all = send.replace('"to": "tenant"', '"to": "all"')
        assert "forbidden" in folder.shell(to_all, code=1).stderr
        folder.shell(to_all.replace("service-token", "operator-token"))


async def test_who_embeds_the_server_may_go_by_a_key() -> None:
    given: dict[str, Any] = {}
    exec(BY_KEY, given)
    by_key = given["ByKey"]()
    async with (
        local_server(authenticator=by_key, secret=None) as local,
        local.stranger(headers={"X-API-Key": "a key of ada's"}) as ada,
    ):
        await ada.send({"op": "hello", "client": "c1"})
        assert (await ada.frame())["principal"]["user"] == "ada"
    assert await by_key.authenticate(Credentials(None, {}, "peer")) is None
    with pytest.raises(TokenError, match="no such key"):
        await by_key.authenticate(Credentials(None, {"X-API-Key": "another"}, "peer"))


@pytest.mark.parametrize("name", sorted({text.split()[1] for text in mentioned()}))
def test_each_command_and_option_that_is_mentioned_exists(cli: Cli, name: str) -> None:
    shown = cli.run(name, "--help").stdout
    rows = re.findall(rf"^\| `wsrecover {name}\b.*$", README, re.MULTILINE)
    texts = [text for text in mentioned() if text.split()[1] == name]
    options = {option for text in [*rows, *texts] for option in re.findall(r"--[a-z-]+", text)}
    assert [option for option in sorted(options) if option not in shown] == []


def test_each_command_has_its_row() -> None:
    rows = re.findall(r"^\| `wsrecover (\w+)", README, re.MULTILINE)
    assert sorted(rows) == sorted(name for name in commands if not name.startswith("-"))


def test_the_config_file_loads(tmp_path: Path) -> None:
    (text,) = [text for language, text in BLOCKS if language == "toml"]
    file = tmp_path / "wsrecover.toml"
    file.write_text(text)
    assert load_config(file).timeouts.run == 600


def headings(file: Path) -> set[str]:
    """The names by which the headings of a file are linked to."""
    titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", [CHECKOUT / "README.md", OPERATING], ids=lambda file: file.name)
def test_each_file_and_heading_that_it_links_to_is_there(file: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", file.read_text(encoding="utf-8"))
    assert links
    for path, heading in links:
        target = file.parent / path if path else file
        assert target.is_file(), target
        assert not heading or heading in headings(target), heading


def test_the_two_first_commands_are_the_ones_that_the_checkout_supports() -> None:
    assert "python3 -m pip install . && wsrecover demo" in SHELL
    assert "python3 -m pip install nox && nox -s tests" in SHELL
    noxfile = (CHECKOUT / "noxfile.py").read_text(encoding="utf-8")
    assert "@nox.session\ndef tests(" in noxfile
