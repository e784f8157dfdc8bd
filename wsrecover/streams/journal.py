"""The group commit: one task that commits what all authors queued, then hands it to the streams.

::

    Writer.write ─▶ Room (count, bytes) ─▶ the open Group ─▶ memory channel ─▶ Journal.run ─▶ Store.commit
                                                                                  ├─▶ Stream.extend
                                                                                  └─▶ waiters

A group is what gathers until the journal takes it: the first unit puts it into the channel, and those that
come before the journal's turn join it, so a unit costs no passage of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import attrs
import trio

from wsrecover.errors import RunBroken, StoreClosed, StoreError, StoreFailed, StoreUnavailable, caused_by

from .erasing import Erasure, carry_out
from .group import Group, Waiter, appended
from .registry import Streams
from .retention import Retainer, Snapshots
from .room import Room
from .store import APPLIED, Applied, Entry, Outcome, Retention, Store, StreamKey, Unit, UserRevocation

__all__ = ["Journal", "JournalStatistics", "Writer"]

_CLOSED = "the journal is closed"


@attrs.frozen
class JournalStatistics:
    """What is queued or being committed now (`units`, `bytes`), what waits for room, and counts so far."""

    units: int
    bytes: int
    waiting: int
    waiting_bytes: int
    batches: int
    failed_batches: int
    committed: int


class Journal:
    """Commits what is queued, batch by batch, and extends those of `streams` that are open.

    `max_units` and `max_bytes` (of bodies) bound what is queued or under way; who comes then waits.
    `open` is the group that gathers, if one does, and `room` what it takes from.
    `retention` says how much of a stream is kept, `context_age` for how many seconds contexts are, `clock`
    gives unix seconds, `sweep_interval` is in seconds; for these and `snapshot_events` see `Retainer`.
    """

    def __init__(
        self,
        store: Store,
        streams: Streams,
        *,
        max_units: int,
        max_bytes: int,
        retention: Callable[[StreamKey], Retention],
        context_age: Callable[[StreamKey], float] = lambda _: math.inf,
        clock: Callable[[], float],
        sweep_interval: float = 60.0,
        snapshot_events: int = 1_000,
    ) -> None:
        self._store = store
        self._streams = streams
        self.room = Room(max_units, max_bytes)
        self._send, self._receive = trio.open_memory_channel[Group](1)
        self._retainer = Retainer(
            store,
            streams,
            retention=retention,
            context_age=context_age,
            clock=clock,
            sweep_interval=sweep_interval,
            snapshot_events=snapshot_events,
        )
        self.open: Group | None = None
        self._newest: Group | None = None
        self._retaining = trio.CancelScope()
        self._ended = trio.Event()
        self._batches = 0
        self._failed = 0
        self._committed = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit until `aclose`. A failing store fails the units of its batch, and the journal goes on.

        Cancelled: the batch under way is settled, and what is queued behind it fails with `StoreFailed`.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._retain)
                nursery.start_soon(self._streams.fanout.run)
                task_status.started()
                async for group in self._receive:
                    self.open = None
                    await self._commit_group(group)
                nursery.cancel_scope.cancel()
        finally:
            self._stop()

    async def _retain(self) -> None:
        with self._retaining:
            await self._retainer.run()

    def make_snapshots_with(self, snapshots: Snapshots) -> None:
        """From now on ask `snapshots` for those that retention needs; see `Retainer`."""
        self._retainer.snapshots = snapshots

    async def _commit_group(self, group: Group) -> None:
        group.close()
        taken = group.count + len(group.erasures)
        try:
            if self._failed:
                group.refuse()
            if group.units:
                await self._commit_units(group)
            if group.erasures:
                await carry_out(group.erasures, self._store, self._streams)
        finally:
            self.room.give(taken, group.size)
            group.settle()

    async def _commit_units(self, group: Group) -> None:
        try:
            outcomes = await self._store.commit(group.units)
        except StoreError as error:
            self._failed += 1
            group.fail(error)
            return
        except BaseException:  # Cancelled, or a bug: this task ends, and nobody may wait for it for ever.
            self._failed += 1
            group.fail(StoreFailed(_CLOSED))
            raise
        self._batches += 1
        self._committed += group.count
        try:
            self._hand_on(group.units, outcomes)
        finally:  # It is committed, whatever becomes of those who follow.
            for place, waiter in group.waiters.items():
                waiter.settle(outcomes[place])

    def _hand_on(self, units: Sequence[Unit], outcomes: Sequence[Outcome]) -> None:
        committed: list[Entry] = []
        for unit, outcome in zip(units, outcomes, strict=True):
            if outcome is APPLIED:
                committed += unit.entries
            elif isinstance(outcome, Applied):
                committed += appended(unit, outcome)
        self._streams.extend(committed)
        self._streams.flush()

    def _stop(self) -> None:
        """Whatever ended `run`: nobody may wait for it any more."""
        error = StoreClosed(_CLOSED)
        self.room.close(error)
        self._send.close()
        try:
            group = self._receive.receive_nowait()
        except (trio.EndOfChannel, trio.WouldBlock):
            pass
        else:
            self.open = None
            group.close()
            self.room.give(group.count + len(group.erasures), group.size)
            group.fail(error)
            group.settle()
        self._receive.close()
        self._ended.set()

    def submit_nowait(self, unit: Unit, author: Writer) -> Group:
        """Queue `unit`: the group that it is in.

        Raises `trio.WouldBlock` where there is no room, `StoreClosed` once closed.
        """
        size = unit.size
        self.room.take_nowait(size)
        group = self.open or self.begin()
        group.add(unit, size, author, None)
        return group

    async def submit(self, unit: Unit, author: Writer | None, waiter: Waiter | None) -> Group:
        """Wait for room, then queue `unit`. Cancelled while it waits: nothing happens."""
        size = unit.size
        await self.room.take(size)
        try:
            group = self.open or self.begin()
        except trio.ClosedResourceError:  # The journal ended between the admission and this task's turn.
            raise caused_by(StoreClosed(_CLOSED), None) from None
        group.add(unit, size, author, waiter)
        return group

    def begin(self) -> Group:
        """A new open group, where there is none."""
        group = Group()
        self._send.send_nowait(group)
        self.open = self._newest = group
        return group

    async def commit(self, unit: Unit, *, then: Callable[[Outcome], None] | None = None) -> Outcome:
        """Queue `unit` and wait until it is durable.

        `then` is called with the outcome right after the commit, before any other task runs: what it sees is
        the server as it was then. It must not wait.

        Raises `StoreUnavailable` or `StoreClosed` (nothing of it took effect), or `StoreFailed` where nobody
        knows. Cancelled while it waits for room: nothing happens; cancelled later: it may take effect.
        """
        waiter = Waiter(then=then)
        await self.submit(unit, None, waiter)
        return await waiter.wait()

    async def erase(self, one: UserRevocation, *, over: Callable[[], object]) -> None:
        """Erase the user behind all units that are queued, or wait for room, by now; see `Store.erase`.

        Units for the user that share a commit with those go, too; later ones are of its new stream. `over`:
        see `Erasure`. Raises `StoreUnavailable` (nothing of it took effect) or `StoreFailed`. Cancelled: as
        `commit`.
        """
        erasure = Erasure(one, over)
        try:
            await self.room.take(0)
            # Who was admitted before has its turn by then.
            await trio.lowlevel.cancel_shielded_checkpoint()
            (self.open or self.begin()).erasures.append(erasure)
        except trio.ClosedResourceError:
            erasure.end(StoreClosed(_CLOSED))
        except BaseException:
            erasure.end(StoreUnavailable("it was not erased"))
            raise
        await erasure.wait()

    async def flush(self) -> None:
        """Wait until the fate of all that is queued by now, whosever it is, is known. May be abandoned."""
        await trio.lowlevel.checkpoint_if_cancelled()
        newest = self._newest
        if newest is not None and not newest.settled:
            await newest.wait()

    def writer(self) -> Writer:
        """A new author."""
        return Writer(self)

    async def aclose(self) -> None:
        """Take no more units, commit what was taken, and wait until `run`, which must have been started, is
        done.

        Who waits for room gets `StoreClosed`. Cancelled: `run` ends nevertheless.
        """
        self._retaining.cancel()  # Else the snapshots that are due would all be refused, one after the other.
        self.room.close(StoreClosed(_CLOSED))
        self._send.close()
        await self._ended.wait()

    def statistics(self) -> JournalStatistics:
        """Counts, without waiting."""
        room = self.room
        return JournalStatistics(
            room.units,
            room.bytes,
            room.waiting,
            room.waiting_bytes,
            self._batches,
            self._failed,
            self._committed,
        )


class Writer:
    """One author's ordered units. Once one of them failed, all that were queued after it are refused: no
    hole.

    `broken` is the store's error that did it; `queued` counts the units in the group that it wrote to last.
    """

    __slots__ = ("_given_up", "_group", "_journal", "broken", "queued")

    def __init__(self, journal: Journal) -> None:
        self.broken: StoreError | None = None
        self.queued = 0
        self._given_up: StoreError | None = None
        self._journal = journal
        self._group: Group | None = None

    def abandon(self) -> None:
        """Refuse all that is written from now on, the last unit too."""
        self.broken = self._given_up = self.broken or StoreFailed("the run was abandoned")

    def check(self) -> None:
        """Raise `RunBroken` once broken."""
        if self.broken is not None:
            raise self._break(self.broken)

    def write_nowait(self, unit: Unit) -> None:
        """Queue `unit`. Raises `RunBroken` once broken, `trio.WouldBlock` where there is no room."""
        self.check()
        try:
            group = self._journal.submit_nowait(unit, self)
        except StoreError as error:
            raise self._break(error) from self.broken
        self._wrote_to(group)

    def append_nowait(self, entry: Entry) -> None:
        """`write_nowait` a unit of one entry and no more: the way of nearly every event."""
        if self.broken is not None or entry.id is not None:
            self.write_nowait(Unit((entry,)))
            return
        journal = self._journal
        room, size = journal.room, len(entry.body)
        total = room.bytes + size
        if total <= room.limit and room.units < room.max_units:  # `take_nowait`, but for the call.
            room.units += 1
            room.bytes = total
        else:
            try:
                room.take_nowait(size)
            except StoreError as error:
                raise self._break(error) from self.broken
        group = journal.open or journal.begin()
        group.entries.append(entry)
        group.entry_authors.append(self)
        group.size += size
        if group is self._group:
            self.queued += 1
        else:
            self._group = group
            self.queued = 1

    async def write(self, unit: Unit) -> None:
        """Queue `unit`; waits (and yields) only where there is no room. Raises `RunBroken` once broken.

        Cancelled: nothing was queued.
        """
        await self._submit(unit, None)

    async def flush(self) -> None:
        """Wait until all that was written so far is committed, or raise `RunBroken`. May be abandoned."""
        await trio.lowlevel.checkpoint_if_cancelled()
        group = self._group
        if group is not None and not group.settled:
            await group.wait()
        self.check()

    async def commit(self, unit: Unit) -> Outcome:
        """Write `unit` and wait for its outcome. Raises `RunBroken`; cancelled: see `Journal.commit`."""
        waiter = Waiter()
        await self._submit(unit, waiter)
        try:
            return await waiter.wait()
        except StoreError:
            self.check()
            raise

    async def finish(self, unit: Unit, *, retry: Iterable[float]) -> Outcome:
        """Commit the author's last unit, even if broken, and again while the store is unavailable.

        `retry` gives the delays between tries in seconds; the last one is repeated. Raises `StoreFailed` and
        `StoreCorrupt`, after which no try could succeed. Cancelled: see `Journal.commit`.
        """
        delays = iter(retry)
        delay = 1.0
        while True:
            if self._given_up is not None:
                raise StoreFailed(str(self._given_up))
            waiter = Waiter(final=True)
            self._wrote_to(await self._journal.submit(unit, self, waiter))
            try:
                return await waiter.wait()
            except StoreUnavailable:
                delay = next(delays, delay)
                await trio.sleep(delay)

    async def _submit(self, unit: Unit, waiter: Waiter | None) -> None:
        self.check()
        try:
            group = await self._journal.submit(unit, self, waiter)
        except StoreError as error:
            raise self._break(error) from self.broken
        self._wrote_to(group)

    def _wrote_to(self, group: Group) -> None:
        self.queued = self.queued + 1 if group is self._group else 1
        self._group = group

    def _break(self, error: StoreError) -> RunBroken:
        if self.broken is None:
            self.broken = error
        return caused_by(RunBroken(f"an earlier event was not committed: {self.broken}"), self.broken)
