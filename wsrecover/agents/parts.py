"""The parts of a run that have a beginning and an end: tool calls and messages."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import trio

from wsrecover.errors import ScopeEnded
from wsrecover.protocol.codec import encode_json

from .arguments import check_text
from .ending import describe, must_pass_at_once
from .gathering import Text
from .runlog import RunLog

__all__ = ["MessageScope", "ToolScope"]


class ToolScope:
    """One tool call: `tool_executing`, any number of `tool_progress`, then one of `tool_completed` and
    `tool_failed`.

    Leaving the block without `complete` completes with the output null. An exception in the block is told as
    `tool_failed` (`AgentError` in its own words, any other by its class name) and passes on. A cancelled call
    fails with the code `cancelled`, if there is room for that within `RunPlace.grace`; otherwise the run's
    terminal event is what ends it for the client.
    """

    def __init__(self, log: RunLog, id: str, tool: str, input: object) -> None:
        self.id = id
        self.tool = tool
        self._input = input
        self._log = log
        self._entered = False
        self._began: float | None = None
        self._complete = False

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ScopeEnded(f"tool call {self.id} was entered before: make a `run.tool(…)` for each call")
        self._entered = True
        began = trio.current_time()
        started = {"tool_call_id": self.id, "tool": self.tool, "input": self._input}
        await self._log.write(self._log.encode("tool_executing", started))
        self._began = began
        return self

    async def progress(self, **data: Any) -> None:
        """Emit `tool_progress` with these fields. Raises as `Run.emit`, and `ScopeEnded` after `complete`."""
        self._began_at()
        await self._log.write(self._log.encode("tool_progress", {**data, "tool_call_id": self.id}))

    async def complete(self, output: Any = None) -> None:
        """Emit `tool_completed` and wait until it, and all before it, is on stable storage.

        Raises `ScopeEnded` if called twice, `InvalidEvent` for an output that cannot be logged (the call is
        then still open) and `RunBroken`. Cancelled: the event is either queued, and then commits, or the call
        is still open.
        """
        duration = round(trio.current_time() - self._began_at(), 6)
        data = {"tool_call_id": self.id, "tool": self.tool, "output": output, "duration": duration}
        await self._log.write(self._log.encode("tool_completed", data))
        self._complete = True
        await self._log.flush()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._complete:
            return
        if exc is not None:
            await self._fail(exc)
            return
        try:
            await self.complete()
        except trio.Cancelled as cancelled:
            if not self._complete:
                await self._fail(cancelled)
            raise

    async def _fail(self, exc: BaseException) -> None:
        if must_pass_at_once(exc):
            return
        self._complete = True
        code, message, _ = describe(exc)
        error = {"code": code, "message": message}
        failed = {"tool_call_id": self.id, "tool": self.tool, "error": error}
        await self._log.write_last(self._log.encode("tool_failed", failed), exc)

    def _began_at(self) -> float:
        if self._complete:
            raise ScopeEnded(f"tool call {self.id} has been completed")
        if self._began is None:
            raise ScopeEnded("it has not begun: make the call within `async with run.tool(…) as tool:`")
        return self._began


class MessageScope:
    """One message as it is written: `message_started`, deltas, then `message_completed` with the whole text.

    A client may rely on this: `message_completed` carries exactly the deltas' texts joined, and comes also
    where an exception or a cancellation ends the block; `interrupted: true` in it then says that the author
    had more to say. Where it does not come at all (the run broke, the process died), the run's terminal event
    ends the message.
    """

    def __init__(self, log: RunLog, id: str, role: str) -> None:
        self.id = id
        self.role = role
        self._log = log
        self._text = Text(id)
        self._pieces: list[str] = []
        self._size = 0
        self._entered = False
        self._room: int | None = None
        self._complete = False

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ScopeEnded(f"message {self.id} was entered before: make a `run.message()` for each")
        self._entered = True
        # The fields that vary in length are given the most that they may take.
        longest = self._log.encode("message_completed", self._completed("", interrupted=True))
        room = self._log.place.event_bytes - len(longest.body) - 64
        await self._log.write(self._log.encode("message_started", {"message_id": self.id, "role": self.role}))
        self._room = room
        return self

    async def text(self, token: str) -> None:
        """Add to the message. The first token is an event at once; those that follow are gathered into one.

        That goes `timeouts.delta_interval` seconds after the event before it, and ahead of any other event of
        the run. Where tokens of two messages alternate they stay apart, in the order of adding.

        Raises `InvalidEvent` for what is not text, and where the message would become longer than one event
        may be; nothing of the token is taken then. Raises `ScopeEnded`, `RunBroken` and `RunEnded` too.
        Cancelled: the token may have been taken.
        """
        if self._complete:
            raise ScopeEnded(f"message {self.id} has been completed")
        if self._room is None:
            raise ScopeEnded("it has not begun: write it within `async with run.message() as message:`")
        check_text("text", token)
        room = self._room - self._size
        size = len(encode_json(token, field="text", max_bytes=room + 2)) - 2
        # Up to here nothing was taken; from here on the token is in the deltas and in the completed text.
        await trio.lowlevel.checkpoint_if_cancelled()
        if token:
            self._pieces.append(token)
            self._size += size
            await self._log.add_text(self._text, token, size)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if must_pass_at_once(exc):
            return
        self._complete = True
        data = self._completed("".join(self._pieces), interrupted=exc is not None)
        await self._log.write_last(self._log.encode("message_completed", data), exc)

    def _completed(self, text: str, *, interrupted: bool) -> dict[str, Any]:
        data: dict[str, Any] = {"message_id": self.id, "text": text}
        if interrupted:
            data["interrupted"] = True
        return data
