"""How much each stream has grown since somebody looked whether it is too long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import trio

from .store import Entry, StreamKey

__all__ = ["COUNTED_BYTES", "MAX_TRACKED", "Growth", "Left"]

COUNTED_BYTES: Final = 1024
"""A share of so many events is used up by that many times these bytes of bodies as well."""

MAX_TRACKED: Final = 16_384
"""Streams of which something is remembered; all of them are looked at when there are more."""


class Left(NamedTuple):
    """What is left of a stream's share. It is due with whichever is used up first."""

    events: int
    bytes: int


class Growth:
    """Collects the streams that have grown by their `share`, the count after which they are due.

    Whoever wants to know sets `share`, before streams are opened: until then it is without end.

    A stream that is open sees by itself when its share is used up, for that costs no look-up;
    of the others it is kept here, also over the times in which nobody has them open.
    """

    def __init__(self) -> None:
        self.share: Callable[[StreamKey], int] = lambda _: sys.maxsize
        self._left: dict[StreamKey, Left] = {}
        self._grown: set[StreamKey] = set()
        self._crowded_out: set[StreamKey] = set()
        self._wake = trio.Event()

    def _whole(self, key: StreamKey) -> Left:
        share = self.share(key)
        return Left(share, share * COUNTED_BYTES)

    def begin(self, key: StreamKey) -> Left:
        """The stream is open from now on: what is left of its share."""
        whole = self._whole(key)
        left = self._left.pop(key, whole)
        return Left(min(left.events, whole.events), min(left.bytes, whole.bytes))

    def end(self, key: StreamKey, left: Left) -> None:
        """The stream is not open any more, and so much is left."""
        if left.events >= self.share(key):
            return  # It has not grown: nothing is to be remembered of it.
        self._left[key] = left
        if len(self._left) > MAX_TRACKED:
            self._crowded_out.update(self._left)
            self._left.clear()
            self._wake.set()

    def due(self, key: StreamKey) -> Left:
        """The stream has grown by its share: the next one."""
        self._grown.add(key)
        self._wake.set()
        return self._whole(key)

    def add(self, key: StreamKey, entries: Sequence[Entry]) -> None:
        """What was appended to a stream that is not open."""
        before = self.begin(key)
        size = sum([len(entry.body) for entry in entries])
        left = Left(before.events - len(entries), before.bytes - size)
        self.end(key, left if min(left) > 0 else self.due(key))

    def forget(self, key: StreamKey) -> None:
        """The stream was erased."""
        self._left.pop(key, None)

    async def wait(self) -> None:
        """Wait until there is something to `take`. May be cancelled."""
        await self._wake.wait()

    def take(self) -> tuple[set[StreamKey], set[StreamKey]]:
        """The streams that are due, and those of which too many were kept to know that they are not."""
        grown, others = self._grown, self._crowded_out
        self._grown, self._crowded_out = set(), set()
        self._wake = trio.Event()
        return grown, others
