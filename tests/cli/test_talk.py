"""`token`, `send`, `publish` and `tail` against a server, each a process of its own."""

from __future__ import annotations

import json
import shlex
import signal
import time
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import orjson
import pytest

from wsrecover.access.principal import Principal
from wsrecover.access.tokens import TokenVerifier, sign
from wsrecover.cli.send import send
from wsrecover.cli.tail import _Follower
from wsrecover.client import ClientSession, Event

if TYPE_CHECKING:
    from .conftest import Cli


class TestToken:
    def test_it_says_who_it_speaks_for(self, cli: Cli) -> None:
        options = ("--role", "service", "--role", "editor", "--tier", "early", "--lifetime", "60")
        before = time.time()
        text = Path(cli.token(*options)).read_text().strip()
        verifier = TokenVerifier(cli.secret_file.read_bytes().strip(), leeway=0, clock=time.time)
        grant = verifier.verify(text)
        assert grant.principal == Principal("acme", "ada", ("service", "editor"), "early")
        assert before + 60 <= grant.expires_at <= time.time() + 60

    def test_a_short_secret_is_refused(self, cli: Cli) -> None:
        cli.secret_file.write_text("short")
        done = cli.run(
            "token", "--tenant", "acme", "--user", "ada", "--secret-file", str(cli.secret_file), code=2
        )
        problem = f"secret_file: {cli.secret_file} has 5 bytes; accepted: at least 32 bytes"
        assert done.stderr == f"wsrecover: config: {problem}\n"

    @pytest.mark.parametrize(
        ("option", "value"), [("--tenant", ""), ("--user", ""), ("--role", "x" * 65), ("--tier", "")]
    )
    def test_a_name_that_no_token_may_carry_is_refused(self, cli: Cli, option: str, value: str) -> None:
        given = {"--tenant": "acme", "--user": "ada", "--secret-file": str(cli.secret_file), option: value}
        words = [word for pair in given.items() for word in pair]
        assert cli.run("token", *words, code=2).stderr.startswith(f"wsrecover: {option}: ")

    @pytest.mark.parametrize("command", [("serve",), ("token", "--tenant", "acme", "--user", "ada")])
    def test_without_a_secret_it_says_how_to_give_one(self, cli: Cli, command: tuple[str, ...]) -> None:
        said = cli.run(*command, code=2).stderr
        assert "WSRECOVER_SECRET: is not set" in said
        assert "--secret-file" in said

    def test_all_commands_that_can_be_sent_are_listed(self, cli: Cli) -> None:
        said = cli.run("send", "--help").stdout
        built_in = ("start_agent", "cancel_run", "respond", "user_message", "chat", "publish")
        for command in (*built_in, "broadcast", "receipt"):
            assert f"{command}," in said

    def test_a_lifetime_that_is_over_is_refused(self, cli: Cli) -> None:
        assert (
            "--lifetime" in cli.run("token", "--tenant", "a", "--user", "u", "--lifetime", "0", code=2).stderr
        )


class TestTail:
    def test_it_shows_what_send_and_publish_write_and_goes_on_where_it_was(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            service = ("--url", url, "--token-file", cli.token("--role", "service", user="robot"))
            assert orjson.loads(cli.run("send", *ada, "chat", '{"text": "one"}').stdout) == {"seq": 1}
            published = cli.run(
                "publish", *service, "ada", "notice", '{"text": "two"}', "--thread", "t1"
            ).stdout
            ((epoch, seq),) = orjson.loads(published)["positions"]
            assert seq == 2
            with cli.start("tail", *ada, "--json", "--since", "0") as process:
                lines = [orjson.loads(process.wait_for(text, stream="stdout")) for text in ("one", "two")]
                code, _, err = process.stop(signal.SIGINT)
            assert code == 130
            assert [line["id"] for line in lines] == [f"{epoch}.1", f"{epoch}.2"]
            assert lines[1]["data"] == {"text": "two"}
            assert lines[1]["thread"] == "t1"
            again = ("tail", *ada, "--json", "--since", f"{epoch}.2")
            others = ("--since", "all=0", "--since", "tenant=0")
            assert shlex.split(err.splitlines()[-1].removeprefix("Go on with: wsrecover ")) == [
                *again,
                *others,
            ]
            cli.run("send", *ada, "chat", '{"text": "three"}')
            with cli.start(*again) as process:
                assert orjson.loads(process.wait_for('"event"', stream="stdout"))["seq"] == 3

    def test_whoever_goes_on_is_shown_each_broadcast_once_too(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token("--role", "ops"))
            robot = cli.token("--role", "service", user="robot")
            shown = []
            command = ["tail", *ada, "--json", "--since", "tenant=0", "--since", "role:ops=0"]
            for number in range(3):
                for to in ("tenant", "role:ops"):
                    said = json.dumps({"to": to, "type": "notice", "data": {"number": number}})
                    cli.run("send", "--url", url, "--token-file", robot, "broadcast", said)
                with cli.start(*command) as process:
                    lines = [orjson.loads(process.wait_for("event", stream="stdout")) for _ in range(2)]
                    _, rest, err = process.stop(signal.SIGINT)
                assert rest == ""
                shown += sorted((line["stream"], line["data"]["number"]) for line in lines)
                last = {line["stream"]: line["id"] for line in lines}
                command = shlex.split(err.splitlines()[-1].removeprefix("Go on with: wsrecover "))
                assert {f"{stream}={place}" for stream, place in last.items()} < set(command)
        assert shown == [(stream, number) for number in range(3) for stream in ("role:ops", "tenant")]

    def test_of_a_stream_that_since_does_not_name_it_shows_what_comes_from_now_on(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            tell = (
                "send",
                "--url",
                url,
                "--token-file",
                cli.token("--role", "service", user="robot"),
                "broadcast",
            )
            for to, since in (("user", "tenant=0"), ("tenant", "0")):
                cli.run("send", *ada, "chat", '{"text": "user before"}')
                cli.run(*tell, '{"to": "tenant", "type": "notice", "data": {"text": "tenant before"}}')
                with cli.start("tail", *ada, "--since", since) as process:
                    process.wait_for("before", stream="stdout")
                    cli.run("send", *ada, "chat", '{"text": "user after"}')
                    cli.run(*tell, '{"to": "tenant", "type": "notice", "data": {"text": "tenant after"}}')
                    process.wait_for(f"{to} after", stream="stdout")
                assert f"{to} before" not in "".join(process.said)

    def test_what_came_of_a_role_before_it_was_lost_is_shown(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It may wait to be shown while the session knows already that it has no position there any more."""
        session = cast("ClientSession", SimpleNamespace(position={}))
        follower = _Follower(as_json=True, positions={}, seqs={}, url="ws://server")
        follower._take(Event("role:ops", 7, 0.0, "notice", {}), session)
        shown = orjson.loads(capsys.readouterr().out)
        assert (shown["seq"], "id" in shown, follower.at) == (7, False, {})

    def test_a_stream_that_may_not_be_followed_is_told(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            for since in ("role:ops=7", "role:ops=some.7"):
                with cli.start("tail", *ada, "--since", since) as process:
                    assert process.wait_for("--", stream="stdout") == "-- role:ops may not be followed\n"

    def test_its_lines_for_a_reader_show_seq_type_and_data(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            cli.run("send", *ada, "chat", json.dumps({"text": "hello\u3000👨\u200d👩 \x9b2J\x1b[2J\u202e"}))
            with cli.start("tail", *ada, "--since", "0") as process:
                line = process.wait_for("hello", stream="stdout")
        assert line.split()[1:3] == ["1", "chat"]
        shown = '{"text":"hello\u3000👨\u200d👩 ' + r'\x9b2J\u001b[2J\u202e"}'
        assert line.strip().endswith(shown), "a terminal obeys nothing of it"

    def test_it_ends_quietly_when_its_reader_leaves(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            cli.run("send", *ada, "chat", '{"text": "read"}')
            with cli.start("tail", *ada, "--since", "0") as process:
                process.wait_for("read", stream="stdout")
                process.popen.stdout.close()
                cli.run("send", *ada, "chat", '{"text": "not read"}')
                assert process.popen.wait() == 0
                err = process.popen.stderr.read()
                assert "Traceback" not in err
                assert "Go on with" not in err

    def test_it_ends_when_its_reader_leaves_even_if_nothing_more_happens(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            cli.run("send", *ada, "chat", '{"text": "read"}')
            done = cli.shell(f"wsrecover tail {shlex.join(ada)} --json --since 0 | head -1")
        assert orjson.loads(done.stdout)["seq"] == 1
        assert done.stderr == ""

    def test_it_says_whom_it_follows_unless_a_program_reads(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            with cli.start("tail", *ada) as process:
                assert process.wait_for("following") == f"following ada of acme at {url}\n"

    @pytest.mark.parametrize("since", ["3", "nope.5"])
    def test_it_shows_what_comes_after_the_history_began_anew(
        self, cli: Cli, since: str, kept_port: int
    ) -> None:
        with ExitStack() as stack:
            server, url = stack.enter_context(cli.serving(port=str(kept_port)))
            ada = ("--url", url, "--token-file", cli.token())
            for _ in range(4):
                cli.run("send", *ada, "chat", '{"text": "before"}')
            tail = stack.enter_context(cli.start("tail", *ada, "--since", since))
            tail.wait_for("before", stream="stdout")
            before = len(tail.said)
            server.stop()
            stack.enter_context(cli.serving(port=str(kept_port)))
            cli.run("send", *ada, "chat", '{"text": "after"}')
            assert tail.wait_for('"after"', stream="stdout").split()[1] == "1"
            anew = [line for line in tail.said[before:] if line.startswith("-- ")]
        assert anew == ["-- user is shown from event 1 on: its log is another one than before\n"]

    @pytest.mark.parametrize("since", ["3", "2"])
    def test_a_seq_beyond_the_head_is_told_and_withholds_nothing(self, cli: Cli, since: str) -> None:
        with cli.serving() as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            for text in ("one", "two"):
                cli.run("send", *ada, "chat", f'{{"text": "{text}"}}')
            with cli.start("tail", *ada, "--since", since) as tail:
                tail.wait_for("following")
                cli.run("send", *ada, "chat", '{"text": "three"}')
                tail.wait_for("three", stream="stdout")
        if since == "3":
            assert "-- user is shown from event 1 on: its log does not reach to event 3\n" in tail.said
        shown = [line.split()[1] for line in tail.said if not line.startswith("following")]
        assert shown == (["user", "1", "2", "3"] if since == "3" else ["3"])

    def test_a_seq_that_the_log_no_longer_reaches_back_to_is_told_as_a_gap(self, cli: Cli) -> None:
        (cli.home / "short.toml").write_text("[retention]\nevents = 2\n")
        with cli.serving("--config", "short.toml") as (_, url):
            ada = ("--url", url, "--token-file", cli.token())
            for number in range(1, 7):
                cli.run("send", *ada, "chat", f'{{"text": "n{number}"}}')
            shown = {}
            for since in ("0", "2", "4"):
                with cli.start("tail", *ada, "--since", since) as tail:
                    tail.wait_for("n6", stream="stdout")
                shown[since] = [line for line in tail.said if line.startswith("--")]
            with cli.start("tail", *ada) as tail:
                tail.wait_for("following")
                cli.run("send", *ada, "chat", '{"text": "n7"}')
                tail.wait_for("n7", stream="stdout")
        assert shown == {
            "0": ["-- events 1 to 4 of user are gone: trimmed\n"],
            "2": ["-- events 3 to 4 of user are gone: trimmed\n"],
            "4": [],
        }
        assert len(tail.said) == 2

    @pytest.mark.parametrize("since", ["x", "1.x", "-1", "²", "tenat=1", "tenant=", "=1"])
    def test_a_position_that_is_none_is_refused(self, cli: Cli, since: str) -> None:
        assert "EPOCH.SEQ" in cli.run("tail", f"--since={since}", code=2).stderr

    def test_two_positions_in_one_stream_are_refused(self, cli: Cli) -> None:
        said = cli.run("tail", "--since", "1", "--since", "user=some.2", code=2).stderr
        assert said == "wsrecover: --since is given twice for user; accepted: once for each stream\n"


class TestTokens:
    @pytest.mark.parametrize("command", [("tail",), ("send", "chat")])
    def test_a_token_file_that_cannot_be_read_is_named_at_once(
        self, cli: Cli, command: tuple[str, ...]
    ) -> None:
        for file, problem in (("absent", "No such file or directory"), (".", "Is a directory")):
            done = cli.run(*command, "--token-file", file, code=2)
            assert done.stderr == f"wsrecover: the token file {file} cannot be read: {problem}\n"

    def test_a_token_that_has_expired_is_told_from_a_bad_one(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            secret = cli.secret_file.read_bytes().strip()
            expired = sign(secret, tenant="acme", user="ada", lifetime=1.0, clock=lambda: time.time() - 3600)
            done = cli.run("send", "--url", url, "--token", expired, "chat", code=1)
            assert done.stderr.startswith("wsrecover: the token has expired\n")
            done = cli.run("send", "--url", url, "--token", "a.b.c", "chat", code=1)
            assert done.stderr.startswith("wsrecover: the token was refused: ")

    def test_the_file_of_a_refused_token_is_named_where_nobody_gave_it(self, cli: Cli) -> None:
        left = cli.home / "state" / "wsrecover" / "dev.token"
        left.parent.mkdir(parents=True)
        left.write_text("a.b.c")
        with cli.serving() as (_, url):
            for command in (("tail",), ("send", "chat")):
                done = cli.run(*command, "--url", url, code=1)
                assert done.stderr.endswith(f"It came from the file {left}.\n")

    def test_one_that_was_never_a_token_is_told_with_where_it_came_from(self, cli: Cli) -> None:
        file = cli.home / "some.token"
        for token, problem in (
            ("", "is empty"),
            ("a\nb", "is no token; accepted: printable ASCII, without a line end"),
        ):
            file.write_text(token)
            for options, variable, origin in (
                (("--token", token), "unused", "--token"),
                ((), token, "$WSRECOVER_TOKEN"),
                (("--token-file", str(file)), "unused", f"the token file {file}"),
            ):
                done = cli.run("tail", *options, code=2, WSRECOVER_TOKEN=variable)
                assert done.stderr == f"wsrecover: {origin} {problem}\n"

    @pytest.mark.parametrize("command", [("tail",), ("send", "chat"), ("publish", "ada", "notice")])
    def test_of_two_that_are_given_none_is_chosen(self, cli: Cli, command: tuple[str, ...]) -> None:
        done = cli.run(*command, "--token", "x", "--token-file", cli.token(), code=2)
        assert done.stderr == "wsrecover: --token and --token-file are both given: one of them, please\n"

    def test_the_environments_is_taken_unless_one_is_given_and_is_named(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            file = cli.token()
            text = Path(file).read_text().strip()
            done = cli.run("send", "--url", url, "chat", code=1, WSRECOVER_TOKEN="a.b.c")
            assert done.stderr.endswith("It came from $WSRECOVER_TOKEN.\n")
            cli.run("send", "--url", url, "--token-file", file, "chat", WSRECOVER_TOKEN="a.b.c")
            cli.run("send", "--url", url, "--token", text, "chat", WSRECOVER_TOKEN="")
        assert "it wins over $WSRECOVER_TOKEN" in cli.run("send", "--help").stdout


SLOW = """
import sys

import attrs
import trio

import wsrecover

app = wsrecover.App()
made = 0

@attrs.frozen
class Order:
    takes: float

@app.command("make")
async def make(command, order: Order):
    global made
    made += 1
    print("making", file=sys.stderr, flush=True)
    await trio.sleep(order.takes)
    return {"made": made}
"""


class TestAnswers:
    def test_one_may_take_longer_than_a_connection(
        self, cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (cli.home / "slow.py").write_text(SLOW)
        monkeypatch.setattr("wsrecover.cli.talk.GIVE_UP_AFTER", 1.0)
        with cli.serving("--app", "slow:app") as (_, url):
            assert send("make", '{"takes": 1.5}', url=url, token_file=Path(cli.token())) == 0
        assert orjson.loads(capsys.readouterr().out) == {"made": 1}

    def test_where_none_came_the_command_can_be_repeated_and_takes_effect_once(self, cli: Cli) -> None:
        (cli.home / "slow.py").write_text(SLOW)
        with cli.serving("--app", "slow:app") as (server, url):
            make = ("send", "--url", url, "--token-file", cli.token(), "make", '{"takes": 2}')
            said = cli.run(*make, "--timeout", "0.2", code=1).stderr.splitlines()
            assert said[0] == "wsrecover: no answer within 0.2 s"
            unknown, _, option = said[1].partition(" To repeat it safely, within 10 minutes, add ")
            assert unknown == "Whether it took effect is not known."
            assert orjson.loads(cli.run(*make, *shlex.split(option)).stdout) == {"made": 1}
            server.wait_for("making")
            with cli.start(*make, "--id", "mine") as process:
                server.wait_for("making")
                said = process.stop(signal.SIGINT)[2].splitlines()
            assert said[0] == "wsrecover: interrupted"
            assert said[1].endswith(" --id mine")

    def test_an_event_that_is_published_again_under_its_id_is_logged_once(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            common = ("--url", url, "--token-file", cli.token("--role", "service", user="robot"))
            publish = ("publish", *common, "ada", "notice", "--id", "mine")
            assert cli.run(*publish).stdout == cli.run(*publish).stdout

    def test_one_that_was_refused_took_no_effect(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            said = cli.run("send", "--url", url, "--token-file", cli.token(), "nothing", code=1).stderr
        assert "--id" not in said

    @pytest.mark.parametrize(
        ("option", "value"), [("--timeout", "0"), ("--timeout", "nan"), ("--id", ""), ("--id", "é")]
    )
    def test_an_option_that_can_be_none_is_refused(self, cli: Cli, option: str, value: str) -> None:
        said = cli.run("send", "--token", "x", option, value, "chat", code=2).stderr
        assert said.startswith(f"wsrecover: {option} is ")


class TestFailures:
    def test_a_refused_command_says_why(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            common = ("--url", url, "--token-file", cli.token())
            done = cli.run("send", *common, "no_such_command", code=1)
            assert done.stderr.startswith("wsrecover: unknown_type: ")
            done = cli.run("send", *common, "start_agent", '{"agent": 5}', code=1)
            assert done.stderr.startswith("wsrecover: invalid: data.agent: ")
            assert cli.run("publish", *common, "bob", "notice", code=1).stderr.startswith("wsrecover: ")

    def test_what_it_cannot_send_is_told_before_there_is_a_server(self, cli: Cli) -> None:
        for data, problem in (
            ('{"a": 1, "a": 2}', "data: duplicate keys in an object"),
            ("{", "data: not JSON: Expecting property name enclosed in double quotes at character 1"),
            ("[]", 'data must be a JSON object, such as {"text": "hello"}'),
        ):
            done = cli.run("send", "--token", "x", "chat", data, code=2)
            assert done.stderr == f"wsrecover: {problem}\n"

    def test_a_since_that_is_no_position_says_what_is(self, cli: Cli) -> None:
        for since in ("7.", "x", "bad epoch\n.7"):
            done = cli.run("tail", "--token", "x", "--since", since, code=2)
            assert "--since is" in done.stderr
            assert "accepted: EPOCH.SEQ" in done.stderr

    def test_a_refused_token_says_how_to_get_another(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            file = cli.home / "bad.token"
            file.write_text("a.b.c")
            for command in (("tail",), ("send", "chat")):
                done = cli.run(*command, "--url", url, "--token-file", str(file), code=1)
                assert "wsrecover token" in done.stderr

    def test_without_a_server_it_says_how_to_start_one(self, cli: Cli) -> None:
        done = cli.run("send", "--url", "ws://127.0.0.1:9", "--token", "x", "chat", code=1)
        assert done.stderr == (
            "wsrecover: no server answers at ws://127.0.0.1:9: Connection refused.\n"
            "Start one with: wsrecover dev\n"
        )

    def test_a_page_for_people_is_not_printed(self, cli: Cli) -> None:
        with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as other:
            thread = Thread(target=other.serve_forever)
            thread.start()
            try:
                url = f"ws://127.0.0.1:{other.server_port}"
                done = cli.run("send", "--url", url, "--token", "x", "chat", code=1)
            finally:
                other.shutdown()
                thread.join()
        assert done.stderr == (
            "wsrecover: HTTP 404, with a page for people: is this the address of a wsrecover server?\n"
        )

    def test_without_a_token_it_says_where_to_get_one(self, cli: Cli) -> None:
        done = cli.run("tail", code=2)
        assert "there is no token" in done.stderr

    @pytest.mark.parametrize("data", ["{", "[]", "1"])
    def test_data_that_is_no_object_is_refused(self, cli: Cli, data: str) -> None:
        assert "JSON" in cli.run("send", "--token", "x", "chat", data, code=2).stderr

    @pytest.mark.parametrize("command", [("tail",), ("send", "chat"), ("publish", "ada", "notice")])
    def test_a_url_that_is_none_is_refused(self, cli: Cli, command: tuple[str, ...]) -> None:
        for url, problem in (
            ("http://here", "is no WebSocket URL"),
            ("ws://127.0.0.1:99999", "is no URL: Port out of range 0-65535"),
        ):
            done = cli.run(*command, "--token", "x", "--url", url, code=2)
            assert done.stderr.startswith(f"wsrecover: --url {problem}; accepted: ws://host")

    def test_a_thread_that_can_be_none_is_refused(self, cli: Cli) -> None:
        done = cli.run("tail", "--token", "x", "--thread", "t1", "--thread", "", code=2)
        assert done.stderr == "wsrecover: --thread is ''; accepted: 1 to 128 printable ASCII characters\n"
        done = cli.run("tail", "--token", "x", *["--thread", "t1"] * 101, code=2)
        assert done.stderr == "wsrecover: --thread is given 101 times; accepted: at most 100\n"

    def test_elsewhere_nobody_is_told_to_start_a_server(self, cli: Cli) -> None:
        done = cli.run("send", "--url", "ws://nobody.invalid", "--token", "x", "chat", code=1)
        assert done.stderr.startswith("wsrecover: no server answers at ws://nobody.invalid: ")
        assert "Start one" not in done.stderr


class TestHelp:
    @pytest.mark.parametrize(
        ("command", "usage"),
        [
            ("send", "send [OPTIONS] TYPE [DATA]"),
            ("publish", "publish [OPTIONS] USER TYPE [DATA]"),
            ("demo", "demo [OPTIONS] [FILE]"),
        ],
    )
    def test_the_arguments_that_may_be_left_out_have_names(self, cli: Cli, command: str, usage: str) -> None:
        said = cli.run(command, "--help").stdout
        assert said.splitlines()[0] == f"Usage: wsrecover {usage}"
        for word in usage.split()[2:]:
            assert f" {word.strip('[]')} " in said or word == "[OPTIONS]"
