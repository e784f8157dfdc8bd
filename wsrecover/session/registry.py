"""The sessions of the process, found by (tenant, user)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import attrs
import trio

from wsrecover.access.principal import Principal
from wsrecover.errors import StoreClosed, StoreUnavailable
from wsrecover.streams.store import StreamKey

from . import contexts
from .contexts import UserContexts
from .services import Services
from .session import Session, SessionStatistics

__all__ = ["Registry", "RegistryStatistics"]


@attrs.frozen
class RegistryStatistics:
    """Now: sessions, connections and runs. Since the start: `counts` by name (see `Services`)."""

    sessions: int
    connections: int
    runs: int
    counts: Mapping[str, int]


class Registry:
    """All sessions of one process; each runs in the nursery that was handed in.

    A session is made by the first who asks for it and forgets itself, in one step with its end, when it was
    idle for `timeouts.linger` seconds. So whoever gets one may start work in it until the next checkpoint.
    Once it is `draining`, nobody attaches a connection any more.
    """

    def __init__(self, nursery: trio.Nursery, services: Services) -> None:
        self._nursery = nursery
        self._services = services
        self._sessions: dict[tuple[str, str], Session] = {}
        self._barred: Counter[tuple[str, str]] = Counter()
        self.draining = False
        services.journal.make_snapshots_with(self._store_contexts)

    @property
    def sessions(self) -> Mapping[tuple[str, str], Session]:
        """The sessions there are, by (tenant, user)."""
        return MappingProxyType(self._sessions)

    def session(self, tenant: str, user: str) -> Session:
        """The user's session, made and started where there was none.

        Raises `StoreClosed` once the server has stopped, `StoreUnavailable` while the user is erased.
        """
        place = (tenant, user)
        session = self._sessions.get(place)
        if session is None:
            if place in self._barred:
                raise StoreUnavailable("the user's log is being erased")
            session = Session(self._services, tenant, user, forget=self._forget)
            try:
                self._nursery.start_soon(session.run, name=f"session {tenant}/{user}")
            except RuntimeError as error:  # trio's word for a nursery that is closed
                raise StoreClosed("the server has stopped") from error
            self._sessions[place] = session
            self._services.counts["session.started"] += 1
        return session

    def bar(self, tenant: str, user: str) -> None:
        """End the user's session, as `Session.drop` does, and make none until `admit`."""
        self._barred[tenant, user] += 1
        session = self._sessions.get((tenant, user))
        if session is not None:
            session.drop()

    def admit(self, tenant: str, user: str) -> None:
        """Take back one `bar`."""
        self._barred[tenant, user] -= 1
        if not self._barred[tenant, user]:
            del self._barred[tenant, user]

    def of(self, principal: Principal) -> Session:
        """The principal's session."""
        return self.session(principal.tenant, principal.user)

    def is_connected(self, tenant: str, user: str) -> bool:
        """Whether the user has a connection that was welcomed."""
        session = self._sessions.get((tenant, user))
        return session is not None and any(
            connection.state in ("live", "lagging") for connection in session.connections.values()
        )

    async def _store_contexts(self, keys: Sequence[StreamKey], store: bool) -> None:  # noqa: FBT001  # As `Snapshots` has it.
        sessions = [(key, self._sessions.get((key.tenant, key.name))) for key in keys]
        found = [
            UserContexts(self._services, key) if session is None else session.contexts
            for key, session in sessions
            if store or session is not None
        ]
        await (contexts.store(found) if store else contexts.keep_up(found))

    def _forget(self, session: Session) -> None:
        if self._sessions.get((session.tenant, session.user)) is session:
            del self._sessions[session.tenant, session.user]
            self._services.counts["session.ended"] += 1

    def statistics(self) -> RegistryStatistics:
        """Counts, without waiting."""
        each: list[SessionStatistics] = [session.statistics() for session in self._sessions.values()]
        return RegistryStatistics(
            sessions=len(each),
            connections=sum(one.connections for one in each),
            runs=sum(one.runs for one in each),
            counts=MappingProxyType(dict(self._services.counts)),
        )
