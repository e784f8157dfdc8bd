"""R11: what matters is not stuck behind what does not: control, broadcasts, critical events, a flood."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from memory_world import MemoryWorld, memory_world
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.agents import App, Run
from wsrecover.errors import InvalidEvent, RunEnded
from wsrecover.protocol.events import AGENT_EVENTS, CRITICAL
from wsrecover.testing import Peer, local_server

BACKLOG = 2000
PAD = "x" * 1000


async def fall_behind(world: MemoryWorld, peer: Peer) -> None:
    """Log so much for a peer that does not read that most of it waits in the log."""
    await peer.until("live")
    for number in range(BACKLOG):
        await world.local.server.publish("acme", "ada", "flood", {"n": number, "pad": PAD})


def user_events(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["data"]["n"] for frame in frames if frame["op"] == "event" and frame["stream"] == "user"]


async def test_r11_control_and_broadcasts_pass_a_backlog_of_the_user_stream(mock_clock: MockClock) -> None:
    async with memory_world() as world, world.local.peer(dial=world.network.dial) as peer:
        await fall_behind(world, peer)
        await world.local.server.broadcast("all", "notice", {"text": "fire"})
        await peer.send({"op": "ping"})
        # What the network and one write hold already goes first: 64 KiB each, and the events have 1 KiB.
        assert len(user_events(await peer.until("pong"))) < 200
        before = await peer.until("event", stream="all")
        assert len(user_events(before)) < 200
        rest = await peer.until("event", data={"n": BACKLOG - 1, "pad": PAD})
        assert len(user_events(rest)) > BACKLOG - 500, "the backlog was one"


async def test_r11_a_backlog_of_broadcasts_does_not_hold_up_the_user_stream(mock_clock: MockClock) -> None:
    async with memory_world() as world, world.local.peer(dial=world.network.dial) as peer:
        await peer.until("live")
        for number in range(BACKLOG):
            await world.local.server.broadcast("all", "notice", {"n": number, "pad": PAD})
        await world.local.server.publish("acme", "ada", "mine", {"n": 0})
        frames = await peer.until("event", type="mine")
        assert len(frames) < 400


async def test_r11_large_events_of_one_stream_let_another_pass_between_their_parts(
    mock_clock: MockClock,
) -> None:
    async with memory_world() as world, world.local.peer(dial=world.network.dial) as peer:
        await peer.until("live")
        for _ in range(8):
            await world.local.server.publish("acme", "ada", "large", {"pad": "x" * 500_000})
        await world.local.server.broadcast("all", "notice", {})
        frames = await peer.until("event", stream="all")
        # Two that the network and one write hold, and one of the turn before.
        assert 0 < sum(frame["op"] == "part" for frame in frames) < 6


async def test_r11_ephemeral_events_are_shed_first_and_logged_ones_never(mock_clock: MockClock) -> None:
    async with memory_world() as world, world.local.peer(dial=world.network.dial) as peer:
        server = world.local.server
        await fall_behind(world, peer)
        assert [server.ephemeral("acme", "ada", "level", {"n": n}) for n in range(1000)] == [0] * 1000
        counts = server.statistics().sessions.counts
        assert (counts["ephemeral.shed"], counts["ephemeral.sent"]) == (1000, 0)
        frames = await peer.until("event", data={"n": BACKLOG - 1, "pad": PAD})
        assert user_events(frames) == list(range(BACKLOG))
        assert not [frame for frame in frames if frame["op"] == "ephemeral"]
        await wait_all_tasks_blocked()
        assert server.ephemeral("acme", "ada", "level", {"n": 7}, thread="t") == 1
        assert await peer.frame() == {
            "op": "ephemeral",
            "stream": "user",
            "ts": trio.current_time(),
            "type": "level",
            "thread": "t",
            "data": {"n": 7},
        }


async def test_r11_a_flood_of_ephemeral_events_takes_nothing_from_critical_ones() -> None:
    app = App()

    @app.agent("noisy")
    async def noisy(run: Run) -> None:
        for _ in range(20):
            for number in range(50):
                await run.emit_ephemeral("level", {"n": number})
            await run.think("hm")
            async with run.tool("search", {}) as tool:
                await tool.complete({})

    async with local_server(app) as local, local.peer() as peer:
        await peer.until("live")
        run = (await peer.command("start_agent", {"agent": "noisy"}))["result"]["run"]
        with trio.fail_after(30):
            frames = await peer.until("event", type="agent_completed")
        events = [frame for frame in frames if frame["op"] == "event"]
        assert [event["seq"] for event in events] == list(range(1, 63))
        kinds = [event["type"] for event in events]
        assert kinds == [AGENT_EVENTS[0], *AGENT_EVENTS[1:4] * 20, AGENT_EVENTS[4]]
        shown = [frame for frame in frames if frame["op"] == "ephemeral"]
        assert shown, "the socket takes what it is offered while nothing waits"
        assert {(frame["run"], frame["stream"], frame["type"]) for frame in shown} == {(run, "user", "level")}
        assert not any("seq" in frame for frame in shown)


class TestEphemeral:
    async def test_r11_a_filter_of_threads_holds_for_it(self) -> None:
        async with local_server() as local, local.peer(threads=["t1"]) as peer:
            await peer.until("live")
            server = local.server
            shown = [server.ephemeral("acme", "ada", "level", {}, thread=name) for name in ("t2", "t1", None)]
            assert shown == [0, 1, 1]
            assert [(await peer.frame()).get("thread") for _ in range(2)] == ["t1", None]

    async def test_r11_it_reaches_the_user_alone_and_every_connection(self) -> None:
        async with (
            local_server() as local,
            local.peer(client="a") as first,
            local.peer(client="b") as second,
            local.peer("bob") as bob,
            local.peer(tenant="zeta") as stranger,
        ):
            for peer in (first, second, bob, stranger):
                await peer.until("live")
            assert local.server.ephemeral("acme", "ada", "level", {"n": 1}) == 2
            for peer in (first, second):
                assert (await peer.frame())["data"] == {"n": 1}
            for peer in (bob, stranger):
                await peer.send({"op": "ping"})
                assert (await peer.frame())["op"] == "pong"

    async def test_r11_nobody_there_is_no_error_and_leaves_nothing(self) -> None:
        async with local_server() as local:
            assert local.server.ephemeral("acme", "ada", "level", {}) == 0
            assert local.server.statistics().sessions.sessions == 0
            async with local.peer() as peer:
                assert [frame["op"] for frame in await peer.until("live")] == ["welcome", *["live"] * 3]

    @pytest.mark.parametrize("kind", sorted(CRITICAL))
    async def test_r11_what_a_user_must_see_is_refused(self, kind: str) -> None:
        async with local_server() as local:
            with pytest.raises(InvalidEvent, match="type"):
                local.server.ephemeral("acme", "ada", kind, {})

    async def test_r11_one_that_would_need_parts_is_refused(self) -> None:
        problems: list[InvalidEvent] = []
        app = App()

        @app.agent("large")
        async def large(run: Run) -> None:
            try:
                await run.emit_ephemeral("level", {"pad": "x" * run.input["size"]})
            except InvalidEvent as error:
                problems.append(error)

        async with local_server(app) as local, local.peer() as peer:
            await peer.until("live")
            limit = local.config.limits.part_bytes
            await peer.command("start_agent", {"agent": "large", "input": {"size": limit}})
            await peer.until("event", type="agent_completed")
            assert [problem.field for problem in problems] == ["data"]
            with pytest.raises(InvalidEvent, match="data"):
                local.server.ephemeral("acme", "ada", "level", {"pad": "x" * limit})

    async def test_r11_a_run_that_has_ended_shows_nothing(self) -> None:
        runs: list[Run] = []
        app = App()

        @app.agent("brief")
        async def brief(run: Run) -> None:
            runs.append(run)

        async with local_server(app) as local, local.peer() as peer:
            await peer.until("live")
            await peer.command("start_agent", {"agent": "brief"})
            await peer.until("event", type="agent_completed")
            with pytest.raises(RunEnded):
                await runs[0].emit_ephemeral("level", {})


async def test_r11_a_connection_is_shown_nothing_before_its_welcome(mock_clock: MockClock) -> None:
    first: list[str] = []
    async with memory_world() as world, trio.open_nursery() as nursery:
        store = world.services.store
        gate, asked = trio.Event(), trio.Event()
        load = store.load

        async def slow(key: Any) -> Any:
            asked.set()
            await gate.wait()
            return await load(key)

        async def connect() -> None:
            async with world.local.peer(dial=world.network.dial) as peer:
                first.append((await peer.frame())["op"])

        store.load = slow  # type: ignore[method-assign]  # A store that takes its time.
        nursery.start_soon(connect)
        await asked.wait()
        assert world.local.server.ephemeral("acme", "ada", "level", {}) == 0
        gate.set()
    assert first == ["welcome"]
