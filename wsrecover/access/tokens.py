"""JSON Web Tokens (RFC 7519): verified once and remembered until they expire; and signed."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import trio

from wsrecover.config import Tokens
from wsrecover.errors import ConfigError, TokenError, TokenExpired, UnknownKey

from .authenticator import Credentials
from .claims import Grant, granted
from .jwks import KeySource
from .keys import MIN_SECRET_BYTES, Key, Keys, opened, sealed, secret_key
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

SECRET_VARIABLE: Final = "WSRECOVER_SECRET"  # noqa: S105 - the variable's name, not a secret

_REMEMBERED: Final = 4096


class TokenVerifier:
    """Verifies tokens against a secret, the keys of a `source`, or both; the `Authenticator` by default.

    `leeway` (seconds) is granted on every time claim for clocks that disagree; `clock` returns unix seconds.
    The last 4,096 verified tokens are remembered by digest until they expire or the keys change, because
    after an outage everybody reconnects with the token that was verified a moment ago.

    Raises `ConfigError` for a secret of fewer than 32 bytes.
    """

    def __init__(
        self,
        secret: bytes | None,
        *,
        leeway: float,
        clock: Callable[[], float],
        rules: Tokens | None = None,
        source: KeySource | None = None,
    ) -> None:
        self._own: tuple[Key, ...] = () if secret is None else (secret_key(secret),)
        self._source = source
        self._rules = rules or Tokens()
        self._leeway = leeway
        self._clock = clock
        self._verified: OrderedDict[bytes, Grant] = OrderedDict()
        self._found: tuple[Key, ...] | None = None
        self._keys = Keys(self._own)

    async def authenticate(self, credentials: Credentials) -> Grant | None:
        """See `Authenticator`. Waits only where the token names a key that may just have been published."""
        token = credentials.token
        if token is None:
            return None
        try:
            return self.verify(token)
        except UnknownKey:
            if self._source is None or not await self._source.refreshed():
                raise
        return self.verify(token)

    def authenticate_nowait(self, credentials: Credentials) -> Grant | None:
        """`authenticate`; raises `trio.WouldBlock` where that might wait."""
        token = credentials.token
        try:
            return None if token is None else self.verify(token)
        except UnknownKey:
            if self._source is None:
                raise
            raise trio.WouldBlock from None

    def verify(self, token: str) -> Grant:
        """The grant of a valid token; raises `TokenError`, whose message never contains any of the token.

        User, tenant and `exp` are required; `nbf` and `iat` are honoured where they are there.
        """
        if self._source is not None and self._source.keys is not self._found:
            # A key that was withdrawn takes with it the tokens that it signed.
            self._found = self._source.keys
            self._keys = Keys((*self._own, *self._found))
            self._verified.clear()
        encoded = _token_bytes(token)
        digest = hashlib.sha256(encoded).digest()
        now = self._clock()
        grant = self._verified.get(digest)
        if grant is not None:
            self._verified.move_to_end(digest)
        else:
            grant = granted(self._claims(encoded), self._rules, now=now, leeway=self._leeway)
        if now >= grant.expires_at + self._leeway:
            self._verified.pop(digest, None)
            raise TokenExpired("exp: the token has expired")
        self._verified[digest] = grant
        if len(self._verified) > _REMEMBERED:
            self._verified.popitem(last=False)
        return grant

    def _claims(self, token: bytes) -> dict[str, Any]:
        try:
            claims = orjson.loads(opened(token, self._keys))
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
    issuer: str | None = None,
    audience: str | None = None,
    lifetime: float,
    clock: Callable[[], float],
) -> str:
    """A token for `lifetime` seconds from now (`clock`: unix seconds), with the claims' default names.

    Raises `TokenError` for names that no principal may have and `ConfigError` for a short secret.
    """
    principal = Principal(tenant, user, tuple(roles), tier)
    now = clock()
    claims: dict[str, Any] = {"sub": user, "tenant": tenant, "iat": now, "exp": now + lifetime}
    if principal.roles:
        claims["roles"] = principal.roles
    optional = {"tier": tier, "jti": token_id, "iss": issuer, "aud": audience}
    claims |= {name: value for name, value in optional.items() if value is not None}
    return sealed(secret_key(secret), orjson.dumps(claims))


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


def _token_bytes(token: str) -> bytes:
    if len(token) > MAX_TOKEN_BYTES:
        raise TokenError(f"the token has more than {MAX_TOKEN_BYTES} bytes")
    if not token.isascii():
        raise TokenError("the token is not ASCII")
    return token.encode("ascii")
