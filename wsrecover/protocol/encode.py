"""Frames and events to bytes. Import from `codec`.

JSON by orjson, with what it would bend silently refused: NaN and the infinities (it writes null), integers
that JavaScript cannot hold (RFC 8259, section 6), and all that would not come back as it was given, save that
a tuple comes back as a list, a UUID as its text, an enum member as its value, a `Position` or a frame as the
wire writes it, and an instance of any other attrs class as `schema.plain` does.
"""

from __future__ import annotations

import base64
import enum
import functools
import hashlib
import math
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import attrs
import orjson

from wsrecover.errors import InvalidEvent, Misfit, caused_by

from .cursor import Position
from .events import EVENT_TYPE, TYPES
from .fields import MAX_DEPTH, MAX_ID, MAX_INT, is_id
from .frames import (
    ALWAYS,
    CLIENT_FRAMES,
    SERVER_FRAMES,
    ClientFrame,
    ErrorBody,
    PrincipalInfo,
    RunInfo,
    ServerFrame,
    StreamInfo,
)
from .schema import plain

__all__ = [
    "Logged",
    "digest",
    "encode",
    "encode_event",
    "encode_event_of",
    "encode_json",
    "ephemeral_frame",
    "event_author",
    "event_frame",
    "event_frames",
    "event_prefix",
    "join",
    "live_frame",
    "parts",
    "snapshot_frame",
]

_STRICT: Final = (
    orjson.OPT_STRICT_INTEGER
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)

_to_json: Final = orjson.dumps
"""For each event: an attribute of a module is looked up by name, compiled or not."""

_REQUIRED: Final = object()
_ID: Final = f"must be 1 to {MAX_ID} printable ASCII characters"


Logged: TypeAlias = tuple[int, bytes]
"""An event in a log: its seq, and its body as `encode_event` made it."""


def _wire_fields(cls: type) -> tuple[tuple[str, str, Any], ...]:
    """(attribute, name on the wire, the default that is left out) of each field of `cls`."""
    fields = []
    for field in attrs.fields(cls):
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]  # attrs types its Factory class as a function
            default = default.factory()
        if default is attrs.NOTHING or ALWAYS in field.metadata:
            default = _REQUIRED
        fields.append((field.name, field.name.rstrip("_"), default))
    return tuple(fields)


_FIELDS: Final = {
    cls: _wire_fields(cls)
    for cls in (
        *CLIENT_FRAMES.values(),
        *SERVER_FRAMES.values(),
        StreamInfo,
        PrincipalInfo,
        RunInfo,
        ErrorBody,
    )
}


def _plain(value: Any) -> Any:
    """A frame, a part of one, or an instance of another attrs class, as what orjson knows."""
    if type(value) is Position:
        return [value.epoch, value.seq]
    fields = _FIELDS.get(type(value))
    if fields is None:
        if attrs.has(type(value)):
            return plain(value, "data")
        raise TypeError(f"a {type(value).__name__} is not JSON")
    told = {"op": value.op} if hasattr(value, "op") else {}
    for name, wire, default in fields:
        item = getattr(value, name)
        if default is _REQUIRED or item != default:
            told[wire] = item
    return told


def encode(frame: ServerFrame | ClientFrame) -> bytes:
    """`frame` as one JSON object. Raises `InvalidEvent` where it carries data that is not JSON."""
    return _dumps(_plain(frame), "")


def encode_json(value: object, *, field: str, max_bytes: int) -> bytes:
    """`value` as strict JSON, for what the app returns. Raises `InvalidEvent` naming `field` as the root."""
    encoded = _dumps(value, field)
    _check_depth(value, field)
    if len(encoded) > max_bytes:
        raise InvalidEvent(field, _too_large(encoded, max_bytes))
    return encoded


def encode_event(
    *,
    ts: object,
    type: object,
    data: object,
    thread: object = None,
    run: object = None,
    max_bytes: int,
) -> bytes:
    """The body of an event: its JSON object without `op`, `stream` and `seq`, which `event_frame` adds.

    It takes whatever the app gave: `ts` should be a number, `type` a string, `data` a mapping with strings
    for keys, `thread` and `run` ids or None. Raises `InvalidEvent` with the path of what is wrong
    (`data.items[3].x`) and the limit that it breaks.
    """
    return encode_event_of(event_author(thread, run), ts, type, data, max_bytes)


def event_author(thread: object, run: object) -> bytes:
    """What all events of one author have between type and data. Raises `InvalidEvent`."""
    names = b","
    for name, value in (("thread", thread), ("run", run)):
        if value is not None:
            if not is_id(value):
                raise InvalidEvent(name, _ID)
            names += b'"%b":%b,' % (name.encode(), orjson.dumps(value))
    return names + b'"data":'


def encode_event_of(
    author: bytes,
    ts: object,
    name: object,
    data: object,
    max_bytes: int,
) -> bytes:
    """`encode_event` with the type `name`, for an author of many events: its `event_author` is made once."""
    named = _type_fields.get(name) if type(name) is str else None
    if named is None:
        named = _type_field(name)
    if type(data) is not dict:
        data = _as_dict(data)
    if type(ts) is not float or ts - ts != 0.0:  # Of NaN and the infinities the difference is NaN.
        ts = _time(ts)
    try:
        encoded = _to_json(data, None, _STRICT)
    except TypeError:
        encoded = _serialize(data, "data")
    for value in data.values():  # Cheaper than to search what is flat for its flaws.
        if type(value) not in _FLAT:
            _refuse_bent(data, "data", encoded)
            if encoded.count(b"{") + encoded.count(b"[") >= MAX_DEPTH:
                _check_depth(data, "data")
            break
    body = b"".join((b'{"ts":', _to_json(ts), named, author, encoded, b"}"))
    if len(body) > max_bytes:
        raise InvalidEvent("data", _too_large(body, max_bytes))
    return body


_FLAT: Final = frozenset({str, int, bool})
"""What can be neither deep nor bent by its encoding."""


_type_fields: Final[dict[str, bytes]] = {}
"""Of the types that were seen: a cache that costs a third of `functools.lru_cache`."""


def _type_field(name: object) -> bytes:
    if type(name) is not str or not (name in TYPES or EVENT_TYPE.match(name)):
        raise InvalidEvent("type", "must match [a-z][a-z0-9_.]{0,63}")
    if len(_type_fields) >= 4096:
        _type_fields.clear()
    named = _type_fields[name] = b',"type":"%b"' % name.encode()
    return named


def _time(ts: object) -> float:
    if type(ts) is int and abs(ts) <= MAX_INT:
        return float(ts)
    raise InvalidEvent("ts", "must be a finite number")


def _as_dict(data: object) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidEvent("data", f"must be an object, not {data.__class__.__name__}")
    return dict(data)


def _too_large(encoded: bytes, max_bytes: int) -> str:
    return f"{len(encoded)} bytes encoded, the limit is {max_bytes}"


def _check_depth(value: object, field: str) -> None:
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item if isinstance(item, dict | list | tuple) else _plain(item)
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if type(item) not in _LEAVES and not isinstance(item, enum.Enum)
        ]
        if not level:
            return
    raise InvalidEvent(field, f"nested deeper than {MAX_DEPTH} levels")


def _dumps(value: Any, path: str) -> bytes:
    encoded = _serialize(value, path)
    _refuse_bent(value, path, encoded)
    return encoded


def _serialize(value: Any, path: str) -> bytes:
    try:
        return orjson.dumps(value, default=_plain, option=_STRICT)
    except TypeError as exc:
        field, problem = _offence(value, path, 0) or (path or "data", str(exc))
        raise caused_by(InvalidEvent(field, problem), None) from None


def _refuse_bent(value: Any, path: str, encoded: bytes) -> None:
    """Raise `InvalidEvent` where a null in `encoded` was none in `value`."""
    if b"null" in encoded and (offence := _offence(value, path, 0)) is not None:
        raise InvalidEvent(*offence)


def _offence(value: Any, path: str, depth: int) -> tuple[str, str] | None:
    """The path of the first thing that is not strict JSON, and what is wrong with it."""
    kind = type(value)
    if kind in _LEAVES:
        problem = _LEAVES[kind](value)
        return None if problem is None else (path, problem)
    if depth > MAX_DEPTH + 8:  # A frame's own levels come on top of those of its data.
        return path, f"nested deeper than {MAX_DEPTH} levels"
    if isinstance(value, enum.Enum):
        return _offence(value.value, path, depth + 1)
    if attrs.has(kind):
        try:
            return _offence(_plain(value), path, depth)
        except Misfit as error:
            return path, error.problem
    if kind is dict:
        return _offence_in_object(value, path, depth)
    if kind is list or kind is tuple:
        for index, item in enumerate(value):
            if (offence := _offence(item, f"{path}[{index}]", depth + 1)) is not None:
                return offence
        return None
    return path, f"a {kind.__name__} is not JSON"


def _offence_in_object(value: dict[Any, Any], path: str, depth: int) -> tuple[str, str] | None:
    for key, item in value.items():
        if type(key) is not str:
            return path, f"the key {ascii(key)[:40]} is not a string"
        if (problem := _bad_text(key)) is not None:
            return path, f"a key {problem}"
        if (offence := _offence(item, f"{path}.{key}" if path else key, depth + 1)) is not None:
            return offence
    return None


def _bad_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is not Unicode text"
    return None


def _bad_int(number: int) -> str | None:
    return None if abs(number) <= MAX_INT else "an integer beyond ±(2^53-1)"


def _bad_float(number: float) -> str | None:
    return None if math.isfinite(number) else f"{number} is not JSON"


_LEAVES: Final[dict[type, Any]] = {
    str: _bad_text,
    int: _bad_int,
    float: _bad_float,
    bool: lambda _: None,
    type(None): lambda _: None,
    uuid.UUID: lambda _: None,
}


@functools.lru_cache(maxsize=4096)
def event_prefix(stream: str) -> bytes:
    """What every event frame of `stream` begins with, up to its seq."""
    return b'{"op":"event",%b' % _stream_fields(stream)


def event_frame(stream: str, seq: int, body: bytes) -> bytes:
    """The `event` frame of a body that `encode_event` made."""
    return b"%b%d,%b" % (event_prefix(stream), seq, body[1:])


def event_frames(stream: str, events: Iterable[Logged]) -> list[bytes]:
    """The `event_frame` of each: what a replay sends, by the hundred."""
    prefix = event_prefix(stream)
    return [b"%b%d,%b" % (prefix, seq, body[1:]) for seq, body in events]


def ephemeral_frame(stream: str, body: bytes) -> bytes:
    """The `ephemeral` frame of a body that `encode_event` made."""
    return b'{"op":"ephemeral","stream":%b,%b' % (orjson.dumps(stream), body[1:])


@functools.lru_cache(maxsize=4096)
def live_frame(stream: str, seq: int) -> bytes:
    """The `live` frame: each connection is sent one for each of its streams."""
    return b'{"op":"live",%b%d}' % (_stream_fields(stream), seq)


@functools.lru_cache(maxsize=4096)
def _stream_fields(stream: str) -> bytes:
    return b'"stream":%b,"seq":' % orjson.dumps(stream)


def join(frames: Sequence[bytes]) -> bytes:
    """One message of encoded frames: one as it is, several as an array."""
    if len(frames) == 1:
        return frames[0]
    return b"[%b]" % b",".join(frames)


def snapshot_frame(stream: str, seq: int, threads: Mapping[str, bytes], *, more: bool) -> bytes:
    """The `snapshot` frame of encoded contexts by thread."""
    prefix = b'{"op":"snapshot","stream":%b,"seq":%d,"threads":{' % (orjson.dumps(stream), seq)
    told = b",".join([b"%b:%b" % (orjson.dumps(name), context) for name, context in threads.items()])
    return b"%b%b}%b}" % (prefix, told, b',"more":true' if more else b"")


def parts(
    stream: str,
    seq: int,
    frame: bytes,
    *,
    part_bytes: int,
    offset: int = 0,
    of: str | None = None,
) -> Iterator[bytes]:
    """Encoded `part` frames of an encoded event frame, from byte `offset` on, each of `part_bytes` of it.

    `of` names what it is instead, where it is no event.

    An `offset` outside the frame, which a peer may claim, starts it over: else the event would never come.
    """
    kind = b"" if of is None else b'"of":%b,' % orjson.dumps(of)
    prefix = b'{"op":"part","stream":%b,"seq":%d,%b"offset":' % (orjson.dumps(stream), seq, kind)
    total = len(frame)
    begin = offset if 0 <= offset < total else 0
    for start in range(begin, total, part_bytes):
        piece = base64.b64encode(frame[start : start + part_bytes])
        yield b'%b%d,"total":%d,"bytes":"%b"}' % (prefix, start, total, piece)


def digest(kind: str, thread: str | None, data: Mapping[str, Any], *, run: str | None = None) -> bytes:
    """16 bytes that stand for the body of a command, or of an event of a run, whatever the order of keys."""
    body = [kind, thread, _as_dict(data)] if run is None else [kind, thread, _as_dict(data), run]
    canonical = orjson.dumps(body, default=_plain, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(canonical, digest_size=16).digest()
