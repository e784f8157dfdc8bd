"""A process of clients that replay: it reads and drops what it is sent, so that others are what is timed.

Each says now and then that it is there, as clients do, for a replay may outlast a heartbeat.
Takes one JSON object on stdin: `port`, `tokens`, and `again`, whether who has all begins anew. Says `ready`
once all are connected, and with `again` also `again` when one has all and begins anew. Each `TELL` bytes and
at the end, which is when each has all or, with `again`, when told `stop`, it says in JSON how many `replays`,
`events` and `bytes` there were, and how many connections were `cut`.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from typing import Final

READ: Final = 256 * 1024
TELL: Final = 16 * 1024 * 1024
SIGN_SECONDS: Final = 10.0
"""Between two signs of life of one client; the clients' are spread over that."""

PONG: Final = b'{"op":"pong"}'
SIGN: Final = bytes((0x81, 0x80 | len(PONG), 0, 0, 0, 0)) + PONG
EVENT: Final = b'"op":"event"'
LIVE: Final = b'"op":"live","stream":"user"'


def dial(port: int, token: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(
        b"GET /v1/connect?client=replayer&from=start HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: wsrecover.v1\r\nAuthorization: Bearer %b\r\n\r\n" % token.encode()
    )
    sock.setblocking(False)
    return sock


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Replayers:
    """All clients, by descriptor: the socket, its token, and the end of what it read last."""

    def __init__(self, port: int) -> None:
        self.told = Counter(replays=0, cut=0, events=0, bytes=0)
        self.clients: dict[int, tuple[socket.socket, str, bytes]] = {}
        self.epoll = select.epoll()
        self._port = port
        self._signs: deque[int] = deque()
        self._due = 0.0

    def begin(self, token: str) -> None:
        sock = dial(self._port, token)
        self.clients[sock.fileno()] = (sock, token, b"")
        self.epoll.register(sock, select.EPOLLIN)

    def read(self, fd: int) -> str | None:
        """Read what there is; the token of a client that is done with it."""
        sock, token, end = self.clients[fd]
        data = sock.recv(READ)
        before, self.told["bytes"] = self.told["bytes"], self.told["bytes"] + len(data)
        if before // TELL < self.told["bytes"] // TELL:
            say(json.dumps(self.told))
        text = end + data
        self.told["events"] += text.count(EVENT) - end.count(EVENT)
        self.clients[fd] = (sock, token, text[-len(LIVE) :])
        done = LIVE in text
        if not done and data:
            return None
        self.told["replays" if done else "cut"] += 1
        self.epoll.unregister(sock)
        del self.clients[fd]
        sock.close()
        return token

    def sign(self, pause: float) -> None:
        """Let one after the other say that it is there, one each `pause` seconds."""
        now = time.monotonic()
        self._signs = self._signs or deque(self.clients)
        self._due = self._due or now + pause
        while self._due <= now:
            self._due += pause
            self._signs.rotate()
            if self._signs[0] in self.clients:
                with suppress(OSError):  # One that was cut is told so by what it reads.
                    self.clients[self._signs[0]][0].send(SIGN)


def main() -> None:
    given = json.loads(sys.stdin.readline())
    them, again = Replayers(given["port"]), given["again"]
    for token in given["tokens"]:
        them.begin(token)
    say("ready")
    pause = SIGN_SECONDS / len(them.clients)
    if again:
        them.epoll.register(sys.stdin, select.EPOLLIN)
    while them.clients:
        them.sign(pause)
        for fd, _ in them.epoll.poll(pause):
            if fd not in them.clients:
                them.clients.clear()
                break
            token = them.read(fd)
            if token is not None and again:
                them.begin(token)
                say("again")
    say(json.dumps(them.told))


if __name__ == "__main__":
    main()
