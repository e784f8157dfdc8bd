"""The API that agent code sees."""

from __future__ import annotations

from typing import Any, Final, TypeVar, overload

import attrs
import trio

from wsrecover.errors import InvalidEvent
from wsrecover.protocol.events import CRITICAL
from wsrecover.protocol.schema import Schema, fitted

from .arguments import check_text, is_duration, is_object
from .asking import Request
from .documents import Document, history
from .ending import Status
from .parts import MessageScope, ToolScope
from .runlog import RunLog

__all__ = ["Run"]

T = TypeVar("T")


class Run:
    """One execution of an agent: who it is for, and how it tells what it does.

    `input` is what `start_agent` gave, as the log has it; `started` is in unix seconds; `status` changes from
    "running" to its last value when the terminal event is on stable storage. `memory` and `workflow` are
    documents that belong to the thread.

    Whatever is logged may be, or hold, instances of attrs classes. Events appear in the log in the order in
    which one task makes them. What raises `InvalidEvent` logged nothing, and the run goes on. After a commit
    that failed every call raises `RunBroken`, after the end of the run `RunEnded`.
    """

    __slots__ = (
        "_log",
        "_parts",
        "_usage",
        "agent",
        "id",
        "input",
        "memory",
        "started",
        "status",
        "tenant",
        "thread",
        "user",
        "workflow",
    )

    def __init__(
        self,
        log: RunLog,
        *,
        agent: str,
        tenant: str,
        user: str,
        input: dict[str, Any],
        started: float,
    ) -> None:
        self.id = log.run
        self.thread = log.thread
        self.agent = agent
        self.tenant = tenant
        self.user = user
        self.input = input
        self.started = started
        self.status: Status = "running"
        self._usage: dict[str, Any] | attrs.AttrsInstance | None = None
        self._log = log
        self._parts = 0
        self.memory: Final = Document(log, "memory")
        self.workflow: Final = Document(log, "workflow")

    @property
    def usage(self) -> dict[str, Any] | attrs.AttrsInstance | None:
        """What the run took (tokens, cost), as it goes into `agent_completed`: None, or a JSON object.

        Setting it raises `InvalidEvent` for what is none.
        """
        return self._usage

    @usage.setter
    def usage(self, usage: dict[str, Any] | attrs.AttrsInstance | None) -> None:
        if usage is not None and not is_object(usage):
            raise InvalidEvent("usage", f"must be an object, not {type(usage).__name__}")
        self._usage = usage

    async def emit(self, type: str, data: Any) -> None:
        """Emit an event of the app's own type, or one of the protocol's that says what the agent does.

        `agent_started`, `agent_completed`, `state_patch` and `input_*` are the run's own to make: refused.
        `tool_*` and `message_*` are for what no scope fits, such as the callbacks of a library: their author
        sees to it that each id is new, and that what begins ends.

        `data` is an object, and fits what `App.event` registered for the type. It is encoded before this
        waits for anything: `InvalidEvent` is raised here, and changing `data` afterwards changes nothing.
        Returns once the event is queued, which a full journal delays.

        Cancelled: it was not queued. To be cheap, a run's events look for a cancellation at least every 0.2 s
        and at every 33rd; one in between is queued even if its task was cancelled.
        """
        waiting = self._log.offer(type, data)
        if waiting is not None:
            await self._log.write(waiting)

    async def emit_ephemeral(self, type: str, data: Any) -> None:
        """Show an event to the clients that are connected and not behind; nobody else ever sees it.

        For what is out of date in a moment (a cursor, a level, a percentage): it is not logged, has no seq,
        may overtake what was emitted before, and is the first to be dropped where a client is slow. `data` is
        as for `emit`. A type that a user must always see is refused: `InvalidEvent`.
        """
        if type in CRITICAL:
            raise InvalidEvent("type", f"{type} must reach its user, and so is logged")
        self._log.show(self._log.encode(type, fitted(type, data, self._log.place.schemas)))
        await trio.lowlevel.checkpoint()

    async def think(self, text: str) -> None:
        """Emit `agent_thinking`. As `emit`, but that a cancellation is looked for each time."""
        check_text("text", text)
        await self._log.write(self._log.encode("agent_thinking", {"text": text}))

    def tool(self, name: str, input: dict[str, Any] | attrs.AttrsInstance) -> ToolScope:
        """A tool call as an async context manager; see `ToolScope`.

        Raises `InvalidEvent` for a name that is no string.
        """
        check_text("tool", name)
        return ToolScope(self._log, self._part_id("tool"), name, input)

    def message(self, role: str = "assistant") -> MessageScope:
        """A message that is written piece by piece, as an async context manager; see `MessageScope`.

        Raises `InvalidEvent` for a role that is no string.
        """
        check_text("role", role)
        return MessageScope(self._log, self._part_id("message"), role)

    @overload
    async def ask(self, prompt: str, *, timeout: float | None = None) -> Any: ...

    @overload
    async def ask(self, prompt: str, schema: type[T], *, timeout: float | None = None) -> T: ...

    async def ask(self, prompt: str, schema: type[Any] | None = None, *, timeout: float | None = None) -> Any:
        """Ask a person, and wait for the answer over all drops and restarts of clients (not of the server).

        Emits `input_requested`, and returns what the first `respond` said: any JSON, or with a `schema`, such
        as an attrs class, `bool` or `Literal`, what fits it (an answer that does not is refused, and this
        waits on). With a `timeout`, in seconds, raises `NoAnswer`. Raises `ConfigError` for a schema that has
        no place in JSON, else as `emit`. However it ends, `input_resolved` says so to the clients. Cancelled,
        the request is withdrawn.
        """
        check_text("prompt", prompt)
        if timeout is not None and not is_duration(timeout):
            raise InvalidEvent("timeout", f"must be a number of seconds >= 0, not {timeout!r}")
        described = None if schema is None else Schema(schema, name="schema")
        return await Request(self._part_id("request"), prompt, described, timeout, self._log).ask()

    async def history(self) -> list[dict[str, Any]]:
        """The conversation in this run's thread, oldest first, with all that this run has said so far.

        Messages as in SPEC.md, Contexts: `message_id`, `role`, `text`, `complete`, `run?`, `data?`, `seq`.
        Of a very long one the oldest are gone. Raises `StoreError` where the log cannot be read, and what
        `flush` raises. Cancelling is safe.
        """
        return await history(self._log)

    async def flush(self) -> None:
        """Wait until everything emitted so far is on stable storage.

        Raises `RunBroken` if some of it will never be. Cancelling is safe: what was emitted stays queued.
        """
        await self._log.flush()

    def _part_id(self, kind: str) -> str:
        self._parts += 1
        return f"{kind}.{self._parts}.{self.id}"
