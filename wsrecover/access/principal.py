"""Who a token speaks for.

Every name comes from the issuer of the tokens and is compared as it is, code point by code point: no
case folding and no Unicode normalisation, so names that merely look alike stay strangers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final

import attrs

from wsrecover.errors import TokenError

__all__ = ["MAX_NAME", "MAX_ROLES", "MAX_ROLE_NAME", "Principal", "label_problem", "name_problem"]

MAX_NAME: Final = 128
"""Characters of a tenant or user."""

MAX_ROLE_NAME: Final = 64
"""Characters of a role or tier."""

MAX_ROLES: Final = 64
"""Roles of one principal; each is a stream that its connections follow."""

_REFUSED: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, lone surrogates, line and paragraph separators: what forges logs or is no UTF-8."""


def name_problem(value: object) -> str | None:
    """Why this is no name of a tenant or user; None where it is one."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        return f"must be a string of 1 to {MAX_NAME} characters"
    if not value.isprintable() and any(unicodedata.category(char) in _REFUSED for char in value):
        return "must not contain control characters, line breaks or lone surrogates"
    return None


def label_problem(value: object) -> str | None:
    """Why this is no role or tier. It becomes part of a stream's name on the wire, so it is held to ASCII."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ROLE_NAME:
        return f"must be a string of 1 to {MAX_ROLE_NAME} characters"
    if not (value.isascii() and value.isprintable()) or " " in value:
        return "must be printable ASCII without spaces"
    return None


def _check(field: str, problem: str | None) -> None:
    if problem is not None:
        raise TokenError(f"{field}: {problem}")


def _sorted_roles(roles: object) -> tuple[str, ...]:
    if not isinstance(roles, Iterable) or isinstance(roles, (str, bytes, dict)):
        raise TokenError("roles: must be a list of strings")
    listed = tuple(roles)
    if len(listed) > MAX_ROLES:
        raise TokenError(f"roles: {len(listed)} given, at most {MAX_ROLES} allowed")
    for role in listed:
        _check("roles", label_problem(role))
    return tuple(sorted(set(listed)))


@attrs.frozen
class Principal:
    """A user of a tenant, with what it is entitled to.

    `tenant` and `user` are 1 to 128 characters, none a control character, line separator or lone surrogate.
    `roles` (at most 64, kept sorted and without repeats) and `tier` are 1 to 64 printable ASCII characters
    without spaces. Raises `TokenError`, which names the field and the limit, never the value.
    """

    tenant: str
    user: str
    roles: tuple[str, ...] = attrs.field(default=(), converter=_sorted_roles)
    tier: str | None = None

    def __attrs_post_init__(self) -> None:
        _check("tenant", name_problem(self.tenant))
        _check("user", name_problem(self.user))
        if self.tier is not None:
            _check("tier", label_problem(self.tier))
