"""Strict structuring of decoded JSON by cattrs: "3" is no number here and true is no 1.

`strict_converter` knows JSON's own types, attrs classes, arrays, objects and literals; whoever has more kinds
of values registers hooks for them. A hook says what is wrong by raising `UnfitError`; `misfit` tells where.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, get_args, get_origin

import attrs
from cattrs import (
    AttributeValidationNote,
    BaseValidationError,
    Converter,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, override

from .fields import MAX_INT

__all__ = [
    "Hook",
    "UnfitError",
    "at",
    "is_a",
    "misfit",
    "object_hook",
    "strict_converter",
    "text",
    "wire_name",
]

Hook: TypeAlias = Callable[[Any, Any], Any]


class UnfitError(Exception):
    """A value does not fit its field; the message says what would."""


def strict_converter(*, forbid_extra_keys: bool = False) -> Converter:
    """A new converter. With `forbid_extra_keys` a key that a class has no field for is a misfit."""
    converter = Converter(detailed_validation=True)
    for kind, hook in _EXACT:
        converter.register_structure_hook(kind, hook)

    def class_hook(cls: Any, converter: Converter) -> Hook:
        return _class_hook(cls, converter, forbid_extra_keys=forbid_extra_keys)

    converter.register_structure_hook_factory(attrs.has, class_hook)
    for origin, factory in _GENERIC:
        converter.register_structure_hook_factory(is_a(origin), factory)
    return converter


def misfit(error: BaseValidationError) -> tuple[str, str]:
    """The path of the first misfit, such as `items[2].price`, and what is wrong there.

    A class's own validators speak by `ValueError` and `TypeError`; what else they raise is raised on.
    """
    path = ""
    exc: Exception = error
    while isinstance(exc, BaseValidationError):
        exc, note = _first(exc)
        if isinstance(note, AttributeValidationNote):
            path += f".{wire_name(note.name)}"
        elif note is not None:
            path += f"[{note.index}]" if isinstance(note.index, int) else f".{note.index!s:.40}"
    missing = isinstance(exc, KeyError) and note is not None
    if isinstance(exc, ForbiddenExtraKeysError):
        path += f".{min(map(str, exc.extra_fields)):.40}"
        problem = f"is not a field of {exc.cl.__name__}"
    elif missing or isinstance(exc, UnfitError | ValueError | TypeError):
        path += _validated(exc) if note is None else ""
        problem = "is missing" if missing else _said(exc)
    else:
        raise exc
    return path.lstrip("."), problem


def _first(error: BaseValidationError) -> tuple[Exception, Any]:
    noted, bare = error.group_exceptions()  # type: ignore[attr-defined]  # both subclasses have it
    return noted[0] if noted else (bare[0], None)


def _said(exc: Exception) -> str:
    """The words of an error. What attrs raises has more than words to it, and may quote a long value."""
    return f"{exc.args[0] if exc.args else 'does not fit'!s:.200}"


def _validated(exc: Exception) -> str:
    """The field whose validator raised, as a part of the path: attrs hands each validator its attribute."""
    for frame, _ in traceback.walk_tb(exc.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, attrs.Attribute):
                return f".{wire_name(value.name)}"
    return ""


def wire_name(name: str) -> str:
    """A field's name on the wire: what Python reserves, such as `from`, has an underscore behind it here."""
    return name.rstrip("_")


def text(value: Any, _: Any) -> str:
    """A string."""
    if type(value) is not str:
        raise UnfitError("must be a string")
    return value


def _integer(value: Any, _: Any) -> int:
    if type(value) is not int:
        raise UnfitError("must be an integer")
    return value


def _boolean(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise UnfitError("must be true or false")
    return value


def _number(value: Any, _: Any) -> float:
    whole = type(value) is int and abs(value) <= MAX_INT
    if not whole and not (type(value) is float and math.isfinite(value)):
        raise UnfitError("must be a finite number")
    return float(value)


def at(hook: Hook, value: Any, index: int | str) -> Any:
    """What `hook` makes of the value at `index`, which becomes part of the path of a misfit."""
    try:
        return hook(value, None)
    except (UnfitError, BaseValidationError) as exc:
        exc.add_note(IterableValidationNote("", index, None))
        raise IterableValidationError("", [exc], list) from None


def _bound(converter: Converter, kind: Any) -> Hook:
    hook = converter.get_structure_hook(kind)
    return lambda value, _: hook(value, kind)


def object_hook(kind: Any, converter: Converter) -> Hook:
    """For `dict[str, T]`."""
    _, value_type = get_args(kind) or (str, Any)
    item_hook = None if value_type is Any else _bound(converter, value_type)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise UnfitError("must be an object")
        return value if item_hook is None else {key: at(item_hook, item, key) for key, item in value.items()}

    return structure


def _list_hook(kind: Any, converter: Converter) -> Hook:
    (item_type,) = get_args(kind) or (Any,)
    return _sequence_hook(list, item_type, converter)


def _tuple_hook(kind: Any, converter: Converter) -> Hook:
    kinds = get_args(kind)
    if kinds[-1] is Ellipsis:
        return _sequence_hook(tuple, kinds[0], converter)
    hooks = [_bound(converter, part) for part in kinds]

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list or len(value) != len(hooks):
            raise UnfitError(f"must be an array of {len(hooks)}")
        return tuple(
            at(hook, item, index) for index, (hook, item) in enumerate(zip(hooks, value, strict=True))
        )

    return structure


def _sequence_hook(make: Callable[[Any], Any], item_type: Any, converter: Converter) -> Hook:
    hook: Hook = (lambda value, _: value) if item_type is Any else _bound(converter, item_type)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list:
            raise UnfitError("must be an array")
        return make(at(hook, item, index) for index, item in enumerate(value))

    return structure


def _literal_hook(kind: Any, _: Converter) -> Hook:
    choices = {(type(choice), choice): choice for choice in get_args(kind)}

    def structure(value: Any, _: Any) -> Any:
        if type(value) not in (str, int, bool) or (type(value), value) not in choices:
            raise UnfitError(f"must be one of {', '.join(map(str, choices.values()))}")
        return value

    return structure


def _class_hook(cls: Any, converter: Converter, *, forbid_extra_keys: bool) -> Hook:
    renamed: dict[str, Any] = {
        field.name: override(rename=wire_name(field.name))
        for field in attrs.fields(cls)
        if field.name.endswith("_")
    }
    hook = make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=forbid_extra_keys, **renamed)

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise UnfitError("must be an object")
        return hook(value, cls)

    return structure


def is_a(origin: Any) -> Callable[[Any], bool]:
    """Whether a type is `origin`, bare or with arguments."""
    return lambda other: other is origin or get_origin(other) is origin


_EXACT: Final[tuple[tuple[Any, Hook], ...]] = (
    (str, text),
    (int, _integer),
    (bool, _boolean),
    (float, _number),
)
_GENERIC: Final[tuple[tuple[Any, Callable[[Any, Converter], Hook]], ...]] = (
    (dict, object_hook),
    (list, _list_hook),
    (tuple, _tuple_hook),
    (Literal, _literal_hook),
)
