"""Who may what. It is asked at each operation, with the principal of the newest token."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from wsrecover.errors import CommandError

from .claims import OPERATOR, SERVICE
from .principal import Principal

__all__ = ["chosen_tenant", "may", "require_operator", "require_service"]

_COUNTS: Final = "(which counts only in a token of one of the server's operator_issuers)"
"""Said to all who lack the role: a token may well have it, and be of another issuer."""


def may(principal: Principal, roles: AbstractSet[str]) -> bool:
    """Whether the principal has one of the roles that something asks for; asking for none, all may."""
    return not roles or not roles.isdisjoint(principal.roles)


def require_service(principal: Principal, command: str) -> None:
    """Raises `CommandError("forbidden")` for whoever speaks for nobody but itself."""
    if not may(principal, {SERVICE, OPERATOR}):
        raise CommandError("forbidden", f"{command} needs the role {SERVICE} or {OPERATOR} {_COUNTS}")


def chosen_tenant(principal: Principal, tenant: str | None) -> str:
    """The tenant that a command names, or the caller's own where it names none.

    Raises `CommandError("forbidden")`: another one's, whether it exists or not, is the operator's alone.
    """
    if tenant is None or tenant == principal.tenant:
        return principal.tenant
    require_operator(principal)
    return tenant


def require_operator(principal: Principal) -> None:
    """Raises `CommandError("forbidden")` for whoever may not reach beyond its tenant."""
    if not may(principal, {OPERATOR}):
        problem = f"what leaves the tenant needs the role {OPERATOR} {_COUNTS}"
        raise CommandError("forbidden", problem)
