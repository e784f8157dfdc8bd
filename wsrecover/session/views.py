"""What a manager sees of sessions and connections: immutable, as they were when it asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeAlias

import attrs

from wsrecover.protocol.frames import RunInfo

from .connection import Connection, ConnectionState
from .registry import Registry
from .session import Session
from .session import State as SessionState

__all__ = ["ConnectionView", "SessionView", "connection_views", "session_views"]

Positions: TypeAlias = Mapping[str, int]


@attrs.frozen
class ConnectionView:
    """One connection. `client` is its tab or device, `peer` its address, `since` when it came (unix s).

    `threads` is its filter, None for all. `processed` are the seqs that it has acknowledged, by stream.
    """

    id: str
    tenant: str
    user: str
    client: str
    peer: str
    roles: tuple[str, ...]
    tier: str | None
    state: ConnectionState
    threads: frozenset[str] | None
    since: float
    processed: Positions


@attrs.frozen
class SessionView:
    """One user's session: its connections, its runs under way, and when it began (`since`, unix s)."""

    tenant: str
    user: str
    state: SessionState
    since: float
    connections: tuple[ConnectionView, ...]
    runs: tuple[RunInfo, ...]


def session_views(
    registry: Registry,
    *,
    tenant: str | None,
    user: str | None,
    thread: str | None,
    state: SessionState | None,
    latest: float,
) -> tuple[SessionView, ...]:
    """The sessions that all filters let pass: with a run in `thread`, begun by `latest` (unix s)."""
    views = (_session(session) for session in _sessions(registry, tenant, user))
    return tuple(
        view
        for view in views
        if (thread is None or any(run.thread == thread for run in view.runs))
        and (state is None or view.state == state)
        and view.since <= latest
    )


def connection_views(
    registry: Registry,
    *,
    tenant: str | None,
    user: str | None,
    thread: str | None,
    state: ConnectionState | None,
    latest: float,
) -> tuple[ConnectionView, ...]:
    """The connections that all filters let pass: sent `thread`, here by `latest` (unix s)."""
    views = (
        _connection(connection)
        for session in _sessions(registry, tenant, user)
        for connection in session.connections.values()
    )
    return tuple(
        view
        for view in views
        if (thread is None or view.threads is None or thread in view.threads)
        and (state is None or view.state == state)
        and view.since <= latest
    )


def _sessions(registry: Registry, tenant: str | None, user: str | None) -> Iterator[Session]:
    sessions: Iterable[Session] = registry.sessions.values()
    if tenant is not None and user is not None:
        one = registry.sessions.get((tenant, user))
        sessions = () if one is None else (one,)
    for session in sessions:
        if tenant in (None, session.tenant) and user in (None, session.user):
            yield session


def _session(session: Session) -> SessionView:
    connections = tuple(_connection(connection) for connection in session.connections.values())
    return SessionView(
        session.tenant, session.user, session.state, session.since, connections, session.runs.infos()
    )


def _connection(connection: Connection) -> ConnectionView:
    principal = connection.grant.principal
    return ConnectionView(
        id=connection.id,
        tenant=principal.tenant,
        user=principal.user,
        client=connection.member.client,
        peer=connection.socket.peer,
        roles=principal.roles,
        tier=principal.tier,
        state=connection.state,
        threads=connection.delivery.wanted,
        since=connection.since,
        processed=MappingProxyType(dict(connection.processed)),
    )
