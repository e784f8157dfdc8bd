"""One WebSocket, after its handshake, on the server's and on the client's side.

The only module that imports trio_websocket and wsproto. `_Engine` is trio-websocket's connection without its
channel and without its reader task: whoever waits for messages reads, so that a connection costs one task.
The private names are those of 0.12; `tests/transport/test_trio_websocket_contract.py` guards them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

import trio
import trio_websocket
from trio_websocket import CloseReason, WebSocketConnection
from wsproto import WSConnection
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from wsrecover.errors import ConnectionClosed

from .framing import PING_FRAME, Message, cut_reason, masked_frame, payloads, text_frame
from .outbox import Outbox

__all__ = ["CLOSE_TIMEOUT", "ClientSocket", "ServerSocket", "text_frame"]

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a peer has to answer a close frame, or to take ours, before the pipe is closed."""

CONTROL_FRAMES_PER_SECOND: Final = 100
"""Pings and pongs that a peer may send: each costs a reply, and no client needs more than one in seconds."""

_BYTES_PER_FRAGMENT: Final = 64
_MIN_FRAGMENTS: Final = 128
_ABNORMAL: Final = 1006
_TOO_BIG: Final = 1009
_RATE_LIMITED: Final = 4004


class _Engine(WebSocketConnection):
    """Frames to whole messages and back. `ended` says how the connection ended, once it has."""

    def __init__(self, outbox: Outbox, side: ConnectionType, early: bytes, max_message_bytes: int) -> None:
        protocol = Connection(side, trailing_data=early)
        super().__init__(outbox, cast("WSConnection", protocol), host="", path="")
        self._connection_proposal = None
        self.outbox = outbox
        self.ended: ConnectionClosed | None = None
        self._ours: ConnectionClosed | None = None
        self._second = -math.inf
        self._controls = 0
        self._size = 0
        self._fragments = 0
        self._parts: list[Message] = []
        self.flood_notice: bytes | None = None
        self._max_message_bytes = max_message_bytes
        self._max_fragments = max(_MIN_FRAGMENTS, max_message_bytes // _BYTES_PER_FRAGMENT)

    @property
    def how(self) -> ConnectionClosed:
        """How the connection ended or is ending; made anew, since it is raised more than once."""
        how = self.ended or self._ours or ConnectionClosed(_ABNORMAL)
        return ConnectionClosed(how.code, how.reason)

    @property
    def open(self) -> bool:
        """Whether neither side has sent a close frame and the pipe stands."""
        return self._wsproto.state is ConnectionState.OPEN and not self.outbox.closed

    def close(self, code: int, reason: str) -> None:
        """Queue a close frame, unless one was queued or the connection has ended."""
        if not self.open:
            return
        reason = cut_reason(reason)
        self._ours = ConnectionClosed(code, reason)
        self._close_reason = CloseReason(code, reason)
        self.outbox.put(bytes(self._wsproto.send(CloseConnection(code=code, reason=reason))))

    def end(self, how: ConnectionClosed) -> None:
        """Note how the connection ended; the first word counts, and our own close before the peer's."""
        if self.ended is not None:
            return
        self.ended = self._ours or how
        self._close_reason = CloseReason(self.ended.code, self.ended.reason)
        for pong in self._pings.values():
            pong.set()

    async def handle(self, deliver: Callable[[Message], None]) -> None:
        """Handle what was received: messages to `deliver`, pings answered, a close answered and noted."""
        for event in self._wsproto.events():
            if isinstance(event, TextMessage | BytesMessage):
                self._take(event, deliver)
            else:
                await self._control(event)
            if self.ended is not None:
                return

    async def read(self) -> bool:
        """Wait for bytes of the peer; False, with `ended` set, where there are none. Cancelling is safe."""
        try:
            data = await self.outbox.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.end(ConnectionClosed(_ABNORMAL))
            return False
        self._wsproto.receive_data(data)
        return True

    async def leave(self) -> None:
        """After the end: let the peer take what is queued, our close frame last; then close the pipe."""
        if self._wsproto.state is not ConnectionState.OPEN:
            with (
                trio.move_on_after(CLOSE_TIMEOUT),
                suppress(trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await self.outbox.drain()
                self.outbox.send_eof()
                # Bytes left unread would turn our end into a reset, which may overtake the close frame.
                while (
                    self._wsproto.state is ConnectionState.LOCAL_CLOSING and await self.outbox.receive_some()
                ):
                    pass
        self.outbox.close()

    async def _control(self, event: Event) -> None:
        try:
            if isinstance(event, Ping | Pong) and self._flooded():
                if self.flood_notice is not None and self.open:
                    self.outbox.put(text_frame(self.flood_notice))
                self._refuse(
                    _RATE_LIMITED, f"at most {CONTROL_FRAMES_PER_SECOND} pings and pongs in a second"
                )
            elif isinstance(event, Ping):
                if self._wsproto.state is ConnectionState.OPEN:
                    await self._handle_ping_event(event)
            elif isinstance(event, Pong):
                await self._handle_pong_event(event)
            elif isinstance(event, CloseConnection):
                await self._note_close(event)
        except trio_websocket.ConnectionClosed:
            self.end(ConnectionClosed(_ABNORMAL))

    def _flooded(self) -> bool:
        now = trio.current_time()
        if now - self._second >= 1:
            self._second, self._controls = now, 0
        self._controls += 1
        return self._controls > CONTROL_FRAMES_PER_SECOND

    async def _note_close(self, event: CloseConnection) -> None:
        """The peer's close frame; or, where the state is still open, wsproto's verdict on what it sent."""
        how = ConnectionClosed(int(event.code), event.reason or "")
        state = self._wsproto.state
        if state is ConnectionState.OPEN:
            self.close(how.code, how.reason)
        self.end(how)
        # Last, for a peer that no longer takes our answer has said how it ends all the same.
        if state is ConnectionState.REMOTE_CLOSING:
            await self._send(event.response())

    def _take(self, event: TextMessage | BytesMessage, deliver: Callable[[Message], None]) -> None:
        if not self.open:
            return
        data = event.data
        if isinstance(data, str):
            self._size += len(data) if data.isascii() else len(data.encode())
        else:
            self._size += len(data)
            data = bytes(data)
        self._fragments += event.frame_finished
        if self._size > self._max_message_bytes:
            self._refuse(_TOO_BIG, f"a message has at most {self._max_message_bytes} bytes")
        elif self._fragments > self._max_fragments:
            self._refuse(_TOO_BIG, f"a message has at most {self._max_fragments} fragments")
        elif not event.message_finished:
            if data:
                self._parts.append(data)
        else:
            parts, self._parts = self._parts, []
            self._size = self._fragments = 0
            deliver(_join([*parts, data]) if parts else data)

    def _refuse(self, code: int, problem: str) -> None:
        self._parts = []
        self.close(code, problem)
        self.end(ConnectionClosed(code, problem))


def _join(parts: list[Message]) -> Message:
    """The parts of one message, all of one type."""
    if isinstance(parts[0], str):
        return "".join(cast("list[str]", parts))
    return b"".join(cast("list[bytes]", parts))


class ServerSocket:
    """One accepted WebSocket. `peer` is its address, `received_at` the trio time of its last bytes."""

    __slots__ = ("_deadline", "_engine", "_finished", "_inward", "_scope", "outbox", "peer", "received_at")

    def __init__(self, outbox: Outbox, peer: str, *, early: bytes = b"", max_message_bytes: int) -> None:
        self.peer = peer
        self.outbox = outbox
        self.received_at = trio.current_time()
        self._engine = _Engine(outbox, ConnectionType.SERVER, early, max_message_bytes)
        self._deadline = math.inf
        self._scope: trio.CancelScope | None = None
        self._finished: trio.Event | None = None
        self._inward: Callable[[Message], Message] | None = None

    def translate(self, outward: Callable[[bytes], bytes], inward: Callable[[Message], Message]) -> None:
        """Speak another dialect from now on than those who use this socket.

        `outward` gets each text message that is sent and gives the frames to send instead, none or several;
        `inward` gets each message of the peer. Neither may raise.
        """
        self.outbox.translate = lambda frames: b"".join(map(outward, payloads(frames)))
        self._inward = inward

    def offer(self, payload: bytes) -> bool:
        """Frame `payload` (UTF-8) as one text message and offer it: all or nothing, see `Outbox.offer`."""
        return self.outbox.offer(text_frame(payload))

    def put(self, payload: bytes) -> bool:
        """Frame `payload` (UTF-8) as one text message and queue it behind what is pending: a last word."""
        return self.outbox.put(text_frame(payload))

    async def run(
        self,
        on_message: Callable[[Message], None],
        *,
        on_bytes: Callable[[], None] | None = None,
        flood_notice: bytes | None = None,
    ) -> ConnectionClosed:
        """Read until the connection ends, close the pipe, and return how it ended.

        `on_message` gets each whole message, in this task; what it raises comes out of here, the socket open.
        `on_bytes` is called for each chunk of inbound bytes. Neither is called after our own close frame.
        `flood_notice` is the message to a peer that is cut for its pings and pongs, before the close frame.
        The code is that of our close frame, else of the peer's, 1005 for one without a code, 1006 for none.
        Cancelling it leaves the socket open and usable: `aclose` or `kill` it.
        """
        engine, inward = self._engine, self._inward
        engine.flood_notice = flood_notice
        deliver = on_message if inward is None else lambda message: on_message(inward(message))
        try:
            with trio.CancelScope(deadline=self._deadline) as self._scope:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # Reading says so, too.
                    await self.outbox.send_preface()
                await engine.handle(deliver)
                while engine.ended is None and await engine.read():
                    if engine.open:
                        self.received_at = trio.current_time()
                        if on_bytes is not None:
                            on_bytes()
                    await engine.handle(deliver)
                await engine.leave()
        finally:
            self._scope = None
            if self._finished is not None:
                self._finished.set()
        self.kill()
        engine.end(ConnectionClosed(_ABNORMAL))
        return engine.how

    def ping(self) -> bool:
        """Offer a WebSocket ping without waiting. Any inbound byte is an answer, see `received_at`."""
        return self.outbox.offer(PING_FRAME)

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
        if self._scope is not None:
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
        self._engine = _Engine(outbox, ConnectionType.CLIENT, early, max_message_bytes)
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
        try:
            with trio.fail_after(timeout):
                await self._engine.ping()
        except trio_websocket.ConnectionClosed as error:
            raise self._engine.how from error
        if self._engine.ended is not None:
            raise self._engine.how

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
