"""The settings of who may connect. `config` says the rules that hold for all settings."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import attrs

from .config_checks import count, flag, refuse, seconds, size, text, texts, tuple_of

__all__ = ["Origins", "Tier", "Tokens", "default_tiers", "networks"]

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
    max_lifetime: float | None = attrs.field(default=None, validator=seconds(none=True))
    """Seconds from `iat` to `exp`: tokens that last longer, or have no `iat`, are refused. So a revocation is
    known to have outlived all tokens that it is about, and is forgotten. None: whoever issues tokens decides,
    and revocations are kept for ever. Raise it only while none of the longer-lived tokens is about."""
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


def networks(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """A tuple of networks in CIDR notation, without bits that the mask leaves out."""
    accepted = "a list of networks, such as 10.0.0.0/8, 192.0.2.1 or fd00::/8"
    if not isinstance(value, tuple):
        refuse(instance, attribute, f"is {value!r}", accepted)
    for network in value:
        try:
            ipaddress.ip_network(network if isinstance(network, str) else "")
        except ValueError:
            refuse(instance, attribute, f"holds {network!r}", accepted)


_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def _origins(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    accepted = "a list of origins as browsers send them, such as https://app.example or http://localhost:3000"
    if not isinstance(value, tuple):
        refuse(instance, attribute, f"is {value!r}", accepted)
    for origin in value:
        if not isinstance(origin, str) or not _is_origin(origin):
            refuse(instance, attribute, f"holds {origin!r}", accepted)


def _is_origin(text: str) -> bool:
    scheme, there, authority = text.partition("://")
    try:
        port = urlsplit(text).port
    except ValueError:
        return False
    return (
        bool(there and authority and _SCHEME.fullmatch(scheme))
        and text == text.lower()
        and text.isascii()
        and not any(char in authority for char in "/?#@* ,")
        and (port is None or port != _DEFAULT_PORTS.get(scheme))
        and not authority.endswith(":")
    )


@attrs.frozen(kw_only=True)
class Origins:
    """Which web pages may connect. A browser tells each page's origin, and a page cannot change it."""

    section: ClassVar[str] = "origins"

    allowed: tuple[str, ...] = attrs.field(default=(), converter=tuple_of, validator=_origins)
    """Scheme, host and port, exactly; no patterns, for a pattern is how others get in."""
    same_host: bool = attrs.field(default=True, validator=flag())
    """Pages from the host and port that they connect to: what a server serves itself."""
    null: bool = attrs.field(default=False, validator=flag())
    """Pages without an origin: local files, and the sandboxed frames of anybody."""
    missing: bool = attrs.field(default=True, validator=flag())
    """Peers that send no Origin: no browser is among them, and every other client is."""


@attrs.frozen(kw_only=True)
class Tier:
    """What each user of a tier may take up, over all its connections."""

    section: ClassVar[str] = "tier"

    connections: int = attrs.field(default=50, validator=count(1))
    """Tabs and devices; more are closed with 4006."""
    runs: int = attrs.field(default=100, validator=count(1))
    """Runs under way; more are answered `overloaded`."""
    commands_per_second: int = attrs.field(default=1_000, validator=count(1, 1_000_000))
    """Commands in the long run: far above what a person does; more are answered `rate_limited`."""
    commands_burst: int = attrs.field(default=2_000, validator=count(1))
    """Commands at once: what a client had outstanding when it comes back, many times over."""
    bytes_per_second: int = attrs.field(default=4 * 1024 * 1024, validator=count(1024, 1_000_000_000))
    """Bytes of inbound messages in the long run; commands in what is above are answered `rate_limited`."""
    bytes_burst: int = attrs.field(default=16 * 1024 * 1024, validator=size(1024))
    """Bytes at once; at least the largest message."""
    replay_bytes_per_minute: int = attrs.field(default=64 * 1024 * 1024, validator=size(1024))
    """Bytes of events and snapshots that are sent again, and as many at once: four full logs. What is above
    waits, over all the user's connections; what is live does not."""
    events_per_second: int | None = attrs.field(default=None, validator=count(1, 1_000_000, none=True))
    """Events of one run, and as many at once; an agent above it waits, but for text, which is gathered for
    longer. None: as fast as the log is."""
    log_events: int | None = attrs.field(default=None, validator=count(1, none=True))
    """Events of the user's log that are kept, at most `retention.events`, which None stands for."""
    log_bytes: int | None = attrs.field(default=None, validator=size(1024, none=True))
    """Bytes of their bodies, likewise; always enough for one event."""
    log_age: float | None = attrs.field(default=None, validator=seconds(none=True))
    """Seconds, likewise."""
    context_age: float | None = attrs.field(default=None, validator=seconds(none=True))
    """Seconds since a thread's last event, after which its context is forgotten. None: `contexts.age`."""
    context_threads: int | None = attrs.field(default=None, validator=count(1, none=True))
    """Threads whose contexts are kept, those used last. None: `contexts.threads`."""


def default_tiers() -> dict[str, Tier]:
    """Four tiers by the names that products use; a free user is a person with a phone and a laptop."""
    mib = 1024 * 1024
    return {
        "free": Tier(
            connections=2,
            runs=2,
            commands_per_second=5,
            commands_burst=10,
            bytes_per_second=64 * 1024,
            bytes_burst=256 * 1024,
            replay_bytes_per_minute=8 * mib,
            events_per_second=200,
            log_events=1_000,
            log_bytes=2 * mib,
        ),
        "early": Tier(
            connections=5,
            runs=10,
            commands_per_second=20,
            commands_burst=40,
            bytes_per_second=256 * 1024,
            bytes_burst=mib,
            replay_bytes_per_minute=32 * mib,
            events_per_second=1_000,
            log_events=5_000,
            log_bytes=8 * mib,
        ),
        "mid": Tier(
            connections=10,
            runs=25,
            commands_per_second=50,
            commands_burst=100,
            bytes_per_second=mib,
            bytes_burst=4 * mib,
            events_per_second=5_000,
        ),
        "enterprise": Tier(commands_per_second=100, commands_burst=200),
    }
