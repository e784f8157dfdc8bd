"""The floor that a figure stands beside: a bare loop of `send()` on plain sockets of the server process.

The machine may be another one a minute later, so it is measured in the same run, and what is compared with it
closely in the same second.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from typing import Final

from _harness import Host, Remote
from _load import Fleet

__all__ = ["Floor"]

PAUSE: Final = 0.003
"""Seconds between two rounds, in which readers fall asleep as they do during a commit."""

ROUNDS: Final = 20


class Floor:
    """Plain sockets, one end of each in the server process."""

    def __init__(self, remote: Remote, count: int) -> None:
        self._remote = remote
        self._sockets = Fleet()
        address = remote.call(_listen, count)
        self._sockets.connect(address, [None] * count)
        remote.call(_accept, count)

    def measure(self, frame: bytes) -> float:
        """Microseconds of CPU per `send()` of `frame`, each on the next socket."""
        sends = len(self._sockets.sockets) * ROUNDS
        self._remote.start(_send, ROUNDS, frame)
        self.read(lambda _, data: len(data), sends * len(frame))
        return float(self._remote.finish()) / sends / 1000

    def read(self, look: Callable[[int, bytes], int], count: int) -> None:
        """Read what an action sends, as `Fleet.read_each` does."""
        self._sockets.read_each(look, count)

    def shuffle(self, seed: int) -> None:
        """Go through the sockets, in the order of connecting until now, in a random one."""
        self._remote.call(_shuffle, seed)

    def in_order(self) -> None:
        """Go through the sockets in the order of connecting again."""
        self._remote.call(_in_order)

    def close(self) -> None:
        """Close both ends."""
        self._sockets.close()
        self._remote.call(_close)


def _listen(host: Host, count: int) -> tuple[str, int]:
    listener = socket.create_server(("127.0.0.1", 0), backlog=count)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    host.sockets.append(listener)
    address: tuple[str, int] = listener.getsockname()
    return address


def _accept(host: Host, count: int) -> None:
    with host.sockets.pop() as listener:
        for _ in range(count):
            sock, _ = listener.accept()
            sock.setblocking(False)  # noqa: FBT003  the stdlib's signature
            host.sockets.append(sock)


def _send(host: Host, rounds: int, frame: bytes) -> int:
    begin = time.process_time_ns()
    for _ in range(rounds):
        for sock in host.sockets:
            sock.send(frame)
        time.sleep(PAUSE)
    return time.process_time_ns() - begin


def _shuffle(host: Host, seed: int) -> None:
    random.Random(seed).shuffle(host.sockets)


def _in_order(host: Host) -> None:
    host.sockets.sort(key=lambda sock: sock.fileno())  # Each was accepted with the lowest that was free.


def _close(host: Host) -> None:
    for sock in host.sockets:
        sock.close()
    host.sockets.clear()
