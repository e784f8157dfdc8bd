"""What a stream hands to its followers, framed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

from .store import Entry

__all__ = ["Batch"]


class Batch:
    """What one commit appended to one stream: `entries`, seqs `first` to `last`.

    `framed` is the message as it goes into the sockets: the first follower builds it, for all of them.
    """

    __slots__ = ("entries", "framed")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.framed: bytes | None = None

    @property
    def first(self) -> int:
        """The seq of the first of them."""
        return self.entries[0].seq

    @property
    def last(self) -> int:
        """The seq of the last of them."""
        return self.entries[-1].seq
