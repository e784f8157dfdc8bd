"""R6 and E13: what is shed as memory fills up, in which order, and that it ends by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import structlog
import trio
from figures import Figure
from serving import START
from trio.testing import MockClock
from witness import Witness

from wsrecover.config import Limits, Timeouts
from wsrecover.errors import HandshakeRefused
from wsrecover.session.pressure import CALM_INTERVAL, HOLD, INTERVAL, Weights
from wsrecover.session.services import Services
from wsrecover.session.shedding import weigh
from wsrecover.streams.store import StreamKey
from wsrecover.testing import LocalServer, local_server
from wsrecover.testing.recording import Drained

MIB: Final = 1024 * 1024
LIMITS: Final = Limits(memory_bytes=2 * MIB, tail_events=10_000, tail_bytes=8 * MIB)
PAD: Final = 5_000

UNTIL: Final = ((503, 1), (503, HOLD))
"""Until the next look, or, where it came early and found the same, until its stage may end."""


class Onlooker(Witness):
    """Has the server look before each client comes.

    Until then what the one before was sent counts as held, and who is refused for it waits for ever on a
    clock that stands still.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.local)
        self._scene = scene

    async def drain(self, stream: str) -> Drained:
        await self._scene.look()
        return await super().drain(stream)


class Scene:
    """A server with a small budget, whose clock stands still unless the test moves it."""

    def __init__(self, local: LocalServer, clock: MockClock) -> None:
        self.local = local
        self.clock = clock
        self.witness = Onlooker(self)

    @property
    def services(self) -> Services:
        return self.local.server._services

    @property
    def stage(self) -> str:
        return self.local.server.statistics().memory.stage

    @property
    def counts(self) -> Any:
        return self.local.server.statistics().sessions.counts

    async def weights(self) -> Weights:
        """What is held now."""
        return await weigh(self.local.server.registry, self.services)

    async def share(self) -> float:
        """What is held now, of the budget."""
        return (await self.weights()).total / LIMITS.memory_bytes

    def tail(self, user: str) -> int:
        stream = self.services.streams.get(StreamKey("user", "acme", user))
        return 0 if stream is None else stream.tail_bytes

    async def look(self, times: int = 1) -> None:
        """Let so many seconds pass, with a look at what is held in each."""
        for _ in range(times):
            before = self.services.pressure._looked_at
            for _ in range(round(CALM_INTERVAL / INTERVAL)):
                self.clock.jump(INTERVAL)
                for _ in range(1000):  # The clock stands still, so this is what bounds the wait.
                    if self.services.pressure._looked_at != before:
                        break
                    await trio.lowlevel.checkpoint()
                else:
                    continue
                break
            else:
                raise AssertionError("nobody looked")

    async def fill(self, share: float, user: str) -> None:
        """Publish to the user until the share is reached."""
        for _ in range(1000):
            if await self.share() >= share:
                return
            await self.witness.publish(1, user, pad=PAD)
        raise AssertionError(f"{share} of the budget is never reached")

    async def connect(self, stack: AsyncExitStack, user: str, **hello: Any) -> tuple[int, float | None]:
        """How a connect is answered: the status, and Retry-After. Who is let in stays."""
        try:
            peer = await stack.enter_async_context(self.local.peer(user, **START, **hello))
        except HandshakeRefused as refused:
            return refused.status, refused.retry_after
        await peer.until("welcome")
        return 101, None

    async def crowd(self, stack: AsyncExitStack) -> tuple[int, tuple[int, float | None]]:
        """Let new users in until one is refused; how many they were, and its answer."""
        count = 0
        while (answer := await self.connect(stack, f"{len(self.local.server.registry.sessions)}-{count}"))[
            0
        ] == 101:
            count += 1
        return count, answer

    async def until_share_below(self, share: float) -> None:
        """Wait until those who left are gone from the server's view, too."""
        with trio.fail_after(10):
            while await self.share() >= share:
                await trio.lowlevel.checkpoint()


@asynccontextmanager
async def staged(clock: MockClock, folder: Path) -> AsyncIterator[Scene]:
    store = f"sqlite:{folder / 'log.db'}"
    async with local_server(store=store, limits=LIMITS, timeouts=Timeouts(linger=2.0)) as local:
        yield Scene(local, clock)


async def left(scene: Scene, user: str) -> str:
    """Let a user come and leave: its session is idle for as long as time stands still. The stream's epoch."""
    async with scene.local.peer(user, **START) as peer:
        epoch = (await peer.until("live"))[0]["streams"]["user"]["epoch"]
    session = scene.local.server.registry.sessions["acme", user]
    while session.state != "idle":
        await trio.lowlevel.checkpoint()
    return str(epoch)


async def test_e13_r6_events_that_are_not_logged_go_first(mock_clock: MockClock, tmp_path: Path) -> None:
    async with (
        staged(mock_clock, tmp_path) as scene,
        scene.local.peer("ada", **START) as ada,
        AsyncExitStack() as stack,
    ):
        server = scene.local.server
        await ada.until("live")
        await left(scene, "bob")
        assert server.ephemeral("acme", "ada", "cursor", {"x": 1}) == 1
        await scene.fill(0.6, "bob")
        await scene.fill(0.81, "ada")
        tails = scene.tail("ada"), scene.tail("bob")
        await scene.look()
        assert scene.stage == "ephemeral"
        assert server.ephemeral("acme", "ada", "cursor", {"x": 2}) == 0
        assert scene.counts["ephemeral.shed"] == 1
        assert (scene.tail("ada"), scene.tail("bob")) == tails
        assert await scene.connect(stack, "eve") == (101, None)
        frames = await ada.events(1)
        position = await scene.witness.publish(1, "ada")
        while frames[-1]["seq"] < position[0].seq:
            frames += [frame for frame in [await ada.frame()] if frame["op"] == "event"]
        assert [frame["seq"] for frame in frames] == list(range(1, position[0].seq + 1))
        await scene.witness.check(acknowledged=100)


async def test_e13_r6_then_what_of_idle_sessions_can_be_read_again(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with staged(mock_clock, tmp_path) as scene, scene.local.peer("ada", **START) as ada:
        await ada.until("live")
        epoch = await left(scene, "bob")
        bob = scene.local.server.registry.sessions["acme", "bob"]
        await scene.local.server.publish("acme", "bob", "message_started", {"message_id": "m"}, thread="t")
        context = await bob.contexts.thread("t")
        assert bob.contexts.held
        await scene.fill(0.4, "ada")
        await scene.fill(0.86, "bob")
        live, idle = scene.tail("ada"), scene.tail("bob")
        await scene.look()
        assert scene.stage == "tails"
        assert (scene.tail("ada"), scene.tail("bob"), bob.contexts.held) == (live, 0, 0)
        assert scene.counts["shed.tails"] == idle
        assert scene.counts["shed.contexts"] > 0
        assert await bob.contexts.thread("t") == context
        async with scene.local.peer("bob", **START, resume={"user": [epoch, 0]}) as back:
            welcome, *frames = await back.until("live", stream="user")
            info = welcome["streams"]["user"]
            events = [frame["seq"] for frame in frames if frame["op"] == "event"]
        assert info["resumed"]
        assert events == list(range(1, info["head"] + 1))


async def test_e13_r6_and_then_new_connections_before_those_that_come_back(
    mock_clock: MockClock, tmp_path: Path, figure: Figure
) -> None:
    async with staged(mock_clock, tmp_path) as scene, scene.witness.client("ada") as ada:
        witness, server = scene.witness, scene.local.server
        epoch = await left(scene, "bob")
        await witness.publish(20, "ada", pad=PAD)
        await ada.take(20)
        back = {"resume": {"user": [epoch, 0]}}
        async with AsyncExitStack() as crowd:
            with structlog.testing.capture_logs() as logs:
                fresh = 0
                while scene.stage != "connects":
                    more, refused = await scene.crowd(crowd)
                    assert more > 0, "a look has freed the tails, or found less than was guessed"
                    assert refused in UNTIL
                    fresh += more
                    await scene.look()
            assert scene.tail("ada") == 0, "nobody is turned away for what can be read again"
            assert [line["sheds"] for line in logs if line["event"] == "memory_short"] == [
                "tails",
                "connects",
            ]
            told = {(line["code"], line["reason"]) for line in logs if line["event"] == "rejected"}
            assert told == {(503, "memory is short")}
            assert await scene.connect(crowd, "new") == (503, HOLD)
            async with scene.local.stranger() as stranger:
                await stranger.send({"op": "hello", "client": "tab", "token": scene.local.token("new")})
                told = await stranger.frame()
            assert (told["code"], told["retry_after"]) == ("overloaded", HOLD)
            resumed = 0
            while scene.stage != "resumes":
                while (answer := await scene.connect(crowd, f"bob{resumed}", **back))[0] == 101:
                    resumed += 1
                assert answer in UNTIL
                await scene.look()
            with pytest.raises(HandshakeRefused) as unknown:
                await crowd.enter_async_context(scene.local.stranger())
            assert (unknown.value.status, unknown.value.retry_after) == (503, HOLD)
            assert server.ephemeral("acme", "ada", "cursor", {"x": 1}) == 0
            await witness.publish(20, "ada")
            await ada.take(20)
            assert scene.counts["shed.connects"] >= 3
            assert scene.counts["shed.resumes"] >= 2
        await until_recovered(scene)
        assert server.ephemeral("acme", "ada", "cursor", {"x": 1}) == 1
        await witness.publish(5, "ada")
        await ada.take(5)
        ada.settled()
        report = await witness.check(acknowledged=45, deliveries=45)
    assert fresh > 20
    assert 2 <= resumed < fresh
    figure("R6 E13", "new users let in within a budget of 2 MiB", fresh)
    figure("R6 E13", "more of those who resume", resumed)
    figure("R6 E13", "K while memory is short", len(report.anomalies))


async def until_recovered(scene: Scene) -> None:
    """The crowd has left: the wait that is told is true to the millisecond, and then all is as before."""
    with structlog.testing.capture_logs() as logs:
        await scene.until_share_below(0.5)
        async with AsyncExitStack() as stack:
            assert await scene.connect(stack, "new") == (503, HOLD)
            await scene.look(4)
            assert await scene.connect(stack, "new") == (503, HOLD - 4)
            scene.clock.jump(HOLD - 4 - 0.001)
            assert await scene.connect(stack, "new") == (503, 1)
            scene.clock.jump(0.001)
            assert await scene.connect(stack, "new") == (101, None)
        await scene.look()
    assert scene.stage == "nothing"
    assert [line["event"] for line in logs if line["event"].startswith("memory")] == ["memory_recovered"]


async def test_r6_a_store_in_memory_is_all_that_is_held_and_its_tails_stay(mock_clock: MockClock) -> None:
    async with local_server(limits=LIMITS, wall_clock=trio.current_time) as local:
        scene = Scene(local, mock_clock)
        await left(scene, "bob")
        async with AsyncExitStack() as stack:
            await scene.fill(0.5, "bob")
            await scene.fill(1.01, "eve")
            assert scene.tail("eve") == 0, "nobody follows eve, and nothing but the log has her events"
            tail = scene.tail("bob")
            await scene.look()
            assert scene.stage == "resumes"
            assert scene.tail("bob") == tail > LIMITS.memory_bytes * 0.4
            assert await scene.connect(stack, "new") == (503, HOLD)
            position = await local.server.publish("acme", "bob", "noted", {})
            assert position.seq > 1


async def test_r6_what_waits_for_slow_readers_and_for_the_journal_is_held(
    mock_clock: MockClock, tmp_path: Path
) -> None:
    async with staged(mock_clock, tmp_path) as scene, scene.local.peer("ada", **START) as slow:
        await slow.until("live")
        assert (await scene.weights()).backlog == 0
        await scene.witness.publish(1, "ada", pad=1000)
        assert (await scene.weights()).backlog == 0, "a reader that keeps up leaves nothing behind"
        for _ in range(200):
            await scene.witness.publish(1, "ada", pad=100_000)
            if (await scene.weights()).backlog:
                break
        assert 0 < (await scene.weights()).backlog < LIMITS.page_bytes + 2 * LIMITS.part_bytes
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(partial(scene.witness.publish, 1, "bob", pad=1000))
            while (await scene.weights()).journal < 10 * 1000:
                await trio.lowlevel.checkpoint()
        assert (await scene.weights()).journal == 0
