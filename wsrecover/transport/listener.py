"""Accepting connections: an accept loop that no peer and no handler can take down.

::

    accept ──▶ handshake task (bounded in number and time, in the listener's own nursery)
                 TLS ─▶ head ─▶ check ─▶ answer(request) ┬▶ Refusal: HTTP answer, closed
                                                         └▶ Acceptance: 101 as preface, owner(socket), end

From `owner(socket)` on, a plain call without a checkpoint, the socket is the owner's alone.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NoReturn, Protocol

import attrs
import structlog
import trio

from wsrecover.errors import TransportError

from .doorway import Doorway
from .handshake import Refusal, check_upgrade, encode_refusal, encode_switch
from .head import HeadError, Request, parse_request
from .outbox import Outbox
from .pipe import Pipe, SocketPipe
from .websocket import ServerSocket

__all__ = ["Acceptance", "Gate", "Handshakes", "Refusal", "Request", "open_listeners", "serve_sockets"]

log = structlog.get_logger(__name__)

_ACCEPTS_PER_TURN: Final = 64
_LINGER: Final = 1.0
_NOTSENT_LOWAT: Final = 32 * 1024
_SERVER_BUG: Final = Refusal(500, "The server could not answer this request.")
_BUSY: Final = Refusal(503, "Too many handshakes are under way.", (("Retry-After", "1"),))
_SLOW: Final = Refusal(503, "The answer took too long.", (("Retry-After", "1"),))
_CLOSED_LISTENER: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})


@attrs.frozen
class Acceptance:
    """The upgrade is granted. `subprotocol` is one of those offered, or None.

    `owner` is called with the socket right after the 101 was put in front of its first write. If it raises,
    that is logged and the socket closed.
    """

    subprotocol: str | None
    owner: Callable[[ServerSocket], None]


class Gate(Protocol):
    """Decides by its address alone, which is `host:port`, whether somebody may come in."""

    def enter(self, peer: str) -> float | None:
        """0.0, or the seconds after which it would be welcome; None where its address has too many."""
        ...

    def leave(self, peer: str) -> None:
        """Called once for each `enter`, when the handshake is over."""
        ...

    def forwards(self, peer: str) -> bool:
        """Whether `peer` comes in for somebody else, who is to `enter` in its place, as its request tells."""
        ...

    def client(self, peer: str, headers: Mapping[str, str]) -> str:
        """Who that is, by the request's headers."""
        ...


Answer = Callable[[Request], Awaitable[Refusal | Acceptance]]


@attrs.define(kw_only=True)
class Handshakes:
    """The handshakes of one server: their limits, and how many are `under_way`.

    `answer` decides over each well-formed upgrade; what it raises is logged and answered with 500.
    """

    answer: Answer
    timeout: float
    head_bytes: int
    max_message_bytes: int
    max_under_way: int
    ssl_context: ssl.SSLContext | None = None
    gate: Gate | None = None
    under_way: int = attrs.field(default=0, init=False)

    async def shake(self, pipe: Pipe, peer: str, refusal: Refusal | None = None) -> None:
        """See one connection through its handshake, to its owner or its end. Raises nothing but Cancelled.

        With a `refusal` it is told that, whoever it is.
        """
        gate, forwarded = self.gate, self.gate is not None and self.gate.forwards(peer)
        wait = 0.0 if gate is None or forwarded else gate.enter(peer)
        self.under_way += 1
        try:
            if self.under_way > self.max_under_way:
                _turn_away(pipe, self.ssl_context, _BUSY)
            elif wait is None:
                _turn_away(pipe, self.ssl_context, _too_many(1))
            else:
                refusal = refusal or (_too_many(wait) if wait else None)
                await self._shake(pipe, peer, refusal, forwarded=forwarded)
        finally:
            self.under_way -= 1
            if gate is not None and not forwarded:
                gate.leave(peer)

    async def _shake(self, pipe: Pipe, peer: str, refusal: Refusal | None, *, forwarded: bool) -> None:
        outbox = Outbox(pipe)
        handed_over = False
        try:
            with trio.move_on_after(self.timeout):
                handed_over = await self._converse(outbox, peer, refusal, forwarded=forwarded)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("handshake lost", peer=peer)
        except Exception:
            log.exception("handshake failed", peer=peer)
        finally:
            if not handed_over:
                outbox.close()

    async def _converse(self, outbox: Outbox, peer: str, refusal: Refusal | None, *, forwarded: bool) -> bool:
        if self.ssl_context is not None:
            await outbox.start_tls(self.ssl_context)
        try:
            head, early = await read_head(outbox, self.head_bytes)
            if refusal is not None:
                await _refuse(outbox, refusal)
                return False
            request = parse_request(head, peer)
        except HeadError as error:
            await _refuse(outbox, Refusal(error.status, error.problem))
            return False
        gate = self.gate
        if gate is None or not forwarded:
            return await self._answer(outbox, request, early)
        request = attrs.evolve(request, peer=gate.client(peer, request.headers))
        wait = gate.enter(request.peer)
        try:
            if wait == 0.0:
                return await self._answer(outbox, request, early)
            await _refuse(outbox, _too_many(1 if wait is None else wait))
            return False
        finally:
            gate.leave(request.peer)

    async def _answer(self, outbox: Outbox, request: Request, early: bytes) -> bool:
        decision = check_upgrade(request) or await self._decide(request, outbox)
        if isinstance(decision, Refusal):
            await _refuse(outbox, decision)
            return False
        key = request.headers["sec-websocket-key"]
        outbox.preface(encode_switch(key, decision.subprotocol))
        limit = self.max_message_bytes
        decision.owner(ServerSocket(outbox, request.peer, early=early, max_message_bytes=limit))
        return True

    async def _decide(self, request: Request, outbox: Outbox) -> Refusal | Acceptance:
        try:
            decision = await self.answer(request)
        except trio.Cancelled:
            outbox.put(encode_refusal(_SLOW))
            raise
        except Exception:
            log.exception("deciding over an upgrade failed", peer=request.peer)
            return _SERVER_BUG
        if isinstance(decision, Acceptance) and decision.subprotocol not in (None, *request.subprotocols):
            log.error("the subprotocol accepted was not offered", subprotocol=decision.subprotocol)
            return _SERVER_BUG
        return decision


async def read_head(outbox: Outbox, max_bytes: int) -> tuple[bytes, bytes]:
    """The bytes up to the empty line that ends a head, and those after it, which came early.

    Raises:
        HeadError: 431 where the head is larger than `max_bytes`.
        trio.BrokenResourceError: the peer left before its end.
    """
    received = b""
    while True:
        data = await outbox.receive_some()
        if not data:
            raise trio.BrokenResourceError("the peer left before the end of the head")
        searched = max(0, len(received) - 3)
        received += data
        end = received.find(b"\r\n\r\n", searched, max_bytes + 4)
        if end >= 0:
            return received[:end], received[end + 4 :]
        if len(received) > max_bytes:
            raise HeadError(431, f"head: more than {max_bytes} bytes")


async def _refuse(outbox: Outbox, refusal: Refusal) -> None:
    """Send the answer, and let the peer read it: bytes left unread would turn our end into a reset."""
    outbox.put(encode_refusal(refusal))
    with trio.move_on_after(_LINGER):
        await outbox.drain()
        outbox.send_eof()
        while await outbox.receive_some():
            pass


def _too_many(wait: float) -> Refusal:
    retry = (("Retry-After", str(math.ceil(wait))),)
    return Refusal(429, "Too many connections come from this address.", retry)


def _turn_away(pipe: Pipe, ssl_context: ssl.SSLContext | None, refusal: Refusal) -> None:
    """Say so as far as that goes at once, without even reading the request."""
    if ssl_context is None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            pipe.send_nowait(encode_refusal(refusal))
            pipe.send_eof()
    pipe.close()


async def serve_sockets(
    listeners: Sequence[socket.socket],
    answer: Answer,
    *,
    # Time-outs
    handshake_timeout: float = 5.0,
    # Limits
    head_bytes: int = 16 * 1024,
    max_message_bytes: int = 64 * 1024,
    max_handshakes: int = 1000,
    gate: Gate | None = None,
    ssl_context: ssl.SSLContext | None = None,
    doorway: Doorway | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Accept on `listeners`, which stay the caller's to close, until cancelled. Starts with their addresses.

    Resource handling: a connection is closed here unless it was handed to an owner. Cancelling this ends the
    handshakes under way, and no connection that has an owner.

    Error handling: nothing that a peer does, that `answer` raises, or that accepting raises ends it, except
    a listener closed under it: `trio.ClosedResourceError` or `OSError`. Above `max_handshakes` at a time,
    connections are answered 503, and so they are where descriptors run short; where there are none, or no
    memory, it pauses and goes on (`doorway`, None: one of its own).
    """
    handshakes = Handshakes(
        answer=answer,
        timeout=handshake_timeout,
        head_bytes=head_bytes,
        max_message_bytes=max_message_bytes,
        max_under_way=max_handshakes,
        ssl_context=ssl_context,
        gate=gate,
    )
    doorway = doorway or Doorway()
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept, listener, handshakes, doorway, nursery)
        task_status.started([listener.getsockname()[:2] for listener in listeners])
        await trio.sleep_forever()
    raise AssertionError("accepting never ends by itself")


async def _accept(
    listener: socket.socket, handshakes: Handshakes, doorway: Doorway, nursery: trio.Nursery
) -> None:
    while True:
        await trio.lowlevel.wait_readable(listener)
        try:
            for _ in range(_ACCEPTS_PER_TURN):
                sock, address = listener.accept()
                sock.setblocking(False)  # noqa: FBT003  the stdlib's signature
                descriptor, pipe = sock.fileno(), SocketPipe(sock, expects=True)
                refusal = doorway.enter(descriptor)
                if refusal is not None and doorway.is_nearly_out(descriptor):
                    _turn_away(pipe, handshakes.ssl_context, refusal)
                else:
                    nursery.start_soon(handshakes.shake, pipe, _peer_name(address), refusal)
        except BlockingIOError:
            continue
        except ConnectionError:
            continue  # It went away while it waited in the backlog.
        except OSError as error:
            if error.errno in _CLOSED_LISTENER:
                raise
            await trio.sleep(doorway.failed(error))


def _peer_name(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def open_listeners(host: str, port: int, *, backlog: int = 1024) -> list[socket.socket]:
    """Listen on every address of `host` (empty: all of them); `port` 0 picks a free one, the same for all.

    The options are set here once, and accepted sockets inherit them.

    Raises:
        TransportError: the name is unknown, or an address cannot be bound; nothing is left open.
    """
    try:
        found = await trio.socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise TransportError(
            f"cannot listen at {_peer_name((host, port))}: {error.strerror or error}"
        ) from error
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            same = listeners[0].getsockname()[1] if listeners else port
            listeners.append(_listen(family, (address[0], same, *address[2:]), backlog))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise TransportError(
            f"cannot listen at {_peer_name((host, port))}: {error.strerror or error}"
        ) from error
    return listeners


def _listen(family: int, address: tuple[object, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)  # noqa: FBT003  the stdlib's signature
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            # What waits in the kernel for a slow reader is memory that replays from the log instead.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT)
        listener.bind(address)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener
