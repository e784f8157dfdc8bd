"""One WebSocket, after its handshake, on the server's and on the client's side."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import trio

from wsrecover.errors import ConnectionClosed
from wsrecover.protocol.closecodes import CloseCode

from .engine import CLOSE_TIMEOUT, Engine
from .framing import Message, masked_frame, payloads, text_frame
from .outbox import Outbox

__all__ = ["CLOSE_TIMEOUT", "ClientSocket", "ServerSocket", "text_frame"]


class ServerSocket:
    """One accepted WebSocket. `peer` is its address, `received_at` the trio time of its last bytes."""

    __slots__ = ("_deadline", "_engine", "_finished", "_scope", "outbox", "peer", "received_at")

    def __init__(self, outbox: Outbox, peer: str, *, early: bytes = b"", max_message_bytes: int) -> None:
        self.peer = peer
        self.outbox = outbox
        self.received_at = trio.current_time()
        self._engine = Engine(outbox, early, max_message_bytes)
        self._deadline = math.inf
        self._scope: trio.CancelScope | None = None
        self._finished: trio.Event | None = None

    def translate(self, outward: Callable[[bytes], bytes]) -> None:
        """Speak another dialect from now on than those who use this socket.

        `outward` gets each text message that is sent and gives the frames to send instead, none or several.
        It must not raise.
        """
        self.outbox.translate = lambda frames: b"".join(map(outward, payloads(frames)))

    def put(self, payload: bytes) -> bool:
        """Frame `payload` (UTF-8) as one text message and queue it behind what is pending: a last word."""
        return self.outbox.put(text_frame(payload))

    async def run(self, on_message: Callable[[Message], None]) -> ConnectionClosed:
        """Read until the connection ends, or its peer leaves our close frame unanswered: `run_within`."""
        with trio.CancelScope() as scope:
            return await self.run_within(scope, on_message)
        self.kill()
        self._engine.end(ConnectionClosed(CloseCode.ABNORMAL_CLOSURE))
        return self._engine.how

    async def run_within(
        self,
        scope: trio.CancelScope,
        on_message: Callable[[Message], None],
        *,
        on_bytes: Callable[[float], None] | None = None,
        flood_notice: bytes | None = None,
    ) -> ConnectionClosed:
        """Read until the connection ends, close the pipe, and return how it ended.

        The caller is in `scope`: its deadline is brought forward to when a peer that does not answer our
        close frame is given up. Of all scopes it may be the only one, for each costs every connection.

        `on_message` gets each whole message, in this task; what it raises comes out of here, the socket open.
        `on_bytes` is called for each chunk of inbound bytes, with the trio time at which it came. Neither is
        called after our own close frame.
        `flood_notice` is the message to a peer that is cut for its pings and pongs, before the close frame.
        The code is that of our close frame, else of the peer's, 1005 for one without a code, 1006 for none.
        Cancelling it leaves the socket open and usable: `aclose` or `kill` it.
        """
        engine = self._engine
        engine.flood_notice = flood_notice
        self._scope = scope
        if self._deadline < scope.deadline:
            scope.deadline = self._deadline
        try:
            if self.outbox.holds:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # Reading says so, too.
                    await self.outbox.drain()
            await engine.handle(on_message)
            while engine.ended is None and await engine.read():
                if engine.open:
                    self.received_at = now = trio.current_time()
                    if on_bytes is not None:
                        on_bytes(now)
                await engine.handle(on_message)
            await engine.leave()
        finally:
            self._scope = None
            if self._finished is not None:
                self._finished.set()
        self.kill()
        return engine.how

    def close_nowait(self, code: int, reason: str = "") -> None:
        """Queue a close frame, `reason` cut to 123 bytes; nothing goes out after it, and `run` ends soon."""
        self._close(code, reason, CLOSE_TIMEOUT)

    async def aclose(self, code: int, reason: str = "", *, timeout: float) -> None:
        """Send a close frame and wait at most `timeout` seconds for the peer's; then the pipe is closed.

        Closed in any case, also when cancelled. May be called while another task is in `run`, or without one.
        """
        if self.outbox.closed and self._scope is None:
            await trio.lowlevel.checkpoint()
            return
        try:
            self._close(code, reason, timeout)
            with (
                trio.CancelScope(deadline=self._deadline),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                # Whoever sent what is pending may have been told to stop, and our close lies behind it.
                await self.outbox.drain()
            if self._scope is None:
                await self.run(_discard)
            else:
                self._finished = self._finished or trio.Event()
                await self._finished.wait()
        finally:
            self.kill()

    def _close(self, code: int, reason: str, timeout: float) -> None:
        self._engine.close(code, reason)
        self._deadline = min(self._deadline, trio.current_time() + timeout)
        if self._scope is not None and self._deadline < self._scope.deadline:
            self._scope.deadline = self._deadline

    def kill(self) -> None:
        """Close the pipe at once, without a word; idempotent."""
        self.outbox.close()


class ClientSocket:
    """One open WebSocket, the client's side. `subprotocol` is the server's choice.

    Nothing reads in the background: pings are answered, and pongs noticed, while a task is in `receive`.
    """

    __slots__ = ("_engine", "_messages", "outbox", "subprotocol")

    def __init__(
        self, outbox: Outbox, subprotocol: str | None, *, early: bytes = b"", max_message_bytes: int
    ) -> None:
        self.outbox = outbox
        self.subprotocol = subprotocol
        self._engine = Engine(outbox, early, max_message_bytes, client=True)
        self._messages: deque[Message] = deque()

    async def send(self, payload: Message) -> None:
        """Send one message, text or binary, and wait until it is handed to the system.

        Cancelled, the message is sent whole or not at all, and the connection stays usable.

        Raises:
            ConnectionClosed: the connection has ended, or is being closed.
        """
        try:
            await self.outbox.drain()
            if not self._engine.open or not self.outbox.put(masked_frame(payload)):
                raise self._engine.how
            await self.outbox.drain()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise self._engine.how from error

    async def receive(self) -> Message:
        """Wait for the next message. One task at a time. Cancelling it loses nothing.

        Raises:
            ConnectionClosed: the connection has ended, and every message before that was returned.
        """
        engine = self._engine
        while not self._messages:
            if engine.ended is not None:
                await engine.leave()
                raise self._engine.how
            await engine.handle(self._messages.append)
            if not self._messages and engine.ended is None:
                await engine.read()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._messages.popleft()

    async def ping(self, timeout: float) -> None:
        """Ask whether the server is there; a task must be in `receive` meanwhile.

        Raises:
            trio.TooSlowError: no answer within `timeout` seconds.
            ConnectionClosed: the connection ended first.
        """
        with trio.fail_after(timeout):
            await self._engine.probe()

    async def aclose(self, code: int, reason: str = "", *, timeout: float) -> None:
        """Send a close frame and wait at most `timeout` seconds for the server's; then the pipe is closed.

        Closed in any case, also when cancelled. No task may be in `receive`.
        """
        engine = self._engine
        try:
            with trio.move_on_after(timeout):
                engine.close(code, reason)
                while engine.ended is None:
                    await engine.handle(_discard)
                    if engine.ended is None:
                        await engine.read()
                await engine.leave()
        finally:
            self.kill()

    def kill(self) -> None:
        """Close the pipe at once, without a word; idempotent."""
        self.outbox.close()


def _discard(_: Message) -> None:
    """For messages that arrive after our close frame."""
