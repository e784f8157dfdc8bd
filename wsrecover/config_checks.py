"""What checks a setting: validators that raise `ConfigError` with the field and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeAlias

import attrs

from .errors import ConfigError

__all__ = [
    "Validator",
    "count",
    "flag",
    "instance_of",
    "one_of",
    "refuse",
    "seconds",
    "size",
    "text",
    "texts",
    "tuple_of",
]

Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]


_MOST: Final = 2**53 - 1
"""The largest number that every reader of JSON takes exactly: clients are told of some settings."""


def _named(instance: object, attribute: attrs.Attribute[Any]) -> str:
    section = getattr(type(instance), "section", "")
    return f"{section}.{attribute.name}" if section else attribute.name


def refuse(instance: object, attribute: attrs.Attribute[Any], problem: str, accepted: str) -> NoReturn:
    """Raise the `ConfigError` that names this field."""
    raise ConfigError(_named(instance, attribute), problem, accepted)


def _refuse_beyond(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if value > _MOST:
        refuse(instance, attribute, f"is {value!r}", f"at most 2^53-1, {_MOST}")


_LEFT_OUT: Final = ", or None (in a file: left out)"


def seconds(*, zero: bool = False, none: bool = False) -> Validator:
    """A finite number, at most 2^53-1."""
    accepted = f"a number of seconds {'≥' if zero else '>'} 0" + (_LEFT_OUT if none else "")

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and none:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and not zero):  # type: ignore[operator]  # `number` is the proof
            refuse(instance, attribute, f"is {value!r}", accepted)
        _refuse_beyond(instance, attribute, value)  # type: ignore[arg-type]  # `number` is the proof

    return check


def count(least: int, most: int | None = None, unit: str = "", *, none: bool = False) -> Validator:
    """A whole number, at most 2^53-1."""
    bounds = f"≥ {least}" if most is None else f"from {least} to {most}"
    accepted = f"a whole number{f' of {unit}' if unit else ''} {bounds}" + (_LEFT_OUT if none else "")

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is None and none:
            return
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]  # `whole` is the proof
            refuse(instance, attribute, f"is {value!r}", accepted)
        _refuse_beyond(instance, attribute, value)  # type: ignore[arg-type]  # `whole` is the proof

    return check


def size(least: int, most: int | None = None, *, none: bool = False) -> Validator:
    """A whole number of bytes."""
    return count(least, most, unit="bytes", none=none)


def one_of(accepted: tuple[str, ...]) -> Validator:
    """One of these words."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in accepted:
            refuse(instance, attribute, f"is {value!r}", " or ".join(accepted))

    return check


def text(accepted: str, *, none: bool = False) -> Validator:
    """A text that is not empty."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not (value is None and none) and not (isinstance(value, str) and value):
            refuse(instance, attribute, f"is {value!r}", accepted)

    return check


def instance_of(kind: type) -> Validator:
    """An instance of `kind`."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kind):
            refuse(instance, attribute, f"is {value!r}", f"a {kind.__name__}")

    return check


def flag() -> Validator:
    """True or false."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, bool):
            refuse(instance, attribute, f"is {value!r}", "true or false")

    return check


def tuple_of(value: object) -> object:
    """A converter: TOML's arrays are lists, and settings do not change. All else is left to the validator."""
    return tuple(value) if isinstance(value, list) else value


def texts(accepted: str) -> Validator:
    """A tuple of texts that are not empty."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, tuple) or not all(isinstance(item, str) and item for item in value):
            refuse(instance, attribute, f"is {value!r}", accepted)

    return check
