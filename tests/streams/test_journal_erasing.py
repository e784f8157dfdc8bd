"""Erasing a user between the commits of a journal that is busy, full, failing or ending."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from wsrecover.errors import RunBroken, StoreFailed, StoreUnavailable
from wsrecover.streams.journal import Journal
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import Entry, Outcome, Retention, StreamKey, Unit, UserRevocation

ANN = StreamKey("user", "tenant", "ann")
BEN = StreamKey("user", "tenant", "ben")
REVOKED = UserRevocation("tenant", "ann", 1.0)


class Held(MemoryStore):
    """A memory store whose commits and erasings wait while it is held; `broken` is raised by erasings."""

    def __init__(self) -> None:
        super().__init__()
        self.open = trio.Event()
        self.asked = trio.Event()
        self.broken: Exception | None = None

    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        self.asked.set()
        await self.open.wait()
        return await super().commit(units)

    async def erase(self, one: UserRevocation) -> None:
        await self.open.wait()
        if self.broken is not None:
            raise self.broken
        await super().erase(one)


class World:
    def __init__(self, max_units: int = 1000) -> None:
        self.store = Held()
        self.streams = Streams(self.store)
        self.over = 0
        self.journal = Journal(
            self.store,
            self.streams,
            max_units=max_units,
            max_bytes=1 << 20,
            retention=lambda _: Retention(),
            clock=lambda: 1000.0,
        )

    def count(self) -> None:
        self.over += 1

    async def erase(self) -> None:
        await self.journal.erase(REVOKED, over=self.count)

    async def bodies(self, key: StreamKey = ANN) -> list[str]:
        found = await self.store.read(key, 0, upto=1000, max_events=1000, max_bytes=1 << 20)
        return [entry.body.decode() for entry in found]


def unit(key: StreamKey, *bodies: str) -> Unit:
    return Unit(tuple(Entry(key, body.encode(), 1000.0) for body in bodies))


@pytest.mark.parametrize("max_units", [2, 1000])
async def test_what_was_queued_goes_and_what_is_queued_later_stays(max_units: int) -> None:
    """Also what waits for room: it is admitted before."""
    world = World(max_units)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(world.journal.run)
            for number in range(7):
                nursery.start_soon(world.journal.commit, unit(ANN, f"before {number}"))
                nursery.start_soon(world.journal.commit, unit(BEN, f"of ben {number}"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(world.erase)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(world.journal.commit, unit(ANN, "after"))
            await trio.testing.wait_all_tasks_blocked()
            assert world.over == 0
            world.store.open.set()
            await world.journal.flush()
            await trio.testing.wait_all_tasks_blocked()
            assert await world.bodies() in ([], ["after"])  # It may have shared its commit with those before.
            assert len(await world.bodies(BEN)) == 7
            assert world.over == 1
            assert world.journal.statistics().units == 0
            await world.journal.commit(unit(ANN, "last"))
            assert (await world.bodies())[-1] == "last"
            await world.journal.aclose()


async def test_the_stream_that_is_open_is_let_go_of() -> None:
    world = World()
    world.store.open.set()
    async with trio.open_nursery() as nursery:
        await nursery.start(world.journal.run)
        old = await world.streams.open(ANN)
        await world.journal.commit(unit(ANN, "a"))
        await world.erase()
        new = await world.streams.open(ANN)
        assert (new is old, new.head, new.epoch == old.epoch) == (False, 0, False)
        await world.journal.commit(unit(ANN, "b"))
        assert (old.head, new.head) == (1, 1)
        world.streams.release(old)
        assert world.streams.get(ANN) is new
        world.streams.release(new)
        assert world.streams.get(ANN) is None
        assert world.streams.statistics().tail_bytes == 0
        await world.journal.aclose()


async def test_a_store_that_cannot_erase_says_so_and_the_journal_goes_on() -> None:
    world = World()
    world.store.open.set()
    world.store.broken = StoreUnavailable("gone")
    async with trio.open_nursery() as nursery:
        await nursery.start(world.journal.run)
        await world.journal.commit(unit(ANN, "a"))
        with pytest.raises(StoreUnavailable, match="gone"):
            await world.erase()
        assert world.over == 1
        await world.journal.commit(unit(ANN, "b"))
        assert await world.bodies() == ["a", "b"]
        await world.journal.aclose()
    with pytest.raises(StoreFailed):
        await world.erase()
    assert world.over == 2


@pytest.mark.parametrize("what", ["waits for room", "is queued", "is under way"])
async def test_an_erasing_ends_once_however_it_is_cut_off(what: str) -> None:
    """`over` is called for one that never takes effect, too: nobody may be barred for ever."""
    world = World(max_units=1 if what == "waits for room" else 1000)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.journal.run)
        if what != "is under way":
            nursery.start_soon(world.journal.commit, unit(BEN, "x"))
            await world.store.asked.wait()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(world.erase)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        assert world.over == (1 if what == "waits for room" else 0)
        nursery.cancel_scope.cancel()
    assert world.over == 1


async def test_who_was_abandoned_writes_nothing_more() -> None:
    world = World()
    world.store.open.set()
    async with trio.open_nursery() as nursery:
        await nursery.start(world.journal.run)
        writer = world.journal.writer()
        await writer.commit(unit(ANN, "a"))
        writer.abandon()
        for write in (writer.write, writer.commit):
            with pytest.raises(RunBroken):
                await write(unit(ANN, "b"))
        with pytest.raises(RunBroken):
            writer.write_nowait(unit(ANN, "c"))
        with pytest.raises(StoreFailed):
            await writer.finish(unit(ANN, "the end"), retry=(0.0,))
        assert await world.bodies() == ["a"]
        await world.journal.aclose()
