"""The Store contract in memory: for tests, demos and servers that may forget everything when they stop."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import attrs
import trio

from wsrecover.errors import StoreClosed
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.resume import make_epoch

from .store import (
    ANSWER_WINDOW,
    APPLIED,
    ENTRY_BYTES,
    Answer,
    AnswerKey,
    Applied,
    Conflict,
    Duplicate,
    Entry,
    Outcome,
    Retained,
    Retention,
    Revocation,
    RunRecord,
    Store,
    StoredContext,
    StoredSnapshot,
    StoreStatistics,
    StreamKey,
    StreamState,
    Unit,
    UserRevocation,
)

__all__ = ["MemoryStore", "open_memory"]


async def open_memory(*, clock: Callable[[], float] = time.time) -> MemoryStore:
    """An empty store. `clock` gives seconds that pass; where it jumps, answers are forgotten early."""
    await trio.lowlevel.checkpoint()
    return MemoryStore(clock=clock)


@attrs.define(eq=False)
class _Log:
    """One stream. `size` is the bytes of the bodies that are kept."""

    incarnation: str
    epoch: str
    head: int = 0
    oldest: int = 1
    size: int = 0
    written: bool = False
    entries: deque[Entry] = attrs.field(factory=deque)
    snapshot: int = 0
    contexts: dict[str, StoredContext] = attrs.field(factory=dict)

    def forget_oldest(self) -> None:
        self.size -= len(self.entries.popleft().body)
        self.oldest += 1


class MemoryStore(Store):
    """A store that is gone with its process.

    Its calls take effect at one point, after their only checkpoint.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.generation = secrets.token_hex(8)
        self.lineage = (self.generation,)
        self._clock = clock
        self._logs: dict[StreamKey, _Log] = {}
        self._answers: dict[AnswerKey, tuple[Answer, tuple[Position, ...]]] = {}
        self._ids: dict[tuple[StreamKey, str], tuple[bytes, Position, float]] = {}
        self._runs: dict[str, RunRecord] = {}
        self._revocations: dict[Revocation, Revocation] = {}
        self._commits = 0
        self._events = 0
        self._closed = False

    async def load(self, key: StreamKey) -> StreamState:
        """See `Store.load`."""
        await self._ready()
        log = self._log(key)
        marks = ((self.generation, 1),) if log.written else ()
        return StreamState(log.incarnation, log.head, log.oldest, marks)

    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        """See `Store.commit`."""
        await self._ready()
        outcomes = [self._apply(unit) for unit in units]
        self._commits += 1
        return outcomes

    async def read(
        self, key: StreamKey, after: int, *, upto: int, max_events: int, max_bytes: int
    ) -> list[Entry]:
        """See `Store.read`."""
        await self._ready()
        log = self._log(key)
        start = max(after + 1, log.oldest)
        page: list[Entry] = []
        for entry in islice(log.entries, start - log.oldest, max(min(upto, log.head) + 1 - log.oldest, 0)):
            max_bytes -= len(entry.body)
            if page and (max_bytes < 0 or len(page) >= max_events):
                break
            page.append(entry)
        return page

    def now(self) -> float:
        """See `Store.now`."""
        return self._clock()

    async def retain(self, limits: Mapping[StreamKey, Retention], *, now: float) -> Retained:
        """See `Store.retain`."""
        await self._ready()
        trimmed = Retained({})
        held = []
        for key, limit in limits.items():
            log = self._logs.get(key)
            if log is None:
                continue
            oldest = log.oldest
            if not _trim(log, limit, now - limit.age, log.snapshot if key.scope == "user" else log.head):
                held.append(key)
            if log.oldest > oldest:
                trimmed.oldest[key] = log.oldest
        self._forget_old(self.now() - ANSWER_WINDOW)
        return attrs.evolve(trimmed, held=tuple(held))

    async def snapshot(self, key: StreamKey) -> StoredSnapshot:
        """See `Store.snapshot`."""
        await self._ready()
        log = self._log(key)
        return StoredSnapshot(log.snapshot, dict(log.contexts))

    async def oldest_contexts(self, keys: Sequence[StreamKey]) -> dict[StreamKey, float]:
        """See `Store.oldest_contexts`."""
        await self._ready()
        logs = [(key, self._logs[key]) for key in keys if key in self._logs]
        return {key: min(one.at for one in log.contexts.values()) for key, log in logs if log.contexts}

    async def keys(self, *, after: StreamKey | None = None, limit: int = 1000) -> list[StreamKey]:
        """See `Store.keys`."""
        await self._ready()
        return sorted(key for key in self._logs if after is None or key > after)[:limit]

    async def answer(self, key: AnswerKey) -> tuple[Answer, tuple[Position, ...]] | None:
        """See `Store.answer`."""
        await self._ready()
        return self._answered(key)

    async def runs(self) -> list[RunRecord]:
        """See `Store.runs`."""
        await self._ready()
        return list(self._runs.values())

    async def revocations(self) -> list[Revocation]:
        """See `Store.revocations`."""
        await self._ready()
        return list(self._revocations.values())

    async def forget_revocations(self, *, before: float) -> None:
        """See `Store.forget_revocations`."""
        await self._ready()
        self._revocations = {name: one for name, one in self._revocations.items() if one.at >= before}

    async def erase(self, one: UserRevocation) -> None:
        """See `Store.erase`."""
        await self._ready()
        key, user = StreamKey("user", one.tenant, one.user), (one.tenant, one.user)
        self._logs.pop(key, None)
        self._ids = {name: known for name, known in self._ids.items() if name[0] != key}
        self._answers = {
            asked: known for asked, known in self._answers.items() if (asked.tenant, asked.user) != user
        }
        self._runs = {name: run for name, run in self._runs.items() if (run.tenant, run.user) != user}
        self._keep(Unit(revocations=(one,)))

    async def purge(self) -> None:
        """See `Store.purge`: memory has no files."""
        await self._ready()

    def statistics(self) -> StoreStatistics:
        """See `Store.statistics`."""
        held = sum([log.size + len(log.entries) * ENTRY_BYTES for log in self._logs.values()])
        return StoreStatistics(self._commits, self._events, failures=0, healthy=not self._closed, held=held)

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        self._closed = True
        await trio.lowlevel.checkpoint()

    async def _ready(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed:
            raise StoreClosed("the store is closed")

    def _log(self, key: StreamKey) -> _Log:
        log = self._logs.get(key)
        if log is None:
            incarnation = secrets.token_hex(8)
            log = self._logs[key] = _Log(incarnation, make_epoch(incarnation, self.generation))
        return log

    def _apply(self, unit: Unit) -> Outcome:
        if unit.answers:
            first = unit.answers[0]
            known = self._answered(first.key)
            if known is not None:
                answer, positions = known
                if answer.digest != first.digest:
                    return Conflict(first.key.id)
                if not first.finishes(answer):
                    return Duplicate(answer.result, positions, answer.status)
        outcome = self._append_all(unit.entries)
        if isinstance(outcome, Applied):
            self._keep(unit)
        return outcome

    def _keep(self, unit: Unit) -> None:
        for answer in unit.answers:
            self._answers.pop(answer.key, None)
            self._answers[answer.key] = (answer, unit.positions)
        self._runs.update({run.run: run for run in unit.runs_started})
        for ended in unit.runs_ended:
            self._runs.pop(ended, None)
        self._revocations.update({attrs.evolve(one, at=0.0): one for one in unit.revocations})
        for snapshot in unit.snapshots:
            log = self._log(snapshot.key)
            if snapshot.epoch in (None, log.epoch) and snapshot.seq >= log.snapshot:
                log.snapshot = snapshot.seq
                changed = {**log.contexts, **snapshot.changed}
                log.contexts = {thread: stored for thread, stored in changed.items() if stored is not None}

    def _append(self, entry: Entry) -> None:
        log = self._logs.get(entry.key) or self._log(entry.key)
        log.head = entry.seq = log.head + 1
        entry.epoch = log.epoch
        log.written = True
        log.size += len(entry.body)
        log.entries.append(entry)
        self._events += 1

    def _append_all(self, entries: Sequence[Entry]) -> Applied | Conflict:
        now = self._clock()
        digests: dict[tuple[StreamKey, str], bytes] = {}
        for entry in entries:
            if entry.id is None:
                continue
            name = (entry.key, entry.id)
            known = self._first(name, now)
            if digests.setdefault(name, entry.digest if known is None else known[0]) != entry.digest:
                return Conflict(entry.id)
        repeats = []
        for place, entry in enumerate(entries):
            if entry.id is None:
                self._append(entry)
                continue
            name = (entry.key, entry.id)
            known = self._first(name, now)
            if known is None:
                self._append(entry)
                self._ids.pop(name, None)
                self._ids[name] = (entry.digest, entry.position, now)
            else:
                entry.epoch, entry.seq = known[1].epoch, known[1].seq
                repeats.append(place)
        return Applied(tuple(repeats)) if repeats else APPLIED

    def _first(self, name: tuple[StreamKey, str], now: float) -> tuple[bytes, Position, float] | None:
        known = self._ids.get(name)
        return known if known is not None and now - known[2] < ANSWER_WINDOW else None

    def _answered(self, key: AnswerKey) -> tuple[Answer, tuple[Position, ...]] | None:
        known = self._answers.get(key)
        return known if known is not None and self.now() - known[0].at < ANSWER_WINDOW else None

    def _forget_old(self, before: float) -> None:
        for name in [name for name, (_, _, at) in self._ids.items() if at <= before]:
            del self._ids[name]
        for key in [key for key, (answer, _) in self._answers.items() if answer.at <= before]:
            del self._answers[key]


def _trim(log: _Log, limit: Retention, before: float, upto: int) -> bool:
    """Forget what is over the limit, but nothing after `upto`; False where that held some back."""
    while log.entries and _is_over(log, limit, before):
        if log.oldest > upto:
            return False
        log.forget_oldest()
    return True


def _is_over(log: _Log, limit: Retention, before: float) -> bool:
    kept = len(log.entries)
    return log.entries[0].ts < before or (kept > 1 and (kept > limit.events or log.size > limit.bytes))
