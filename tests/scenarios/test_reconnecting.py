"""C rows and S11: reconnecting keeps the context, costs nothing that stays, and has patience."""

from __future__ import annotations

import random
import sqlite3
import statistics
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from memory_world import MemoryWorld, memory_world
from serving import PATIENCE
from stage import Stage
from trio.testing import MockClock, wait_all_tasks_blocked
from witness import Witness

from wsrecover.client import ClientSession, Event, Position, Status, connect
from wsrecover.config import Limits, Tier
from wsrecover.errors import ConnectionClosed, HandshakeRefused, TransportError
from wsrecover.protocol.backoff import FIRST, LONGEST, STABLE_AFTER
from wsrecover.testing import LocalServer
from wsrecover.transport import Pipe, open_socket


@attrs.frozen
class Held:
    """What a server and its client hold: after a reconnect it must be as before."""

    tasks: int
    descriptors: int
    sessions: int
    connections: int
    runs: int
    streams: int
    followers: int

    @classmethod
    def now(cls, local: LocalServer) -> Held:
        known = local.server.statistics().sessions
        streams = local.server._services.streams._streams.values()
        return cls(
            tasks=trio.lowlevel.current_statistics().tasks_living,
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            sessions=known.sessions,
            connections=known.connections,
            runs=known.runs,
            streams=len(streams),
            followers=sum(len(stream.live) for stream in streams),
        )


async def test_c04_a_hundred_reconnects_leave_everything_as_the_first_did(
    local: LocalServer, stage: Stage
) -> None:
    witness = Witness(local)
    async with witness.client() as client:
        run = await client.session.start_agent("worker", {"text": "hi"}, thread="t1")
        await client.until("agent_started")
        await client.session.wait_status("live")
        before = Held.now(local)
        states: list[Any] = []
        for attempt in range(100):
            await client.drop()
            if attempt % 2:
                stage.tell("think")
            else:
                await witness.publish()
            client.come_back()
            await client.take(1)
            await client.session.wait_status("live")
            with trio.fail_after(PATIENCE):
                # What the server still had of the former connection goes as it learns of its end.
                while Held.now(local) != before:
                    await wait_all_tasks_blocked()
            session = client.session
            states.append((session.principal, session.runs, session.limits, session.client_id))
        assert before.connections == 1
        assert all(state == states[0] for state in states)
        assert [info.run for info in client.session.runs] == [run]
        assert client.session.received["user"].seq == 101
        stage.tell("finish")
        await client.until("agent_completed")
        assert client.seqs == list(range(1, 103))
        assert client.notices == []
        client.settled()
    await witness.check(resumes=100, drained=102)


class TestC06AServerThatCannotBeReached:
    """Over the network in memory: 4 ways of not being there, in virtual time."""

    @staticmethod
    async def refused(host: str, port: int) -> Pipe:
        raise ConnectionRefusedError(f"{host}:{port} is refusing")

    @staticmethod
    async def unknown(host: str, port: int) -> Pipe:
        await trio.sleep(0.1)
        raise OSError(-2, f"Name or service not known: {host}")

    @staticmethod
    async def silent(host: str, port: int) -> Pipe:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    WAYS = (
        (refused, "is refusing", 0.0),
        (unknown, "Name or service not known", 0.1),
        (silent, "no answer within 10", 10.0),
    )

    @pytest.fixture
    async def world(self, autojump_clock: MockClock) -> AsyncIterator[MemoryWorld]:
        async with memory_world() as world:
            yield world

    @asynccontextmanager
    async def session(self, world: MemoryWorld, dial: Any, **options: Any) -> AsyncIterator[ClientSession]:
        token = world.local.token()
        async with connect(
            world.local.url, token=token, dial=partial(open_socket, dial=dial), **options
        ) as session:
            yield session

    @pytest.mark.parametrize(("way", "words", "each"), WAYS)
    async def test_c06_from_the_start(
        self, way: Callable[..., Any], words: str, each: float, world: MemoryWorld, autojump_clock: MockClock
    ) -> None:
        tried: list[float] = []
        statuses: list[Status] = []

        async def dial(host: str, port: int) -> Pipe:
            tried.append(trio.current_time())
            return await way(host, port)

        began = trio.current_time()
        with pytest.raises(TransportError, match=words):
            async with self.session(
                world, dial, give_up_after=60, rng=lambda: 0.5, on_status=statuses.append
            ):
                raise AssertionError("there is nothing to be connected to")
        assert trio.current_time() - began == 60
        waits = [later - earlier - each for earlier, later in pairwise(tried)]
        expected = [0.25, 0.5, 1, 2, 4, 8, 10, 10, 10, 10, 10, 10]
        assert waits == pytest.approx(expected[: len(waits)])
        assert len(tried) >= 5
        assert statuses[-1] == "closed"
        assert set(statuses[:-1]) == {"connecting", "waiting"}

    @pytest.mark.parametrize(("way", "words", "each"), WAYS)
    async def test_c06_in_mid_session_until_it_is_back(
        self, way: Callable[..., Any], words: str, each: float, world: MemoryWorld, autojump_clock: MockClock
    ) -> None:
        statuses: list[Status] = []
        there = True

        async def dial(host: str, port: int) -> Pipe:
            return await (world.network.dial if there else way)(host, port)

        options = {"rng": random.Random(6).random, "on_status": statuses.append}
        async with self.session(world, dial, **options) as session:
            await session.wait_status("live")
            there = False
            world.network.cut()
            await world.local.server.publish("acme", "ada", "noted", {})
            await trio.sleep(200)
            assert session.status in ("waiting", "connecting")
            assert words in str(session.last_error)
            there = True
            item = await anext(session)
            assert isinstance(item, Event)
            assert item.seq == 1
        assert statuses.count("replaying") <= 2
        assert statuses[-2:] == ["live", "closed"]

    async def test_c06_a_server_that_is_gone_for_good_ends_the_session_with_its_last_error(
        self, world: MemoryWorld, autojump_clock: MockClock
    ) -> None:
        async with self.session(world, world.network.dial, give_up_after=30) as session:
            await session.wait_status("live")
            await trio.sleep(100)
            world.network.refusing = True
            world.network.cut()
            gone = trio.current_time()
            with pytest.raises(TransportError, match="is refusing"):
                await anext(session)
            assert trio.current_time() - gone == pytest.approx(30)
            assert session.status == "closed"
            assert "is refusing" in str(session.last_error)
            with pytest.raises(TransportError, match="is refusing"):
                await session.send("chat", {})

    async def test_c06_told_to_stop_while_it_waits_it_stops_at_once_and_keeps_its_last_error(
        self, world: MemoryWorld, autojump_clock: MockClock
    ) -> None:
        async with self.session(world, world.network.dial, rng=lambda: 0.9) as session:
            await session.wait_status("live")
            world.network.refusing = True
            world.network.cut()
            await trio.sleep(60)
            stopped = trio.current_time()
            await session.aclose()
            assert trio.current_time() == stopped
            assert session.status == "closed"
            assert "is refusing" in str(session.last_error)
            assert [item async for item in session] == []


class Crash(Exception):
    """The client's process dies here."""


class Ledger:
    """An app's database: its effects and its position. A crash takes what was not committed."""

    def __init__(self) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        self.database.execute("CREATE TABLE effect (seq INTEGER)")
        self.database.execute("CREATE TABLE position (epoch TEXT, seq INTEGER)")

    def begin(self) -> None:
        self.database.execute("BEGIN")

    def commit(self) -> None:
        self.database.execute("COMMIT")

    def crash(self) -> None:
        if self.database.in_transaction:
            self.database.execute("ROLLBACK")

    def take_effect(self, event: Event) -> None:
        self.database.execute("INSERT INTO effect VALUES (?)", (event.seq,))

    def keep(self, epoch: str, seq: int) -> None:
        self.database.execute("DELETE FROM position")
        self.database.execute("INSERT INTO position VALUES (?, ?)", (epoch, seq))

    @property
    def positions(self) -> dict[str, Position]:
        row = self.database.execute("SELECT * FROM position").fetchone()
        return {} if row is None else {"user": Position(*row)}

    @property
    def effects(self) -> list[int]:
        return [seq for (seq,) in self.database.execute("SELECT seq FROM effect ORDER BY rowid")]


class TestC08AClientThatCrashes:
    """It dies between any two steps of handling an event, and starts again from its processed position."""

    EVENTS = 60

    @staticmethod
    async def together(session: ClientSession, ledger: Ledger, step: Callable[[], None]) -> None:
        """The position is stored with the effect, in one transaction."""
        event = await anext(session)
        assert isinstance(event, Event)
        step()
        ledger.begin()
        step()
        ledger.take_effect(event)
        step()
        position = session.position["user"]
        assert position.seq == event.seq
        ledger.keep(position.epoch, position.seq)
        step()
        ledger.commit()
        step()

    @staticmethod
    async def apart(session: ClientSession, ledger: Ledger, step: Callable[[], None]) -> None:
        """What the session says is processed is stored later, on its own."""
        event = await anext(session)
        assert isinstance(event, Event)
        step()
        if processed := session.processed.get("user"):
            ledger.keep(processed.epoch, processed.seq)
        step()
        ledger.take_effect(event)
        step()

    async def work(self, local: LocalServer, handle: Any, seed: int) -> tuple[Ledger, int]:
        """Handle every event, with crashes by chance; the ledger, and how many crashes there were."""
        rng = random.Random(seed)
        ledger = Ledger()
        crashes = 0

        def step() -> None:
            if rng.random() < 0.1:
                raise Crash

        while len(set(ledger.effects)) < self.EVENTS:
            with trio.fail_after(PATIENCE), trio.CancelScope() as process:
                async with connect(
                    local.url,
                    token=local.token(),
                    positions=ledger.positions,
                    from_="start",
                    buffer_items=8,
                ) as session:
                    try:
                        while len(set(ledger.effects)) < self.EVENTS:
                            await handle(session, ledger, step)
                    except Crash:
                        crashes += 1
                        ledger.crash()
                        process.cancel()
                        await trio.lowlevel.checkpoint()
        return ledger, crashes

    @pytest.mark.parametrize("seed", range(3))
    async def test_c08_exactly_once_where_the_position_is_stored_with_the_effects(
        self, local: LocalServer, seed: int
    ) -> None:
        await Witness(local).publish(self.EVENTS)
        ledger, crashes = await self.work(local, self.together, seed)
        assert ledger.effects == list(range(1, self.EVENTS + 1))
        assert crashes > 10

    @pytest.mark.parametrize("seed", range(3))
    async def test_c08_at_least_once_and_in_order_where_it_is_not(
        self, local: LocalServer, seed: int
    ) -> None:
        await Witness(local).publish(self.EVENTS)
        ledger, crashes = await self.work(local, self.apart, seed)
        effects = ledger.effects
        assert list(dict.fromkeys(effects)) == list(range(1, self.EVENTS + 1))
        assert max(Counter(effects).values()) > 1
        assert crashes > 5


class Waits:
    """The waits of clients between one end of a connection, or failed try, and the next try."""

    def __init__(self, world: MemoryWorld) -> None:
        self.world = world
        self.tried: list[float] = []
        self._tried = trio.lowlevel.ParkingLot()

    async def dial(self, host: str, port: int) -> Pipe:
        self.tried.append(trio.current_time())
        self._tried.unpark_all()
        return await self.world.network.dial(host, port)

    async def next_after(self, moment: float) -> float:
        """How long after this moment the next try came."""
        while self.tried[-1] < moment:
            await self._tried.park()
        return next(tried for tried in self.tried if tried >= moment) - moment


class TestS11TheReconnectManager:
    """In virtual time, with the whole server behind a network in memory."""

    @pytest.fixture
    async def world(self, autojump_clock: MockClock) -> AsyncIterator[MemoryWorld]:
        async with memory_world() as world:
            yield world

    @asynccontextmanager
    async def session(
        self, world: MemoryWorld, waits: Waits, rng: Callable[[], float], **options: Any
    ) -> AsyncIterator[ClientSession]:
        given = {"token": world.local.token(lifetime=1e6), **options}
        async with connect(
            world.local.url, dial=partial(open_socket, dial=waits.dial), rng=rng, **given
        ) as session:
            yield session

    async def give_up(self, world: MemoryWorld, rng: Callable[[], float], after: float) -> Sequence[float]:
        """The waits of a client that finds nobody for so long."""
        waits = Waits(world)
        with pytest.raises(TransportError):
            async with self.session(world, waits, rng, give_up_after=after):
                raise AssertionError("nobody is there")
        tried = waits.tried
        return [later - earlier for earlier, later in pairwise(tried)]

    async def test_s11_the_delays_are_spread_evenly_below_a_ceiling_that_doubles_up_to_20_s(
        self, world: MemoryWorld, autojump_clock: MockClock
    ) -> None:
        seed, clients = 11, 300
        world.network.refusing = True
        everybody: list[Sequence[float]] = []

        async def client(rng: random.Random) -> None:
            everybody.append(await self.give_up(world, rng.random, 150))

        async with trio.open_nursery() as nursery:
            for number in range(clients):
                nursery.start_soon(client, random.Random(1000 * seed + number))
        for attempt, ceiling in enumerate([0.5, 1, 2, 4, 8, 16, 20, 20, 20]):
            assert ceiling == min(LONGEST, FIRST * 2**attempt)
            delays = [waits[attempt] / ceiling for waits in everybody if len(waits) > attempt]
            assert len(delays) == clients, "everybody got that far"
            assert 0 <= min(delays) < 0.05, f"attempt {attempt}, seed {seed}"
            assert 0.95 < max(delays) <= 1, f"attempt {attempt}, seed {seed}"
            # 300 values from 0 to 1: the mean of even ones is within 0.05 of the middle, at 3 sigma.
            assert statistics.mean(delays) == pytest.approx(0.5, abs=0.06), f"attempt {attempt}, seed {seed}"
            quarters = Counter(min(3, int(delay * 4)) for delay in delays)
            assert min(quarters.values()) > clients / 8, f"attempt {attempt}, seed {seed}: {quarters}"

    async def test_s11_clients_that_lost_their_server_together_do_not_come_back_together(
        self, world: MemoryWorld, autojump_clock: MockClock
    ) -> None:
        rng = random.Random(1)
        waits = Waits(world)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(self.stay, world, waits, rng, f"user {number}")
            await trio.sleep(10)
            lost = trio.current_time()
            world.network.cut()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        came = [tried - lost for tried in waits.tried if tried >= lost]
        assert len(came) == 100
        assert 0.4 < max(came) <= FIRST
        # Of ten equal shares of the time none has more than a quarter of them.
        assert max(Counter(int(moment / FIRST * 10) for moment in came).values()) < 25

    async def stay(self, world: MemoryWorld, waits: Waits, rng: random.Random, user: str) -> None:
        async with self.session(world, waits, rng.random, token=world.local.token(user)):
            await trio.sleep_forever()

    @pytest.mark.parametrize(
        ("held", "ceiling"), [(STABLE_AFTER - 1, 20.0), (STABLE_AFTER + 1, FIRST), (1.0, 20.0)]
    )
    async def test_s11_a_connection_that_held_for_60_s_sets_the_delay_back(
        self, held: float, ceiling: float, world: MemoryWorld, autojump_clock: MockClock
    ) -> None:
        waits = Waits(world)
        share = 0.999
        async with self.session(world, waits, lambda: share) as session:
            world.network.refusing = True
            world.network.cut()
            await trio.sleep(90)
            world.network.refusing = False
            await session.wait_status("live")
            await trio.sleep(held)
            lost = trio.current_time()
            world.network.cut()
            assert await waits.next_after(lost) == pytest.approx(share * ceiling)
            await session.wait_status("live")

    async def test_s11_a_refusal_that_says_when_to_come_again_is_honoured(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_world(tier=Tier(connections=1)) as world:
            waits = Waits(world)
            async with self.session(world, Waits(world), lambda: 0.0) as first:
                await first.wait_status("live")
                with pytest.raises(ConnectionClosed) as closed:
                    async with self.session(world, waits, lambda: 0.5, give_up_after=40):
                        raise AssertionError("the user has all the connections that it may have")
                assert closed.value.code == 4006
                assert first.status == "live"
            tried = waits.tried
            delays = [later - earlier for earlier, later in pairwise(tried)]
            # Five seconds, as the server said, and the random part on top.
            assert delays == pytest.approx([5.25, 5.5, 6, 7, 9])

    async def test_s11_a_503_with_retry_after_is_honoured(self, autojump_clock: MockClock) -> None:
        async with memory_world(limits=Limits(handshakes=1)) as world:
            # Somebody who connects and says nothing has the one place, for five seconds.
            silent = await world.network.dial("memory", 80)
            await wait_all_tasks_blocked()
            waits = Waits(world)
            statuses: list[Status] = []
            async with self.session(world, waits, lambda: 0.0, on_status=statuses.append) as session:
                assert isinstance(session.last_error, HandshakeRefused)
                assert session.last_error.retry_after == 1
            silent.close()
        delays = [later - earlier for earlier, later in pairwise(waits.tried)]
        assert delays == pytest.approx([1, 1, 1, 1, 1])
        assert statuses[0] == "waiting"
