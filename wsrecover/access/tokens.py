"""JSON Web Tokens: HS256 with one shared secret (RFC 7519 in the compact form of RFC 7515)."""

from __future__ import annotations

import hashlib
import math
import os
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import orjson
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from wsrecover.errors import ConfigError, TokenError, TokenExpired

from .principal import Principal

__all__ = [
    "MAX_TOKEN_BYTES",
    "MIN_SECRET_BYTES",
    "SECRET_VARIABLE",
    "Grant",
    "TokenVerifier",
    "read_secret",
    "sign",
]

MAX_TOKEN_BYTES: Final = 8192
"""A longer token is refused before anything of it is parsed."""

MIN_SECRET_BYTES: Final = 32
"""RFC 7518, section 3.2: a key at least as long as the hash."""

SECRET_VARIABLE: Final = "WSRECOVER_SECRET"  # noqa: S105 - the variable's name, not a secret

_ALGORITHM: Final = "HS256"
_REMEMBERED: Final = 4096
_MAX_TOKEN_ID: Final = 256


@attrs.frozen
class Grant:
    """What a token proves: who, and until when (`expires_at`, unix seconds). `token_id` is its `jti`."""

    principal: Principal
    expires_at: float
    token_id: str | None = None


class TokenVerifier:
    """Verifies tokens against one secret.

    `leeway` (seconds) is granted on every time claim for clocks that disagree; `clock` returns unix seconds.
    The last 4,096 verified tokens are remembered by digest until they expire, because after an outage
    everybody reconnects with the token that was verified a moment ago.

    Raises `ConfigError` for a secret of fewer than 32 bytes.
    """

    def __init__(self, secret: bytes, *, leeway: float, clock: Callable[[], float]) -> None:
        self._key = _key(secret)
        self._registry = jws.JWSRegistry(algorithms=[_ALGORITHM], strict_check_header=False)
        self._leeway = leeway
        self._clock = clock
        self._verified: OrderedDict[bytes, Grant] = OrderedDict()

    def verify(self, token: str) -> Grant:
        """The grant of a valid token; raises `TokenError`, whose message never contains any of the token.

        `sub`, `tenant` and `exp` are required; `nbf` and `iat` are honoured where they are there.
        """
        encoded = _token_bytes(token)
        digest = hashlib.sha256(encoded).digest()
        now = self._clock()
        grant = self._verified.get(digest)
        if grant is not None:
            self._verified.move_to_end(digest)
        else:
            grant = _grant(self._claims(encoded), now=now, leeway=self._leeway)
        if now >= grant.expires_at + self._leeway:
            self._verified.pop(digest, None)
            raise TokenExpired("exp: the token has expired")
        self._verified[digest] = grant
        if len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)
        return grant

    def _claims(self, token: bytes) -> dict[str, Any]:
        _check_header(token)
        try:
            payload = jws.deserialize_compact(token, self._key, registry=self._registry).payload
        except (JoseError, ValueError):
            raise TokenError("the token's signature or form is not valid") from None
        if payload is None:
            raise TokenError("the token has no claims")
        try:
            claims = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise TokenError("the token's claims are not JSON") from None
        if not isinstance(claims, dict):
            raise TokenError("the token's claims are not an object")
        return claims


def sign(
    secret: bytes,
    *,
    tenant: str,
    user: str,
    roles: Iterable[str] = (),
    tier: str | None = None,
    token_id: str | None = None,
    lifetime: float,
    clock: Callable[[], float],
) -> str:
    """A token for `lifetime` seconds from now (`clock`: unix seconds).

    Raises `TokenError` for names that no principal may have and `ConfigError` for a short secret.
    """
    principal = Principal(tenant, user, tuple(roles), tier)
    now = clock()
    claims: dict[str, Any] = {"sub": user, "tenant": tenant, "iat": now, "exp": now + lifetime}
    if principal.roles:
        claims["roles"] = principal.roles
    if tier is not None:
        claims["tier"] = tier
    if token_id is not None:
        claims["jti"] = token_id
    header = {"alg": _ALGORITHM, "typ": "JWT"}
    return jws.serialize_compact(header, orjson.dumps(claims), _key(secret), algorithms=[_ALGORITHM])


def read_secret(path: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> bytes:
    """The shared secret: the contents of the file at `path` without one trailing newline, or else the
    environment's `WSRECOVER_SECRET`.

    Blocks on the file. Raises `ConfigError` where there is none, it cannot be read, or is too short.
    """
    accepted = f"at least {MIN_SECRET_BYTES} bytes"
    if path is None:
        value = environ.get(SECRET_VARIABLE)
        if value is None:
            raise ConfigError(SECRET_VARIABLE, "is not set", f"{accepted}, or a file of them as secret_file")
        field, source, secret = SECRET_VARIABLE, "", os.fsencode(value)
    else:
        field, source = "secret_file", f"{path} "
        try:
            secret = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                field, f"{path} cannot be read: {error.strerror}", f"a file of {accepted}"
            ) from error
        secret = secret.removesuffix(b"\n").removesuffix(b"\r")
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(field, f"{source}has {len(secret)} bytes", accepted)
    return secret


def _key(secret: bytes) -> OctKey:
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError("secret", f"has {len(secret)} bytes", f"at least {MIN_SECRET_BYTES} bytes")
    try:
        return OctKey.import_key(secret)
    except ValueError:
        raise ConfigError("secret", "is a public key", "random bytes that nobody else knows") from None


def _token_bytes(token: str) -> bytes:
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError(f"the token has more than {MAX_TOKEN_BYTES} bytes")
    if not token.isascii():
        raise TokenError("the token is not ASCII")
    return token.encode("ascii")


def _check_header(token: bytes) -> None:
    """Fixes the algorithm before any cryptography, and refuses `crit`: no extension is understood here."""
    segment = token.partition(b".")[0]
    try:
        header = orjson.loads(urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)))
    except ValueError:
        raise TokenError("the token's header is not JSON") from None
    if not isinstance(header, dict) or header.get("alg") != _ALGORITHM:
        raise TokenError(f"the token's algorithm must be {_ALGORITHM}")
    if "crit" in header:
        raise TokenError("the token's header asks for extensions")


def _grant(claims: Mapping[str, Any], *, now: float, leeway: float) -> Grant:
    for name in ("sub", "tenant", "exp"):
        if name not in claims:
            raise TokenError(f"{name}: the claim is missing")
    expires_at = _seconds(claims, "exp")
    for name in ("nbf", "iat"):
        if name in claims and _seconds(claims, name) > now + leeway:
            raise TokenError(f"{name}: the token is not valid yet")
    token_id = claims.get("jti")
    if token_id is not None and not (isinstance(token_id, str) and 1 <= len(token_id) <= _MAX_TOKEN_ID):
        raise TokenError(f"jti: must be a string of 1 to {_MAX_TOKEN_ID} characters")
    roles = claims.get("roles", [])
    if not isinstance(roles, list):
        raise TokenError("roles: must be a list of strings")
    principal = Principal(claims["tenant"], claims["sub"], tuple(roles), claims.get("tier"))
    return Grant(principal, expires_at, token_id)


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TokenError(f"{name}: must be a finite number of seconds")
    return float(value)
