"""The stream under one WebSocket: keeps the order between the library's frames and ours, and never tears one.

Every frame is queued whole before anybody waits, so that a cancelled wait cannot leave half a frame behind::

    preface, hold ───▶ held, until something is written
    offer ───────────┐      │ rides          TLS           as far as it takes
    send_all ────────┤      ▼ in front
    (pong, close)    ├──▶ flush ─────▶ encrypted ──▶ pipe ──────────────▶ socket
    put ─────────────┘                   at once        └─▶ the rest: queue (`pending`), sent by `drain`

`offer` takes a frame only while the queue is empty: "taken iff nothing is pending" is what makes a slow
reader a cursor that lags instead of a queue that grows.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from typing import Final

import trio

from wsrecover.errors import caused_by

from .framing import TEXT
from .pipe import Pipe
from .tls import Tls

__all__ = ["CONTROL_BYTES", "RECEIVE_BYTES", "Outbox", "Pipe"]

RECEIVE_BYTES: Final = 16 * 1024
"""How much one read asks for: a page of most clients' traffic, small enough not to matter per connection."""

CONTROL_BYTES: Final = 16 * 1024
"""How many bytes of pongs may wait for a peer that does not read before we stop reading from it, too."""

_CLOSE_FRAME: Final = 0x88  # FIN and opcode 8: RFC 6455, section 5.5.1


class Outbox(trio.abc.Stream):
    """See the module. Made for one WebSocket over one `Pipe`; all its methods belong to one trio thread.

    `pending` are the wire bytes queued and not yet taken by the pipe. A preface does not count. `translate`,
    if set, turns the text frames that are taken, one or several, into what is sent instead.
    """

    __slots__ = (
        "_closed",
        "_control",
        "_draining",
        "_held",
        "_pipe",
        "_queue",
        "_sealed",
        "_send",
        "_taken",
        "_tls",
        "_waiters",
        "pending",
        "translate",
    )

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._send = pipe.send_nowait
        self._tls: Tls | None = None
        self._queue: list[bytes | memoryview] = []
        self.pending = 0
        self._taken = 0
        self._held = b""
        self._control = 0
        self._sealed = False
        self._closed = False
        self._draining = False
        self._waiters: trio.lowlevel.ParkingLot | None = None
        self.translate: Callable[[bytes], bytes] | None = None

    @property
    def taken(self) -> int:
        """Wire bytes that the pipe has taken so far."""
        return self._taken

    @property
    def holds(self) -> bool:
        """Whether something is held that no write has taken along yet: `drain` sends it."""
        return bool(self._held)

    @property
    def closed(self) -> bool:
        """Whether the pipe is closed."""
        return self._closed

    def offer(self, data: bytes) -> bool:
        """Take the whole of `data`, one frame or several, iff nothing is pending and no close was queued.

        What the pipe takes at once is sent; the rest is pending until `drain` or `flush`. A lost connection
        closes the outbox and returns False: its reader says how it ended.
        """
        if not self.hold(data):
            return False
        self.flush()
        return not self._closed

    def hold(self, data: bytes) -> bool:
        """`offer`, but for `flush` to send, or whatever is written first. What is held does not count as
        pending: more may be held behind it, and all of it goes as one write."""
        if self.pending or self._sealed:
            return False
        if self.translate is not None and data[0] == TEXT:
            data = self.translate(data)
        self._held += data
        return True

    def put(self, data: bytes) -> bool:
        """Queue the whole of `data` behind what is pending; False if a close was queued or the link is lost.

        For what must be sent and is bounded by its caller: a close frame, an HTTP answer, a client's message.
        """
        if self._sealed:
            return False
        if data[0] == _CLOSE_FRAME:
            self._sealed = True
        elif self.translate is not None and data[0] == TEXT:
            data = self.translate(data)
        self._held += data
        self.flush()
        return not self._closed

    def preface(self, data: bytes) -> None:
        """Let `data` ride in front of the next write, as one write with it. Called again, it appends."""
        self._held += data

    def flush(self) -> bool:
        """Send what is held and what is pending, as far as the pipe takes it. Never waits, never raises.

        Whether something is pending then.
        """
        data = self._held
        if data and self._tls is None and not self.pending:
            self._held = b""
            try:
                taken = self._send(data)
            except BlockingIOError:
                taken = 0
            except OSError:
                self.close()
                return False
            self._taken += taken
            if taken == len(data):
                return False
            self._queue.append(memoryview(data)[taken:])
            self.pending = len(data) - taken
        elif not self._closed:
            try:
                self._send_queue()
            except trio.BrokenResourceError:
                self.close()
        return self.pending > 0

    async def drain(self, *, progress_timeout: float = math.inf) -> None:
        """Wait until nothing is pending. Any number of tasks may drain.

        Cancelling it is safe: what is queued stays queued, in order and whole.

        Raises:
            trio.TooSlowError: the pipe took no byte for `progress_timeout` seconds. It stays open.
            trio.BrokenResourceError, trio.ClosedResourceError: the connection is gone.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._held:
            self.flush()
        if self._closed:
            raise trio.ClosedResourceError
        if not self._queue:
            await trio.lowlevel.cancel_shielded_checkpoint()
            return
        with trio.fail_after(progress_timeout) as patience:
            while self._queue:
                taken = self._taken
                await self._advance()
                if self._taken != taken:
                    patience.deadline = trio.current_time() + progress_timeout

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Queue one of the library's own frames whole; then wait only where nobody else would send it.

        While another task drains it returns at once, so that a reader goes on reading, but never with more
        than `CONTROL_BYTES` of such frames waiting. A cancelled wait leaves the frame queued. After a close
        frame everything is refused.

        Raises:
            trio.BrokenResourceError: the connection is lost.
            trio.ClosedResourceError: closed, or a close frame was queued before.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._sealed:
            raise trio.ClosedResourceError("a close frame was sent: nothing may follow it")
        if not self.put(bytes(data)):
            raise trio.BrokenResourceError("the connection was lost")
        if self._queue:
            self._control += len(data)
        while self._queue and (not self._draining or self._control > CONTROL_BYTES):
            await self._advance()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until nothing is pending."""
        await self.drain()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes of the peer, decrypted; `b""` at the end. Cancelling it loses nothing.

        Raises:
            trio.BrokenResourceError: the connection was lost.
            trio.ClosedResourceError: closed on our side.
        """
        size = max_bytes or RECEIVE_BYTES
        if self._tls is None:
            return bytes(await self._pipe.receive_some(size))
        await trio.lowlevel.checkpoint()
        while (data := self._tls.decrypt(size)) is None:
            self._send_own(self._tls)
            self._tls.feed(bytes(await self._pipe.receive_some(RECEIVE_BYTES)))
        self._send_own(self._tls)
        return data

    async def start_tls(self, context: ssl.SSLContext, *, server_hostname: str | None = None) -> None:
        """Do the TLS handshake, before anything else is sent or received. `server_hostname`: as a client.

        If it is cancelled or fails, the outbox is of no further use.

        Raises:
            trio.BrokenResourceError: the peers do not agree, or the connection was lost: see the cause.
        """
        tls = Tls(context, server_hostname=server_hostname)
        done = tls.shake()
        while True:
            self._send_own(tls)
            await self.drain()
            if done:
                break
            tls.feed(bytes(await self._pipe.receive_some(RECEIVE_BYTES)))
            done = tls.shake()
        self._tls = tls

    def send_eof(self) -> None:
        """Queue nothing more and, where nothing is pending, tell the peer so."""
        self._sealed = True
        if not self._queue and not self._closed:
            if self._tls is not None:
                self._enqueue(self._tls.close_notify())
                self.flush()
            self._pipe.send_eof()

    def close(self) -> None:
        """Close the pipe at once; idempotent. What is pending is dropped; whoever waits is woken."""
        if self._closed:
            return
        if self._tls is not None and not self._queue:
            self._closing_words(self._tls)
        self._sealed = self._closed = True
        self._queue.clear()
        self.pending = 0
        self._held = b""
        self._pipe.close()
        if self._waiters is not None:
            self._waiters.unpark_all()

    async def aclose(self) -> None:
        """`close`, then a checkpoint. Cancelled or not, it is closed."""
        self.close()
        await trio.lowlevel.checkpoint()

    def _closing_words(self, tls: Tls) -> None:
        try:
            self._send(tls.close_notify())
        except OSError:
            return  # Nobody is left to hear them, or there is no room for them.

    def _send_own(self, tls: Tls) -> None:
        """Send what TLS itself has to say."""
        if words := tls.outgoing():
            self._enqueue(words)
            self.flush()

    def _send_queue(self) -> None:
        """Send what is pending, behind that what is held. Raises `trio.BrokenResourceError`."""
        queue = self._queue
        try:
            if self._held:
                held, self._held = self._held, b""
                self._enqueue(held if self._tls is None else self._tls.encrypt(held))
            while queue:
                head = queue[0]
                taken = self._send(head)
                self._taken += taken
                self.pending -= taken
                if taken < len(head):
                    queue[0] = memoryview(head)[taken:]
                    return
                del queue[0]
        except BlockingIOError:
            return
        except OSError as error:
            raise caused_by(trio.BrokenResourceError("the connection was lost"), error) from error
        self._control = 0

    def _enqueue(self, data: bytes) -> None:
        """Queue wire bytes, which may be none."""
        if data:
            self._queue.append(data)
            self.pending += len(data)

    async def _advance(self) -> None:
        """Wait until the pipe might take something, and send. One task waits for it, others for that task.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError: the connection is gone.
        """
        if self._draining:
            if self._waiters is None:
                self._waiters = trio.lowlevel.ParkingLot()
            await self._waiters.park()
        else:
            self._draining = True
            try:
                await self._pipe.wait_writable()
                self._send_queue()
            except trio.BrokenResourceError:
                self.close()
                raise
            finally:
                self._draining = False
                if self._waiters is not None:
                    self._waiters.unpark_all()
        if self._closed:
            raise trio.ClosedResourceError
