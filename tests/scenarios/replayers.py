"""A process of clients that replay: it reads and drops what it is sent, so that others are what is timed.

Takes one JSON object on stdin: `port`, `tokens`, and `again`, whether who has all begins anew. Says `ready`
once all are connected, and with `again` also `again` when one has all and begins anew. At the end, which is
when each has all or, with `again`, when told `stop`, it says in JSON how many `replays` and `bytes` there
were, and how many connections were `cut`.
"""

from __future__ import annotations

import json
import select
import socket
import sys
from collections import Counter
from typing import Final

READ: Final = 256 * 1024
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


def main() -> None:
    given = json.loads(sys.stdin.readline())
    port, tokens, again = given["port"], given["tokens"], given["again"]
    epoll, told = select.epoll(), Counter[str]()
    clients: dict[int, tuple[socket.socket, str, bytes]] = {}

    def begin(token: str) -> None:
        sock = dial(port, token)
        clients[sock.fileno()] = (sock, token, b"")
        epoll.register(sock, select.EPOLLIN)

    for token in tokens:
        begin(token)
    say("ready")
    if again:
        epoll.register(sys.stdin, select.EPOLLIN)
    while clients:
        for fd, _ in epoll.poll():
            if fd not in clients:
                clients.clear()
                break
            sock, token, end = clients[fd]
            data = sock.recv(READ)
            told["bytes"] += len(data)
            clients[fd] = (sock, token, (end + data)[-len(LIVE) :])
            done = LIVE in end + data
            told["replays"] += done
            if done or not data:
                told["cut"] += not done
                epoll.unregister(sock)
                del clients[fd]
                sock.close()
                if again:
                    begin(token)
                    say("again")
    say(json.dumps(told))


if __name__ == "__main__":
    main()
