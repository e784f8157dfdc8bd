"""Checks of what an app gives: text, objects and seconds."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

import attrs

from wsrecover.errors import InvalidEvent

__all__ = ["check_text", "is_duration", "is_object"]


def check_text(field: str, value: object) -> None:
    """Raise `InvalidEvent` for what is no string."""
    if not isinstance(value, str):
        raise InvalidEvent(field, f"must be a string, not {type(value).__name__}")


def is_object(value: object) -> TypeGuard[dict[str, Any] | attrs.AttrsInstance]:
    """Whether this is a JSON object at first sight: a dict, or an instance of an attrs class."""
    return isinstance(value, dict) or attrs.has(type(value))


def is_duration(seconds: object) -> TypeGuard[float]:
    """Whether this is a number of seconds: finite, and not negative."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and 0 <= seconds <= sys.float_info.max  # type: ignore[operator]  # a number here
