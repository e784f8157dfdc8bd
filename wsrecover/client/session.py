"""A session with a server, as an app sees it: events that arrive once, commands that take effect once."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import attrs
import trio

from wsrecover.errors import CommandError, Misfit, WsrecoverError
from wsrecover.protocol.context import EMPTY, Context
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import PrincipalInfo, RunInfo, StreamInfo, Welcome
from wsrecover.protocol.schema import plain

from .inbox import Inbox, Item
from .keeper import Keeper
from .shared import Shared
from .status import Status

__all__ = ["ClientSession"]


class ClientSession:
    """What `connect` gives. ::

        async for item in session:
            match item:
                case Event():      # logged events: each once, in its stream's order
                case Ephemeral():  # live only, not logged
                case Snapshot():   # the threads' contexts as of a seq, see `context`; `more` follow
                case Gap():        # events are gone; what follows is what `from_` asked for
                case Changed():    # the held position was refused: as `trimmed`, or what it led to is void
                case Forgotten():  # the stream may no longer be followed

    An app that is slow makes the reader wait once `buffer_items` or `buffer_bytes` are reached. Pings then
    stay unanswered, the server closes, and the session resumes where it was: nothing is lost, but late. While
    a call waits for an answer, which may lie behind events, the reader goes on to 8 times these bounds. Where
    nobody takes anything for 10 s then, the call raises `BufferFull`: a program that only sends says so with
    `connect(…, events=False)`.
    """

    def __init__(self, keeper: Keeper, shared: Shared) -> None:
        self._keeper = keeper
        self._shared = shared

    def __aiter__(self) -> ClientSession:
        return self

    async def __anext__(self) -> Item:
        """The next item; asking for it says that the former is handled, whichever task asks.

        So one task iterates: `trio.BusyResourceError` while another waits. Raises what `connect` raises once
        the session has failed. Cancelling it loses nothing.
        """
        try:
            return await self._shared.inbox.take()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def batches(self) -> AsyncIterator[list[Item]]:
        """Iterate by lists: a replay as one, as far as the buffer holds it, then whatever there is.

        Asking for the next list says that the former is handled. Instead of iterating over the session.
        """
        return _Batches(self._shared.inbox)

    async def send(
        self,
        type: str,
        data: object,
        *,
        thread: str | None = None,
        id: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Send a command and return its result. It takes effect once, over however many connections it takes.

        `data` is a JSON object, or an instance of an attrs class that becomes one. With an `id` of your own
        (random, and new for each command) it can be sent again, by another process too: a repeat within 10
        minutes gets the first one's answer.

        Raises:
            CommandError: it was refused, or is not sendable (`invalid`, `too_large`).
            trio.TooSlowError: no answer within `timeout` seconds; whether it took effect is not known.
            BufferFull: nobody iterates, and the answer lies behind all that is unread; likewise not known.
            WsrecoverError: the session ended, with its last error; likewise not known.

        Cancelled, the command is not repeated any more, but may have taken effect.
        """
        with trio.fail_after(math.inf if timeout is None else timeout):
            command_id = secrets.token_hex(16) if id is None else id
            return await self._shared.outbox.call(command_id, type, _object(data), thread)

    async def start_agent(
        self,
        agent: str,
        input: object = None,
        *,
        thread: str | None = None,
        timeout: float | None = None,
    ) -> str:
        """Start an agent with `input`, as the data of `send`; returns the run's id. Raises like `send`."""
        given = _object({} if input is None else input, "data.input")
        data = {"agent": agent, "input": dict(given)}
        result = await self.send("start_agent", data, thread=thread, timeout=timeout)
        run = result.get("run")
        if not isinstance(run, str):
            raise CommandError("internal", "the server's answer names no run")
        return run

    async def user_message(
        self, text: str, *, thread: str | None = None, timeout: float | None = None
    ) -> int:
        """Say something as the user; the seq of its event. Raises like `send`."""
        return await self._say("user_message", {"text": text}, thread, timeout)

    async def chat(self, data: object, *, thread: str | None = None, timeout: float | None = None) -> int:
        """Log a `chat` event with `data`, which every tab sees; its seq. Raises like `send`."""
        return await self._say("chat", data, thread, timeout)

    async def _say(self, type: str, data: object, thread: str | None, timeout: float | None) -> int:
        result = await self.send(type, data, thread=thread, timeout=timeout)
        seq = result.get("seq")
        if not isinstance(seq, int):
            raise CommandError("internal", "the server's answer names no seq")
        return seq

    async def respond(self, request: str, answer: Any, *, timeout: float | None = None) -> None:
        """Answer what an agent asked: `request` is the `request_id` of its `input_requested`.

        Raises like `send`: `CommandError` `invalid` where the answer does not fit (ask again),
        `already_resolved` where another came first or nobody waits for it any more.
        """
        await self.send("respond", {"request": request, "answer": answer}, timeout=timeout)

    async def cancel(self, run: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Cancel a run; returns its `run` and `status`. Raises like `send`."""
        return await self.send("cancel_run", {"run": run}, timeout=timeout)

    async def follow(self, threads: Sequence[str] | None, *, timeout: float | None = None) -> None:
        """Follow only these threads of the user's stream from now on (None: all); at most 100.

        Returns when that holds. Threads that were not followed before come as a `Snapshot` ahead of their
        events, events without a thread always come; nothing is lost or repeated.

        Raises `ConfigError` for what is no list of ids, `CommandError` where it was refused,
        `trio.TooSlowError` after `timeout` seconds, `BufferFull` as `send` does, and `WsrecoverError` where
        the session has ended. After all but the first two, as when cancelled, it may hold nevertheless.
        """
        with trio.fail_after(math.inf if timeout is None else timeout):
            await self._shared.following.follow(threads)

    def context(self, thread: str | None = None) -> Context:
        """The context of a thread (None: of events without one) as of what the app was handed last.

        It is what the server has, where the session began with a snapshot or with the first event. After a
        start elsewhere (`positions`, `from_="live"`) it holds what came since. Do not change what is in it.
        """
        return self._shared.contexts.current().get(thread or "", EMPTY)

    @property
    def contexts(self) -> dict[str, Context]:
        """The context of each thread there is; that of events without a thread under the empty name."""
        return dict(self._shared.contexts.current())

    @property
    def status(self) -> Status:
        """Where the session stands now."""
        return self._shared.board.status

    async def wait_status(self, *wanted: Status) -> Status:
        """Wait until the status is one of `wanted`, and return it. A brief one may pass unseen.

        A replay that is more than the buffer holds is over, and the session `live`, once somebody iterates.

        Raises `WsrecoverError` where the session has ended, unless `"closed"` is wanted: its last error.
        """
        return await self._shared.board.wait(*wanted)

    @property
    def last_error(self) -> WsrecoverError | None:
        """Why there is no connection, or why there was none the last time; None before the first trouble."""
        return self._shared.last_error

    @property
    def received(self) -> dict[str, Position]:
        """Up to where each stream has reached this process; used to reconnect."""
        return self._shared.receiver.resume()

    @property
    def processed(self) -> dict[str, Position]:
        """Up to where the app has handled each stream: it has asked for what follows. The server is told."""
        return self._shared.progress.positions

    @property
    def position(self) -> dict[str, Position]:
        """Up to and including what the app was handed last.

        Stored in one transaction with the effects of that, keyed by tenant and user, and given to `connect`
        as `positions` after a restart, it makes each event count exactly once.
        """
        return self._shared.progress.including(self._shared.inbox.handed)

    @property
    def client_id(self) -> str:
        """This client's id; a new one where another connection took the former over."""
        return self._keeper.route.client

    @property
    def principal(self) -> PrincipalInfo:
        """Who the token speaks for."""
        return self._welcome.principal

    @property
    def runs(self) -> tuple[RunInfo, ...]:
        """The runs that were under way when the current connection began."""
        return self._welcome.runs

    @property
    def streams(self) -> dict[str, StreamInfo]:
        """Each stream as the server had it when the current connection began, by name."""
        return dict(self._welcome.streams)

    @property
    def limits(self) -> dict[str, Any]:
        """What the server allows, as it said when the current connection began."""
        return dict(self._welcome.limits)

    async def aclose(self) -> None:
        """End the session: `bye` and 1000, within 2 s. Idempotent.

        Iterations end after what was received; calls that wait raise.
        """
        await self._keeper.leave()

    async def opened(self) -> None:
        """Wait for the first welcome. Raises what ended the session before it. `connect` does this."""
        await self._shared.board.wait("replaying", "live", "closed")
        if self._shared.welcome is None:
            raise self._shared.last_error or WsrecoverError("the session was closed")

    @property
    def _welcome(self) -> Welcome:
        if self._shared.welcome is None:
            raise WsrecoverError("the session has not been connected yet")
        return self._shared.welcome


def _object(data: object, field: str = "data") -> Mapping[str, Any]:
    if attrs.has(type(data)):
        try:
            data = plain(data, field)
        except Misfit as error:
            raise CommandError("invalid", error.problem, field=error.field) from error
    if not isinstance(data, Mapping):
        raise CommandError("invalid", f"must be an object, not {type(data).__name__}", field=field)
    return data


class _Batches(AsyncIterator[list[Item]]):
    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    async def __anext__(self) -> list[Item]:
        try:
            return await self._inbox.take_batch()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None
