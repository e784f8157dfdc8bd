"""An event on its way into a log."""

from __future__ import annotations

from typing import Final

from wsrecover.protocol.cursor import Position

from .key import StreamKey

__all__ = ["ENTRY_BYTES", "Entry"]

ENTRY_BYTES: Final = 200
"""What an entry takes in memory beside its body: 190 to 235, resident, with bodies of 1,000 to 100 bytes."""


class Entry:
    """An event on its way into the log of the stream `key`, and then in it: one object all the way.

    `body` is its JSON object without `op`, `stream` and `seq`, encoded once, in bytes and nothing like them;
    `ts` is in unix seconds. With an `id` the event is appended at most once per stream within
    `ANSWER_WINDOW`: the same id and digest gives the first one's position. `seq` and `epoch` are the store's
    to set when it commits; a page that was read has no epochs. What was committed is not handed to a store
    again, unless it has an `id`. Where `concerning` is not set, no context depends on it; who does not know
    leaves it set.

    A plain class, for every event is one: where this is compiled, attributes that attrs makes are slow.
    """

    __slots__ = ("body", "concerning", "digest", "epoch", "id", "key", "seq", "thread", "ts")

    def __init__(
        self,
        key: StreamKey,
        body: bytes,
        ts: float,
        thread: str | None = None,
        id: str | None = None,
        digest: bytes = b"",
        seq: int = 0,
        *,
        concerning: bool = True,
    ) -> None:
        self.key = key
        self.body = body
        self.ts = ts
        self.thread = thread
        self.id = id
        self.digest = digest
        self.seq = seq
        self.epoch = ""
        self.concerning = concerning

    def __repr__(self) -> str:
        return f"Entry({self.key!r}, {self.body!r}, seq={self.seq})"

    @property
    def position(self) -> Position:
        """Where it was committed."""
        return Position(self.epoch, self.seq)
