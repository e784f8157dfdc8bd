"""Schemas of the app's own data: a Python type, and what of JSON fits it.

::

    JSON ── structure ──▶ str int float bool, None beside one of them, Literal, Enum, Any,
                          list, tuple, dict with string keys, attrs classes of such fields;
                          as text: datetime (RFC 3339, with its offset), date, UUID, bytes (base64)
         ◀── plain ──────
"""

from __future__ import annotations

import base64
import binascii
import builtins
import datetime as dt
import enum
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, cast, get_args, get_origin

import attrs
from cattrs import BaseValidationError, Converter

from wsrecover.errors import ConfigError, InvalidEvent, Misfit

from .events import STATE_PATCH
from .fields import MAX_DEPTH
from .strict import Hook, UnfitError, misfit, strict_converter, text, wire_name

__all__ = ["Schema", "fitted", "plain"]

_T = TypeVar("_T")

_SUPPORTED: Final = (
    "str, int, float, bool, None beside one type, Literal, Enum, Any, list[…], tuple[…], dict[str, …], "
    "datetime, date, UUID, bytes, attrs classes that do not hold themselves"
)

_SIMPLE: Final[dict[Any, dict[str, Any]]] = {
    Any: {},
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    dt.datetime: {"type": "string", "format": "date-time"},
    dt.date: {"type": "string", "format": "date"},
    uuid.UUID: {"type": "string", "format": "uuid"},
    bytes: {"type": "string", "contentEncoding": "base64"},
}


class Schema(Generic[_T]):
    """What of JSON fits `kind`. `description` says so in words of JSON Schema.

    With `closed` an object may have no fields that its class has not. Raises `ConfigError` for a type that
    has no place here; `name` is what is at fault then.
    """

    def __init__(self, kind: type[_T], *, closed: bool = False, name: str) -> None:
        self.kind = kind
        self.description = _describe(kind, name, ())
        self._hook: Hook = (_closed if closed else _open).get_structure_hook(kind)

    def structure(self, value: object, path: str) -> _T:
        """`value`, decoded JSON that stands at `path`, as a `kind`.

        Raises `Misfit` with the path of the first thing that does not fit (`data.items[2].price`).
        """
        try:
            return cast("_T", self._hook(value, self.kind))
        except BaseValidationError as error:
            field, problem = misfit(error)
            raise Misfit(f"{path}.{field}" if field[:1] not in ("", "[") else path + field, problem) from None
        except UnfitError as error:
            raise Misfit(path, str(error)) from None


def plain(value: Any, path: str, *, depth: int = 0) -> Any:
    """`value`, such as an instance of an attrs class, as JSON has it. What has no rule stays as it is.

    Raises `Misfit` where it is nested too deep.
    """
    if depth > MAX_DEPTH:
        raise Misfit(path, f"nested deeper than {MAX_DEPTH} levels")
    match value:
        case dt.datetime() | dt.date():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case uuid.UUID():
            return str(value)
        case enum.Enum():
            return value.value
        case list() | tuple():
            return [plain(item, path, depth=depth + 1) for item in value]
        case Mapping():
            return {key: plain(item, path, depth=depth + 1) for key, item in value.items()}
        case _ if attrs.has(type(value)):
            return {
                wire_name(field.name): plain(getattr(value, field.name), path, depth=depth + 1)
                for field in attrs.fields(type(value))
                if field.init
            }
    return value


def fitted(type: str, data: Any, schemas: Mapping[str, Schema[Any]]) -> Any:
    """The data of an event of `type`, held to what is registered for it.

    That, and an instance of an attrs class, comes as `plain` makes it. Raises `InvalidEvent` for a misfit,
    and for a type that only the server makes.
    """
    if type == STATE_PATCH:
        raise InvalidEvent("type", f"{STATE_PATCH} is made by run.memory and run.workflow")
    schema = schemas.get(type) if isinstance(type, str) else None
    if schema is None and not attrs.has(data.__class__):
        return data
    try:
        data = plain(data, "data")
        if schema is not None:
            schema.structure(data, "data")
    except Misfit as error:
        raise InvalidEvent(error.field, error.problem) from error
    return data


def _describe(kind: Any, name: str, within: tuple[type, ...]) -> dict[str, Any]:
    """The schema of `kind`, which stands at `name` within these classes."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return {"enum": list(args)}
    if kind in _SIMPLE:
        return dict(_SIMPLE[kind])
    if _is_enum(kind):
        return {"enum": [member.value for member in kind]}
    if attrs.has(kind) and kind not in within:
        return _describe_class(kind, name, (*within, kind))
    inner = [_describe(each, name, within) for each in args if each not in (..., types.NoneType)]
    match get_origin(kind) or kind:
        case types.UnionType | typing.Union if len(inner) == 1:
            return {"anyOf": [*inner, {"type": "null"}]}
        case builtins.list:
            return {"type": "array", **({"items": inner[0]} if inner else {})}
        case builtins.tuple if args[1:] == (...,):
            return {"type": "array", "items": inner[0]}
        case builtins.tuple if args:
            return {"type": "array", "prefixItems": inner, "minItems": len(inner), "maxItems": len(inner)}
        case builtins.dict if args[:1] in ((), (str,)):
            return {"type": "object", **({"additionalProperties": inner[1]} if inner else {})}
    raise ConfigError(name, f"is of the type {kind!r}", _SUPPORTED)


def _describe_class(cls: type[attrs.AttrsInstance], name: str, within: tuple[type, ...]) -> dict[str, Any]:
    try:
        attrs.resolve_types(cls)
    except NameError as error:
        raise ConfigError(name, f"has an annotation that says nothing here: {error}", _SUPPORTED) from error
    fields = [field for field in attrs.fields(cls) if field.init]
    required = [wire_name(field.name) for field in fields if field.default is attrs.NOTHING]
    return {
        "type": "object",
        "properties": {
            wire_name(field.name): _describe(field.type, f"{name}.{wire_name(field.name)}", within)
            for field in fields
        },
        **({"required": required} if required else {}),
    }


def _datetime(value: Any, _: Any) -> dt.datetime:
    wanted = "must be a date and time with an offset, such as 2026-01-31T12:00:00Z"
    found = _parsed(dt.datetime.fromisoformat, value, wanted)
    if found.tzinfo is None:
        raise UnfitError(wanted)
    return found


def _date(value: Any, _: Any) -> dt.date:
    return _parsed(dt.date.fromisoformat, value, "must be a date, such as 2026-01-31")


def _uuid(value: Any, _: Any) -> uuid.UUID:
    return _parsed(uuid.UUID, value, "must be a UUID")


def _bytes(value: Any, _: Any) -> bytes:
    def decode(encoded: str) -> bytes:
        return base64.b64decode(encoded, validate=True)

    return _parsed(decode, value, "must be base64, padded")


def _parsed(parse: Callable[[str], _T], value: Any, wanted: str) -> _T:
    try:
        return parse(text(value, None))
    except (ValueError, binascii.Error, UnfitError):
        raise UnfitError(wanted) from None


def _enum_hook(kind: Any, _: Converter) -> Hook:
    members = {(type(member.value), member.value): member for member in kind}

    def structure(value: Any, _: Any) -> Any:
        if type(value) not in (str, int, float, bool) or (type(value), value) not in members:
            raise UnfitError(f"must be one of {', '.join(str(member.value) for member in kind)}")
        return members[type(value), value]

    return structure


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


_TEXTS: Final[tuple[tuple[type, Hook], ...]] = (
    (dt.datetime, _datetime),
    (dt.date, _date),
    (uuid.UUID, _uuid),
    (bytes, _bytes),
)


def _converter(*, closed: bool) -> Converter:
    converter = strict_converter(forbid_extra_keys=closed)
    for kind, hook in _TEXTS:
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook_factory(_is_enum, _enum_hook)
    return converter


_open: Final = _converter(closed=False)
_closed: Final = _converter(closed=True)
