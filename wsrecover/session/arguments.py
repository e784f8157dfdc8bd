"""Checks of what the program that embeds the server gives: `InvalidArgument` names the parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wsrecover.access.principal import Principal, name_problem
from wsrecover.agents.arguments import is_duration
from wsrecover.errors import InvalidArgument

__all__ = ["check_name", "check_patience", "input_of", "user_of"]


def check_name(field: str, name: object) -> None:
    """Refuse what no token could say: it would be nobody's."""
    if problem := name_problem(name):
        raise InvalidArgument(field, problem)


def user_of(tenant: str, user: str) -> Principal:
    """The user of this name."""
    check_name("tenant", tenant)
    check_name("user", user)
    return Principal(tenant, user)


def input_of(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """An agent's input; the empty one where there is none."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidArgument("input", f"must be a mapping, not {type(given).__name__}")
    return dict(given)


def check_patience(field: str, seconds: object) -> None:
    """Refuse what is no time to wait, which may be without end."""
    if seconds != math.inf and not is_duration(seconds):
        raise InvalidArgument(field, f"must be a number of seconds >= 0, not {seconds!r}")
