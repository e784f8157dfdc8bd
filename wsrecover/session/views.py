"""What a manager sees of sessions and connections: immutable, as they were when it asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias, TypedDict, get_args

import attrs

from wsrecover.errors import InvalidFilter
from wsrecover.protocol.frames import RunInfo

from .connection import Connection, ConnectionState
from .registry import Registry
from .session import Session
from .session import State as SessionState

__all__ = ["ConnectionView", "Filters", "Query", "SessionView"]

Positions: TypeAlias = Mapping[str, int]

_SESSION_STATES: Final[tuple[str, ...]] = get_args(SessionState)
_CONNECTION_STATES: Final[tuple[str, ...]] = get_args(ConnectionState)


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


class Filters(TypedDict, total=False):
    """What may be asked of sessions and connections alike, exactly; None asks nothing.

    `tenant` and `user`. `thread`: sessions with a run in it under way, connections that are sent its events.
    `role`, `tier`, `client` and `peer` are of a connection; a session is one that has a connection which all
    of these let pass. `peer` is an address, with its port or without. `min_age`: those that began, or came,
    so many seconds ago or before.
    """

    tenant: str | None
    user: str | None
    thread: str | None
    role: str | None
    tier: str | None
    client: str | None
    peer: str | None
    min_age: float | None


@attrs.frozen(kw_only=True)
class Query:
    """`Filters` and a state: what lets pass is what every one of them lets pass."""

    tenant: str | None = None
    user: str | None = None
    thread: str | None = None
    role: str | None = None
    tier: str | None = None
    client: str | None = None
    peer: str | None = None
    min_age: float | None = None
    state: str | None = None

    def sessions(self, registry: Registry, *, now: float) -> tuple[SessionView, ...]:
        """The sessions that it lets pass at `now` (unix s). Raises `InvalidFilter`."""
        self._check_state(_SESSION_STATES)
        views = map(_session, self._owners(registry))
        return tuple(view for view in views if self._passes(view, now) and self._holds(view))

    def connections(self, registry: Registry, *, now: float) -> tuple[ConnectionView, ...]:
        """The connections that it lets pass at `now` (unix s). Raises `InvalidFilter`."""
        self._check_state(_CONNECTION_STATES)
        owners = self._owners(registry)
        views = (_connection(connection) for owner in owners for connection in owner.connections.values())
        return tuple(
            view
            for view in views
            if self._passes(view, now)
            and self._knows(view)
            and (self.thread is None or view.threads is None or self.thread in view.threads)
        )

    def _check_state(self, accepted: tuple[str, ...]) -> None:
        if self.state is not None and self.state not in accepted:
            raise InvalidFilter("state", f"is {self.state!r}", ", ".join(map(repr, accepted)))

    def _owners(self, registry: Registry) -> Iterator[Session]:
        sessions: Iterable[Session] = registry.sessions.values()
        if self.tenant is not None and self.user is not None:
            one = registry.sessions.get((self.tenant, self.user))
            sessions = () if one is None else (one,)
        for session in sessions:
            if self.tenant in (None, session.tenant) and self.user in (None, session.user):
                yield session

    def _passes(self, view: SessionView | ConnectionView, now: float) -> bool:
        return self.state in (None, view.state) and (self.min_age is None or now - view.since >= self.min_age)

    def _holds(self, view: SessionView) -> bool:
        if self.thread is not None and all(run.thread != self.thread for run in view.runs):
            return False
        of_connections = (self.role, self.tier, self.client, self.peer)
        return of_connections == (None,) * 4 or any(map(self._knows, view.connections))

    def _knows(self, view: ConnectionView) -> bool:
        host = view.peer.rpartition(":")[0]
        return (
            (self.role is None or self.role in view.roles)
            and self.tier in (None, view.tier)
            and self.client in (None, view.client)
            and self.peer in (None, view.peer, host, host.strip("[]"))
        )


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
