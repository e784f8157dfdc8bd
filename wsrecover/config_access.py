"""The settings of who may connect. `config` says the rules that hold for all settings."""

from __future__ import annotations

from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import attrs

from .config_checks import refuse, text, texts, tuple_of

__all__ = ["Tokens"]

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def _jwks(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    accepted = "a file, or an https:// URL (http:// on this machine only)"
    if value is None:
        return
    if not isinstance(value, str) or not value:
        refuse(instance, attribute, f"is {value!r}", accepted)
    if "://" not in value:
        return
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None
    if not host or not (url.scheme == "https" or (url.scheme == "http" and host in LOOPBACK)):
        refuse(instance, attribute, f"is {value!r}", accepted)
    if url.username is not None or url.fragment:
        refuse(instance, attribute, "holds a user name or a fragment", accepted)


_CLAIM: Final = text("the name of a claim, or a path of names joined with dots")


@attrs.frozen(kw_only=True)
class Tokens:
    """Whose tokens are accepted, and what their claims are called.

    A claim is looked up by its whole name first, then as a path: `realm_access.roles`.
    """

    section: ClassVar[str] = "tokens"

    jwks: str | None = attrs.field(default=None, validator=_jwks)
    """A JSON Web Key Set (RFC 7517), a file or a URL, with public keys; None: the secret alone signs."""
    issuers: tuple[str, ...] = attrs.field(
        default=(), converter=tuple_of, validator=texts("a list of values of `iss`")
    )
    """What `iss` may be, exactly; none listed: it is not looked at, for whoever has a key is trusted."""
    audience: str | None = attrs.field(default=None, validator=text("a value of `aud`", none=True))
    """What `aud` must be or contain, exactly; None: a token that names an audience is not refused for it."""
    operator_issuers: tuple[str, ...] = attrs.field(
        default=(), converter=tuple_of, validator=texts("a list of values of `iss`")
    )
    """Whose tokens may carry the role `operator`, which is above all tenants; from others it is dropped."""
    user_claim: str = attrs.field(default="sub", validator=_CLAIM)
    """RFC 7519's own name for it."""
    tenant_claim: str = attrs.field(default="tenant", validator=_CLAIM)
    """There is no registered name; this is the shortest."""
    tenant: str | None = attrs.field(default=None, validator=text("the name of a tenant", none=True))
    """The tenant of every token, where there is only one; None: `tenant_claim` says it."""
    roles_claim: str = attrs.field(default="roles", validator=_CLAIM)
    """RFC 9068, section 2.2.3.1; a list of strings."""
    tier_claim: str = attrs.field(default="tier", validator=_CLAIM)
    """There is no registered name."""
