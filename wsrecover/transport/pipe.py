"""A duplex byte pipe that never blocks, and the one over a TCP socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

import trio

__all__ = ["Pipe", "SocketPipe"]


class Pipe(Protocol):
    """What an `Outbox` writes to and reads from.

    One task at a time may be in `wait_writable`, and one in `receive_some`. Cancelling either loses nothing.
    """

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Hand over as many bytes as are taken at once, as the `send` of a non-blocking socket does.

        Its errors are those of such a socket, not trio's: over one it *is* that method, since nearly every
        event of every connection comes through here.

        Raises:
            BlockingIOError: the pipe is full.
            OSError: any other one: the peer is gone, or this end was closed.
        """
        ...

    async def wait_writable(self) -> None:
        """Wait until `send_nowait` would take a byte, or raise anything but `BlockingIOError`.

        Raises:
            trio.ClosedResourceError: this end was closed.
        """
        ...

    async def receive_some(self, max_bytes: int) -> bytes | bytearray | memoryview:
        """Wait for 1 to `max_bytes` bytes; `b""` where the peer has sent its last.

        Raises:
            trio.BrokenResourceError: the connection was lost.
            trio.ClosedResourceError: this end was closed.
        """
        ...

    def send_eof(self) -> None:
        """Tell the peer that no more bytes follow. Never raises."""
        ...

    def close(self) -> None:
        """Close at once; idempotent. Whoever waits is woken with `trio.ClosedResourceError`."""
        ...


class SocketPipe:
    """A `Pipe` over a connected non-blocking stdlib socket, which it owns from now on."""

    __slots__ = ("_maybe_more", "_sock", "send_nowait")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._maybe_more = False
        self.send_nowait: Final[Callable[[bytes | memoryview], int]] = sock.send

    async def wait_writable(self) -> None:
        """See `Pipe`."""
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_writable(self._sock)

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `Pipe`. Reads before it waits only where there is probably something: that saves a call."""
        if self._sock.fileno() < 0:
            raise trio.ClosedResourceError
        if self._maybe_more:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(self._sock)
        while True:
            try:
                data = self._sock.recv(max_bytes)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as error:
                raise self._lost() from error
            else:
                self._maybe_more = len(data) == max_bytes
                return data

    def receive_nowait(self, max_bytes: int) -> bytes:
        """What is there already, which may be nothing.

        Raises:
            trio.BrokenResourceError: the connection was lost, or the peer has sent its last.
            trio.ClosedResourceError: this end was closed.
        """
        try:
            data = self._sock.recv(max_bytes)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._lost() from error
        if not data:
            raise trio.BrokenResourceError("the peer has left")
        self._maybe_more = len(data) == max_bytes
        return data

    def send_eof(self) -> None:
        """See `Pipe`."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            return  # The peer or we ended it first: it needs no telling.

    def close(self) -> None:
        """See `Pipe`."""
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    def _lost(self) -> Exception:
        if self._sock.fileno() < 0:
            return trio.ClosedResourceError("this end of the pipe was closed")
        return trio.BrokenResourceError("the connection was lost")
