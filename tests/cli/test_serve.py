"""`wsrecover serve` as a process: it says when it is ready, stops when told to, and says what is wrong."""

from __future__ import annotations

import resource
import signal
import socket
from typing import TYPE_CHECKING

import orjson
import pytest

if TYPE_CHECKING:
    from .conftest import Cli

AGENT = """
import wsrecover

app = wsrecover.App()

@app.agent("greeter")
async def greeter(run):
    return {"greeting": f"hello {run.input['name']}"}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_and_stops_cleanly_on_a_signal(cli: Cli, number: signal.Signals) -> None:
    with cli.serving() as (process, url):
        port = int(url.rpartition(":")[2])
        assert port != 0
        socket.create_connection(("127.0.0.1", port)).close()
        code, out, err = process.stop(number)
    assert code == 0
    assert out == ""
    events = [orjson.loads(line)["event"] for line in err.splitlines()]
    assert events[0] == "stopping"
    assert events[-1] == "stopped"


STUBBORN = """
import time

import trio
import wsrecover

app = wsrecover.App()

@app.agent("stubborn")
async def stubborn(run):
    await trio.to_thread.run_sync(time.sleep, 10)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once_whatever_its_agents_do(cli: Cli, number: signal.Signals) -> None:
    (cli.home / "stubborn.py").write_text(STUBBORN)
    with cli.serving("--app", "stubborn:app") as (process, url):
        common = ("--url", url, "--token-file", cli.token())
        cli.run("send", *common, "start_agent", '{"agent": "stubborn"}')
        process.popen.send_signal(number)
        process.wait_for('"stopping"')
        assert process.stop(number)[0] == -number


def test_its_ready_line_names_the_addresses_that_are_bound(cli: Cli) -> None:
    common = ("--port", "0", "--store", "memory", "--log-format", "json")
    with cli.start("serve", *common, "--secret-file", str(cli.secret_file)) as process:
        ready = process.ready()
        (address,) = ready["addresses"]
        assert ready["url"] == f"ws://{address}"
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port))).close()
        assert '"ready"' not in process.stop()[2], "it says so once"


def test_its_log_on_a_console_names_the_address_too(cli: Cli) -> None:
    with cli.start(
        "serve", "--port", "0", "--store", "memory", "--secret-file", str(cli.secret_file)
    ) as process:
        line = process.wait_for("ready")
        assert "127.0.0.1:" in line
        assert process.stop()[0] == 0


def test_its_log_is_kept_in_the_users_state_folder_by_default(cli: Cli) -> None:
    with cli.start("serve", "--port", "0", "--secret-file", str(cli.secret_file)) as process:
        process.wait_for("ready")
        assert process.stop()[0] == 0
    assert (cli.home / "state" / "wsrecover" / "wsrecover.db").exists()


def test_it_runs_the_agents_of_a_module_in_the_current_folder(cli: Cli) -> None:
    (cli.home / "greeting.py").write_text(AGENT)
    with cli.serving("--app", "greeting:app") as (_, url):
        common = ("--url", url, "--token-file", cli.token())
        done = cli.run("send", *common, "start_agent", '{"agent": "greeter", "input": {"name": "Ada"}}')
        assert set(orjson.loads(done.stdout)) == {"run"}


def test_its_secret_may_come_from_the_environment(cli: Cli) -> None:
    cli.env["WSRECOVER_SECRET"] = "the same secret, but in the environment"
    with cli.start("serve", "--port", "0", "--store", "memory", "--log-format", "json") as process:
        url = process.ready()["url"]
        token = cli.run("token", "--tenant", "acme", "--user", "ada").stdout.strip()
        done = cli.run("send", "--url", url, "chat", '{"text": "hello"}', WSRECOVER_TOKEN=token)
        assert orjson.loads(done.stdout) == {"seq": 1}


def test_its_tokens_must_come_from_the_issuer_and_be_for_the_audience_that_are_given(cli: Cli) -> None:
    with cli.serving("--issuer", "me", "--issuer", "my friend", "--audience", "here") as (_, url):
        good = cli.token("--issuer", "my friend", "--audience", "here")
        assert cli.run("send", "--url", url, "--token-file", good, "chat", "{}").stdout
        for options in ((), ("--issuer", "me"), ("--issuer", "you", "--audience", "here")):
            bad = cli.token(*options)
            err = cli.run("send", "--url", url, "--token-file", bad, "chat", "{}", code=1).stderr
            assert "the token was refused: " in err


def test_it_takes_as_many_descriptors_as_the_hard_limit_lets_it_have(cli: Cli) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with cli.serving() as (process, _):
            assert resource.prlimit(process.popen.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestStartUpFailures:
    def test_a_wrong_setting_is_named_with_what_is_accepted(self, cli: Cli) -> None:
        (cli.home / "bad.toml").write_text("[limits]\nmessage_bytes = 1\n")
        done = cli.run("serve", "--config", "bad.toml", code=2)
        assert done.stderr == (
            "wsrecover: config: bad.toml: limits.message_bytes: is 1; "
            "accepted: a whole number of bytes ≥ 1024\n"
        )

    def test_an_option_wins_over_the_file(self, cli: Cli) -> None:
        (cli.home / "fine.toml").write_text(
            f'port = 1\nstore = "memory"\nsecret_file = "{cli.secret_file}"\n'
        )
        options = ("--config", "fine.toml", "--port", "0", "--log-format", "json")
        with cli.start("serve", *options) as process:
            assert process.ready()["store"] == "memory"
            assert process.stop()[0] == 0

    def test_a_missing_secret_is_named(self, cli: Cli) -> None:
        done = cli.run("serve", "--store", "memory", "--port", "0", code=2)
        assert done.stderr.startswith("wsrecover: config: WSRECOVER_SECRET: is not set; accepted: ")

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            (
                ("--jwks", "nowhere.json"),
                "tokens.jwks: nowhere.json cannot be read: No such file or directory",
            ),
            (("--jwks", "http://login.example/"), "tokens.jwks: is 'http://login.example/'"),
            (("--jwks", "https://u:p@login.example/"), "tokens.jwks: holds a user name or a fragment"),
            (("--origin", "https://*.example"), "origins.allowed: holds 'https://*.example'"),
            (("--audience", ""), "tokens.audience: is ''"),
            (("--issuer", "a", "--issuer", ""), "tokens.issuers: is ('a', '')"),
        ],
    )
    def test_a_wrong_setting_of_tokens_is_named(
        self, cli: Cli, options: tuple[str, ...], problem: str
    ) -> None:
        done = cli.run("serve", "--store", "memory", "--port", "0", *options, code=2)
        assert f"config: {problem}" in done.stderr
        assert "; accepted: " in done.stderr
        assert "u:p" not in done.stderr

    def test_keys_that_cannot_be_fetched_now_are_no_wrong_setting(self, cli: Cli) -> None:
        with socket.socket() as nobody_listens:
            nobody_listens.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{nobody_listens.getsockname()[1]}/jwks.json"
            done = cli.run("serve", "--store", "memory", "--port", "0", "--jwks", url, code=1)
        said, advice = done.stderr.splitlines()
        assert said.startswith(f"wsrecover: tokens.jwks: {url} cannot be fetched: ConnectError: ")
        assert advice == "Without its keys no token counts: start again once it can be reached."

    @pytest.mark.parametrize(
        ("app", "problem"),
        [
            ("greeting", "app: is 'greeting'"),
            ("absent:app", "app: names a module that is not there: absent"),
            ("greeting:nothing", "app: greeting:nothing is absent"),
            ("greeting:greeter", "app: greeting:greeter is function"),
        ],
    )
    def test_an_app_that_is_none_is_named(self, cli: Cli, app: str, problem: str) -> None:
        (cli.home / "greeting.py").write_text(AGENT)
        done = cli.run("serve", "--app", app, code=2)
        assert f"config: {problem}" in done.stderr
        assert "accepted: module:attribute" in done.stderr

    @pytest.mark.parametrize(
        ("code", "problem"),
        [
            ("raise ValueError('boom')", "ValueError: boom"),
            ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
            ("def greeter(:", "SyntaxError: invalid syntax"),
        ],
    )
    def test_an_app_whose_module_raises_is_shown_where_it_does(
        self, cli: Cli, code: str, problem: str
    ) -> None:
        file = cli.home / "broken.py"
        file.write_text(f"{code}\n")
        options = ("--app", "broken:app", "--store", "memory", "--secret-file", str(cli.secret_file))
        lines = cli.run("serve", *options, code=1).stderr.splitlines()
        assert lines[0] == "wsrecover: app: the module broken cannot be imported:"
        assert lines[-1] == problem
        assert (
            [line for line in lines if "File " in line]
            == [line for line in lines if f'File "{file}", line 1' in line]
            != []
        )

    def test_a_port_that_is_taken_is_the_listeners_trouble(self, cli: Cli) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            options = ("--store", "memory", "--port", port, "--secret-file", str(cli.secret_file))
            done = cli.run("serve", *options, code=1)
        assert done.stderr == (
            f"wsrecover: listener: cannot listen at 127.0.0.1:{port}: Address already in use\n"
            "Choose another port with --port; 0 takes any free one.\n"
        )

    def test_a_store_that_is_in_use_is_the_stores_trouble(self, cli: Cli) -> None:
        store = f"sqlite:{cli.home / 'log.db'}"
        with cli.serving(store=store):
            options = ("--store", store, "--port", "0", "--secret-file", str(cli.secret_file))
            done = cli.run("serve", *options, code=1)
        assert "wsrecover: store: " in done.stderr
        assert "--store" in done.stderr

    def test_a_store_that_is_no_database_is_the_stores_trouble(self, cli: Cli) -> None:
        (cli.home / "noise.db").write_bytes(b"noise" * 1000)
        options = ("--store", "sqlite:noise.db", "--port", "0", "--secret-file", str(cli.secret_file))
        assert "wsrecover: store: " in cli.run("serve", *options, code=1).stderr

    def test_a_secret_file_that_cannot_be_read_is_named_with_its_path(self, cli: Cli) -> None:
        err = cli.run("serve", "--store", "memory", "--secret-file", "nowhere", code=2).stderr
        assert "secret_file: nowhere cannot be read: No such file" in err

    def test_an_address_that_is_not_ours_is_not_blamed_on_the_port(self, cli: Cli) -> None:
        options = ("--store", "memory", "--host", "192.0.2.1", "--secret-file", str(cli.secret_file))
        assert "Choose another address with --host" in cli.run("serve", *options, code=1).stderr


class TestUsage:
    @pytest.mark.parametrize("line", [("serve", "--port", "18770.5"), ("demo", "--cuts", "2.9")])
    def test_a_fraction_is_not_rounded(self, cli: Cli, line: tuple[str, ...]) -> None:
        err = cli.run(*line, code=2).stderr
        assert "is not a whole number" in err
        assert f"See: wsrecover {line[0]} --help" in err

    def test_a_demo_whose_reader_leaves_ends_quietly(self, cli: Cli) -> None:
        assert cli.shell("wsrecover demo --cuts 5 --seed 1 | head -1").stderr == ""

    def test_an_unknown_option_is_named(self, cli: Cli) -> None:
        done = cli.run("serve", "--prot", "1", code=2)
        assert "--prot" in done.stderr
        assert len(done.stderr.splitlines()) <= 2

    def test_an_unknown_command_is_named(self, cli: Cli) -> None:
        assert "sevre" in cli.run("sevre", code=2).stderr

    def test_help_names_every_command(self, cli: Cli) -> None:
        out = cli.run("--help").stdout
        for command in ("serve", "dev", "token", "tail", "send", "publish", "demo"):
            assert f"{command} " in out

    @pytest.mark.parametrize("command", ["serve", "dev", "token", "tail", "send", "publish", "demo"])
    def test_each_command_explains_its_options(self, cli: Cli, command: str) -> None:
        out = cli.run(command, "--help").stdout
        assert f"wsrecover {command}" in out
        assert "--" in out

    def test_the_version_is_printed(self, cli: Cli) -> None:
        assert cli.run("--version").stdout.strip()
