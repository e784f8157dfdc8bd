"""Accepting connections: an accept loop that no peer and no handler can take down.

::

    accept ──▶ handshake (`upgrade`), at once or in a task of the listener's own nursery, bounded in number
               and time ──▶ the owner of its WebSocket, or its end
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from typing import Final, NoReturn

import trio

from wsrecover.errors import TransportError

from .doorway import Doorway
from .handshake import Refusal
from .head import Request
from .pipe import SocketPipe
from .upgrade import Acceptance, Answer, AnswerNow, Gate, Handshakes, turn_away

__all__ = [
    "Acceptance",
    "Gate",
    "Handshakes",
    "Refusal",
    "Request",
    "authority",
    "open_listeners",
    "serve_sockets",
]

_ACCEPTS_PER_TURN: Final = 32
"""Handshakes after which other tasks get their turn: about 5 ms."""

_NOTSENT_LOWAT: Final = 32 * 1024
_CLOSED_LISTENER: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK})


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
    answer_now: AnswerNow | None = None,
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
        answer_now=answer_now,
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
                descriptor, pipe = sock.fileno(), SocketPipe(sock)
                refusal = doorway.enter(descriptor)
                if refusal is not None and doorway.is_nearly_out(descriptor):
                    turn_away(pipe, handshakes.ssl_context, refusal)
                else:
                    handshakes.begin(pipe, authority(address), nursery, refusal)
        except BlockingIOError:
            continue
        except ConnectionError:
            continue  # It went away while it waited in the backlog.
        except OSError as error:
            if error.errno in _CLOSED_LISTENER:
                raise
            await trio.sleep(doorway.failed(error))


def authority(address: tuple[str, int] | tuple[str, int, int, int]) -> str:
    """A socket's address as URLs have it (RFC 3986, 3.2): `host:port`, an IPv6 host in brackets."""
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
            f"cannot listen at {authority((host, port))}: {error.strerror or error}"
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
            f"cannot listen at {authority((host, port))}: {error.strerror or error}"
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
