"""The first frame that a connection is sent."""

from __future__ import annotations

from wsrecover.access.claims import Grant
from wsrecover.protocol.frames import VERSION, PrincipalInfo, StreamInfo, Welcome

from .owner import Home

__all__ = ["welcome"]


def welcome(home: Home, grant: Grant, connection: str, streams: dict[str, StreamInfo]) -> Welcome:
    """Who the peer is, where its `streams` stand, what is under way, and what it must keep to."""
    principal, services, tier = grant.principal, home.services, home.quota.tier
    limits = services.config.limits
    return Welcome(
        protocol=VERSION,
        connection=connection,
        principal=PrincipalInfo(principal.tenant, principal.user, principal.roles, principal.tier),
        streams=streams,
        heartbeat=services.config.timeouts.heartbeat,
        limits={
            "message_bytes": limits.message_bytes,
            "part_bytes": limits.part_bytes,
            "connections": tier.connections,
            "commands_per_second": tier.commands_per_second,
            "commands_burst": tier.commands_burst,
            "commands_in_flight": limits.commands_in_flight,
        },
        token_expires_in=grant.expires_at - services.clock(),
        runs=home.runs.infos(),
    )
