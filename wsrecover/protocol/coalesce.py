"""Replays in few words: adjacent fragments of one message become one event that covers them all.

::

    logged     10 started   11 "He"   12 "llo"   13 " you"   14 completed "Hello you"
    replayed   10 started   11 to 13 "Hello you"                                        while it is written
               10 started   11 to 14 completed "Hello you"                              once it is finished

What is merged says so (`first_seq`), and is never merged across another event. Applying it is idempotent: a
fragment counts by its offset, and a completed text is the whole. A finished message stands for its fragments
only where they are all there: then whoever is sent it has none of it.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import attrs
import orjson

from .encode import Logged, encode_event, event_frame
from .events import COMPLETED, FRAGMENTS
from .fields import MAX_INT
from .utf16 import units

__all__ = ["MESSAGE_ID", "Coalescer"]

MESSAGE_ID: Final = b'"message_id"'
"""A body without it is no fragment, nor the end of a message: it need not be decoded."""

_SLACK: Final = 24
"""Bytes by which the last one's time may be longer than the first one's."""


_Message: TypeAlias = tuple[str, str | None, str | None, str]
"""The type of a fragment, and the thread, run and message that it is of."""


@attrs.define
class _Run:
    """Adjacent fragments of one message: seqs `first` to that of `last`, offsets `begin` to `end`."""

    message: _Message
    last: Logged
    first: int
    begin: int
    end: int
    size: int
    ts: float
    texts: list[str]


class Coalescer:
    """Merges the events that it is given, one after the other; `open` holds what may yet grow.

    What it gives back is events with the body to send: their own, or one that covers those before it too. A
    merged event's frame in `stream` has at most `frame_bytes`. Nothing is lost by dropping a coalescer: a
    client that was not sent what it holds resumes before that.
    """

    __slots__ = ("_max_bytes", "open")

    def __init__(self, stream: str, frame_bytes: int) -> None:
        self.open: _Run | None = None
        largest = event_frame(stream, MAX_INT, _covering(MAX_INT, b"{"))
        self._max_bytes = frame_bytes - len(largest)

    def take(self, event: Logged) -> list[Logged]:
        """What can be told now that this event, the next in its stream, is known."""
        told: list[Logged] = []
        run, (seq, body) = self.open, event
        if len(body) <= self._max_bytes and MESSAGE_ID in body:
            decoded = orjson.loads(body)
            message = _message(decoded)
            if message is not None:
                if run is None or not self._grows(run, message, decoded, event):
                    told = self.rest()
                    self.open = _begun(message, decoded, event)
                return told
            if run is not None and _completes(decoded, run):
                self.open = None
                return [(seq, _covering(run.first, body))]
        if run is not None:
            told = self.rest()
        told.append(event)
        return told

    def rest(self) -> list[Logged]:
        """What is held, because something else is to be told next or there is nothing more."""
        run, self.open = self.open, None
        return [] if run is None else [(run.last[0], _merged(run))]

    def _grows(self, run: _Run, message: _Message, event: dict[str, Any], logged: Logged) -> bool:
        """Add a fragment to the run, if it goes on with it and there is room."""
        data = event["data"]
        if data["offset"] != run.end or message != run.message:
            return False
        text = data["text"]
        size = run.size + len(orjson.dumps(text)) - 2
        if size > self._max_bytes:
            return False
        run.last, run.end, run.size, run.ts = logged, run.end + units(text), size, event["ts"]
        run.texts.append(text)
        return True


def _message(event: dict[str, Any]) -> _Message | None:
    """What the event is a fragment of; None where it is none."""
    kind, data = event["type"], event["data"]
    if kind not in FRAGMENTS or len(data) != 3:  # With more in it than that, it is left alone.
        return None
    name = data.get("message_id")
    if type(name) is str and type(data.get("offset")) is int and type(data.get("text")) is str:
        return kind, event.get("thread"), event.get("run"), name
    return None


def _begun(message: _Message, event: dict[str, Any], logged: Logged) -> _Run:
    offset, text = event["data"]["offset"], event["data"]["text"]
    end, size = offset + units(text), len(logged[1]) + _SLACK
    return _Run(message, logged, logged[0], offset, end, size, event["ts"], [text])


def _completes(event: dict[str, Any], run: _Run) -> bool:
    """Whether the event is the end of the run's message, and the run is all of it."""
    data = event["data"]
    ended = ("message_delta", event.get("thread"), event.get("run"), data.get("message_id"))
    return (
        event["type"] == COMPLETED
        and run.message == ended
        and run.begin == 0
        # A role in it would be news to whoever knows the message from its fragments alone.
        and "role" not in data
        and data.get("text") == "".join(run.texts)
    )


def _merged(run: _Run) -> bytes:
    if len(run.texts) == 1:
        return run.last[1]
    kind, thread, author, name = run.message
    data = {"message_id": name, "offset": run.begin, "text": "".join(run.texts)}
    body = encode_event(ts=run.ts, type=kind, data=data, thread=thread, run=author, max_bytes=run.size)
    return _covering(run.first, body)


def _covering(first: int, body: bytes) -> bytes:
    return b'{"first_seq":%d,%b' % (first, body[1:])
