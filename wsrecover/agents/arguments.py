"""Checks of what an app gives: text and seconds."""

from __future__ import annotations

import sys
from typing import TypeGuard

from wsrecover.errors import InvalidEvent

__all__ = ["check_text", "is_duration"]


def check_text(field: str, value: object) -> None:
    """Raise `InvalidEvent` for what is no string."""
    if not isinstance(value, str):
        raise InvalidEvent(field, f"must be a string, not {type(value).__name__}")


def is_duration(seconds: object) -> TypeGuard[float]:
    """Whether this is a number of seconds: finite, and not negative."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and 0 <= seconds <= sys.float_info.max  # type: ignore[operator]  # a number here
