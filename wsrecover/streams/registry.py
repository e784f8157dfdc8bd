"""The streams that this process holds, and the memory that their tails may take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs
import trio

from .budget import TailBudget
from .fanout import Fanout
from .growth import Growth
from .served import Served
from .store import Entry, Store, StreamKey
from .stream import Stream

__all__ = ["Streams", "StreamsStatistics"]

_NOTHING: Final[list[Entry]] = []

LEAST: Final = 64
"""By so large a part of their budget tails may grow in any case: else each batch would come to shorten them,
which looks at all streams."""


@attrs.frozen
class StreamsStatistics:
    """How many streams are open, and the events, and bytes of their bodies, that their tails hold."""

    streams: int
    tail_events: int
    tail_bytes: int


class Streams:
    """The process's streams.

    A stream's tail holds at most `tail_events` and `tail_bytes`; all tails together `budget_bytes`, beyond
    which the tails of streams without live followers go first.
    """

    def __init__(
        self,
        store: Store,
        *,
        tail_events: int = 256,
        tail_bytes: int = 256 * 1024,
        budget_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self._store = store
        self._tail_events = tail_events
        self._tail_bytes = tail_bytes
        self._budget_bytes = budget_bytes
        self._budget = TailBudget(budget_bytes)
        self._served = Served()
        self.fanout = Fanout(self._served)
        self.growth = Growth()
        self._streams: dict[StreamKey, Stream] = {}
        self._users: dict[Stream, int] = {}
        self._loading: dict[StreamKey, trio.Lock] = {}

    def get(self, key: StreamKey) -> Stream | None:
        """The stream, if it is open."""
        stream = self._streams.get(key)
        return stream if stream is not None and stream.loaded else None

    async def open(self, key: StreamKey) -> Stream:
        """The stream, loaded; give it back with `release`. Concurrent opens share one load.

        No checkpoint where it is open already. Cancelled, or raising what `Store.load` raises: nothing is
        held.
        """
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = Stream(
                key,
                self._store,
                self._budget,
                tail_events=self._tail_events,
                tail_bytes=self._tail_bytes,
                crowded=self.fanout.add,
                served=self._served,
                growth=self.growth,
            )
        self._users[stream] = self._users.get(stream, 0) + 1
        if not stream.loaded:
            try:
                await self._load(stream)
            except BaseException:
                self.release(stream)
                raise
        return stream

    async def _load(self, stream: Stream) -> None:
        lock = self._loading.setdefault(stream.key, trio.Lock())
        async with lock:
            if not stream.loaded:
                stream.load(await self._store.load(stream.key))
                self._loading.pop(stream.key, None)

    def release(self, stream: Stream) -> None:
        """One `open` less; with the last one the stream leaves memory."""
        self._users[stream] -= 1
        if not self._users[stream]:
            stream.drop_tail()
            del self._users[stream]
            if self._streams.get(stream.key) is stream:
                del self._streams[stream.key]
                self._loading.pop(stream.key, None)
                self.growth.end(stream.key, stream.share_left)

    def forget(self, key: StreamKey) -> None:
        """The stream was erased: who has it open learns no more of it, and who opens it has a new one."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            stream.drop_tail()
            self._loading.pop(key, None)
        self.growth.forget(key)

    def extend(self, entries: list[Entry]) -> None:
        """What one commit appended, in order: hand it to the streams that are open. `flush` sends it."""
        find = self._streams.get
        grown: list[Stream] = []
        others: dict[StreamKey, list[Entry]] = {}
        for entry in entries:
            stream = find(entry.key)
            if stream is None:
                others.setdefault(entry.key, []).append(entry)
            elif stream.gathered:
                stream.gathered.append(entry)
            else:
                stream.gathered = [entry]
                grown.append(stream)
        try:
            for stream in grown:
                appended, stream.gathered = stream.gathered, _NOTHING
                stream.extend(appended)
        except BaseException:  # Those behind it missed this, and will read it from the log.
            for stream in grown:
                stream.gathered = _NOTHING
            raise
        for key, appended in others.items():
            self.growth.add(key, appended)
        if self._budget.used > self._budget.limit:
            self._shrink()

    def flush(self) -> None:
        """Send what the followers took: after `extend`, in the same step."""
        self._served.flush()

    def trim(self, oldest: Mapping[StreamKey, int]) -> None:
        """What lies before the new oldest seqs is gone."""
        for key, seq in oldest.items():
            stream = self._streams.get(key)
            if stream is not None:
                stream.trim(seq)

    def allow(self, more: int) -> None:
        """For now the tails may grow by so many bytes, or by a `LEAST` of `budget_bytes`, the most in all."""
        least = self._budget_bytes // LEAST
        self._budget.limit = min(self._budget_bytes, self._budget.used + max(least, more))

    def shed(self, keys: Iterable[StreamKey] | None = None) -> int:
        """Drop the tails of these streams, where they are open, or of all; the bytes freed."""
        before = self._budget.used
        for key in self._streams if keys is None else keys:
            if (stream := self._streams.get(key)) is not None:
                stream.drop_tail()
        return before - self._budget.used

    def _shrink(self) -> None:
        """Drop whole tails down to three quarters of the budget, so that this is rare."""
        enough = self._budget.limit * 3 // 4
        for stream in sorted(self._streams.values(), key=lambda stream: bool(stream.live)):
            if self._budget.used <= enough:
                return
            stream.drop_tail()

    def statistics(self) -> StreamsStatistics:
        """Counts, without waiting."""
        events = sum([stream.tail_events for stream in self._streams.values()])
        return StreamsStatistics(len(self._streams), events, self._budget.used)
