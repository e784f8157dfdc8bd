"""What a verified token says, held to the settings: who, until when, from whom and for whom (RFC 7519)."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, Final

import attrs

from wsrecover.config import Tokens
from wsrecover.errors import ConfigError, TokenError
from wsrecover.logger import get_logger

from .principal import Principal

__all__ = ["MAX_TOKEN_ID", "OPERATOR", "SERVICE", "Grant", "granted"]

log = get_logger(__name__)

MAX_TOKEN_ID: Final = 256
"""Characters of a `jti`."""

SERVICE: Final = "service"
"""The role that may publish to, and broadcast in, its own tenant."""

OPERATOR: Final = "operator"
"""The role above all tenants; only tokens of issuers that the settings name carry it."""

_MISSING: Final[Any] = object()


_FARTHEST: Final = sys.float_info.max
"""Unix seconds: `welcome` tells the time that is left as a JSON number, and JSON has no infinity."""


def _check_expiry(_: object, attribute: attrs.Attribute[float], value: object) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) <= _FARTHEST:  # type: ignore[arg-type]  # a number here
        raise ConfigError(
            f"Grant.{attribute.name}",
            f"is {value!r}",
            "a finite number of unix seconds; for a key that never expires a time far ahead, "
            "such as time.time() + 1e9",
        )


@attrs.frozen
class Grant:
    """What a token proves: who, and until when (`expires_at`, unix seconds, finite: what never expires has a
    time far ahead).

    `token_id` is its `jti`, `issued_at` its `iat`, `issuer` its `iss`. Raises `ConfigError`.
    """

    principal: Principal
    expires_at: float = attrs.field(validator=_check_expiry)
    token_id: str | None = None
    issued_at: float | None = None
    issuer: str | None = None


def granted(claims: Mapping[str, Any], rules: Tokens, *, now: float, leeway: float) -> Grant:
    """The grant that `claims` make at `now` (unix seconds), its expiry apart, which is the caller's to check.

    Raises `TokenError`, which names the claim and never shows its value.
    """
    issuer = _issuer(claims, rules)
    _check_audience(claims, rules)
    expires_at = _seconds(claims, "exp")
    for name in ("nbf", "iat"):
        if name in claims and _seconds(claims, name) > now + leeway:
            raise TokenError(f"{name}: the token is not valid yet")
    token_id = claims.get("jti")
    if token_id is not None and not (isinstance(token_id, str) and 1 <= len(token_id) <= MAX_TOKEN_ID):
        raise TokenError(f"jti: must be a string of 1 to {MAX_TOKEN_ID} characters")
    roles = _claim(claims, rules.roles_claim)
    if roles is not _MISSING and not isinstance(roles, list):
        raise TokenError("roles: must be a list of strings")
    dropped = roles is not _MISSING and OPERATOR in roles and issuer not in rules.operator_issuers
    if dropped:
        roles = [role for role in roles if role != OPERATOR]
    tier = _claim(claims, rules.tier_claim)
    principal = Principal(
        rules.tenant if rules.tenant is not None else _required(claims, rules.tenant_claim),
        _required(claims, rules.user_claim),
        () if roles is _MISSING else tuple(roles),
        None if tier is _MISSING else tier,
    )
    if dropped and now < expires_at + leeway:  # One that has expired is looked at each time that it comes.
        problem = "the role is dropped: operator_issuers does not list who issued the token"
        log.warning("operator_dropped", problem=problem, issuer=issuer, tenant=principal.tenant)
    issued_at = float(claims["iat"]) if "iat" in claims else None
    return Grant(principal, expires_at, token_id, issued_at, issuer)


def _issuer(claims: Mapping[str, Any], rules: Tokens) -> str | None:
    issuer = claims.get("iss")
    if rules.issuers and not (isinstance(issuer, str) and issuer in rules.issuers):
        raise TokenError("iss: is missing or not one that is accepted here")
    return issuer if isinstance(issuer, str) else None


def _check_audience(claims: Mapping[str, Any], rules: Tokens) -> None:
    if rules.audience is None:
        return
    audience = claims.get("aud")
    given = audience if isinstance(audience, list) else [audience]
    if rules.audience not in given or not all(isinstance(one, str) for one in given):
        raise TokenError("aud: is missing or another than this server's")


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """The claim of this name, else the one at this path; `_MISSING` where there is neither."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for step in name.split("."):
        if not isinstance(value, dict) or step not in value:
            return _MISSING
        value = value[step]
    return value


def _required(claims: Mapping[str, Any], name: str) -> Any:
    value = _claim(claims, name)
    if value is _MISSING:
        raise TokenError(f"{name}: the claim is missing")
    return value


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = _required(claims, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TokenError(f"{name}: must be a finite number of seconds")
    return float(value)
