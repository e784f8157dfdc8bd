"""Which streams a principal follows: its own, and what is broadcast to it."""

from __future__ import annotations

from wsrecover.access.principal import Principal
from wsrecover.streams.store import StreamKey

__all__ = ["entitled"]


def entitled(principal: Principal) -> tuple[StreamKey, ...]:
    """The streams that the principal may follow, its own first; nobody else's is ever named to it."""
    tenant = principal.tenant
    keys = [StreamKey("user", tenant, principal.user), StreamKey("all"), StreamKey("tenant", tenant)]
    if principal.tier is not None:
        keys.append(StreamKey("tier", tenant, principal.tier))
    keys += [StreamKey("role", tenant, role) for role in principal.roles]
    return tuple(keys)
