"""Checks of what an app gives: text, objects and seconds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeGuard

import attrs

from wsrecover.errors import InvalidArgument, InvalidEvent, Misfit
from wsrecover.protocol.schema import plain

__all__ = ["check_text", "input_of", "is_duration", "is_object"]


def check_text(field: str, value: object) -> None:
    """Raise `InvalidEvent` for what is no string."""
    if not isinstance(value, str):
        raise InvalidEvent(field, f"must be a string, not {type(value).__name__}")


def is_object(value: object) -> TypeGuard[dict[str, Any] | attrs.AttrsInstance]:
    """Whether this is a JSON object at first sight: a dict itself, or an instance of an attrs class."""
    return type(value) is dict or attrs.has(type(value))


def input_of(given: Mapping[str, Any] | attrs.AttrsInstance | None) -> dict[str, Any]:
    """An agent's input; the empty one where there is none. Raises `InvalidArgument` for what is no object."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if not attrs.has(type(given)):
        raise InvalidArgument("input", f"must be a mapping, not {type(given).__name__}")
    try:
        told: dict[str, Any] = plain(given, "input")
    except Misfit as error:
        raise InvalidArgument(error.field, error.problem) from error
    return told


def is_duration(seconds: object) -> TypeGuard[float]:
    """Whether this is a number of seconds: finite, and not negative."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and 0 <= seconds <= sys.float_info.max  # type: ignore[operator]  # a number here
