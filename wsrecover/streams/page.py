"""A piece of a stream, as it is read from memory or the store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from wsrecover.errors import StoreCorrupt
from wsrecover.protocol.codec import Logged

from .store import Entry

__all__ = ["Page", "fitting", "page_of"]


@attrs.frozen
class Page:
    """A piece of a stream, contiguous: the `bodies` of the events from the seq `first` on.

    `gap` is the first and last seq that was trimmed before it, if any was.
    """

    first: int
    bodies: Sequence[bytes]
    gap: tuple[int, int] | None = None

    @property
    def last(self) -> int:
        """The seq of its last event; where it is empty that of the last before it."""
        return self.first + len(self.bodies) - 1

    @property
    def size(self) -> int:
        """Bytes of the bodies."""
        return sum(map(len, self.bodies))

    @property
    def events(self) -> Iterator[Logged]:
        """Its events."""
        return enumerate(self.bodies, self.first)


def page_of(entries: Sequence[Entry], *, after: int, upto: int) -> Page:
    """What a store has read of what lies behind `after`, up to `upto`; where that is nothing it is gone.

    Raises `StoreCorrupt` where it has a hole.
    """
    start = entries[0].seq if entries else upto + 1
    if entries and entries[-1].seq != start + len(entries) - 1:
        raise StoreCorrupt(f"stream {entries[0].key.parts}: what follows {after} has a hole")
    gap = (after + 1, start - 1) if start > after + 1 else None
    return Page(start, [entry.body for entry in entries], gap)


def fitting(bodies: list[bytes], max_bytes: int) -> list[bytes]:
    """As many of them as fit `max_bytes`, but at least one."""
    for index, body in enumerate(bodies):
        max_bytes -= len(body)
        if max_bytes < 0:
            return bodies[: max(index, 1)]
    return bodies
