"""`wsrecover dev`: what it prints to be typed next works when it is pasted."""

from __future__ import annotations

import re
import shlex
import stat
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from .conftest import Cli, Process


def commands(process: Process) -> list[str]:
    process.wait_for("Type next", stream="stdout")
    process.wait_for("Then stop this server", stream="stdout")
    at = next(number for number, line in enumerate(process.said) if "Type next" in line)
    return [line.strip() for line in process.said[at:] if line.startswith("  wsrecover")]


def test_what_it_prints_works_when_pasted(cli: Cli) -> None:
    with cli.start("dev", "--port", "0") as process:
        tail, *others = commands(process)
        (token,) = re.findall(r"^\s*\S*?(ey[\w-]+\.[\w-]+\.[\w-]+)$", "".join(process.said), re.MULTILINE)
        assert token == (cli.home / "state" / "wsrecover" / "dev.token").read_text().strip()
        assert [shlex.split(line)[1] for line in [tail, *others]] == ["tail", "send", "send", "publish"]
        with cli.start(*shlex.split(tail)[1:], "--json", "--since", "0") as follower:
            results = [orjson.loads(cli.shell(command).stdout) for command in others]
            seen = [orjson.loads(follower.wait_for('"agent_started"', stream="stdout"))]
            seen.append(orjson.loads(follower.wait_for('"notice"', stream="stdout")))
        assert set(results[0]) == {"run"}
        assert seen[0]["run"] == results[0]["run"]
        assert seen[1]["data"] == {"text": "from a service"}


def test_its_secret_and_its_log_outlive_a_restart(cli: Cli) -> None:
    with cli.start("dev", "--port", "0") as process:
        chat = commands(process)[2]
        assert orjson.loads(cli.shell(chat).stdout) == {"seq": 1}
        token = cli.home / "state" / "wsrecover" / "dev.token"
        before = token.read_text().strip()
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert process.stop()[0] == 0
    with cli.start("dev", "--port", "0") as process:
        chat = commands(process)[2]
        url = shlex.split(chat)[shlex.split(chat).index("--url") + 1]
        done = cli.run("send", "--url", url, "--token", before, "chat", '{"text": "again"}')
        assert orjson.loads(done.stdout) == {"seq": 2}


def test_who_follows_goes_on_over_a_restart(cli: Cli, kept_port: int) -> None:
    with cli.start("dev", "--port", str(kept_port)) as process:
        tail, _, chat, _ = commands(process)
        with cli.start(*shlex.split(tail)[1:], "--json", "--since", "0") as following:
            cli.shell(chat)
            assert orjson.loads(following.wait_for('"chat"', stream="stdout"))["seq"] == 1
            assert process.stop()[0] == 0
            with cli.start("dev", "--port", str(kept_port)) as again:
                commands(again)
                cli.shell(chat)
                assert orjson.loads(following.wait_for('"chat"', stream="stdout"))["seq"] == 2
