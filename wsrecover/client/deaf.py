"""What a session receives with where its app only sends."""

from __future__ import annotations

from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import Live, ServerFrame, Streams
from wsrecover.protocol.receiver import Forgotten, Item

__all__ = ["Deaf"]


class Deaf:
    """In place of a `Receiver`: no event comes of it, and each connection begins without a position.

    It tells only what the session's status goes by.
    """

    def resume(self) -> dict[str, Position]:
        """No positions."""
        return {}

    def part(self) -> dict[str, tuple[int, int]]:
        """Nor the parts of an event."""
        return {}

    def receive(self, frame: ServerFrame) -> list[Item]:
        """That a stream is live, or is not followed any more."""
        match frame:
            case Live():
                return [frame]
            case Streams(removed=removed):
                return [Forgotten(name) for name in removed]
        return []
