"""A piece of a stream, as it is read from memory or the store."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from .store import Entry

__all__ = ["Page", "fitting"]


@attrs.frozen
class Page:
    """A piece of a stream, contiguous.

    `gap` is the first and last seq that was trimmed before it, if any was.
    """

    entries: Sequence[Entry]
    gap: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Bytes of the bodies."""
        return sum([len(entry.body) for entry in self.entries])


def fitting(entries: list[Entry], max_bytes: int) -> list[Entry]:
    """As many of them as fit `max_bytes` of bodies, but at least one."""
    for index, entry in enumerate(entries):
        max_bytes -= len(entry.body)
        if max_bytes < 0:
            return entries[: max(index, 1)]
    return entries
