"""Strict structuring of decoded frames by cattrs: "3" is no number here and true is no 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, get_args, get_origin

import attrs
from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    Converter,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from wsrecover.errors import FrameError

from .cursor import Position
from .fields import (
    MAX_ID,
    MAX_INT,
    MAX_STREAM_NAME,
    MAX_STREAMS,
    MAX_THREADS,
    Id,
    Seconds,
    Seq,
    StreamName,
    ThreadIds,
    is_id,
)

__all__ = ["structurer"]

_T = TypeVar("_T")
_Hook: TypeAlias = Callable[[Any, Any], Any]


class _UnfitError(Exception):
    """A value does not fit its field; the message says what would."""


def structurer(cls: type[_T]) -> Callable[[dict[str, Any]], _T]:
    """What makes a `cls` of a decoded object. It raises `FrameError` with the path of the first misfit."""
    hook = _converter.get_structure_hook(cls)

    def make(item: dict[str, Any]) -> _T:
        try:
            return cast("_T", hook(item, cls))
        except BaseValidationError as exc:
            raise _frame_error(exc) from None

    return make


def _frame_error(group: BaseValidationError) -> FrameError:
    path = ""
    exc: Exception = group
    while isinstance(exc, BaseValidationError):
        exc, note = _first(exc)
        if isinstance(note, AttributeValidationNote):
            path += f".{note.name.rstrip('_')}"
        elif note is not None:
            path += f"[{note.index}]" if isinstance(note.index, int) else f".{note.index[:40]}"
    field = path.lstrip(".")
    problem = "is missing" if isinstance(exc, KeyError) else str(exc)
    return FrameError("invalid", f"{field}: {problem}", field=field)


def _first(exc: BaseValidationError) -> tuple[Exception, Any]:
    noted, bare = exc.group_exceptions()  # type: ignore[attr-defined]  # both subclasses have it
    return noted[0] if noted else (bare[0], None)


def _text(value: Any, _: Any) -> str:
    if type(value) is not str:
        raise _UnfitError("must be a string")
    return value


def _integer(value: Any, _: Any) -> int:
    if type(value) is not int:
        raise _UnfitError("must be an integer")
    return value


def _boolean(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise _UnfitError("must be true or false")
    return value


def _number(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise _UnfitError("must be a finite number")
    return float(value)


def _id(value: Any, _: Any) -> str:
    if not is_id(value):
        raise _UnfitError(f"must be 1 to {MAX_ID} printable ASCII characters")
    return str(value)


def _stream_name(value: Any, _: Any) -> str:
    if type(value) is not str or not 1 <= len(value) <= MAX_STREAM_NAME:
        raise _UnfitError(f"must be a stream's name, 1 to {MAX_STREAM_NAME} characters")
    return value


def _seq(value: Any, _: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise _UnfitError("must be an integer from 0 to 2^53-1")
    return value


def _seconds(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise _UnfitError("must be a finite number of seconds, not negative")
    return float(value)


def _position(value: Any, _: Any) -> Position:
    if type(value) is not list or len(value) != 2:
        raise _UnfitError("must be [epoch, seq]")
    return Position(_item(_id, value[0], 0), _item(_seq, value[1], 1))


def _thread_ids(value: Any, _: Any) -> tuple[str, ...]:
    if type(value) is not list or len(value) > MAX_THREADS:
        raise _UnfitError(f"must be an array of at most {MAX_THREADS} ids")
    return tuple(_item(_id, item, index) for index, item in enumerate(value))


def _item(hook: _Hook, value: Any, index: int | str) -> Any:
    try:
        return hook(value, None)
    except (_UnfitError, BaseValidationError) as exc:
        exc.add_note(IterableValidationNote("", index, None))
        raise IterableValidationError("", [exc], list) from None


def _bound(hook: _Hook, kind: Any) -> _Hook:
    return lambda value, _: hook(value, kind)


def _object_hook(kind: Any, converter: Converter) -> _Hook:
    key_type, value_type = get_args(kind)
    item_hook = None if value_type is Any else _bound(converter.get_structure_hook(value_type), value_type)
    limit = MAX_STREAMS if key_type == StreamName else None

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise _UnfitError("must be an object")
        if limit is not None:
            if len(value) > limit:
                raise _UnfitError(f"{len(value)} streams, at most {limit} are allowed")
            for key in value:
                _item(_stream_name, key, key)
        return (
            value if item_hook is None else {key: _item(item_hook, item, key) for key, item in value.items()}
        )

    return structure


def _array_hook(kind: Any, converter: Converter) -> _Hook:
    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        hook = _bound(converter.get_structure_hook(kinds[0]), kinds[0])

        def structure(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise _UnfitError("must be an array")
            return tuple(_item(hook, item, index) for index, item in enumerate(value))

        return structure
    hooks = [_bound(converter.get_structure_hook(part), part) for part in kinds]

    def structure_fixed(value: Any, _: Any) -> Any:
        if type(value) is not list or len(value) != len(hooks):
            raise _UnfitError(f"must be an array of {len(hooks)}")
        return tuple(
            _item(hook, item, index) for index, (hook, item) in enumerate(zip(hooks, value, strict=True))
        )

    return structure_fixed


def _literal_hook(kind: Any, _: Converter) -> _Hook:
    choices = get_args(kind)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not str or value not in choices:
            raise _UnfitError(f"must be one of {', '.join(choices)}")
        return value

    return structure


def _class_hook(cls: Any, converter: Converter) -> _Hook:
    renamed: dict[str, Any] = {
        field.name: override(rename=field.name.rstrip("_"))
        for field in attrs.fields(cls)
        if field.name.endswith("_")
    }
    hook = make_dict_structure_fn(cls, converter, **renamed)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise _UnfitError("must be an object")
        return hook(value, cls)

    return structure


_EXACT: Final[tuple[tuple[Any, _Hook], ...]] = (
    (str, _text),
    (int, _integer),
    (bool, _boolean),
    (float, _number),
    (Position, _position),
)
_ALIASES: Final[tuple[tuple[Any, _Hook], ...]] = (
    (Id, _id),
    (StreamName, _stream_name),
    (Seq, _seq),
    (Seconds, _seconds),
    (ThreadIds, _thread_ids),
)
_GENERIC: Final[tuple[tuple[Any, Callable[[Any, Converter], _Hook]], ...]] = (
    (dict, _object_hook),
    (tuple, _array_hook),
    (Literal, _literal_hook),
)


def _is(kind: Any) -> Callable[[Any], bool]:
    return lambda other: bool(other == kind)


def _is_a(origin: Any) -> Callable[[Any], bool]:
    return lambda other: get_origin(other) is origin


def _make_converter() -> Converter:
    converter = Converter(detailed_validation=True)
    for kind, hook in _EXACT:
        converter.register_structure_hook(kind, hook)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    for origin, factory in _GENERIC:
        converter.register_structure_hook_factory(_is_a(origin), factory)
    for alias, hook in _ALIASES:
        converter.register_structure_hook_func(_is(alias), hook)
    return converter


_converter: Final = _make_converter()
