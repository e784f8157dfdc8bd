"""E06 and E08: each timeout is enforced, and each gives its own code. Time is the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
import trio
from memory_world import MemoryWorld, memory_world
from process import server_process
from serving import frames_until_closed
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.agents import App, Run
from wsrecover.client import ClientSession, Event, connect
from wsrecover.config import Timeouts
from wsrecover.errors import ConnectionClosed
from wsrecover.session.heartbeat import INTERVAL
from wsrecover.streams.store import StreamKey, StreamState
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport import open_socket

HEARTBEAT: Final = Timeouts().heartbeat


@pytest.fixture
def wall(mock_clock: MockClock) -> float:
    return 1_000_000.0


@pytest.fixture
async def local(mock_clock: MockClock) -> AsyncIterator[LocalServer]:
    async with local_server(wall_clock=trio.current_time) as server:
        yield server


async def ended(peer: Peer) -> int:
    """The code with which the connection ends."""
    try:
        while True:
            await peer.frame()
    except ConnectionClosed as closed:
        return closed.code


async def test_e06_a_silent_peer_is_asked_and_then_cut_with_4003(
    local: LocalServer, mock_clock: MockClock
) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        mock_clock.jump(25.5)
        assert (await peer.frame())["op"] == "ping"
        mock_clock.jump(9)
        await peer.send({"op": "pong"})
        await peer.send({"op": "ping"})
        assert (await peer.frame())["op"] == "pong"
        mock_clock.jump(25.5)
        assert (await peer.frame())["op"] == "ping"
        mock_clock.jump(10)
        assert await ended(peer) == 4003


async def test_e06_one_that_answers_at_once_is_asked_again(local: LocalServer, mock_clock: MockClock) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        for _ in range(3):
            mock_clock.jump(25.5)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await peer.send({"op": "ping"})
            assert (await peer.frame())["op"] == "ping"
            assert (await peer.frame())["op"] == "pong"


async def test_e06_either_side_finds_a_black_hole_within_heartbeat_and_10_s(
    autojump_clock: MockClock,
) -> None:
    """Nothing arrives at either end, silently: the server is rid of it, and the client comes another way."""
    statuses: list[tuple[str, float]] = []
    async with memory_world() as world:
        dial = partial(open_socket, dial=world.network.dial)
        async with connect(
            world.local.url,
            token=world.local.token(),
            dial=dial,
            rng=lambda: 0.0,
            on_status=lambda status: statuses.append((status, trio.current_time())),
        ) as session:
            await session.wait_status("live")
            await trio.sleep(100)
            assert statuses[-1][0] == "live", "asked again and again, both answer"
            world.network.connections[0].stall()
            lost = trio.current_time()
            position = await world.local.server.publish("acme", "ada", "noted", {})
            event = await anext(session)
            await trio.sleep_until(lost + 25 + 10 + INTERVAL)
            assert world.registry.statistics().counts["closed.4003"] == 1
            assert world.registry.statistics().connections == 1
    assert isinstance(event, Event)
    assert event.seq == position.seq
    (found,) = (at - lost for status, at in statuses if status == "waiting")
    assert found <= 25 + 10


async def test_e06_a_client_that_is_stopped_is_cut_and_resumes_when_it_goes_on(
    local: LocalServer, mock_clock: MockClock
) -> None:
    """A process under SIGSTOP: its kernel goes on to take what it is sent. Time is the server's."""
    counts = local.server._services.counts
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "wsrecover", "tail", "--url", local.url, "--json", "--since", "0"],
        env={**os.environ, "WSRECOVER_TOKEN": local.token()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert await logged_and_told(local, process) == [1]
        process.send_signal(signal.SIGSTOP)
        await trio.to_thread.run_sync(os.waitid, os.P_PID, process.pid, os.WSTOPPED)
        await wait_all_tasks_blocked()  # The server has heard all that it said before.
        for seconds, cut in ((HEARTBEAT + 0.5, 0), (9.25, 0), (0.25, 1)):
            mock_clock.jump(seconds)
            await wait_all_tasks_blocked()
            assert counts["closed.4003"] == cut
        assert local.server.connections() == ()
        for _ in range(3):
            await local.server.publish("acme", "ada", "noted", {})
        process.send_signal(signal.SIGCONT)
        assert await logged_and_told(local, process) == [2, 3, 4, 5]
    finally:
        process.kill()
        await process.wait()


async def test_e06_a_server_that_is_stopped_is_left_in_time_and_found_again_when_it_goes_on(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    """Its kernel takes the client's ping, and its next connection, and says nothing. Time is the client's."""
    statuses: list[tuple[str, float]] = []

    def note(status: str) -> None:
        statuses.append((status, trio.current_time()))

    async with server_process(tmp_path) as server:
        await server.start()
        async with connect(server.url, token=server.token(), rng=lambda: 0.0, on_status=note) as session:
            await session.wait_status("live")
            await said(session, 1)
            os.kill(server.pid, signal.SIGSTOP)
            try:
                await trio.to_thread.run_sync(os.waitid, os.P_PID, server.pid, os.WSTOPPED)
                stopped = trio.current_time()
                for seconds in (HEARTBEAT, 9.9):
                    mock_clock.jump(seconds)
                    await wait_all_tasks_blocked()
                    assert session.status == "live"
                mock_clock.jump(0.1)
                await wait_all_tasks_blocked()
                assert session.status != "live"
                (found,) = (at - stopped for status, at in statuses if status == "waiting")
                assert found <= HEARTBEAT + 10
            finally:
                os.kill(server.pid, signal.SIGCONT)
            await session.wait_status("live")
            await said(session, 2)


async def said(session: ClientSession, seq: int) -> None:
    """Say something, which is logged as this event."""
    assert await session.send("chat", {"text": "hello"}) == {"seq": seq}
    event = await anext(session)
    assert isinstance(event, Event)
    assert event.seq == seq


async def logged_and_told(local: LocalServer, process: trio.Process) -> list[int]:
    """Log an event; the seqs of all that the process then tells, up to that."""
    last = (await local.server.publish("acme", "ada", "noted", {})).seq
    said, seqs = b"", [0]
    assert process.stdout is not None
    while seqs[-1:] != [last]:
        said += await process.stdout.receive_some()
        seqs = [orjson.loads(line)["seq"] for line in said.split(b"\n")[:-1]]
    return seqs


async def test_e06_a_peer_is_not_taken_for_silent_while_its_streams_are_slow_to_open(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = Timeouts(heartbeat=4, heartbeat_grace=2, store=30)
    async with memory_world(timeouts=times) as there:
        load = there.services.store.load

        async def slow(key: StreamKey) -> StreamState:
            await trio.sleep(9 if key.scope == "user" else 0)
            return await load(key)

        async def hurry() -> None:
            for _ in range(9):
                await wait_all_tasks_blocked()
                mock_clock.jump(1)

        monkeypatch.setattr(there.services.store, "load", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hurry)
            async with there.local.peer(dial=there.network.dial) as peer:
                assert (await peer.frame())["op"] == "welcome"
                await peer.until("live")
                mock_clock.jump(3)
                await peer.send({"op": "ping"})
                await peer.until("pong")


async def test_e08_no_hello_within_the_handshake_time_gives_4501(
    local: LocalServer, mock_clock: MockClock
) -> None:
    async with local.stranger() as peer:
        await _until_waited_for(local)
        mock_clock.jump(5.1)
        assert await ended(peer) == 4501


async def test_e08_a_first_frame_that_is_no_hello_gives_4502(local: LocalServer) -> None:
    async with local.stranger() as peer:
        await peer.send({"op": "ping"})
        assert (await peer.frame())["field"] == "op"
        assert await ended(peer) == 4502


async def test_e08_a_token_that_expires_is_announced_and_then_gives_4001(
    local: LocalServer, mock_clock: MockClock
) -> None:
    leeway = local.config.timeouts.token_leeway
    async with local.peer(token=local.token(lifetime=100)) as peer:
        await peer.until("live")
        frames = await stay_awake(peer, mock_clock, 41)
        if not any(frame["op"] == "auth_required" for frame in frames):
            frames += await peer.until("auth_required")
        (asked,) = (frame for frame in frames if frame["op"] == "auth_required")
        assert 58 <= asked["expires_in"] <= 60
        await stay_awake(peer, mock_clock, 59 + leeway - 1)
        mock_clock.jump(1.1)
        assert await ended(peer) == 4001


async def stay_awake(peer: Peer, mock_clock: MockClock, seconds: float) -> list[dict[str, Any]]:
    """Let this much time go by while the peer shows that it is alive; the frames that came."""
    frames: list[dict[str, Any]] = []
    while seconds > 0:
        mock_clock.jump(min(seconds, 10))
        seconds -= 10
        await peer.send({"op": "ping"})
        frames += await peer.until("pong")
    return frames


async def test_e08_a_fresh_token_in_place_moves_the_expiry(local: LocalServer, mock_clock: MockClock) -> None:
    async with local.peer(token=local.token(lifetime=100)) as peer:
        await peer.until("live")
        await peer.send({"op": "auth", "id": "a1", "token": local.token(lifetime=1000)})
        assert (await peer.until("reply"))[-1]["status"] == "ok"
        await stay_awake(peer, mock_clock, 200)
        await peer.send({"op": "auth", "id": "a2", "token": local.token("somebody else")})
        assert await ended(peer) == 4501


async def test_e08_a_run_that_takes_too_long_fails_with_timeout(mock_clock: MockClock) -> None:
    app = App()

    @app.agent("slow", timeout=30)
    async def slow(run: Run) -> None:
        await run.think("for ever")
        await trio.sleep_forever()

    async with local_server(app, wall_clock=trio.current_time) as local, local.peer() as peer:
        await peer.until("live")
        await peer.command("start_agent", {"agent": "slow", "input": {}})
        await peer.events(2)
        await peer.send({"op": "ping"})
        await peer.until("pong")
        mock_clock.jump(30)
        (done,) = await peer.events(1)
        assert done["data"]["status"] == "failed"
        assert done["data"]["error"]["code"] == "timeout"


async def test_e08_a_run_that_takes_longer_than_the_server_lets_any_run_fails_with_timeout(
    mock_clock: MockClock,
) -> None:
    app = App()

    @app.agent("slow")
    async def slow(run: Run) -> None:
        await trio.sleep_forever()

    @app.agent("patient", timeout=24)
    async def patient(run: Run) -> None:
        await trio.sleep_forever()

    times = Timeouts(run=20)
    async with local_server(app, wall_clock=trio.current_time, timeouts=times) as local, local.peer() as peer:
        await peer.until("live")
        for agent in ("slow", "patient"):
            await peer.command("start_agent", {"agent": agent, "input": {}})
        started = {event["data"]["agent"]: event["run"] for event in await peer.events(2)}
        await stay_awake(peer, mock_clock, 19.9)
        assert local.server.statistics().sessions.runs == 2
        for seconds, agent, left in ((0.1, "slow", 1), (4.0, "patient", 0)):
            mock_clock.jump(seconds)
            await wait_all_tasks_blocked()
            assert local.server.statistics().sessions.runs == left
            (done,) = await peer.events(1)
            assert (done["type"], done["run"]) == ("agent_completed", started[agent])
            assert (done["data"]["status"], done["data"]["error"]["code"]) == ("failed", "timeout")


async def _until_waited_for(local: LocalServer) -> None:
    """Let the server reach its wait for somebody whom it does not know yet."""
    while not len(local.server._services.addresses):
        await wait_all_tasks_blocked(0.001)
    await wait_all_tasks_blocked()


async def test_e08_a_head_that_does_not_end_is_cut_at_the_handshake_time(
    local: LocalServer, mock_clock: MockClock
) -> None:
    stream = await trio.open_tcp_stream(*local.server.addresses[0])
    async with stream:
        await stream.send_all(b"GET /v1/connect HTTP/1.1\r\nHost: here\r\n")
        await _until_waited_for(local)
        mock_clock.jump(5.1)
        assert await stream.receive_some() == b""


async def test_e08_one_that_reads_nothing_is_cut_with_4002_and_misses_nothing(
    local: LocalServer, mock_clock: MockClock
) -> None:
    counts = local.server.statistics
    async with local.peer(client="stalled") as stalled:
        welcome = (await stalled.until("live"))[0]
        # Far more than the buffers of both sockets take.
        for n in range(200):
            await local.server.publish("acme", "ada", "noted", {"n": n, "pad": "x" * 60_000})
        # A byte may still have been taken a moment ago: the time is counted from the last one.
        while "closed.4002" not in counts().sessions.counts:
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(10.1)
    epoch = welcome["streams"]["user"]["epoch"]
    async with local.peer(client="stalled", resume={"user": [epoch, 0]}) as peer:
        last = 0
        while last < 200:
            frame = await peer.frame()
            if frame["op"] == "event" or (frame["op"] == "part" and frame["offset"] == 0):
                assert frame["seq"] == last + 1
                last = frame["seq"]


DRAIN = Timeouts(drain=1.0, drain_retry_after=3.0, drain_jitter=7.0)


class Tab:
    """A client that reads to its end, and what it was told then."""

    def __init__(self, world: MemoryWorld, name: str) -> None:
        self.name = name
        self.last: dict[str, Any] = {}
        self.code = 0
        self.ended_at = 0.0
        self._world = world

    async def read(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._world.local.peer(client=self.name, dial=self._world.network.dial) as peer:
            await peer.until("live")
            task_status.started()
            try:
                while True:
                    self.last = await peer.frame()
            except ConnectionClosed as closed:
                self.code, self.ended_at = closed.code, trio.current_time()


async def test_e08_drain_tells_each_connection_when_to_come_back_and_closes_one_after_the_other(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with memory_world(timeouts=DRAIN) as world:
        tabs = [Tab(world, f"tab {n}") for n in range(50)]
        for tab in tabs:
            await nursery.start(tab.read)
        begun = trio.current_time()
        await world.local.server.drain()
        assert trio.current_time() - begun < 0.1
        assert world.local.server.statistics().sessions.counts["closed.4000"] == len(tabs)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ConnectionRefusedError):
            await world.network.dial("memory", 80)
    assert {tab.code for tab in tabs} == {4000}
    told = {"op": "drain", "retry_after": 3.0, "jitter": 7.0}
    assert [tab.last for tab in tabs] == [told] * len(tabs)
    assert [tab.ended_at - begun for tab in tabs] == pytest.approx([n / 1000 for n in range(50)])


@pytest.mark.parametrize("stalled", [False, True], ids=["does not answer", "does not read"])
async def test_e08_a_peer_that_does_not_take_part_holds_the_drain_no_longer_than_its_time(
    autojump_clock: MockClock, nursery: trio.Nursery, stalled: bool
) -> None:
    async with memory_world(timeouts=DRAIN) as world, world.local.peer(dial=world.network.dial) as deaf:
        await deaf.until("live")
        if stalled:
            for _ in range(10):
                await world.local.server.publish("acme", "ada", "noted", {"pad": "x" * 30_000})
        tab = Tab(world, "well-behaved")
        await nursery.start(tab.read)
        begun = trio.current_time()
        await world.local.server.drain()
        assert trio.current_time() - begun == pytest.approx(DRAIN.drain)
        assert (tab.code, tab.last["op"]) == (4000, "drain")
        await trio.testing.wait_all_tasks_blocked()
        assert world.local.server.statistics().sessions.connections == 0
        if stalled:
            with pytest.raises(ConnectionClosed):
                await deaf.send({"op": "ping"})
        else:
            assert await ended(deaf) == 4000


async def test_e08_one_with_a_backlog_is_told_behind_what_is_on_its_way(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with memory_world(timeouts=DRAIN) as world, world.local.peer(dial=world.network.dial) as slow:
        await slow.until("live")
        for _ in range(10):
            await world.local.server.publish("acme", "ada", "noted", {"pad": "x" * 30_000})
        nursery.start_soon(world.local.server.drain)
        await trio.testing.wait_all_tasks_blocked()
        *seen, last = (await frames_until_closed(slow))[0]
        assert {frame["op"] for frame in seen} == {"event"}
        assert last == {"op": "drain", "retry_after": 3.0, "jitter": 7.0}


async def test_e08_one_that_comes_while_the_server_drains_is_sent_away_with_the_same_words(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with (
        memory_world(timeouts=DRAIN) as world,
        world.local.stranger(dial=world.network.dial) as late,
    ):
        await trio.testing.wait_all_tasks_blocked()
        await world.local.server.drain()
        await late.send({"op": "hello", "client": "late", "token": world.local.token()})
        assert await late.frame() == {"op": "drain", "retry_after": 3.0, "jitter": 7.0}
        assert await ended(late) == 4000


async def test_e08_a_server_that_is_cancelled_says_the_same_to_all_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    async with memory_world(timeouts=DRAIN) as world:
        tabs = [Tab(world, f"tab {n}") for n in range(50)]
        for tab in tabs:
            await nursery.start(tab.read)
        begun = trio.current_time()
    await trio.testing.wait_all_tasks_blocked()
    assert {(tab.code, tab.last["op"]) for tab in tabs} == {(4000, "drain")}
    assert trio.current_time() == begun
