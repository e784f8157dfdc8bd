"""E rows and M02: what must reach a user does, however often and for however long it is away."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
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

from wsrecover.agents import App, Run
from wsrecover.client import Changed, ClientSession, Event, Gap, Item, Snapshot, connect
from wsrecover.config import Config, Retention, Timeouts
from wsrecover.protocol.codec import encode_event
from wsrecover.protocol.events import AGENT_EVENTS
from wsrecover.streams.store import Applied, Entry, StreamKey, Unit
from wsrecover.testing import LocalServer, LossyLink, cuts, local_server

FIVE = list(AGENT_EVENTS)


def told(events: list[Event]) -> dict[str, list[str]]:
    """The types of each run's events."""
    runs: dict[str, list[str]] = {}
    for event in events:
        runs.setdefault(str(event.run), []).append(event.type)
    return runs


class TestE01TheFiveCriticalEvents:
    async def test_e01_with_a_drop_before_each_choice_of_them(self, local: LocalServer, stage: Stage) -> None:
        witness = Witness(local)
        steps = (("think",), ("tool",), ("finish",))
        choices = list(product((False, True), repeat=len(steps)))
        async with witness.client() as client, witness.client() as onlooker:
            for away in choices:
                await client.session.start_agent("worker")
                await onlooker.take(1)
                for drops, step in zip(away, steps, strict=True):
                    if drops:
                        await client.drop()
                    stage.tell(*step)
                    # The log has it once the other tab has seen it.
                    await onlooker.take(2 if step == ("tool",) else 1)
                    if drops:
                        client.come_back()
                await client.take(len(FIVE))
            assert list(told(client.events).values()) == [FIVE] * len(choices)
            assert client.events == onlooker.events
            client.settled()
        drops = sum(map(sum, choices))
        await witness.check(resumes=drops, faults=drops, drained=len(FIVE) * len(choices))

    async def test_e01_over_a_link_that_dies_all_the_time(self, local: LocalServer, stage: Stage) -> None:
        seed, runs = 1, 40
        witness = Witness(local)
        host, port = local.server.addresses[0]
        link = LossyLink(host, port, plan=cuts(random.Random(seed), mean_bytes=700))
        async with trio.open_nursery() as nursery:
            await nursery.start(link.run)
            async with witness.client(url=f"ws://127.0.0.1:{link.port}") as client:
                for _ in range(runs):
                    stage.tell("think", "tool", "finish")
                    await client.session.start_agent("worker")
                    await client.until("agent_completed")
                assert list(told(client.events).values()) == [FIVE] * runs, f"seed {seed}"
                assert client.seqs == list(range(1, runs * len(FIVE) + 1)), f"seed {seed}"
                assert link.cuts > runs / 2, f"seed {seed}: {link.cuts} cuts"
            nursery.cancel_scope.cancel()
        await witness.check(resumes=10, drained=runs * len(FIVE))


class TestE02DeliveryUntilAcknowledged:
    async def test_e02_what_was_not_processed_comes_again_after_each_reconnect(
        self, local: LocalServer
    ) -> None:
        await Witness(local).publish(10)
        async with local.peer() as peer:
            epoch = (await peer.frame())["streams"]["user"]["epoch"]
        for processed in (0, 0, 3, 3, 9, 9):
            async with local.peer(resume={"user": [epoch, processed]}) as peer:
                (welcome, *_) = await peer.until("welcome")
                assert welcome["streams"]["user"]["resumed"]
                frames = await peer.until("live")
                seqs = [frame["seq"] for frame in frames if frame["op"] == "event"]
                assert seqs == list(range(processed + 1, 11))
                peer.socket.kill()
        async with local.peer(resume={"user": [epoch, 10]}) as peer:
            frames = await peer.until("live")
            assert [frame["op"] for frame in frames] == ["welcome", "live", "live", "live"]

    async def test_e02_an_app_that_restarts_gets_what_it_had_not_handled_and_acknowledges_it_then(
        self, local: LocalServer
    ) -> None:
        witness = Witness(local)
        await witness.publish(10)
        positions: dict[str, Any] = {}
        handled: list[int] = []
        # Three lives: each receives all there is, and handles a part of it before it dies.
        for share in (4, 3, 3):
            async with witness.client(positions=positions, client_id="tab") as client:
                await client.take(share)
                await client.session.wait_status("live")
                handled += client.seqs
                positions = {"user": attrs.evolve(client.session.received["user"], seq=client.events[-1].seq)}
                await client.drop()
        assert handled == list(range(1, 11))
        async with witness.client(positions=positions, client_id="tab") as client:
            await witness.publish(1)
            await client.take(1)
            await witness.publish(1)
            await client.take(1)
            assert client.seqs == [11, 12]
            # What is processed is acknowledged after each welcome: at first what the app brought along.
            await client.drop()
            client.come_back()
            await client.acknowledged(11)
            assert client.acks[0] == {"user": 10}
            await client.drop()
            client.come_back()
            await client.acknowledged(11, times=2)
        await witness.check(drained=12, resumes=5)


KEY = StreamKey("user", "acme", "ada")
BULK, BATCH = 100_000, 1_000


def numbered(seq: int, now: float) -> Entry:
    """The event with this seq: every hundredth is a message in one of three threads."""
    if seq % 100:
        return Entry(KEY, encode_event(ts=now, type="noted", data={"n": seq}, max_bytes=1000), now)
    data, thread = {"n": seq, "text": f"number {seq}"}, f"t{seq // 100 % 3}"
    body = encode_event(ts=now, type="user_message", data=data, thread=thread, max_bytes=1000)
    return Entry(KEY, body, now, thread)


async def publish_in_bulk(local: LocalServer, *, after: int = 0, upto: int = BULK) -> None:
    """Log events as agents do, a thousand in a commit; the number in each is its seq."""
    journal = local.server._services.journal
    now = local.wall_clock()
    for start in range(after, upto, BATCH):
        fresh = tuple(numbered(seq, now) for seq in range(start + 1, min(start + BATCH, upto) + 1))
        assert isinstance(await journal.commit(Unit(fresh)), Applied)


def numbers(items: list[Item]) -> list[int]:
    found = []
    for item in items:
        if isinstance(item, Event):
            assert item.data["n"] == item.seq
            found.append(item.seq)
    return found


def told_of(items: list[Item], first: int, last: int) -> list[Gap]:
    """The gaps among `items`, which are, with the events, all from `first` to `last` in order and once."""
    gaps = []
    for item in items:
        if isinstance(item, Gap):
            assert item.from_ == first
            assert item.to is not None
            gaps.append(item)
            first = item.to + 1
        else:
            assert numbers([item]) == [first]
            first += 1
    assert first == last + 1
    return gaps


async def until_head(session: Any, head: int) -> list[Item]:
    """Everything that reaches the app up to the event, or the end of the snapshot, with this seq."""
    items: list[Item] = []
    with trio.fail_after(PATIENCE):
        async for batch in session.batches():
            items += batch
            last = batch[-1]
            if isinstance(last, Event | Snapshot) and last.seq >= head and not getattr(last, "more", False):
                break
    return items


def messages(session: ClientSession) -> int:
    """How many messages its contexts hold, all threads together."""
    return sum(len(context.messages) for context in session.contexts.values())


class TestE03Bulk:
    @pytest.mark.parametrize("store", ["memory", "sqlite"])
    async def test_e03_a_hundred_thousand_events_through_a_log_that_is_sized_for_them(
        self, store: str, tmp_path: Path
    ) -> None:
        app = App()

        @app.agent("talkative")
        async def talkative(run: Run) -> None:
            for seq in range(2, BULK + 2):
                await run.emit("noted", {"n": seq})

        place = "memory" if store == "memory" else f"sqlite:{tmp_path / 'log.db'}"
        retention = Retention(events=2 * BULK, bytes=1 << 30)
        async with (
            local_server(app, store=place, retention=retention) as local,
            connect(local.url, token=local.token()) as session,
        ):
            await session.start_agent("talkative")
            started, *items, ended = await until_head(session, BULK + 2)
        assert isinstance(started, Event)
        assert isinstance(ended, Event)
        assert (started.type, ended.type) == ("agent_started", "agent_completed")
        assert numbers(items) == list(range(2, BULK + 2))
        assert len(items) == BULK, "nothing but events"

    async def test_e03_one_who_is_away_while_the_default_log_overflows_is_told_and_goes_on_from_its_oldest(
        self, local: LocalServer
    ) -> None:
        witness = Witness(local)
        kept = Config().retention.events
        async with witness.client() as client:
            await publish_in_bulk(local, upto=BATCH)
            await client.take(BATCH)
            await client.drop()
            await publish_in_bulk(local, after=BATCH)
            client.come_back()
            items = await until_head(client.session, BULK)
        changed, *rest = items
        assert isinstance(changed, Changed)
        assert (changed.reason, changed.held.seq) == ("trimmed", BATCH)
        gaps = told_of(rest, BATCH + 1, BULK)
        assert gaps[0].to == changed.position.seq
        # The log may be trimmed once more while it is read.
        assert BULK - kept * 1.2 < changed.position.seq + 1 <= (gaps[-1].to or 0) + 1 <= BULK - kept + 1

    async def test_e03_one_who_is_away_for_a_hundred_thousand_events_has_the_context_of_one_who_saw_them_all(
        self, local: LocalServer, nursery: trio.Nursery
    ) -> None:
        kept, token = Config().retention.events, local.token()
        link = LossyLink(*local.server.addresses[0])
        await nursery.start(link.run)
        async with (
            connect(f"ws://127.0.0.1:{link.port}", token=token, rng=lambda: 0.01) as away,
            connect(local.url, token=token) as following,
        ):
            await publish_in_bulk(local, upto=BATCH)
            assert numbers(await until_head(away, BATCH)) == list(range(1, BATCH + 1))
            link.refuse()
            link.cut()
            seen = await until_head(following, BATCH)
            for head in range(BATCH, BULK, BATCH):
                await publish_in_bulk(local, after=head, upto=head + BATCH)
                seen += await until_head(following, head + BATCH)
            link.accept()
            changed, gap, *snapshots = await until_head(away, BULK)
            assert numbers(seen) == list(range(1, BULK + 1))
            assert len(seen) == BULK, "nothing but events"
            assert isinstance(changed, Changed)
            assert (changed.reason, changed.held.seq) == ("trimmed", BATCH)
            assert isinstance(gap, Gap)
            assert (gap.reason, gap.from_) == ("trimmed", BATCH + 1)
            assert BULK - kept * 1.2 < (gap.to or 0) + 1 <= BULK - kept + 1
            assert snapshots
            assert all(isinstance(item, Snapshot) and item.seq == BULK for item in snapshots)
            assert away.contexts == following.contexts
            assert messages(away) == BULK // 100
            await publish_in_bulk(local, after=BULK, upto=BULK + 100)
            for session in (away, following):
                assert numbers(await until_head(session, BULK + 100)) == list(range(BULK + 1, BULK + 101))
            assert away.contexts == following.contexts
            assert messages(away) == BULK // 100 + 1

    @pytest.mark.parametrize("kept", [Config().retention.events, 100])
    async def test_e03_one_who_reads_too_slowly_for_the_log_is_told_the_gap_and_goes_on(
        self, kept: int
    ) -> None:
        # Not so slow that it is cut, however long the publishing takes here.
        times = Timeouts(write_progress=PATIENCE, heartbeat=PATIENCE)
        async with (
            local_server(retention=Retention(events=kept), timeouts=times) as local,
            connect(
                local.url, token=local.token(), from_="start", buffer_items=10, buffer_bytes=10_000
            ) as session,
        ):
            await session.wait_status("live")
            # The app asks for nothing: the buffers on the way fill up, and then the log runs over.
            await publish_in_bulk(local)
            items = await until_head(session, BULK)
        gone = sum((gap.to or 0) - gap.from_ + 1 for gap in told_of(items, 1, BULK))
        assert gone > BULK / 4


class TestE05TheLifeOfASession:
    async def test_e05_connect_active_disconnect_expired(
        self, stage: Stage, autojump_clock: MockClock
    ) -> None:
        async with memory_world(stage.app) as world:
            await wait_all_tasks_blocked()
            before = held(world)
            assert state(world) == (None, 0, 0)
            async with self.session(world) as session:
                await session.wait_status("live")
                assert state(world) == ("active", 1, 0)
                await session.start_agent("worker")
                assert state(world) == ("active", 1, 1)
                async with self.session(world) as second:
                    await second.wait_status("live")
                    assert state(world) == ("active", 2, 1)
                await until(world, ("active", 1, 1))
            await until(world, ("active", 0, 1))
            # Nobody looks, for as long as it takes: the run keeps its session.
            await trio.sleep(10 * world.local.config.timeouts.linger)
            assert state(world) == ("active", 0, 1)
            stage.tell("finish")
            await until(world, ("idle", 0, 0))
            await trio.sleep(world.local.config.timeouts.linger - 1)
            assert state(world) == ("idle", 0, 0)
            assert world.services.streams.statistics().streams == 3  # user, tenant, all
            await trio.sleep(2)
            assert state(world) == (None, 0, 0)
            assert held(world) == before
            counts = world.registry.statistics().counts
            assert counts == {
                "session.started": 1,
                "session.ended": 1,
                "resume.new": 2,
                "closed.1000": 2,
                "commands.ok": 1,
                "replayed": 1,
            }

    async def test_e05_who_comes_back_within_the_linger_time_finds_the_session_and_later_a_new_one(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_world() as world:
            await wait_all_tasks_blocked()
            before = held(world)
            linger = world.local.config.timeouts.linger
            for away, started in ((linger - 1, 1), (linger - 1, 1), (linger + 1, 1), (linger + 1, 2)):
                async with self.session(world) as session:
                    await session.wait_status("live")
                    assert state(world) == ("active", 1, 0)
                    assert world.registry.statistics().counts["session.started"] == started
                await until(world, ("idle", 0, 0))
                await trio.sleep(away)
            counts = world.registry.statistics().counts
            assert counts["session.started"] == counts["session.ended"] == 2
            assert held(world) == before

    @asynccontextmanager
    async def session(self, world: MemoryWorld) -> AsyncIterator[Any]:
        witness = Witness(world.local, dial=world.network.dial)
        async with witness.client() as client:
            yield client.session


def state(world: MemoryWorld) -> tuple[str | None, int, int]:
    """The state of ada's session, as anybody can see it, its connections and its runs."""
    session = world.registry.sessions.get(("acme", "ada"))
    known = world.registry.statistics()
    if session is None:
        return None, known.connections, known.runs
    one = session.statistics()
    assert (one.connections, one.runs) == (known.connections, known.runs)
    return one.state, one.connections, one.runs


async def until(world: MemoryWorld, wanted: tuple[str | None, int, int]) -> None:
    """Let everything come to rest, which must be there."""
    await wait_all_tasks_blocked()
    assert state(world) == wanted


def held(world: MemoryWorld) -> tuple[int, int, int, int]:
    """Tasks, sessions, open streams and the bytes of their tails."""
    streams = world.services.streams.statistics()
    tasks = trio.lowlevel.current_statistics().tasks_living
    return tasks, len(world.registry.sessions), streams.streams, streams.tail_bytes


class TestM02AUserWhoIsNotConnected:
    async def test_m02_what_is_published_is_logged_and_delivered_on_return(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_world() as world:
            witness = Witness(world.local, dial=world.network.dial)
            # Nobody has ever been there; publishing needs no session and makes none.
            positions = await witness.publish(3)
            assert [position.seq for position in positions] == [1, 2, 3]
            assert state(world) == (None, 0, 0)
            async with witness.client() as client:
                await client.take(3)
                processed = client.session.received
            await trio.sleep(world.local.config.timeouts.linger + 1)
            assert state(world) == (None, 0, 0)
            await witness.publish(300)
            async with witness.client(positions=processed) as client:
                await client.take(300)
                client.settled()
                assert client.seqs == list(range(4, 304))
            await witness.check(publishes=303, resumes=1, drained=303)

    async def test_m02_an_agent_that_is_started_for_one_who_is_away_is_told_on_return(
        self, local: LocalServer, stage: Stage
    ) -> None:
        stage.tell("think", "tool", "finish")
        run = await local.server.start_agent("acme", "ada", "worker", {}, thread="t1")
        witness = Witness(local)
        async with witness.client() as client:
            events = await client.until("agent_completed")
        assert told(events) == {run: FIVE}
        assert {event.thread for event in events} == {"t1"}
