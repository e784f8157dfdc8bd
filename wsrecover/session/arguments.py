"""Checks of what the program that embeds the server gives: `InvalidArgument` names the parameter."""

from __future__ import annotations

import math

from wsrecover.access.claims import MAX_TOKEN_ID
from wsrecover.access.principal import Principal, name_problem
from wsrecover.agents.arguments import is_duration
from wsrecover.errors import InvalidArgument

__all__ = ["check_patience", "check_token", "user_of"]


def user_of(tenant: str, user: str) -> Principal:
    """The user of this name. One that no token could say would be nobody's."""
    _check_name("tenant", tenant)
    _check_name("user", user)
    return Principal(tenant, user)


def check_token(tenant: object, token_id: object) -> None:
    """Refuse what could be no token's tenant and `jti`."""
    _check_name("tenant", tenant)
    if not isinstance(token_id, str) or not 1 <= len(token_id) <= MAX_TOKEN_ID:
        raise InvalidArgument("token_id", f"must be a string of 1 to {MAX_TOKEN_ID} characters")


def _check_name(field: str, name: object) -> None:
    if problem := name_problem(name):
        raise InvalidArgument(field, problem)


def check_patience(field: str, seconds: object) -> None:
    """Refuse what is no time to wait, which may be without end."""
    if seconds != math.inf and not is_duration(seconds):
        raise InvalidArgument(field, f"must be a number of seconds >= 0, not {seconds!r}")
