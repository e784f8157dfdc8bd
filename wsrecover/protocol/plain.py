"""The plain mode (SPEC.md): events as a front end would want them, one in a message, and no duties.

::

    v1      [{"op":"event","stream":"user","seq":8, …}, {"op":"live", …}]      {"op":"send","id":"x", …}
               │ Outward.tell                                                         ▲ decode_plain
    plain   {"id":"k3v-9f.8","type":"chat","data":{…},"ts":1.5}                {"type":"chat","data":{…}}
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import orjson

from wsrecover.errors import FrameError

from .cursor import Position
from .fields import MAX_INT, is_id

__all__ = ["PLAIN", "Outward", "parse_id"]

PLAIN: Final = "wsrecover.plain.v1"
"""The subprotocol."""

Word: TypeAlias = dict[str, Any]
"""What a plain client is sent, or a frame of version 1, as a JSON object."""

EVENT: Final = ("type", "data", "thread", "run", "ts")
WORDS: Final = {
    "reply": ("id", "status", "result", "error"),
    "error": ("code", "message", "field", "ref", "retry_after"),
    "drain": ("retry_after", "jitter"),
    "auth_required": ("expires_in",),
}
"""Frames that pass with their op as `type`, and these fields of them."""


def parse_id(text: str) -> Position:
    """The position that an event's id names. Raises `FrameError`."""
    epoch, _, seq = text.rpartition(".")
    if not is_id(epoch) or not (seq.isascii() and seq.isdigit()) or len(seq) > 16 or int(seq) > MAX_INT:
        raise FrameError("invalid", "since: must be the id of an event, <epoch>.<seq>", field="since")
    return Position(epoch, int(seq))


class Outward:
    """What one plain client is told of the frames of its connection.

    Of broadcasts it is told those that come while it is connected: without a position it would be told the
    others each time anew.
    """

    def __init__(self) -> None:
        self._epoch = ""
        self._level = {"user"}
        self._parts: dict[str, bytearray] = {}

    def tell(self, frame: Word) -> list[Word]:
        """The frame in plain words, if there are any for it."""
        match frame["op"]:
            case "event":
                return self._event(frame)
            case "part":
                return self._part(frame)
            case "ephemeral":
                return [_fields(frame, EVENT)]
            case "live":
                self._level.add(frame["stream"])
            case "gap" if frame["stream"] == "user":
                return [self._gap(frame["reason"], frame.get("to"))]
            case "welcome":
                return self._welcome(frame["streams"]["user"])
            case op if op in WORDS:
                return [{"type": op, **_fields(frame, WORDS[op])}]
        return []

    def _welcome(self, state: Mapping[str, Any]) -> list[Word]:
        self._epoch = state["epoch"]
        reason = state.get("reason")
        if reason == "new":
            return [{"type": "welcome", "id": f"{self._epoch}.{state['from'] - 1}"}]
        if reason is None or reason == "trimmed":  # Of what was trimmed a `gap` of its own follows.
            return []
        return [self._gap(reason, state["from"] - 1)]

    def _gap(self, reason: str, to: int | None) -> Word:
        return {"type": "gap", "reason": reason, **({} if to is None else {"id": f"{self._epoch}.{to}"})}

    def _event(self, frame: Word) -> list[Word]:
        if frame["stream"] not in self._level:
            return []
        event = _fields(frame, EVENT)
        return [{"id": f"{self._epoch}.{frame['seq']}", **event} if frame["stream"] == "user" else event]

    def _part(self, frame: Word) -> list[Word]:
        held = self._parts.setdefault(frame["stream"], bytearray())
        held += base64.b64decode(frame["bytes"])
        if len(held) < frame["total"]:
            return []
        return self._event(orjson.loads(self._parts.pop(frame["stream"])))


def _fields(frame: Word, names: tuple[str, ...]) -> Word:
    return {name: frame[name] for name in names if name in frame}
