"""Strict structuring of decoded frames: the kinds of values that only frames have, and their bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, get_args, get_origin

from cattrs import BaseValidationError, Converter

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
from .strict import Hook, UnfitError, at, misfit, object_hook, strict_converter

__all__ = ["structurer"]

_T = TypeVar("_T")


def structurer(cls: type[_T]) -> Callable[[dict[str, Any]], _T]:
    """What makes a `cls` of a decoded object. It raises `FrameError` with the path of the first misfit."""
    hook = _converter.get_structure_hook(cls)

    def make(item: dict[str, Any]) -> _T:
        try:
            made: _T = hook(item, cls)
        except BaseValidationError as exc:
            field, problem = misfit(exc)
            raise FrameError("invalid", f"{field}: {problem}", field=field) from None
        return made

    return make


def _id(value: Any, _: Any) -> str:
    if not is_id(value):
        raise UnfitError(f"must be 1 to {MAX_ID} printable ASCII characters")
    return str(value)


def _stream_name(value: Any, _: Any) -> str:
    if type(value) is not str or not 1 <= len(value) <= MAX_STREAM_NAME:
        raise UnfitError(f"must be a stream's name, 1 to {MAX_STREAM_NAME} characters")
    return value


def _seq(value: Any, _: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise UnfitError("must be an integer from 0 to 2^53-1")
    return value


def _seconds(value: Any, _: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < float("inf"):
        raise UnfitError("must be a finite number of seconds, not negative")
    return float(value)


def _position(value: Any, _: Any) -> Position:
    if type(value) is not list or len(value) != 2:
        raise UnfitError("must be [epoch, seq]")
    return Position(at(_id, value[0], 0), at(_seq, value[1], 1))


def _thread_ids(value: Any, _: Any) -> tuple[str, ...]:
    if type(value) is not list or len(value) > MAX_THREADS:
        raise UnfitError(f"must be an array of at most {MAX_THREADS} ids")
    return tuple(at(_id, item, index) for index, item in enumerate(value))


def _by_stream_hook(kind: Any, converter: Converter) -> Hook:
    inner = object_hook(kind, converter)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is dict:
            if len(value) > MAX_STREAMS:
                raise UnfitError(f"{len(value)} streams, at most {MAX_STREAMS} are allowed")
            for key in value:
                at(_stream_name, key, key)
        return inner(value, kind)

    return structure


_VALUES: Final[tuple[tuple[Any, Hook], ...]] = (
    (Position, _position),
    (Id, _id),
    (StreamName, _stream_name),
    (Seq, _seq),
    (Seconds, _seconds),
    (ThreadIds, _thread_ids),
)


def _is(kind: Any) -> Callable[[Any], bool]:
    return lambda other: bool(other == kind)


def _is_by_stream(kind: Any) -> bool:
    return get_origin(kind) is dict and bool(get_args(kind)[0] == StreamName)


def _make_converter() -> Converter:
    converter = strict_converter()
    for kind, hook in _VALUES:
        converter.register_structure_hook_func(_is(kind), hook)
    converter.register_structure_hook_factory(_is_by_stream, _by_stream_hook)
    return converter


_converter: Final = _make_converter()
