"""All that the server holds for one (tenant, user): one nursery with connections, commands and runs.

::

             first member                     last member ends
    idle ────────────────────▶ active ────────────────────────▶ idle ──── linger ────▶ ended

The log outlives the session: a session that ended is made anew by whoever asks for it next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import attrs
import trio

from wsrecover.access.principal import Principal
from wsrecover.access.tokens import Grant
from wsrecover.errors import InvalidEvent, StoreFailed
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.protocol.codec import ephemeral_frame
from wsrecover.streams.store import Entry, StreamKey
from wsrecover.streams.stream import Stream
from wsrecover.transport.websocket import ServerSocket, text_frame

from . import audit
from .commands import Commands
from .connection import Connection
from .contexts import UserContexts
from .entitled import entitled
from .introduction import Introduction
from .members import Members
from .pressure import Stage
from .quota import Quota
from .replay import passes
from .runs import Runs
from .services import Services

__all__ = ["STREAM_SETS", "Session", "SessionStatistics", "State"]

State = Literal["active", "idle", "ended"]

STREAM_SETS: Final = 4
"""Sets of streams that stay open although nobody may follow them: as many as a user's tokens differ in their
roles or tier at one time. More are open only as long as somebody follows what no other set has."""


@attrs.frozen
class SessionStatistics:
    """Who and what the session holds now."""

    tenant: str
    user: str
    state: State
    connections: int
    runs: int


class Session:
    """One user's nursery. Cancelling it ends all that belongs to the user and nothing else."""

    def __init__(
        self, services: Services, tenant: str, user: str, *, forget: Callable[[Session], None]
    ) -> None:
        self.services = services
        self.tenant = tenant
        self.user = user
        self.key = StreamKey("user", tenant, user)
        self.since = services.clock()
        self.connections: dict[str, Connection] = {}
        self.members = Members()
        self.contexts = UserContexts(services, self.key)
        self.quota = Quota(services.quotas, self.key)
        self.runs = Runs(services, self.key, self.members, self.quota, self.show, self.contexts)
        self.commands = Commands(services, self.key, self.runs)
        self._forget = forget
        self._ended = False
        self._streams: dict[tuple[tuple[str, ...], str | None], dict[str, Stream]] = {}
        self._opening = trio.Lock()

    @property
    def state(self) -> State:
        """Active while it has members; ended once nobody can find it any more."""
        if self._ended:
            return "ended"
        return "active" if self.members else "idle"

    async def run(self) -> None:
        """Live until idle for `timeouts.linger` seconds. Cancelling it ends every member first."""
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self.members.until_idle(nursery, self.services.config.timeouts.linger)
                except trio.Cancelled:
                    self.runs.hurry()
                    raise
                # In one step with the decision: whoever asks the registry from now on gets a new session.
                self._end()
        finally:
            self._end()
            for streams in self._streams.values():
                self._release(streams)
            # What is left of a session is for the garbage collector, which may take its time: not with these.
            self.contexts.forget()

    def drop(self) -> None:
        """End it because the user is erased; nobody finds it from now on, and nothing of it is logged.

        Returns at once. Connections that are not closing are told to come again; runs and commands are
        cancelled.
        """
        self._end()
        for connection in tuple(self.connections.values()):
            connection.close(CloseCode.EPOCH_CHANGED, "the log was erased")
        self.runs.abandon()
        self.members.cancel()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._forget(self)

    def streams_now(self, principal: Principal) -> Mapping[str, Stream] | None:
        """What `open_streams` gives, where it need not wait; else None."""
        return self._streams.get((principal.roles, principal.tier))

    async def open_streams(self, principal: Principal) -> Mapping[str, Stream]:
        """The streams that this user follows with what it is entitled to now, by wire name, its own first.

        Some stay open for the next connection: no checkpoint where they are open already. Follow them before
        the next one: what nobody follows may be closed. Raises `StoreUnavailable`, `StoreFailed` or
        `StoreCorrupt`, and `trio.TooSlowError` after `timeouts.store`; the next call tries again.
        """
        entitlement = principal.roles, principal.tier
        streams = self._streams.get(entitlement)
        if streams is None:
            with trio.fail_after(self.services.config.timeouts.store):
                async with self._opening:
                    streams = self._streams.get(entitlement)
                    if streams is None:
                        # The session's own key: it is in every event, and the same object is found faster.
                        keys = (self.key, *entitled(principal)[1:])
                        streams = self._streams[entitlement] = await self._open(keys)
                        self._forget_streams()
        return streams

    def _forget_streams(self) -> None:
        """Close the oldest sets of those that are too many, but none that alone has what somebody follows."""
        followed = {stream for one in self.connections.values() for stream in one.streams.values()}
        for entitlement, streams in tuple(self._streams.items())[:-1]:  # The newest is about to be followed.
            if len(self._streams) <= STREAM_SETS:
                return
            others = {
                stream
                for other in self._streams.values()
                if other is not streams
                for stream in other.values()
            }
            if not followed.intersection(streams.values()).difference(others):
                del self._streams[entitlement]
                self._release(streams)

    async def _open(self, keys: Sequence[StreamKey]) -> dict[str, Stream]:
        opened: dict[str, Stream] = {}
        try:
            for key in keys:
                stream = await self.services.streams.open(key)
                opened[stream.name] = stream
        except BaseException:
            self._release(opened)
            raise
        return opened

    def _release(self, streams: Mapping[str, Stream]) -> None:
        for stream in streams.values():
            self.services.streams.release(stream)

    def attach(self, socket: ServerSocket, grant: Grant, introduction: Introduction) -> None:
        """Take a socket over; an older one of the same client is replaced at once.

        Raises `CommandError("overloaded")` where the user has all the connections that the limits allow, and
        `StoreClosed` once the server has stopped; the socket then stays the caller's.
        """
        client = introduction.hello.client
        older = self.connections.get(client)
        self.quota.adopt(grant.principal)
        self.quota.add_connection(len(self.connections), replaces=older is not None)
        if older is not None:
            audit.replaced(older)
            older.close(CloseCode.REPLACED, "the same client connected again")
            self.commands.leave(older)
        connection = self.connections[client] = Connection(self, socket, grant, introduction)
        try:
            self.members.start(connection.run)
        except StoreFailed:
            self.detach(client, connection)
            raise
        audit.accepted(connection)

    def show(self, event: Entry) -> int:
        """Hand an event that is not logged to the connections that want it; how many could take it at once.

        Those that could not are behind, or memory is short, and it is lost to them. Raises `InvalidEvent` for
        one that would have to be sent in parts.
        """
        frame = ephemeral_frame("user", event.body)
        limit = self.services.config.limits.part_bytes
        if len(frame) > limit:
            raise InvalidEvent(
                "data", f"{len(frame)} bytes encoded, the limit of what is not logged is {limit}"
            )
        message = text_frame(frame)
        deliveries = [connection.delivery for connection in self.connections.values()]
        wanting = [one for one in deliveries if passes(one.wanted, event.thread)]
        short = self.services.pressure.stage >= Stage.EPHEMERAL
        taken = 0 if short else sum(one.show(message) for one in wanting)
        self.services.counts["ephemeral.sent"] += taken
        self.services.counts["ephemeral.shed"] += len(wanting) - taken
        return taken

    def detach(self, client: str, connection: object) -> None:
        """Forget a connection that was attached, unless its client has a newer one by now."""
        self.quota.drop_connection()
        self.commands.leave(connection)
        if self.connections.get(client) is connection:
            del self.connections[client]

    def statistics(self) -> SessionStatistics:
        """Counts, without waiting."""
        return SessionStatistics(self.tenant, self.user, self.state, len(self.connections), len(self.runs))
