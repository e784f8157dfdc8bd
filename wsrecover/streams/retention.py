"""Who trims: streams that grew enough since the last look, and by age each of them now and then."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeAlias

import trio

from wsrecover.errors import StoreError
from wsrecover.logger import get_logger

from .growth import COUNTED_BYTES, MAX_TRACKED
from .registry import Streams
from .store import Retention, Store, StreamKey

__all__ = ["Retainer", "Snapshots"]

log = get_logger(__name__)

Snapshots: TypeAlias = Callable[[Sequence[StreamKey], bool], Awaitable[None]]
"""Stores a snapshot of each of these users' streams; or, with False, reduces what their tails hold by now, so
that a later one need not read it. What it raises but `StoreError` ends the journal."""

_SHARE: Final = 16
"""A stream is looked at when it grew by this fraction of what it may hold: that much more it may hold."""

_LOOK_EVENTS: Final = 200
"""Events after which a user's stream is looked at in any case: its tail still holds them."""

_PAGE: Final = 1000


class Retainer:
    """Applies `retention` to the streams of `store`.

    `sweep_interval` (seconds) is how often a page of all the streams that the store knows is looked at, grown
    or not: that is how events go by age.

    Whoever sets `snapshots` is asked for one of each user's stream that grew by its share, after
    `snapshot_events` at the latest, of those that cannot be trimmed without, and in a sweep of those with a
    context that was used last more than `context_age` seconds ago.
    """

    def __init__(
        self,
        store: Store,
        streams: Streams,
        *,
        retention: Callable[[StreamKey], Retention],
        context_age: Callable[[StreamKey], float],
        clock: Callable[[], float],
        sweep_interval: float,
        snapshot_events: int,
    ) -> None:
        self.snapshots: Snapshots | None = None
        self._store = store
        self._streams = streams
        self._retention = retention
        self._context_age = context_age
        self._clock = clock
        self._interval = sweep_interval
        self._snapshot_events = snapshot_events
        self._looks_since: dict[StreamKey, int] = {}
        self._growth = streams.growth
        self._growth.share = self._share

    def _share(self, key: StreamKey) -> int:
        """How many events later a stream is due."""
        limit = self._retention(key)
        share = min(limit.events // _SHARE, limit.bytes // _SHARE // COUNTED_BYTES)
        if key.scope == "user":
            share = min(share, self._snapshot_events, _LOOK_EVENTS)
        return max(share, 1)

    async def run(self) -> None:
        """Trim until cancelled. A failing store is asked again at the next look."""
        last: StreamKey | None = None
        next_sweep = trio.current_time() + self._interval
        while True:
            with trio.move_on_at(next_sweep):
                await self._growth.wait()
            grown, others = self._growth.take()
            if grown or others:
                await self._look([key for key in grown if key.scope == "user"])
                await self._apply(grown | others)
            if trio.current_time() >= next_sweep:
                last = await self._sweep(last)
                next_sweep = trio.current_time() + self._interval

    async def _sweep(self, after: StreamKey | None) -> StreamKey | None:
        try:
            page = await self._store.keys(after=after, limit=_PAGE)
        except StoreError as error:
            log.warning("sweep_failed", error=str(error))
            return after
        await self._apply(page)
        await self._forget_contexts([key for key in page if key.scope == "user"])
        return page[-1] if len(page) == _PAGE else None

    async def _apply(self, keys: Iterable[StreamKey]) -> None:
        held = await self._trim(keys)
        if held:
            await self._snapshot(held)
            await self._trim(held)

    async def _forget_contexts(self, users: Sequence[StreamKey]) -> None:
        """Have the contexts forgotten that are too old, of users who are away as well."""
        try:
            oldest = await self._store.oldest_contexts(users)
        except StoreError as error:
            log.warning("context_sweep_failed", error=str(error))
            return
        now = self._clock()
        await self._snapshot([key for key, at in oldest.items() if at < now - self._context_age(key)])

    async def _look(self, users: Sequence[StreamKey]) -> None:
        """Store the snapshots that are due of these, which have grown, and prepare those of the others."""
        due, early = [], []
        for key in users:
            looks = self._looks_since.pop(key, 0) + 1
            if looks < self._looks(key):
                self._looks_since[key] = looks
                early.append(key)
            else:
                due.append(key)
        if len(self._looks_since) > MAX_TRACKED:
            due += self._looks_since
            self._looks_since.clear()
        await self._snapshot(early, store=False)
        await self._snapshot(due)

    def _looks(self, key: StreamKey) -> float:
        """How often a stream is looked at for each snapshot."""
        share = max(self._retention(key).events, 1) / _SHARE
        return min(self._snapshot_events, share) / _LOOK_EVENTS

    async def _snapshot(self, keys: Sequence[StreamKey], *, store: bool = True) -> None:
        if not keys or self.snapshots is None:
            return
        try:
            await self.snapshots(keys, store)
        except StoreError as error:
            log.warning("snapshots_failed", error=str(error), streams=len(keys))

    async def _trim(self, keys: Iterable[StreamKey]) -> Sequence[StreamKey]:
        """Trim these; those that a snapshot held back."""
        limits = {key: self._retention(key) for key in keys}
        try:
            retained = await self._store.retain(limits, now=self._clock())
        except StoreError as error:
            log.warning("trim_failed", error=str(error), streams=len(limits))
            return ()
        self._streams.trim(retained.oldest)
        return retained.held
