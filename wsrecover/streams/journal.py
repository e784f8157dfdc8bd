"""The group commit: one task that commits what all authors queued, then hands it to the streams.

::

    Writer.write ─▶ Room (count, bytes) ─▶ memory channel ─▶ Journal.run: drain ─▶ Store.commit
                                                                                    ├─▶ Stream.extend
                                                                                    └─▶ waiters
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import attrs
import trio

from wsrecover.errors import RunBroken, StoreError, StoreFailed, StoreUnavailable

from .registry import Streams
from .retention import Retainer, Snapshots
from .room import Room
from .store import Applied, Entry, Outcome, Retention, Store, StreamKey, Unit

__all__ = ["Journal", "JournalStatistics", "Writer"]

_CLOSED = "the journal is closed"


@attrs.frozen
class JournalStatistics:
    """What is queued or being committed now (`units`, `bytes`), who waits for room, and counts so far."""

    units: int
    bytes: int
    waiting: int
    batches: int
    failed_batches: int
    committed: int


class _Waiter:
    """One who waits for a unit's outcome. A `final` unit is committed even if its writer is broken."""

    __slots__ = ("_done", "_error", "_outcome", "final")

    def __init__(self, *, final: bool = False) -> None:
        self.final = final
        self._done = trio.Event()
        self._outcome: Outcome | None = None
        self._error: Exception | None = None

    def settle(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._done.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    async def wait(self) -> Outcome:
        await self._done.wait()
        if self._outcome is None:
            raise self._error or StoreFailed(_CLOSED)
        return self._outcome


_Item: TypeAlias = "tuple[Unit, int, Writer | None, _Waiter | None]"


def _size(unit: Unit) -> int:
    size = 0
    for append in unit.appends:
        for event in append.events:
            size += len(event.body)
    for answer in unit.answers:
        size += len(answer.result or b"")
    for snapshot in unit.snapshots:
        size += sum(len(context.body) for context in snapshot.changed.values() if context is not None)
    return size


def _copy(error: StoreError) -> StoreError:
    """The same error for another task: one instance raised in many would gather all their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy


class Journal:
    """Commits what is queued, batch by batch, and extends those of `streams` that are open.

    `max_units` and `max_bytes` (of bodies) bound what is queued or under way; who comes then waits.
    `retention` says how much of a stream is kept, `clock` gives unix seconds, `sweep_interval` is in seconds;
    for these and `snapshot_events` see `Retainer`.
    """

    def __init__(
        self,
        store: Store,
        streams: Streams,
        *,
        max_units: int,
        max_bytes: int,
        retention: Callable[[StreamKey], Retention],
        clock: Callable[[], float],
        sweep_interval: float = 60.0,
        snapshot_events: int = 1_000,
    ) -> None:
        self._store = store
        self._streams = streams
        self._room = Room(max_units, max_bytes)
        self._send, self._receive = trio.open_memory_channel[_Item](max_units)
        self._retainer = Retainer(
            store,
            streams,
            retention=retention,
            clock=clock,
            sweep_interval=sweep_interval,
            snapshot_events=snapshot_events,
        )
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
                nursery.start_soon(self._retainer.run)
                task_status.started()
                async for first in self._receive:
                    await self._commit_batch(self._drain(first))
                nursery.cancel_scope.cancel()
        finally:
            self._stop()

    def make_snapshots_with(self, snapshots: Snapshots) -> None:
        """From now on ask `snapshots` for those that retention needs; see `Retainer`."""
        self._retainer.snapshots = snapshots

    def _drain(self, first: _Item) -> list[_Item]:
        items = [first]
        receive = self._receive.receive_nowait
        try:
            while True:
                items.append(receive())
        except (trio.WouldBlock, trio.EndOfChannel):
            return items

    async def _commit_batch(self, items: list[_Item]) -> None:
        accepted = [item for item in items if not self._refused(item)]
        if not accepted:
            return
        try:
            outcomes = await self._store.commit([item[0] for item in accepted])
        except StoreError as error:
            self._fail_batch(accepted, error)
            return
        except BaseException:  # Cancelled, or a bug: this task ends, and nobody may wait for it for ever.
            self._fail_batch(accepted, StoreFailed(_CLOSED))
            raise
        self._batches += 1
        self._committed += len(accepted)
        try:
            self._hand_on(outcomes)
        finally:  # It is committed, whatever becomes of those who follow.
            self._settle(accepted, outcomes)

    def _refused(self, item: _Item) -> bool:
        _, _, author, waiter = item
        if author is None or author.broken is None or (waiter is not None and waiter.final):
            return False
        self._fail(item, author.broken)
        return True

    def _hand_on(self, outcomes: Sequence[Outcome]) -> None:
        changes: dict[StreamKey, Sequence[Entry]] = {}
        for outcome in outcomes:
            if type(outcome) is not Applied:
                continue
            for key, entries in outcome.entries:
                if entries:
                    known = changes.setdefault(key, entries)
                    if known is not entries:
                        changes[key] = [*known, *entries]
        self._streams.extend(changes)
        self._retainer.grew(changes)

    def _settle(self, items: Sequence[_Item], outcomes: Sequence[Outcome]) -> None:
        self._room.give(len(items), sum([size for _, size, _, _ in items]))
        for (_, _, author, waiter), outcome in zip(items, outcomes, strict=True):
            if waiter is not None:
                waiter.settle(outcome)
            if author is not None:
                author.settle()

    def _fail_batch(self, items: Sequence[_Item], error: StoreError) -> None:
        self._failed += 1
        for item in items:
            self._fail(item, error)

    def _fail(self, item: _Item, error: StoreError) -> None:
        _, size, author, waiter = item
        self._room.give(1, size)
        if author is not None and author.broken is None:
            author.broken = error
        if waiter is not None:
            waiter.fail(_copy(error))
        if author is not None:
            author.settle()

    def _stop(self) -> None:
        """Whatever ended `run`: nobody may wait for it any more."""
        error = StoreFailed(_CLOSED)
        self._room.close(error)
        self._send.close()
        try:
            while True:
                self._fail(self._receive.receive_nowait(), error)
        except (trio.EndOfChannel, trio.WouldBlock):
            self._receive.close()
        self._ended.set()

    def submit_nowait(self, unit: Unit, author: Writer | None, waiter: _Waiter | None) -> None:
        """Queue `unit`. Raises `trio.WouldBlock` where there is no room, `StoreFailed` once closed."""
        size = _size(unit)
        self._room.take_nowait(size)
        self._send.send_nowait((unit, size, author, waiter))

    async def submit(self, unit: Unit, author: Writer | None, waiter: _Waiter | None) -> None:
        """Wait for room, then queue `unit`. Cancelled while it waits: nothing happens."""
        size = _size(unit)
        await self._room.take(size)
        try:
            self._send.send_nowait((unit, size, author, waiter))
        except trio.ClosedResourceError:  # The journal ended between the admission and this task's turn.
            raise StoreFailed(_CLOSED) from None

    async def commit(self, unit: Unit) -> Outcome:
        """Queue `unit` and wait until it is durable.

        Raises `StoreUnavailable` (nothing of it took effect) or `StoreFailed`. Cancelled while it waits for
        room: nothing happens; cancelled later: it may take effect.
        """
        waiter = _Waiter()
        await self.submit(unit, None, waiter)
        return await waiter.wait()

    def writer(self) -> Writer:
        """A new author."""
        return Writer(self)

    async def aclose(self) -> None:
        """Take no more units, commit what was taken, and wait until `run`, which must have been started, is
        done.

        Who waits for room gets `StoreFailed`. Cancelled: `run` ends nevertheless.
        """
        self._room.close(StoreFailed(_CLOSED))
        self._send.close()
        await self._ended.wait()

    def statistics(self) -> JournalStatistics:
        """Counts, without waiting."""
        room = self._room
        return JournalStatistics(
            room.units, room.bytes, room.waiting, self._batches, self._failed, self._committed
        )


class Writer:
    """One author's ordered units. Once one of them failed, all that were queued after it are refused: no
    hole.

    `broken` is the store's error that did it, `uncommitted` how many units are queued or being committed.
    `on_settled`, if set, is called (synchronously, in the journal's task; it must not raise) whenever nothing
    of this writer is uncommitted any more.
    """

    __slots__ = ("_flushes", "_journal", "_settled", "broken", "on_settled", "uncommitted")

    def __init__(self, journal: Journal) -> None:
        self.broken: StoreError | None = None
        self.on_settled: Callable[[], None] | None = None
        self._journal = journal
        self.uncommitted = 0
        self._settled = 0
        self._flushes: list[tuple[int, trio.Event]] = []

    def _check(self) -> None:
        if self.broken is not None:
            raise RunBroken(f"an earlier event was not committed: {self.broken}") from self.broken

    def write_nowait(self, unit: Unit) -> None:
        """Queue `unit`. Raises `RunBroken` once broken, `trio.WouldBlock` where there is no room."""
        if self.broken is not None:
            self._check()
        try:
            self._journal.submit_nowait(unit, self, None)
        except StoreError as error:
            self._break(error)
        self.uncommitted += 1

    async def write(self, unit: Unit) -> None:
        """Queue `unit`; waits (and yields) only where there is no room. Raises `RunBroken` once broken.

        Cancelled: nothing was queued.
        """
        await self._submit(unit, None)

    async def flush(self) -> None:
        """Wait until all that was written so far is committed, or raise `RunBroken`. May be abandoned."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.uncommitted:
            done = trio.Event()
            self._flushes.append((self._settled + self.uncommitted, done))
            await done.wait()
        self._check()

    async def commit(self, unit: Unit) -> Outcome:
        """Write `unit` and wait for its outcome. Raises `RunBroken`; cancelled: see `Journal.commit`."""
        waiter = _Waiter()
        await self._submit(unit, waiter)
        try:
            return await waiter.wait()
        except StoreError:
            self._check()
            raise

    async def finish(self, unit: Unit, *, retry: Iterable[float]) -> Outcome:
        """Commit the author's last unit, even if broken, and again while the store is unavailable.

        `retry` gives the delays between tries in seconds; the last one is repeated. Raises `StoreFailed` and
        `StoreCorrupt`, after which no try could succeed. Cancelled: see `Journal.commit`.
        """
        delays = iter(retry)
        delay = 1.0
        while True:
            waiter = _Waiter(final=True)
            await self._journal.submit(unit, self, waiter)
            self.uncommitted += 1
            try:
                return await waiter.wait()
            except StoreUnavailable:
                delay = next(delays, delay)
                await trio.sleep(delay)

    async def _submit(self, unit: Unit, waiter: _Waiter | None) -> None:
        self._check()
        try:
            await self._journal.submit(unit, self, waiter)
        except StoreError as error:
            self._break(error)
        self.uncommitted += 1

    def _break(self, error: StoreError) -> None:
        if self.broken is None:
            self.broken = error
        self._check()

    def settle(self) -> None:
        """The journal's: the oldest uncommitted unit was committed or refused."""
        self._settled += 1
        self.uncommitted -= 1
        if self._flushes:
            while self._flushes and self._flushes[0][0] <= self._settled:
                self._flushes.pop(0)[1].set()
        if self.on_settled is not None and not self.uncommitted:
            self.on_settled()
