"""How much each stream has grown since somebody looked whether it is too long."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Final

import trio

from .store import Entry, StreamKey

__all__ = ["COUNTED_BYTES", "MAX_TRACKED", "Growth"]

COUNTED_BYTES: Final = 1024
"""What is appended counts by its events, and as one more for every so many bytes of their bodies."""

MAX_TRACKED: Final = 16_384
"""Streams of which something is remembered; all of them are looked at when there are more."""


class Growth:
    """Collects the streams that have grown by their `share`, the count after which they are due.

    Whoever wants to know sets `share`, before streams are opened: until then it is without end.

    A stream that is open counts down what is left of its share by itself, for that costs no look-up;
    of the others it is kept here, also over the times in which nobody has them open.
    """

    def __init__(self) -> None:
        self.share: Callable[[StreamKey], int] = lambda _: sys.maxsize
        self._left: dict[StreamKey, int] = {}
        self._grown: set[StreamKey] = set()
        self._crowded_out: set[StreamKey] = set()
        self._wake = trio.Event()

    def begin(self, key: StreamKey) -> int:
        """The stream is open from now on: what is left of its share."""
        share = self.share(key)
        return min(self._left.pop(key, share), share)

    def end(self, key: StreamKey, left: int) -> None:
        """The stream is not open any more, and so much is left."""
        if left >= self.share(key):
            return  # It has not grown: nothing is to be remembered of it.
        self._left[key] = left
        if len(self._left) > MAX_TRACKED:
            self._crowded_out.update(self._left)
            self._left.clear()
            self._wake.set()

    def due(self, key: StreamKey) -> int:
        """The stream has grown by its share: the next one."""
        self._grown.add(key)
        self._wake.set()
        return self.share(key)

    def add(self, key: StreamKey, entries: Sequence[Entry]) -> None:
        """What was appended to a stream that is not open."""
        size = sum([len(entry.body) for entry in entries])
        left = self.begin(key) - len(entries) - size // COUNTED_BYTES
        self.end(key, left if left > 0 else self.due(key))

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
