"""A running server, as the program that embeds it sees it: it publishes, asks who is there, and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import attrs
import trio

from .agents.arguments import input_of
from .errors import CommandError, InvalidEvent
from .protocol import codec
from .protocol.cursor import Position
from .protocol.events import CRITICAL
from .protocol.fields import MAX_ID, is_id
from .protocol.schema import fitted
from .session.arguments import check_patience, check_token, user_of
from .session.broadcast import Broadcast, audience
from .session.connection import ConnectionState
from .session.drain import drain
from .session.mishaps import ErrorCount
from .session.pressure import MemoryStatistics
from .session.receipts import Receipt
from .session.registry import Registry, RegistryStatistics
from .session.revoking import erase, revoke
from .session.services import Services
from .session.session import State as SessionState
from .session.views import ConnectionView, Filters, Query, SessionView
from .streams.journal import JournalStatistics
from .streams.store import Applied, Entry, StoreStatistics, StreamKey, TokenRevocation, Unit, UserRevocation
from .transport.doorway import AcceptStatistics, Doorway
from .transport.listener import authority

__all__ = ["Server", "ServerStatistics"]


@attrs.frozen
class ServerStatistics:
    """What the parts count; `errors` by kind, those of the last hour (see `Mishaps`)."""

    sessions: RegistryStatistics
    journal: JournalStatistics
    store: StoreStatistics
    accepting: AcceptStatistics
    memory: MemoryStatistics
    errors: Mapping[str, ErrorCount]


class Server:
    """A running server, as the program that embeds it sees it. `addresses` are (host, port)."""

    def __init__(
        self,
        services: Services,
        registry: Registry,
        addresses: tuple[tuple[str, int], ...],
        stop_accepting: Callable[[], object],
        doorway: Doorway,
    ) -> None:
        self.addresses = addresses
        self.registry = registry
        self._services = services
        self._stop_accepting = stop_accepting
        self._doorway = doorway

    @property
    def url(self) -> str:
        """Where clients connect: the first address."""
        scheme = "ws" if self._services.config.tls_certificate is None else "wss"
        return f"{scheme}://{authority(self.addresses[0])}"

    async def publish(
        self,
        tenant: str,
        user: str,
        type: str,
        data: object,
        *,
        thread: str | None = None,
        id: str | None = None,
    ) -> Position:
        """Log an event in the user's stream, connected or not; its position, once it is on stable storage.

        `data` is as in `Run.emit`. With an `id`, a repeat within ten minutes gives the first one's position.

        Raises `InvalidArgument` for a name that no token could carry, `InvalidEvent`, `StoreUnavailable` or
        `StoreClosed` (nothing was logged), `StoreFailed` where nobody knows, `CommandError("id_conflict")`.
        Cancelled, it may have taken effect.
        """
        if id is not None and not is_id(id):
            raise InvalidEvent("id", f"must be 1 to {MAX_ID} printable ASCII characters")
        principal, now = user_of(tenant, user), self._services.clock()
        fit = fitted(type, data, self._services.app.events)
        body = codec.encode_event(
            ts=now,
            type=type,
            data=fit,
            thread=thread,
            max_bytes=self._services.config.limits.event_bytes,
        )
        key = StreamKey("user", principal.tenant, principal.user)
        entry = Entry(key, body, now, thread, id, codec.digest(type, thread, fit) if id else b"")
        outcome = await self._services.journal.commit(Unit((entry,)))
        if not isinstance(outcome, Applied):
            raise CommandError("id_conflict", f"the id {id!r} was used with another body", field="id")
        return entry.position

    def ephemeral(
        self,
        tenant: str,
        user: str,
        type: str,
        data: object,
        *,
        thread: str | None = None,
    ) -> int:
        """Show a user what is out of date in a moment; to how many connections, without waiting.

        It is not logged and has no seq: who is away or behind never sees it. `data` is as in `Run.emit`.
        Raises `InvalidArgument` for a name that no token could carry, and `InvalidEvent`, also for one that
        is larger than `limits.part_bytes` or of a type that a user must always see.
        """
        user_of(tenant, user)
        if type in CRITICAL:
            raise InvalidEvent("type", f"{type} must reach its user, and so is logged")
        services = self._services
        limits, now = services.config.limits, services.clock()
        fit = fitted(type, data, services.app.events)
        body = codec.encode_event(ts=now, type=type, data=fit, thread=thread, max_bytes=limits.part_bytes)
        session = self.registry.sessions.get((tenant, user))
        return 0 if session is None else session.show(Entry(session.key, body, now, thread))

    async def broadcast(
        self,
        to: str,
        type: str,
        data: object,
        *,
        tenant: str | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Log one event for many: `to` is "all", or of a `tenant` "tenant", "tier:<name>", "role:<name>".

        `data` is as in `Run.emit`. Who is away finds it on return. The receipt, given once the event is on
        stable storage, counts those who are entitled and connected in that moment and acknowledge it within
        `timeout` seconds (None: `timeouts.receipt`), over however many connections of theirs.

        Raises `InvalidEvent` (of `to` and `tenant` too), `InvalidArgument` for a `timeout` that is none,
        `StoreUnavailable` or `StoreClosed` (nothing was logged), `StoreFailed` where nobody knows. Cancelled,
        it may have taken effect.
        """
        if timeout is not None:
            check_patience("timeout", timeout)
        broadcast = Broadcast.of(self._services, audience(to, tenant), type, data, timeout=timeout)
        await broadcast.commit()
        return broadcast.receipt

    async def start_agent(
        self,
        tenant: str,
        user: str,
        agent: str,
        input: Mapping[str, Any] | attrs.AttrsInstance | None = None,
        *,
        thread: str | None = None,
    ) -> str:
        """Start an agent for a user, connected or not; the run's id, once its start is on stable storage.

        Raises `CommandError` (`not_found`, `overloaded`), `InvalidArgument` for a name that no token could
        carry or an `input` that is no object, `InvalidEvent`, `StoreUnavailable`, `StoreFailed`.
        """
        principal, given = user_of(tenant, user), input_of(input)
        runs = self.registry.of(principal).runs
        execution = runs.prepare(agent, given, thread=thread)
        await runs.start(execution)
        return execution.run.id

    async def revoke(self, tenant: str, user: str) -> int:
        """Let the tokens of a user count no more that were issued up to now.

        Connections that go by one are closed with 4503 before this waits for anything; it returns how many,
        once it is on stable storage and so outlives a restart. A token that does not say when it was issued
        (`iat`), or was issued within `timeouts.token_leeway` after, by a clock that may be ahead, counts as
        one of before. Runs and the log stay as they are.

        Raises `InvalidArgument` for a name that no token could carry; `StoreUnavailable` or `StoreFailed`,
        and then it counts until a restart, so repeat it. Cancelled, likewise.
        """
        return await revoke(self.registry, self._services, self._revocation(tenant, user))

    async def revoke_token(self, tenant: str, token_id: str) -> int:
        """Let the one token of a tenant count no more that has this `jti`. Else as `revoke`."""
        check_token(tenant, token_id)
        one = TokenRevocation(tenant, token_id, self._services.clock())
        return await revoke(self.registry, self._services, one)

    async def erase(self, tenant: str, user: str) -> int:
        """Revoke a user's tokens, and in one transaction with that erase all that the log holds of the user.

        That is its events, contexts, documents, the answers to its commands. Its runs are cancelled and log
        nothing more, not even their end; one whose code does not heed that goes on unheard. Whoever publishes
        to the user, or connects as it, later finds a new, empty stream. Broadcasts, and what others' streams
        say of it, stay.

        It returns how many connections it closed, once what was erased is gone from the store's files as
        well, but not from backups and the file system's own copies. For that SQLite's file is written anew,
        and commits wait: about 1 s for each 100 MB. Where that is not possible now, because another process
        reads the file or it would take more than 10 s, `StoreUnavailable` is raised although all else is
        done, for good; repeat it. Else as `revoke`.
        """
        return await erase(self.registry, self._services, self._revocation(tenant, user))

    def _revocation(self, tenant: str, user: str) -> UserRevocation:
        principal = user_of(tenant, user)
        return UserRevocation(principal.tenant, principal.user, self._services.clock())

    async def drain(self) -> None:
        """Stop accepting, and ask every client to reconnect elsewhere or later: `drain`, then 4000.

        The closes are spread out, and over `timeouts.drain` seconds from now at the latest: whoever has not
        answered by then is cut. Runs go on, and are logged, until `serve` is cancelled, which is what comes
        next. Calling it again waits as well. Cancelled: no connection is accepted any more, and those whose
        turn has not come stay open.
        """
        self._stop_accepting()
        await drain(self.registry, self._services)

    def sessions(
        self, *, state: SessionState | None = None, **filters: Unpack[Filters]
    ) -> tuple[SessionView, ...]:
        """The sessions that all given filters let pass, as they are now; see `Filters`.

        Raises `InvalidFilter` for a state that no session has.
        """
        return Query(state=state, **filters).sessions(self.registry, now=self._services.clock())

    def connections(
        self, *, state: ConnectionState | None = None, **filters: Unpack[Filters]
    ) -> tuple[ConnectionView, ...]:
        """The connections that all given filters let pass, as they are now; see `Filters`.

        Raises `InvalidFilter` for a state that no connection has.
        """
        return Query(state=state, **filters).connections(self.registry, now=self._services.clock())

    async def wait_connected(self, tenant: str, user: str, timeout: float | None = None) -> None:
        """Wait until the user has a connection that was welcomed; returns at once where there is one.

        Raises `trio.TooSlowError` after `timeout` seconds (None: never), and `InvalidArgument` for a name
        that no token could carry or a `timeout` that is none. Cancelling is safe.
        """
        user_of(tenant, user)
        if timeout is not None:
            check_patience("timeout", timeout)
        if self.registry.is_connected(tenant, user):
            await trio.lowlevel.checkpoint()
            return
        with trio.fail_after(math.inf if timeout is None else timeout):
            await self._services.presence.wait_arrival(tenant, user)

    def statistics(self) -> ServerStatistics:
        """Counts, without waiting."""
        return ServerStatistics(
            sessions=self.registry.statistics(),
            journal=self._services.journal.statistics(),
            store=self._services.store.statistics(),
            accepting=self._doorway.statistics(),
            memory=self._services.pressure.statistics(),
            errors=self._services.mishaps.statistics(),
        )
