"""Raw WebSocket clients on plain sockets and one epoll: cheap, so that the load is not what is measured."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import quote

__all__ = ["EVENT", "LIVE", "Fleet", "upgrade"]

EVENT: Final = b'"op":"event"'
LIVE: Final = b'"op":"live","stream":"user"'
PATIENCE: Final = 60.0
"""Seconds of silence after which a bench fails."""

_READ: Final = 256 * 1024


def upgrade(token: str, client: str, resume: Mapping[str, tuple[str, int]] | None = None) -> bytes:
    """The request of a client that says all it has to say in the URL, `live` where it has no position."""
    query = f"client={client}&from=live"
    if resume is not None:
        query += f"&resume={quote(json.dumps(resume))}"
    return (
        f"GET /v1/connect?{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Protocol: wsrecover.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
    ).encode()


class Fleet:
    """Sockets that are read together. `received` is the newest bytes of each, by descriptor."""

    def __init__(self) -> None:
        self.sockets: dict[int, socket.socket] = {}
        self.received: dict[int, bytes] = {}
        self._epoll = select.epoll()

    def connect(self, address: tuple[str, int], requests: Iterable[bytes | None]) -> None:
        """Open a connection for each request and send it; None is sent nothing."""
        for request in requests:
            sock = socket.create_connection(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if request is not None:
                sock.sendall(request)
            sock.setblocking(False)  # noqa: FBT003  the stdlib's signature
            self.sockets[sock.fileno()] = sock
            self.received[sock.fileno()] = b""
            self._epoll.register(sock, select.EPOLLIN)

    def read(self, marker: bytes, count: int) -> None:
        """Read until `marker` was seen `count` times in all."""
        keep = len(marker) - 1

        def look(fd: int, data: bytes) -> int:
            data = self.received[fd][-keep:] + data
            self.received[fd] = data
            return data.count(marker)

        self.read_each(look, count)

    def read_whole(self, marker: bytes) -> None:
        """Read until each has got `marker` once, and keep all that it `received`."""

        def look(fd: int, data: bytes) -> int:
            self.received[fd] += data
            return data.count(marker)

        self.read_each(look, len(self.sockets))

    def read_each(self, look: Callable[[int, bytes], int], count: int) -> None:
        """Read; `look(descriptor, data)` counts what it was given, until that is `count` in all."""
        sockets = self.sockets
        heard = time.monotonic()
        while count > 0:
            for fd, _ in self._epoll.poll(1.0):
                data = sockets[fd].recv(_READ)
                if not data:
                    raise ConnectionError(f"the server closed, {count} short; before: {self.received[fd]!r}")
                count -= look(fd, data)
                heard = time.monotonic()
            if time.monotonic() - heard > PATIENCE:
                raise TimeoutError(f"{count} short")
        if count < 0:
            raise RuntimeError(f"{-count} more than there should be")

    def drop(self, fd: int) -> None:
        """Close one."""
        sock = self.sockets.pop(fd)
        self._epoll.unregister(sock)
        sock.close()
        del self.received[fd]

    def close(self) -> None:
        """Close all at once, by a reset where something is unread."""
        for sock in self.sockets.values():
            self._epoll.unregister(sock)
            sock.close()
        self.sockets.clear()
        self.received.clear()
