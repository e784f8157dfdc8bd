"""Bytes to frames: strict, bounded, one typed error. Import from `codec`.

What a client sends is read by the standard library's parser, which shows duplicate keys; what a server sends
is read by orjson. `structure` makes frames of both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import orjson

from wsrecover.errors import FrameError

from .events import Event
from .fields import MAX_DEPTH, MAX_FRAMES, MAX_INT, is_id
from .frames import CLIENT_FRAMES, SERVER_FRAMES, ClientFrame, Hello, Send, ServerFrame, Snapshot
from .structure import structurer

__all__ = [
    "decode_body",
    "decode_client",
    "decode_event",
    "decode_hello",
    "decode_plain",
    "decode_server",
    "decode_snapshot",
    "event_thread",
    "parse_strict",
]

_CLIENT: Final = {op: structurer(cls) for op, cls in CLIENT_FRAMES.items()}
_SERVER: Final = {op: structurer(cls) for op, cls in SERVER_FRAMES.items()}
_structure_event: Final = structurer(Event)
_structure_hello: Final = structurer(Hello)
_structure_snapshot: Final = structurer(Snapshot)

URL_TEXT: Final = frozenset({"client", "from"})
URL_JSON: Final = frozenset({"resume", "part", "threads", "fresh"})

_LARGE: Final = re.compile(r"[0-9](?:[eE]\+?[0-9]{3}|[0-9]{15})")
"""Where this does not match there is no integer above 2^53 and no float that overflows.

It begins with one set of characters, for then the search skips all others at once."""

_THREAD: Final = re.compile(
    rb'\{(?:"first_seq":[0-9]+,)?"ts":[^,]+,"type":"[^"]+","thread":("(?:[^"\\]|\\.)*")'
)
"""The order is that of `encode_event`, with what `coalesce` puts before."""

_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def decode_client(message: str | bytes, *, max_bytes: int) -> list[ClientFrame | FrameError]:
    """The frames of a client's message, in order; a `FrameError` stands where one is bad, the others count.

    A frame is bad also where it holds an integer beyond ±(2^53-1), a number too large for a double or a lone
    surrogate, or is nested deeper than 64 levels.

    Raises `FrameError` where the message as a whole is none: binary (with the close code that must follow),
    above `max_bytes`, not strict JSON (RFC 8259; no duplicate keys, no NaN), or an array of no frames or more
    than 256. Never anything else.
    """
    value, suspect = _read(message, max_bytes)
    if isinstance(value, dict):
        return [_client_frame(value, suspect)]
    if not isinstance(value, list):
        raise FrameError("malformed", "a message is a frame or an array of frames")
    if not 1 <= len(value) <= MAX_FRAMES:
        raise FrameError("malformed", f"an array of {len(value)} frames, 1 to {MAX_FRAMES} are allowed")
    return [_client_frame(item, suspect) for item in value]


def decode_plain(message: str | bytes, fresh_id: str, *, max_bytes: int) -> list[ClientFrame | FrameError]:
    """The `send` that a message of the plain mode is, under `fresh_id` where it brings no id.

    Each message is one object, and held to what `decode_client` asks of a frame. Raises `FrameError` where it
    is no strict JSON, or anything but an object.
    """
    value, suspect = _read(message, max_bytes)
    if not isinstance(value, dict):
        raise FrameError("malformed", "a message is one JSON object, a command")
    return [_client_frame({"id": fresh_id, **value, "op": Send.op}, suspect)]


def decode_hello(parameters: Mapping[str, str], *, max_bytes: int) -> Hello:
    """The `hello` that rides in a URL: `parameters` are its decoded query fields.

    All but `client` and `from` are JSON, held to what `decode_client` asks of a message. Raises `FrameError`,
    which names the parameter.
    """
    item: dict[str, Any] = {"op": Hello.op}
    for name, text in parameters.items():
        if name in URL_TEXT:
            item[name] = text
        elif name in URL_JSON:
            try:
                _check_size(text, max_bytes)
                item[name] = parse_strict(text)
            except FrameError as exc:
                raise FrameError(exc.code, f"{name}: {exc.message}", field=name) from None
    return _structure_hello(item)


def _read(message: str | bytes, max_bytes: int) -> tuple[Any, bool]:
    """The JSON value of a message, and whether it is suspect: see `_is_suspect`."""
    if not isinstance(message, str):
        raise FrameError("malformed", "binary messages are not part of this protocol", close=4502)
    _check_size(message, max_bytes)
    return _parse(message), _is_suspect(message)


def _check_size(message: str, max_bytes: int) -> None:
    size = len(message)
    if size <= max_bytes and not message.isascii():
        try:
            size = len(message.encode())
        except UnicodeEncodeError:
            raise FrameError("malformed", "not UTF-8: a lone surrogate") from None
    if size > max_bytes:
        raise FrameError("too_large", f"a message of more than {max_bytes} bytes")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FrameError("malformed", "duplicate keys in an object")
    return found


def _constant(name: str) -> NoReturn:
    raise FrameError("malformed", f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def parse_strict(message: str) -> Any:
    """The value of strict JSON, as `decode_client` asks for it of a frame. Raises `FrameError`."""
    value = _parse(message)
    if _is_suspect(message):
        _check_strict(value)
    return value


def _parse(message: str) -> Any:
    try:
        return _DECODER.decode(message)
    except RecursionError:
        raise FrameError("malformed", f"nested deeper than {MAX_DEPTH} levels") from None
    except json.JSONDecodeError as exc:
        raise FrameError("malformed", f"not JSON: {exc.msg} at character {exc.pos}") from None
    except ValueError:  # The interpreter's own bound on the digits of an integer.
        raise FrameError("malformed", "an integer beyond ±(2^53-1)") from None


def _is_suspect(message: str) -> bool:
    """Whether there may be something in it that the parser lets through and `_check_strict` does not."""
    return (
        _LARGE.search(message) is not None
        or message.count("{") + message.count("[") > MAX_DEPTH
        or ("\\u" in message and _SURROGATE.search(message) is not None)
    )


def _check_strict(value: Any) -> None:
    """Refuse what the parser lets through: see `decode_client`."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
            else:
                _check_scalar(item)
        if not below:
            return
        level = below
    if any(isinstance(item, dict | list) for item in level):
        raise FrameError("malformed", f"nested deeper than {MAX_DEPTH} levels")
    for item in level:
        _check_scalar(item)


def _check_scalar(value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise FrameError("malformed", "a lone surrogate in a string")
    elif isinstance(value, int):
        if abs(value) > MAX_INT:
            raise FrameError("malformed", "an integer beyond ±(2^53-1)")
    elif isinstance(value, float) and not math.isfinite(value):
        raise FrameError("malformed", "a number too large for a double")


def _client_frame(item: Any, suspect: bool) -> ClientFrame | FrameError:  # noqa: FBT001  # Of the hot path.
    if not isinstance(item, dict):
        return FrameError("malformed", "a frame is an object")
    ref = item.get("id")
    if not is_id(ref):
        ref = None
    op = item.get("op")
    if not isinstance(op, str):
        return FrameError("malformed", "op: must be a string", field="op", ref=ref)
    make = _CLIENT.get(op)
    if make is None:
        return FrameError("unknown_op", f"unknown op {op[:40]!a}", field="op", ref=ref)
    try:
        if suspect:
            _check_strict(item)
        return make(item)
    except FrameError as exc:
        exc.ref = ref
        return exc


def decode_server(message: str | bytes) -> list[ServerFrame]:
    """The frames of a server's message, in order; unknown ops are left out. Raises only `FrameError`."""
    value = _loads(message)
    items = value if isinstance(value, list) else [value]
    frames: list[ServerFrame] = []
    for item in items:
        if not isinstance(item, dict):
            raise FrameError("malformed", "a frame is an object")
        op = item.get("op")
        if op == "event":
            frames.append(_event(item))
        elif isinstance(op, str):
            if op in _SERVER:
                frames.append(_SERVER[op](item))
        else:
            raise FrameError("malformed", "op: must be a string", field="op")
    return frames


def decode_event(data: bytes | bytearray) -> Event:
    """The event of an encoded `event` frame, put together from its parts. Raises `FrameError`."""
    item = _loads(data)
    if not isinstance(item, dict) or item.get("op") != "event":
        raise FrameError("malformed", "the parts do not make an event")
    return _event(item)


def decode_snapshot(data: bytes | bytearray) -> Snapshot:
    """The same of a `snapshot` frame."""
    item = _loads(data)
    if not isinstance(item, dict) or item.get("op") != "snapshot":
        raise FrameError("malformed", "the parts do not make a snapshot")
    return _structure_snapshot(item)


def decode_body(stream: str, seq: int, body: bytes) -> Event:
    """The event whose body `encode_event` made."""
    item = orjson.loads(body)
    return Event(stream, seq, item["ts"], item["type"], item["data"], item.get("thread"), item.get("run"))


def event_thread(body: bytes) -> str | None:
    """The thread of the event whose body `encode_event` made: `decode_body` costs more."""
    found = _THREAD.match(body)
    return None if found is None else str(orjson.loads(found[1]))


def _loads(message: str | bytes | bytearray) -> Any:
    try:
        return orjson.loads(message)
    except orjson.JSONDecodeError as exc:
        raise FrameError("malformed", f"not JSON: {exc.msg} at character {exc.pos}") from None


def _event(item: dict[str, Any]) -> Event:
    """The hot path: what fits at a glance is constructed directly, else `structure` names the field."""
    get = item.get
    stream, seq, ts, name, data = get("stream"), get("seq"), get("ts"), get("type"), get("data")
    thread, run, first = get("thread"), get("run"), get("first_seq")
    if (
        stream.__class__ is str
        and seq.__class__ is int
        and ts.__class__ is float
        and name.__class__ is str
        and data.__class__ is dict
        and (thread is None or thread.__class__ is str)
        and (run is None or run.__class__ is str)
        and first is None
        and 0 < seq <= MAX_INT
    ):
        return Event(stream, seq, ts, name, data, thread, run)
    event = _structure_event(item)
    if not 1 <= event.first <= event.seq:
        raise FrameError("invalid", "first_seq: must be within 1 … seq", field="first_seq")
    return event
