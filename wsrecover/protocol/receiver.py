"""A client's duty (SPEC.md) without the socket: what came in, what of it is new, and where to resume.

One `Receiver` lives as long as the client does, over any number of connections::

    hello  ◀── resume(), part()
    welcome ──▶ welcome()  ──▶ what changed meanwhile
    frames ──▶ receive()   ──▶ what the app shall see, in order and once

Every `FrameError` that it raises, `Hole` among them, means: this connection cannot be trusted any further,
connect again with `resume()`. Nothing is lost by it: the positions stand before the frame that raised. Only
behind one with the code `too_large` there is no point in it, for the same frame would come again.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Final, TypeAlias

import attrs

from wsrecover.errors import FrameError

from .codec import decode_event, decode_snapshot
from .cursor import Position, Step, step
from .events import COMPLETED, FRAGMENTS, Event
from .fields import MAX_TOTAL
from .frames import (
    Ephemeral,
    Gap,
    Live,
    Part,
    ServerFrame,
    Skip,
    Snapshot,
    StreamInfo,
    Streams,
    Welcome,
)
from .utf16 import units

__all__ = ["Changed", "Forgotten", "Hole", "Item", "Receiver"]

USER: Final = "user"
"""The stream that has snapshots."""


@attrs.frozen
class Changed:
    """The position held in `stream` was not accepted: what follows is another history, or misses events.

    `reason` is the server's: `epoch_changed`, `trimmed`, `ahead`; `new` where hello gave no position.
    `position` is where the stream now goes on from.
    """

    stream: str
    reason: str
    held: Position
    position: Position


@attrs.frozen
class Forgotten:
    """The principal may no longer follow `stream`; its position is dropped."""

    stream: str


Item: TypeAlias = Event | Ephemeral | Snapshot | Skip | Gap | Live | Changed | Forgotten
"""What the app is told. `Skip` and `Gap` move the position that it has processed."""


class Hole(FrameError):  # SPEC.md's word for it.
    """An event, a gap or `live` came that does not follow on what was received."""

    def __init__(self, stream: str, last: int, first: int) -> None:
        super().__init__("malformed", f"a hole in {stream}: {first} came after {last}")
        self.stream = stream
        self.last = last
        self.first = first


@attrs.define
class _Partial:
    """An event, or what `of` names, under assembly."""

    seq: int
    total: int
    of: str | None = None
    data: bytearray = attrs.field(factory=bytearray)


@attrs.define
class _Place:
    """Where a stream is. `open` after a gap of unknown extent: whatever comes next is accepted as the next.

    `awaits` a snapshot: without it the position says nothing. `begins`: nothing came of it yet.
    `message` and `end` are the message of the last fragment received, and the offset that it reached.
    """

    epoch: str
    last: int
    open: bool = False
    awaits: bool = False
    begins: bool = False
    partial: _Partial | None = None
    message: str | None = None
    end: int = 0

    def enter(self, epoch: str) -> None:
        """Go on under `epoch`: the position is good there, but not what is held of the event after it."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.partial = None

    def advance(self, seq: int) -> None:
        self.last = seq
        self.open = False
        self.begins = False
        self.partial = None
        self.message = None


class Receiver:
    """The received positions of one client, by stream. Memory: a place of each, with a bounded partial."""

    def __init__(
        self,
        positions: Mapping[str, Position] | None = None,
        *,
        snapshots: bool = False,
    ) -> None:
        """Start from `positions`, the processed ones that the app kept; none on a first start.

        `snapshots`: its hello says `from` `"snapshot"`.
        """
        self._snapshots = snapshots
        self._places = {
            name: _Place(position.epoch, position.seq) for name, position in (positions or {}).items()
        }

    def resume(self) -> dict[str, Position]:
        """The positions for the next `hello`."""
        return {
            name: Position(place.epoch, place.last)
            for name, place in self._places.items()
            if not place.open and not place.awaits
        }

    def part(self) -> dict[str, tuple[int, int]]:
        """The seq and the bytes held of each event under assembly, for the next `hello`."""
        return {
            name: (place.partial.seq, len(place.partial.data))
            for name, place in self._places.items()
            if place.partial is not None and place.partial.of is None and not place.open
        }

    def welcome(self, frame: Welcome) -> list[Item]:
        """Take in what a new connection starts from."""
        self._check(frame.streams)
        forgotten = [name for name in self._places if name not in frame.streams]
        return [*self._forget(forgotten), *self._enter(frame.streams)]

    def _check(self, streams: Mapping[str, StreamInfo]) -> None:
        for name, info in streams.items():
            place = self._places.get(name)
            if place is not None and not place.open and info.resumed and info.from_ > place.last + 1:
                raise Hole(name, place.last, info.from_)

    def _forget(self, names: list[str] | tuple[str, ...]) -> list[Item]:
        return [Forgotten(name) for name in names if self._places.pop(name, None) is not None]

    def _enter(self, streams: Mapping[str, StreamInfo]) -> list[Item]:
        items: list[Item] = []
        for name, info in streams.items():
            place = self._places.get(name)
            if place is not None and info.resumed and not place.open:
                place.enter(info.epoch)
                continue
            awaits = self._snapshots and name == USER and info.from_ > 1
            self._places[name] = _Place(info.epoch, info.from_ - 1, awaits=awaits, begins=True)
            if place is not None and not place.open and not place.awaits:
                held = Position(place.epoch, place.last)
                position = Position(info.epoch, info.from_ - 1)
                if held.seq or position.seq:  # Else nothing was received of it, and nothing is missed.
                    items.append(Changed(name, info.reason or "epoch_changed", held, position))
        return items

    def receive(self, frame: ServerFrame) -> list[Item]:
        """What the app shall see of `frame`: nothing for what it has, nor for frames of the connection.

        Raises `Hole` or another `FrameError`: connect again.
        """
        match frame:
            case Event():
                return self._event(frame)
            case Part():
                return self._part(frame)
            case Skip():
                return self._skip(frame)
            case Gap():
                return self._gap(frame)
            case Snapshot():
                return self._snapshot(frame)
            case Live():
                return self._live(frame)
            case Ephemeral():
                return [frame]
            case Welcome():
                return self.welcome(frame)
            case Streams():
                self._check(frame.added)
                return [*self._forget(frame.removed), *self._enter(frame.added)]
        return []

    def _place(self, stream: str) -> _Place:
        place = self._places.get(stream)
        if place is None:
            raise FrameError("malformed", f"{stream} is not a stream of this connection", field="stream")
        return place

    def _event(self, event: Event) -> list[Item]:
        place = self._place(event.stream)
        judged = Step.NEW if place.open else step(place.last, event.first, event.seq)
        if judged is Step.DUPLICATE:
            return []
        if judged is Step.HOLE:
            raise Hole(event.stream, place.last, event.first)
        if judged is Step.OVERLAP:
            event = _rest(event, place)
        place.advance(event.seq)
        if event.type in FRAGMENTS:
            _remember(event, place)
        return [event]

    def _part(self, part: Part) -> list[Item]:
        place = self._place(part.stream)
        known = part.of is None and part.seq <= place.last and not place.open
        if known or part.of not in (None, "snapshot"):
            return []
        try:
            self._add(part, place)
        except FrameError:
            place.partial = None
            raise
        partial = place.partial
        if partial is None or len(partial.data) < partial.total:
            return []
        place.partial = None
        whole = decode_event(partial.data) if part.of is None else decode_snapshot(partial.data)
        if (whole.stream, whole.seq) != (part.stream, part.seq):
            raise FrameError("malformed", f"the parts of {part.seq} in {part.stream} make another")
        return self.receive(whole)

    def _add(self, part: Part, place: _Place) -> None:
        if part.total > MAX_TOTAL:
            what = f"{part.of or 'event'} {part.seq} of {part.stream}"
            problem = f"{what} has {part.total} bytes, a client takes {MAX_TOTAL}"
            raise FrameError("too_large", problem, field="total")
        partial = place.partial
        if partial is None or part.offset == 0:
            partial = place.partial = _Partial(part.seq, part.total, part.of)
        held = (partial.seq, partial.total, partial.of, len(partial.data))
        if (part.seq, part.total, part.of, part.offset) != held:
            raise FrameError(
                "malformed", f"a part of {part.stream} does not follow on the last", field="offset"
            )
        try:
            piece = base64.b64decode(part.bytes, validate=True)
        except (binascii.Error, ValueError):
            raise FrameError("invalid", "bytes: not base64", field="bytes") from None
        if not piece or part.offset + len(piece) > part.total:
            raise FrameError("invalid", "bytes: empty or beyond total", field="bytes")
        partial.data += piece

    def _skip(self, skip: Skip) -> list[Item]:
        place = self._place(skip.stream)
        if skip.to <= place.last and not place.open:
            return []
        place.advance(skip.to)
        return [skip]

    def _gap(self, gap: Gap) -> list[Item]:
        place = self._place(gap.stream)
        place.awaits = place.awaits or (self._snapshots and gap.stream == USER)
        if gap.to is None:
            place.open = True
            place.partial = None
            return [gap]
        if gap.to <= place.last and not place.open:
            # Behind a welcome it names what the client will not get, before the place where it goes on.
            told, place.begins = place.begins, False
            return [gap] if told else []
        if gap.from_ is not None and gap.from_ > place.last + 1 and not place.open:
            raise Hole(gap.stream, place.last, gap.from_)
        place.advance(gap.to)
        return [gap]

    def _snapshot(self, snapshot: Snapshot) -> list[Item]:
        place = self._place(snapshot.stream)
        if snapshot.seq > place.last or place.open:
            place.advance(snapshot.seq)
        place.begins = False
        place.awaits = place.awaits and snapshot.more
        return [snapshot]

    def _live(self, live: Live) -> list[Item]:
        place = self._place(live.stream)
        if live.seq > place.last and not place.open:
            raise Hole(live.stream, place.last, live.seq)
        return [live]


def _rest(event: Event, place: _Place) -> Event:
    """Of a merged event that begins before the position, the part after it (by offset, in UTF-16 units).

    A finished message comes whole: its text replaces whatever is there.
    """
    data = event.data
    first = None if event.seq == place.last + 1 else place.last + 1
    if event.type == COMPLETED:
        return attrs.evolve(event, first_seq=first)
    text, offset = data.get("text"), data.get("offset")
    if (
        event.type not in FRAGMENTS
        or place.message is None
        or data.get("message_id") != place.message
        or not isinstance(text, str)
        or type(offset) is not int
    ):
        raise Hole(event.stream, place.last, event.first)
    encoded = text.encode("utf-16-le")
    cut = 2 * (place.end - offset)
    if not 0 <= cut <= len(encoded):
        raise Hole(event.stream, place.last, event.first)
    try:
        rest = encoded[cut:].decode("utf-16-le")
    except UnicodeDecodeError:
        raise Hole(event.stream, place.last, event.first) from None
    return attrs.evolve(event, data={**data, "offset": place.end, "text": rest}, first_seq=first)


def _remember(event: Event, place: _Place) -> None:
    """Keep how far the message reached, which is what `_rest` cuts at."""
    data = event.data
    message, text, offset = data.get("message_id"), data.get("text"), data.get("offset")
    if isinstance(message, str) and isinstance(text, str) and type(offset) is int:
        place.message = message
        place.end = offset + units(text)
