"""What the app has handled: the processed positions, and when to acknowledge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import attrs
import trio

from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import Ack, StreamInfo

__all__ = ["ACK_EVENTS", "ACK_SECONDS", "Progress", "Track"]

ACK_EVENTS: Final = 100
"""So many handled items are acknowledged at once …"""

ACK_SECONDS: Final = 1.0
"""… and fewer after so many seconds: an acknowledgement costs the server more than an event."""


@attrs.define(eq=False)
class Track:
    """One history of one stream. Its `epoch` changes where a server says that another one goes on with it."""

    stream: str
    epoch: str


class Progress:
    """The processed positions of a session, told to the server of whichever connection there is."""

    def __init__(self, positions: Mapping[str, Position]) -> None:
        self.tracks = {name: Track(name, position.epoch) for name, position in positions.items()}
        self._processed = {name: (self.tracks[name], place.seq) for name, place in positions.items()}
        self._acked: dict[str, int] = {}
        self._marks = 0
        self._some = trio.Event()
        self._enough = trio.Event()

    @property
    def positions(self) -> dict[str, Position]:
        """Up to where the app has handled each stream."""
        return {name: Position(track.epoch, seq) for name, (track, seq) in self._processed.items()}

    def including(self, handed: Sequence[tuple[Track, int]]) -> dict[str, Position]:
        """The positions as they will be once `handed` is handled, too."""
        fresh = {
            track.stream: Position(track.epoch, seq) for track, seq in handed if track.stream in self.tracks
        }
        return {**self.positions, **fresh}

    def follow(self, streams: Mapping[str, StreamInfo]) -> None:
        """Take over what a server says of streams: a resumed one goes on, any other is a new history."""
        for name, info in streams.items():
            track = self.tracks.get(name)
            if track is not None and info.resumed:
                track.epoch = info.epoch
            else:
                self.tracks[name] = Track(name, info.epoch)

    def forget(self, stream: str) -> None:
        """The principal may no longer follow a stream."""
        self.tracks.pop(stream, None)
        self._processed.pop(stream, None)

    def connected(self) -> None:
        """A new connection has heard nothing yet: the next `ack` names every position."""
        self._acked.clear()
        if self._processed:
            self._some.set()
            self._enough.set()

    def mark(self, track: Track, seq: int) -> None:
        """The app has handled everything of a history up to `seq`."""
        if track.stream not in self.tracks:
            return  # Forgotten while it waited for the app.
        self._processed[track.stream] = (track, seq)
        self._marks += 1
        if self._marks == 1:
            self._some.set()
        elif self._marks == ACK_EVENTS:
            self._enough.set()

    def ack(self) -> Ack | None:
        """What a server has not been told yet, taken as told; None where that is nothing."""
        self._marks = 0
        self._some, self._enough = trio.Event(), trio.Event()
        fresh = {
            name: seq
            for name, (track, seq) in self._processed.items()
            # A position in a history that has ended since would be taken for one in its successor.
            if track is self.tracks.get(name) and seq > self._acked.get(name, 0)
        }
        self._acked.update(fresh)
        return Ack(fresh) if fresh else None

    async def due(self) -> None:
        """Return when an `ack` is due. Cancelling is safe."""
        await self._some.wait()
        with trio.move_on_after(ACK_SECONDS):
            await self._enough.wait()
