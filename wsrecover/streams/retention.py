"""Who trims: streams that grew enough since the last look, and by age each of them now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import attrs
import structlog
import trio

from wsrecover.errors import StoreError

from .registry import Streams
from .store import Entry, Retention, Store, StreamKey

__all__ = ["Retainer"]

_log = structlog.get_logger(__name__)

_SHARE: Final = 16
"""A stream is looked at when it grew by this fraction of what it may hold: that much more it may hold."""

_MAX_TRACKED: Final = 16_384
_PAGE: Final = 1000


@attrs.define(eq=False)
class _Growth:
    """How far a stream is on its way to the next look: at 1 it is due."""

    per_event: float
    per_byte: float
    share: float = 0.0


class Retainer:
    """Applies `retention` to the streams of `store`.

    `sweep_interval` (seconds) is how often a page of all the streams that the store knows is looked at, grown
    or not: that is how events go by age.
    """

    def __init__(
        self,
        store: Store,
        streams: Streams,
        *,
        retention: Callable[[StreamKey], Retention],
        clock: Callable[[], float],
        sweep_interval: float,
    ) -> None:
        self._store = store
        self._streams = streams
        self._retention = retention
        self._clock = clock
        self._interval = sweep_interval
        self._growth: dict[StreamKey, _Growth] = {}
        self._due: set[StreamKey] = set()
        self._wake = trio.Event()

    def grew(self, changes: Mapping[StreamKey, Sequence[Entry]]) -> None:
        """What was committed, per stream."""
        growth = self._growth
        for key, entries in changes.items():
            grown = growth.get(key)
            if grown is None:
                grown = growth[key] = self._new(key)
            share = grown.share
            for entry in entries:
                share += grown.per_event + len(entry.body) * grown.per_byte
            grown.share = share
            if share >= 1:
                del growth[key]
                self._due.add(key)
        if len(growth) > _MAX_TRACKED:
            self._due.update(growth)
            growth.clear()
        if self._due:
            self._wake.set()

    def _new(self, key: StreamKey) -> _Growth:
        limit = self._retention(key)
        return _Growth(_SHARE / max(limit.events, 1), _SHARE / max(limit.bytes, 1))

    async def run(self) -> None:
        """Trim until cancelled. A failing store is asked again at the next look."""
        last: StreamKey | None = None
        next_sweep = trio.current_time() + self._interval
        while True:
            with trio.move_on_at(next_sweep):
                await self._wake.wait()
            self._wake = trio.Event()
            if self._due:
                due, self._due = self._due, set()
                await self._apply(due)
            if trio.current_time() >= next_sweep:
                last = await self._sweep(last)
                next_sweep = trio.current_time() + self._interval

    async def _sweep(self, after: StreamKey | None) -> StreamKey | None:
        try:
            page = await self._store.keys(after=after, limit=_PAGE)
        except StoreError as error:
            _log.warning("sweep failed", error=str(error))
            return after
        await self._apply(page)
        return page[-1] if len(page) == _PAGE else None

    async def _apply(self, keys: Iterable[StreamKey]) -> None:
        limits = {key: self._retention(key) for key in keys}
        try:
            self._streams.trim(await self._store.retain(limits, now=self._clock()))
        except StoreError as error:
            _log.warning("trim failed", error=str(error), streams=len(limits))
