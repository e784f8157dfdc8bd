"""WebSocket frames over an outbox (RFC 6455), for either side: the only import of trio_websocket and wsproto.

`Engine` is trio-websocket's connection without its channel and without its reader task: whoever waits for
messages reads, so that a connection costs one task. The private names are those of 0.12;
`tests/transport/test_trio_websocket_contract.py` guards them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import Final, cast

import trio
import trio_websocket
from trio_websocket import CloseReason, WebSocketConnection
from wsproto import WSConnection
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, Pong, TextMessage

from wsrecover.errors import ConnectionClosed
from wsrecover.protocol.closecodes import CloseCode

from .framing import Message, cut_reason, text_frame
from .outbox import Outbox

__all__ = ["CLOSE_TIMEOUT", "Engine"]

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a peer has to answer a close frame, or to take ours, before the pipe is closed."""

CONTROL_FRAMES_PER_SECOND: Final = 100
"""Pings and pongs that a peer may send: each costs a reply, and no client needs more than one in seconds."""

_UNREAD_BYTES: Final = 16 * 1024 * 1024
"""What a peer may send on after our close frame, as one does whose message is too big; a flood is reset."""

_BYTES_PER_FRAGMENT: Final = 64
_MIN_FRAGMENTS: Final = 128


class Engine(WebSocketConnection):
    """Frames to whole messages and back. `ended` says how the connection ended, once it has."""

    def __init__(self, outbox: Outbox, early: bytes, max_message_bytes: int, *, client: bool = False) -> None:
        # Without the library's constructor: the channel, the future and the events that it makes are for a
        # handshake and a reader task which are not here, and cost more than all else of a connection.
        self._id = next(self.CONNECTION_ID)
        self._stream = self.outbox = outbox
        self._side = ConnectionType.CLIENT if client else ConnectionType.SERVER
        self._early = early
        self._unhandled = bool(early)
        self._close_reason = None
        self._pings = OrderedDict()
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

    # The library's own two are made when they are asked for: a storm of clients that come back is let in and
    # sent what it missed before any of them says a word.

    @cached_property
    def _wsproto(self) -> WSConnection:  # type: ignore[override]  # the library assigns it in its constructor
        early, self._early = self._early, b""
        return cast("WSConnection", Connection(self._side, trailing_data=early))

    @cached_property
    def _stream_lock(self) -> trio.StrictFIFOLock:  # type: ignore[override]  # likewise
        return trio.StrictFIFOLock()

    @property
    def how(self) -> ConnectionClosed:
        """How the connection ended or is ending; made anew, since it is raised more than once."""
        how = self.ended or self._ours or ConnectionClosed(CloseCode.ABNORMAL_CLOSURE)
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
        """Handle what was received: messages to `deliver`, pings answered, a close answered and noted.

        What it was cancelled in front of is left to the next call.
        """
        if not self._unhandled:
            return
        for event in self._wsproto.events():
            if isinstance(event, TextMessage | BytesMessage):
                self._take(event, deliver)
            else:
                await self._control(event)
            if self.ended is not None:
                return
        self._unhandled = False

    async def read(self) -> bool:
        """Wait for bytes of the peer; False, with `ended` set, where there are none. Cancelling is safe."""
        try:
            data = await self.outbox.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.end(ConnectionClosed(CloseCode.ABNORMAL_CLOSURE))
            return False
        self._wsproto.receive_data(data)
        self._unhandled = True
        return True

    async def probe(self) -> None:
        """Send a ping and wait for its answer. A task must read meanwhile. Raises `ConnectionClosed`."""
        try:
            await self.ping()
        except trio_websocket.ConnectionClosed as error:
            raise self.how from error
        if self.ended is not None:
            raise self.how

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
                room = _UNREAD_BYTES
                while self._wsproto.state is ConnectionState.LOCAL_CLOSING and room > 0:
                    data = await self.outbox.receive_some()
                    room -= len(data) or room
        self.outbox.close()

    async def _abort_web_socket(self) -> None:
        """The outbox took no frame (called by the library, which says so by its own error)."""
        self.end(ConnectionClosed(CloseCode.ABNORMAL_CLOSURE))

    async def _control(self, event: Event) -> None:
        try:
            if isinstance(event, Ping | Pong) and self._flooded():
                if self.flood_notice is not None and self.open:
                    self.outbox.put(text_frame(self.flood_notice))
                self._refuse(
                    CloseCode.RATE_LIMITED, f"at most {CONTROL_FRAMES_PER_SECOND} pings and pongs in a second"
                )
            elif isinstance(event, Ping):
                if self._wsproto.state is ConnectionState.OPEN:
                    await self._handle_ping_event(event)
            elif isinstance(event, Pong):
                await self._handle_pong_event(event)
            elif isinstance(event, CloseConnection):
                await self._note_close(event)
        except trio_websocket.ConnectionClosed:
            self.end(ConnectionClosed(CloseCode.ABNORMAL_CLOSURE))

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
            self._refuse(CloseCode.MESSAGE_TOO_BIG, f"a message has at most {self._max_message_bytes} bytes")
        elif self._fragments > self._max_fragments:
            self._refuse(CloseCode.MESSAGE_TOO_BIG, f"a message has at most {self._max_fragments} fragments")
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
