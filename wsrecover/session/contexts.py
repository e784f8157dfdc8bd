"""The contexts of one user's threads: reduced from the log when somebody asks, and stored in between.

::

    store ── newest snapshot ─▶ contexts as of seq ── the log after seq ─▶ contexts as of the head
                  ▲                                                                │
                  └───────────────── what changed, now and then ◀──────────────────┘

Events that are emitted cost nothing here until then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

import attrs
import orjson
import trio

from wsrecover.errors import WsrecoverError
from wsrecover.logger import get_logger
from wsrecover.protocol.codec import decode_body
from wsrecover.protocol.context import EMPTY, NO_THREAD, Context, concerning, parse, reduce
from wsrecover.streams.page import Page
from wsrecover.streams.store import NewSnapshot, StoredContext, StreamKey, Unit
from wsrecover.streams.stream import Stream

from .services import Services

__all__ = ["Snapshot", "UserContexts", "keep_up", "store"]

log = get_logger(__name__)

PAGE_EVENTS: Final = 2_000
PAGE_BYTES: Final = 1024 * 1024

TOGETHER: Final = 16
"""Users whose snapshots are made at once: they share reads and commits, and no user waits for all the others
until its tail has gone."""

SLICE: Final = 0.002
"""Seconds of reducing after which other tasks get their turn."""


@attrs.frozen
class Snapshot:
    """The contexts of a user's threads as of `seq`."""

    seq: int
    contexts: Mapping[str, Context]


@attrs.define
class _State:
    """What is reduced so far: up to `seq`, with the ts of the last event that changed each thread.

    `epoch` is that of the stream, `stored` the seq of the newest snapshot, `changed` the threads that may
    differ from it.
    """

    epoch: str
    seq: int
    stored: int
    contexts: dict[str, Context]
    used: dict[str, float]
    changed: set[str] = attrs.field(factory=set)
    blank: Context = EMPTY

    def take(self, page: Page, *, age: float) -> None:
        """Reduce a page of the log, or what is left of it.

        A thread that was idle for longer than `age` begins empty, whether or not somebody looked meanwhile.
        """
        if page.gap is not None:  # Only of a log that an older version trimmed: now a snapshot goes before.
            log.warning("context_incomplete", first=page.gap[0], last=page.gap[1])
            self.blank = attrs.evolve(EMPTY, truncated=True)
            self.contexts = {
                name: attrs.evolve(context, truncated=True) for name, context in self.contexts.items()
            }
            self.changed.update(self.contexts)
        for seq, body in concerning(page.events):
            event = decode_body("user", seq, body)
            name = event.thread or NO_THREAD
            if event.ts - age > self.used.get(name, event.ts) and not _is_busy(self.contexts[name]):
                self.forget((name,))
            before = self.contexts.get(name, self.blank)
            after = reduce(before, event)
            if after is not before:
                self.contexts[name] = after
                self.used[name] = event.ts
                self.changed.add(name)
        self.seq = page.last

    def forget(self, names: Iterable[str]) -> None:
        for name in names:
            del self.contexts[name], self.used[name]
            self.changed.add(name)

    def expired(self, *, before: float, most: int) -> list[str]:
        """Threads that were not used since `before` or are beyond the `most` that were used last."""
        if len(self.used) <= most and min(self.used.values(), default=before) >= before:
            return []
        idle = [name for name, context in self.contexts.items() if not _is_busy(context)]
        idle.sort(key=self.used.__getitem__)
        surplus = max(0, len(self.contexts) - most)
        return [name for place, name in enumerate(idle) if place < surplus or self.used[name] < before]


def _is_busy(context: Context) -> bool:
    return bool(context.requests) or any(run.ended is None for run in context.runs.values())


class UserContexts:
    """One user's contexts. Whoever asks first reduces for all who wait with him.

    `held` are the bytes, in JSON, of those that stay in memory.
    """

    def __init__(self, services: Services, key: StreamKey) -> None:
        self._services = services
        self._settings = services.config.contexts
        self._key = key
        self._lock = trio.Lock()
        self.patching = trio.Lock()
        self._state: _State | None = None
        self._is_large = False
        self.held = 0

    def forget(self) -> int:
        """Let the contexts leave memory, unless somebody works on them; the bytes that they were."""
        if self._lock.locked():
            return 0
        freed, self.held, self._state = self.held, 0, None
        return freed

    async def snapshot(self) -> Snapshot:
        """The contexts as of the head, or later. Raises `StoreError`; may be abandoned at any time."""
        async with self._lock:
            state = await self._advanced()
            taken = Snapshot(state.seq, dict(state.contexts))
            self._let_go(state)
            return taken

    async def thread(self, name: str | None) -> Context:
        """One thread's context (None: of events without a thread). As `snapshot`."""
        return (await self.snapshot()).contexts.get(name or NO_THREAD, EMPTY)

    async def store(self) -> None:
        """Put a snapshot of the head on stable storage, without threads that are too old or too many.

        Raises `StoreError`. Cancelled, it may be stored.
        """
        async with self._lock:
            state = await self._advanced()
            if state.seq == state.stored and not state.changed:
                return
            changed = {name: _stored(state, name) for name in state.changed}
            unit = Unit(snapshots=(NewSnapshot(self._key, state.seq, changed, state.epoch),))
            await self._services.journal.commit(unit)
            state.stored = state.seq
            state.changed.clear()
            self._let_go(state)

    async def keep_up(self) -> None:
        """Reduce what came since, while the tail has it, unless the contexts are too large to stay in memory.

        Raises `StoreError`; may be abandoned at any time.
        """
        if not self._is_large:
            async with self._lock:
                self._let_go(await self._advanced())

    def keep_up_nowait(self) -> bool:
        """`keep_up`, or False where that must wait for somebody or for the store."""
        state, stream = self._state, self._services.streams.get(self._key)
        if self._is_large:
            return True
        if self._lock.locked() or state is None or stream is None or state.epoch != stream.epoch:
            return False
        age, most = self._services.quotas.contexts(self._key)
        if state.seq < stream.concerning_seq:
            page = stream.page_nowait(state.seq, max_events=PAGE_EVENTS, max_bytes=PAGE_BYTES)
            if page is None or page.last < stream.head:
                return False
            state.take(page, age=age)
        else:  # Nothing that came since makes a difference.
            state.seq = stream.head
        self._forget_expired(state, age, most)
        self._let_go(state)
        return True

    async def _advanced(self) -> _State:
        streams = self._services.streams
        stream = await streams.open(self._key)
        try:
            if self._state is None or self._state.epoch != stream.epoch:
                self._state = await self._load(stream.epoch)
            age, most = self._services.quotas.contexts(self._key)
            await self._advance(self._state, stream, age)
            self._forget_expired(self._state, age, most)
        finally:
            streams.release(stream)
        return self._state

    def _forget_expired(self, state: _State, age: float, most: int) -> None:
        state.forget(state.expired(before=self._services.clock() - age, most=most))

    async def _load(self, epoch: str) -> _State:
        stored = await self._services.store.snapshot(self._key)
        contexts = {}
        for name, context in stored.contexts.items():
            contexts[name] = parse(orjson.loads(context.body))
            await trio.lowlevel.checkpoint()
        used = {name: context.at for name, context in stored.contexts.items()}
        return _State(epoch, stored.seq, stored.seq, contexts, used)

    async def _advance(self, state: _State, stream: Stream, age: float) -> None:
        upto = stream.head
        pause_at = trio.current_time() + SLICE
        while state.seq < upto:
            page = await stream.page(state.seq, max_events=PAGE_EVENTS, max_bytes=PAGE_BYTES)
            state.take(page, age=age)
            if trio.current_time() >= pause_at:
                await trio.lowlevel.checkpoint()
                pause_at = trio.current_time() + SLICE

    def _let_go(self, state: _State) -> None:
        self.held = sum(context.size for context in state.contexts.values())
        self._is_large = self.held > self._settings.memory_bytes
        if self._is_large:
            self._state, self.held = None, 0


def _stored(state: _State, name: str) -> StoredContext | None:
    context = state.contexts.get(name)
    return None if context is None else StoredContext(orjson.dumps(context.json()), state.used[name])


async def keep_up(all_contexts: Iterable[UserContexts]) -> None:
    """Have each keep up: nearly all can at once, without a task each."""
    waiting = []
    pause_at = trio.current_time() + SLICE
    for contexts in all_contexts:
        try:
            if not contexts.keep_up_nowait():
                waiting.append(contexts.keep_up)
        except Exception:  # One user's bug must not end everybody's journal.
            log.exception("snapshot_failed")
        if trio.current_time() >= pause_at:
            await trio.lowlevel.checkpoint()
            pause_at = trio.current_time() + SLICE
    await _attempt_all(waiting)


async def store(all_contexts: Iterable[UserContexts]) -> None:
    """Store a snapshot of each."""
    await _attempt_all([contexts.store for contexts in all_contexts])


async def _attempt_all(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Do all of this, some at a time. What fails is logged, and tried when due again."""
    free = trio.Semaphore(TOGETHER)

    async def attempt(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except WsrecoverError as error:
            log.warning("snapshot_not_stored", error=repr(error))
        except Exception:  # Likewise.
            log.exception("snapshot_failed")
        finally:
            free.release()

    async with trio.open_nursery() as nursery:
        for work in works:
            await free.acquire()
            nursery.start_soon(attempt, work)
