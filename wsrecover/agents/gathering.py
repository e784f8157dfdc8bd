"""The text that a run has added and not sent yet: pieces become deltas, in the order of adding."""

from __future__ import annotations

import math
from typing import Any

import attrs

from wsrecover.protocol.utf16 import units

__all__ = ["Gathering", "Text"]


@attrs.define(eq=False)
class Text:
    """The text of one message: `length` UTF-16 units so far. Its next delta may go at `due`, trio's time."""

    message_id: str
    length: int = 0
    due: float = -math.inf


@attrs.define(eq=False)
class _Delta:
    text: Text
    offset: int
    pieces: list[str]
    size: int

    def data(self) -> dict[str, Any]:
        return {"message_id": self.text.message_id, "offset": self.offset, "text": "".join(self.pieces)}


class Gathering:
    """What a run has gathered: `size` bytes of text, all to go at `due` (infinity: there is none).

    `interval` is the time in seconds from one delta of a message to its next. Adjacent pieces of one message
    become one delta; with an interval of 0 each is one of its own. `deltas` stay until they are `sent`:
    whoever is cancelled while it sends them has lost nothing.
    """

    __slots__ = ("_interval", "_sending", "deltas", "due", "size")

    def __init__(self, interval: float) -> None:
        self.deltas: list[_Delta] = []
        self.due = math.inf
        self.size = 0
        self._interval = interval
        self._sending = 0

    def add(self, text: Text, piece: str, size: int) -> None:
        """Add a piece, of `size` bytes, to a message."""
        offset, text.length = text.length, text.length + units(piece)
        self.size += size
        if text.due < self.due:
            self.due = text.due
        deltas = self.deltas
        last = deltas[-1] if len(deltas) > self._sending else None
        if last is not None and last.text is text and self._interval:
            last.pieces.append(piece)
            last.size += size
        else:
            deltas.append(_Delta(text, offset, [piece], size))

    def sending(self) -> list[dict[str, Any]]:
        """The data of the deltas that are sent now: what is added from now on is none of theirs."""
        self._sending = len(self.deltas)
        return [delta.data() for delta in self.deltas]

    def sent(self, now: float) -> int:
        """The deltas that `sending` gave were sent, and leave; how many. What their messages add is due an
        interval after `now`."""
        count = self._sending
        for delta in self.deltas[:count]:
            delta.text.due = now + self._interval
        del self.deltas[:count]
        self.size = sum(delta.size for delta in self.deltas)
        self.due = min((delta.text.due for delta in self.deltas), default=math.inf)
        self._sending = 0
        return count

    def kept(self) -> None:
        """The deltas that `sending` gave were not sent: they stay, and may grow again."""
        self._sending = 0
