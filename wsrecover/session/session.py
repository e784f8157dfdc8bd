"""All that the server holds for one (tenant, user): one nursery with its connections, replays, commands and
runs.

::

                 first member                       last member ends
    (started) ───────────────▶ active ◀──────────────────────────▶ idle ──── linger ────▶ ended
                                          a new member

The log outlives the session: a session that ended is made anew by whoever asks for it next.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVarTuple, Unpack

import attrs
import structlog
import trio

from wsrecover.access.tokens import Grant
from wsrecover.agents.app import Agent
from wsrecover.agents.lifecycle import Execution
from wsrecover.agents.runlog import RunPlace
from wsrecover.errors import CommandError, FrameError
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.protocol.frames import ClientFrame, Hello, RunInfo
from wsrecover.streams.store import Answer, Applied, Outcome, StreamKey
from wsrecover.streams.stream import Stream
from wsrecover.transport.websocket import ServerSocket

from .commands import Commands
from .connection import Connection
from .services import Services

__all__ = ["Session", "SessionStatistics", "State"]

log = structlog.get_logger(__name__)

State = Literal["active", "idle", "ended"]
Args = TypeVarTuple("Args")


@attrs.frozen
class SessionStatistics:
    """Who and what the session holds now."""

    tenant: str
    user: str
    state: State
    connections: int
    runs: int


class Session:
    """One user's nursery. Cancelling it ends all that belongs to the user and nothing else.

    Members are what keeps it alive: connections, commands under way, runs. An exception that a member lets
    out is logged and ends that member alone.
    """

    def __init__(
        self, services: Services, tenant: str, user: str, *, forget: Callable[[Session], None]
    ) -> None:
        self.services = services
        self.tenant = tenant
        self.user = user
        self.connections: dict[str, Connection] = {}
        self.runs: dict[str, Execution] = {}
        self.commands = Commands(self)
        self.state: State = "idle"
        self._forget = forget
        self._nursery: trio.Nursery | None = None
        self._waiting: list[Callable[[trio.Nursery], None]] = []
        self._members = 0
        self._changed = trio.Event()
        self._streams: dict[str, Stream] = {}
        self._opening = trio.Lock()

    @property
    def key(self) -> StreamKey:
        """The user's own stream."""
        return StreamKey("user", self.tenant, self.user)

    async def run(self) -> None:
        """Live until idle for `timeouts.linger` seconds. Cancelling it ends every member first."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for start in self._waiting:
                    start(nursery)
                self._waiting.clear()
                await self._until_idle()
        finally:
            self._forget(self)
            self.state = "ended"
            for stream in self._streams.values():
                self.services.streams.release(stream)

    async def _until_idle(self) -> None:
        linger = self.services.config.timeouts.linger
        while True:
            deadline = float("inf") if self._members else trio.current_time() + linger
            changed = self._changed
            with trio.move_on_at(deadline):
                await changed.wait()
            if not self._members and not changed.is_set():
                # In one step with the decision: whoever asks the registry from now on gets a new session.
                self.state = "ended"
                self._forget(self)
                return

    def start(self, member: Callable[[Unpack[Args]], Awaitable[None]], *args: *Args) -> None:
        """Run a member in this session's nursery; synchronous, so ownership passes without a checkpoint."""
        self._count(+1)
        if self._nursery is None:
            self._waiting.append(lambda nursery: nursery.start_soon(self._live, member, args))
        else:
            self._nursery.start_soon(self._live, member, args)

    async def _live(self, member: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            await member(*args)
        except Exception:
            log.exception("member_failed", tenant=self.tenant, user=self.user)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        before, self._members = self._members, self._members + change
        if (before == 0) != (self._members == 0):
            self.state = "active" if self._members else "idle"
            self._changed.set()
            self._changed = trio.Event()

    async def open_streams(self) -> Mapping[str, Stream]:
        """The streams that this user follows, by wire name; no checkpoint where they are open already.

        Raises `StoreUnavailable`, `StoreFailed` or `StoreCorrupt`; the next call tries again.
        """
        if not self._streams:
            async with self._opening:
                if not self._streams:
                    self._streams = {"user": await self.services.streams.open(self.key)}
        return self._streams

    def attach(
        self, socket: ServerSocket, grant: Grant, hello: Hello, early: Sequence[ClientFrame | FrameError] = ()
    ) -> None:
        """Take a socket over; an older one of the same client is replaced at once.

        `early` are frames that came right behind the hello.

        Raises `CommandError("overloaded")` where the user has all the connections that the limits allow.
        """
        older = self.connections.get(hello.client)
        limit = self.services.config.limits.connections_per_user
        if older is not None:
            older.close(CloseCode.REPLACED, "the same client connected again")
        elif len(self.connections) >= limit:
            raise CommandError("overloaded", f"this user has {limit} connections, the limit", retry_after=5.0)
        connection = self.connections[hello.client] = Connection(self, socket, grant, hello)
        self.start(connection.run, hello, early)

    def detach(self, connection: Connection) -> None:
        """Forget a connection, unless its client has a newer one by now."""
        if self.connections.get(connection.client) is connection:
            del self.connections[connection.client]

    def execution(self, agent: Agent, given: dict[str, Any], *, thread: str | None) -> Execution:
        """A run of an agent for this user, not started yet."""
        config = self.services.config
        place = RunPlace(self.services.journal, self.key, self.services.clock, config.limits.event_bytes)
        return Execution(place, agent, run=secrets.token_hex(16), input=given, thread=thread)

    async def launch(self, execution: Execution, answer: Answer | None = None) -> Outcome:
        """Start a run: its `agent_started`, its record and the answer in one commit, then the agent itself.

        Raises `CommandError("overloaded")` at the limit of runs, else what `Execution.start` raises;
        cancelled, it sees the commit through first, so that no run is left without an owner.
        """
        limit = self.services.config.limits.runs_per_user
        if len(self.runs) >= limit:
            raise CommandError("overloaded", f"{limit} runs are under way, the limit", retry_after=1.0)
        outcome = await execution.start(answer)
        if isinstance(outcome, Applied):
            self.runs[execution.run.id] = execution
            self.start(self._execute, execution)
        return outcome

    async def _execute(self, execution: Execution) -> None:
        try:
            await execution.execute()
        finally:
            del self.runs[execution.run.id]

    def run_infos(self) -> tuple[RunInfo, ...]:
        """The runs under way, as `welcome` tells them."""
        return tuple(
            RunInfo(run=run.id, agent=run.agent, status=run.status, thread=run.thread)
            for run in (execution.run for execution in self.runs.values())
        )

    def statistics(self) -> SessionStatistics:
        """Counts, without waiting."""
        return SessionStatistics(self.tenant, self.user, self.state, len(self.connections), len(self.runs))
