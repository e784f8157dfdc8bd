"""What every client must live through. A test class per client inherits it and has a fixture `command`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from interop_world import PATIENCE, Command, Item, Program, Stage, lines, logged, running, scripted, trim

from wsrecover.config import Timeouts
from wsrecover.session.connection import Connection
from wsrecover.streams.store import StreamKey
from wsrecover.testing import LocalServer, local_server

PART_BYTES = 32 * 1024
"""The server's default, which SPEC.md names."""

START: Item = {"type": "start_agent", "data": {"agent": "story", "input": {"about": "a turtle"}}}


@asynccontextmanager
async def staged(command: Command, **settings: Any) -> AsyncIterator[tuple[LocalServer, Stage, Program]]:
    """A server with the story agent, and one client that is welcomed."""
    stage = Stage()
    async with (
        local_server(stage.app) as server,
        running(command, server.url, server.token, **settings) as client,
    ):
        await client.until("live", stream="user")
        yield server, stage, client


async def say_goodbye(client: Program) -> None:
    """Leave for good: the server closes with 1000, and the program ends."""
    await client.order("bye")
    assert (await client.until("closed"))["code"] == 1000
    await client.ended()


def welcome(epoch: str, after: int) -> Item:
    """A welcome to a stream that goes on after this seq, with what a later release may add."""
    state = {
        "epoch": epoch,
        "head": after,
        "oldest": 1,
        "from": after + 1,
        "resumed": after > 0,
        "mood": "fine",
    }
    return {
        "op": "welcome",
        "protocol": 1,
        "connection": "c",
        "principal": {"tenant": "acme", "user": "ada", "roles": []},
        "streams": {"user": state if after else state | {"reason": "new"}},
        "heartbeat": 25,
        "limits": {},
        "token_expires_in": 60.5,
        "runs": [],
        "weather": ["rain"],
    }


def event(seq: int, type_: str, data: Item, **more: Any) -> Item:
    return {"op": "event", "stream": "user", "seq": seq, "ts": 1.5, "type": type_, "data": data, **more}


def fragment(seq: int, offset: int, text: str, **more: Any) -> Item:
    return event(seq, "message_delta", {"message_id": "m", "offset": offset, "text": text}, **more)


def connection(server: LocalServer, connected: Item) -> Connection:
    """The server's side of a client's connection."""
    return server.server.registry.session("acme", "ada").connections[connected["client"]]


class Scenarios:
    """Each compares what the client's app got with what the log holds."""

    @pytest.mark.parametrize(
        ("hello", "token"), [("url", "subprotocol"), ("frame", "header"), ("frame", "frame")]
    )
    async def test_a_client_may_introduce_itself_in_each_way(
        self, command: Command, hello: str, token: str
    ) -> None:
        async with local_server() as server:
            await server.server.publish("acme", "ada", "app.line", {"line": 1})
            async with running(command, server.url, server.token, hello=hello, token=token) as client:
                assert (await client.until("live", stream="user"))["seq"] == 1
                await server.server.publish("acme", "ada", "app.line", {"line": 2})
                await client.until("event", seq=2)
                assert client.events == await logged(server)
                await say_goodbye(client)

    async def test_a_drop_in_the_middle_of_a_run_loses_and_repeats_nothing(self, command: Command) -> None:
        async with staged(command) as (server, stage, client):
            await client.order("send", id="start", **START)
            await client.until("reply", id="start", status="ok")
            await stage.tell(*lines(1, 150))
            await client.until("event", seq=151)
            await client.order("deaf", on={"op": "event", "seq": 160})
            await stage.tell(*lines(151, 170))
            await client.until("event", seq=160)
            await client.order("offline")
            await client.until("closed", code=1006)
            await stage.tell(*lines(171, 180))
            await client.order("online")
            back = await client.until("connected")
            assert back["streams"]["user"]["resumed"]
            assert back["streams"]["user"]["from"] == 161
            assert [run["agent"] for run in back["runs"]] == ["story"]
            await stage.tell(*lines(181, 190))
            stage.end()
            await client.until("event", type="agent_completed")
            assert client.events == await logged(server)
            assert len(client.events) == 192
            assert not client.all("hole")
            assert not client.all("error")
            await say_goodbye(client)

    async def test_a_large_event_that_was_cut_off_goes_on_where_it_was_cut(self, command: Command) -> None:
        text = "żółw 🐢 " * 30_000
        async with staged(command) as (server, stage, client):
            await client.order("send", id="start", **START)
            await client.until("reply", id="start", status="ok")
            await client.order("offline", on={"op": "part", "seq": 3, "offset": 3 * PART_BYTES})
            await stage.tell({"line": 1}, {"text": text}, {"line": 3})
            await client.until("closed", code=1006)
            await client.order("online")
            await client.until("connected")
            assert (await client.until("part"))["offset"] == 4 * PART_BYTES
            await client.until("event", seq=4)
            assert client.events == await logged(server)
            assert client.events[2]["data"] == {"text": text}
            assert [item["seq"] for item in client.all("event") if item["parts"]] == [3]
            offsets = [item["offset"] for item in client.all("part")]
            assert offsets == list(range(0, client.all("part")[0]["total"], PART_BYTES))

    async def test_a_command_whose_answer_was_lost_takes_effect_once(self, command: Command) -> None:
        async with staged(command) as (server, stage, client):
            await client.order("deaf")
            await client.order("send", id="start", thread="t1", **START)
            with trio.fail_after(PATIENCE):
                await stage.started.wait()
            await client.order("offline")
            await client.until("closed", code=1006)
            await client.order("online")
            reply = await client.until("reply", id="start")
            stage.end()
            await client.until("event", type="agent_completed")
            log = await logged(server)
            assert [event["type"] for event in log] == ["agent_started", "agent_completed"]
            assert (reply["status"], reply["result"]) == ("duplicate", {"run": log[0]["run"]})
            assert client.events == log

            await client.order("send", id="start", thread="t2", **START)
            refused = await client.until("reply", id="start")
            assert (refused["status"], refused["error"]["code"]) == ("error", "id_conflict")

    async def test_a_filter_skips_what_is_not_wanted_and_leaves_no_hole(self, command: Command) -> None:
        async with local_server() as server:
            publish = server.server.publish
            for number, thread in enumerate(["t1", "t2", None, "t2"]):
                await publish("acme", "ada", "app.line", {"line": number}, thread=thread)
            async with running(command, server.url, server.token, threads=["t1"]) as client:
                assert (await client.until("live", stream="user"))["seq"] == 4
                await publish("acme", "ada", "app.line", {"line": 4}, thread="t2")
                await publish("acme", "ada", "app.line", {"line": 5}, thread="t1")
                await publish("acme", "ada", "app.line", {"line": 6}, thread="t2")
                await publish("acme", "ada", "app.line", {"text": "in parts" * PART_BYTES}, thread="t1")
                await client.until("event", seq=8)
                await client.order("offline")
                await client.until("closed")
                await publish("acme", "ada", "app.line", {"line": 8}, thread="t2")
                await client.order("online")
                assert (await client.until("live", stream="user"))["seq"] == 9
                assert client.events == [e for e in await logged(server) if e.get("thread") != "t2"]
                assert [item["to"] for item in client.all("skip")] == [2, 4, 5, 7, 9]
                assert not client.all("hole")

    async def test_a_client_that_comes_too_late_is_told(self, command: Command) -> None:
        async with staged(command) as (server, _, client):
            for number in range(1, 4):
                await server.server.publish("acme", "ada", "app.line", {"line": number})
            await client.until("event", seq=3)
            await client.order("offline")
            await client.until("closed")
            for number in range(4, 10):
                await server.server.publish("acme", "ada", "app.line", {"line": number})
            await trim(server, oldest=7)
            await client.order("online")
            assert (await client.until("history_changed"))["reason"] == "trimmed"
            await client.until("live", stream="user", seq=9)
            assert [event["seq"] for event in client.events] == [1, 2, 3, 7, 8, 9]
            assert client.events[3:] == await logged(server)

    async def test_a_gap_within_a_replay_is_told_and_is_no_hole(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stage = Stage()
        async with local_server(stage.app) as server:
            for number in range(1, 10):
                await server.server.publish("acme", "ada", "app.line", {"line": number})
            stream = await server.server._services.streams.open(StreamKey("user", "acme", "ada"))
            stream.drop_tail()
            store = server.server._services.store
            read = type(store).read

            async def trimmed_before_it_is_read(*args: Any, **more: Any) -> Any:
                monkeypatch.undo()
                await trim(server, oldest=5)
                return await read(*args, **more)

            monkeypatch.setattr(type(store), "read", trimmed_before_it_is_read)
            async with running(command, server.url, server.token) as client:
                await client.until("live", stream="user", seq=9)
                told = [(item["from"], item["to"]) for item in client.all("gap")]
                assert told == [(1, 4)]
                assert client.events == await logged(server)
                assert not client.all("hole")

    async def test_both_sides_answer_pings(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsrecover.session.heartbeat.INTERVAL", 0.02)
        # Once it asked, the server asks again only after it heard something.
        timeouts = Timeouts(heartbeat=0.05, heartbeat_grace=2 * PATIENCE)
        async with (
            local_server(timeouts=timeouts) as server,
            running(command, server.url, server.token, heartbeat=2 * PATIENCE) as asked,
            running(command, server.url, server.token, client="asking", heartbeat=0.05) as asking,
        ):
            for _ in range(2):
                await asked.until("ping")
                await asking.until("pong")
            assert not asked.all("closed")
            assert not asking.all("closed")

    async def test_a_process_that_was_killed_goes_on_from_what_it_stored(self, command: Command) -> None:
        async with staged(command, client="tab") as (server, stage, client):
            await client.order("send", id="start", **START)
            await stage.tell(*lines(1, 5))
            stored = await client.until("event", seq=4)
            client.process.kill()
            await client.process.wait()
            before = [event for event in client.events if event["seq"] <= 4]
            await stage.tell(*lines(6, 9))
            stage.end()
            positions = {"user": [stored["epoch"], stored["seq"]]}
            async with running(command, server.url, server.token, client="tab", positions=positions) as again:
                await again.until("event", type="agent_completed")
                assert before + again.events == await logged(server)

    async def test_a_server_that_starts_again_goes_on_with_the_history(
        self, command: Command, tmp_path: Path, kept_port: int
    ) -> None:
        stage, store = Stage(), f"sqlite:{tmp_path / 'log.db'}"
        tokens = [""]
        async with running(command, f"ws://127.0.0.1:{kept_port}", tokens.pop, online=False) as client:
            async with local_server(stage.app, store=store, port=kept_port) as server:
                tokens[:] = [server.token()]
                await client.order("online")
                await client.until("live", stream="user")
                await client.order("send", id="start", **START)
                await stage.tell(*lines(1, 3))
                await client.until("event", seq=4)
            async with local_server(stage.app, store=store, port=kept_port) as server:
                assert (await client.until("connected"))["streams"]["user"]["resumed"]
                await server.server.publish("acme", "ada", "app.line", {"line": 4})
                await client.until("event", seq=6)
                assert client.events == await logged(server)
                assert client.events[4]["data"]["error"]["code"] == "server_stopped"
                assert client.all("event")[0]["epoch"] != client.all("event")[-1]["epoch"]
                assert not client.all("history_changed")

    async def test_a_client_that_is_replaced_comes_back_under_another_id(self, command: Command) -> None:
        async with staged(command, client="tab") as (server, _, client), server.peer(client="tab") as other:
            await other.until("live", stream="user")
            await client.until("closed", code=4500)
            assert (await client.until("connected"))["client"] != "tab"
            await server.server.publish("acme", "ada", "app.line", {"line": 1})
            await client.until("event", seq=1)
            await other.until("event", seq=1)
            async with server.peer(client=client.all("connected")[-1]["client"]):
                await client.until("closed", code=4500)
                await client.ended()

    async def test_a_token_that_is_refused_or_runs_out_is_replaced(self, command: Command) -> None:
        async with local_server() as server:
            tokens = [server.token(), server.token(), server.token(lifetime=30), "not a token"]
            async with running(command, server.url, tokens.pop) as client:
                await client.until("refused", status=401)
                await client.until("closed")
                await client.order("online")
                first = await client.until("connected")
                await client.until("reply", status="ok")
                assert len(tokens) == 1
                connection(server, first).close(4001, "the token expired")
                await client.until("closed", code=4001)
                await client.order("online")
                await client.until("connected")
                assert not tokens
                assert len(client.all("closed")) == 2

    async def test_a_send_that_may_have_caused_two_closes_is_given_up(self, command: Command) -> None:
        async with local_server() as server, running(command, server.url, server.token) as client:
            connected = await client.until("connected")
            await client.until("live", stream="user")
            await client.order("send", id="big", type="chat", data={"text": "x" * 70_000})
            for _ in range(2):
                await client.until("closed", code=1009)
                await client.order("online")
            assert (await client.until("failed"))["id"] == "big"
            assert (await client.until("connected"))["client"] == connected["client"]
            await client.order("send", id="small", type="chat", data={"text": "x"})
            await client.until("event")
            assert client.events == await logged(server)

    async def test_a_client_that_is_refused_for_good_stops(self, command: Command) -> None:
        async with (
            local_server() as server,
            running(command, server.url + "/elsewhere", server.token) as client,
        ):
            await client.until("refused", status=404)
            await client.ended()

    async def test_a_client_whose_user_was_revoked_stops(self, command: Command) -> None:
        async with local_server() as server, running(command, server.url, server.token) as client:
            connection(server, await client.until("connected")).close(4503, "revoked")
            await client.until("closed", code=4503)
            await client.ended()

    async def test_what_another_server_may_send_is_taken_as_the_spec_says(self, command: Command) -> None:
        first = [
            welcome("e-1", 0),
            [fragment(1, 0, "He🐢"), fragment(2, 4, "llo")],
            [{"op": "sparkle", "stream": "user"}, fragment(1, 0, "He🐢"), fragment(2, 4, "llo")],
            fragment(5, 9, "hole"),
        ]
        second = [
            [welcome("e-2", 2), fragment(4, 0, "He🐢llo wörld", first_seq=1)],
            event(5, "later.type", {}, colour="red"),
            {"op": "gap", "stream": "user", "reason": "unknown"},
            [event(9, "app.line", {}), {"op": "live", "stream": "user", "seq": 9}],
            {"op": "part", "stream": "user", "seq": 10, "offset": 0, "total": 6, "bytes": "e30="},
            {"op": "part", "stream": "user", "seq": 10, "offset": 3, "total": 6, "bytes": "e30="},
        ]
        third = [welcome("e-2", 9), {"op": "drain", "retry_after": 0, "jitter": 0}, 4000]
        fourth = [welcome("e-2", 9), {"op": "live", "stream": "user", "seq": 11}]
        fifth = [welcome("e-2", 9), 4599]
        async with (
            scripted(first, second, third, fourth, fifth) as (url, hellos),
            running(command, url, lambda: "token", hello="frame") as client,
        ):
            for _ in range(4):
                await client.until("closed")
                await client.order("online")
            await client.ended()
            got = [(item.get("first_seq", item["seq"]), item["seq"]) for item in client.all("event")]
            assert got == [(1, 1), (2, 2), (3, 4), (5, 5), (9, 9)]
            assert [item["seq"] for item in client.all("dropped")] == [1, 2]
            text = "".join(item["data"].get("text", "") for item in client.events)
            assert text == "He🐢llo wörld"
            resumes = [hello.get("resume", {}).get("user") for hello in hellos]
            assert resumes == [None, ["e-1", 2], ["e-2", 9], ["e-2", 9], ["e-2", 9]]
            assert not any("part" in hello for hello in hellos)
            assert [item["op"] for item in client.all("hole")] == ["event", "part", "live"]
            assert [item["code"] for item in client.all("closed")] == [1006, 1006, 4000, 1006, 4599]
