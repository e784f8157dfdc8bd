"""A network in memory, for tests under trio's MockClock: bounded pipes that can be cut and stalled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from wsrecover.transport import Pipe

__all__ = ["MemoryNetwork", "MemoryPipe", "PipeStream", "memory_pipe_pair"]

CAPACITY = 64 * 1024
"""Bytes that one direction holds by default, about what a kernel would."""


class _Lane:
    """One direction: a bounded buffer, and what its two ends have done to it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.buffer = bytearray()
        self.ended = False  # the writer has sent its last
        self.lost = False  # reset, or the reader has gone
        self.stalled = False
        self.changed = trio.lowlevel.ParkingLot()

    @property
    def full(self) -> bool:
        return len(self.buffer) >= self.capacity

    @property
    def refused(self) -> bool:
        """Whether the writer knows that nobody reads any more: a stall keeps that back as well."""
        return self.lost and not self.stalled

    def note(self) -> None:
        self.changed.unpark_all()


class MemoryPipe:
    """One end of a pair: a `Pipe`, with `cut` and `stall` for the faults of a network."""

    def __init__(self, outward: _Lane, inward: _Lane) -> None:
        self._outward = outward
        self._inward = inward
        self._closed = False

    def send_nowait(self, data: bytes | memoryview) -> int:
        """See `Pipe`."""
        lane = self._outward
        if self._closed or lane.ended or lane.refused:
            raise BrokenPipeError
        if lane.full and data:
            raise BlockingIOError
        taken = min(len(data), lane.capacity - len(lane.buffer))
        lane.buffer += data[:taken]
        lane.note()
        return taken

    async def wait_writable(self) -> None:
        """See `Pipe`."""
        await trio.lowlevel.checkpoint()
        while self._outward.full and not self._outward.refused and not self._closed:
            await self._outward.changed.park()
        if self._closed:
            raise trio.ClosedResourceError

    async def receive_some(self, max_bytes: int) -> bytes:
        """See `Pipe`."""
        lane = self._inward
        await trio.lowlevel.checkpoint()
        while not self._closed and not lane.lost and (lane.stalled or not (lane.buffer or lane.ended)):
            await lane.changed.park()
        if self._closed:
            raise trio.ClosedResourceError
        if lane.lost:
            raise trio.BrokenResourceError
        data = bytes(lane.buffer[:max_bytes])
        del lane.buffer[:max_bytes]
        lane.note()
        return data

    def send_eof(self) -> None:
        """See `Pipe`."""
        self._outward.ended = True
        self._outward.note()

    def close(self) -> None:
        """See `Pipe`. The peer reads what was sent, then the end; what it sends from now on is refused."""
        self._closed = True
        self._outward.ended = True
        self._inward.lost = True
        self._outward.note()
        self._inward.note()

    def cut(self) -> None:
        """Reset the connection: both ends lose what is under way."""
        for lane in (self._outward, self._inward):
            lane.lost = True
            lane.stalled = False
            lane.buffer.clear()
            lane.note()

    def stall(self, *, stalled: bool = True) -> None:
        """Let nothing arrive at either end, silently, not even that the other one has closed.

        `stalled=False` lets it flow again.
        """
        for lane in (self._outward, self._inward):
            lane.stalled = stalled
            lane.note()


def memory_pipe_pair(capacity: int = CAPACITY) -> tuple[MemoryPipe, MemoryPipe]:
    """Two ends of one connection, each direction holding `capacity` bytes at most."""
    there, back = _Lane(capacity), _Lane(capacity)
    return MemoryPipe(there, back), MemoryPipe(back, there)


class MemoryNetwork:
    """Dials into a server that has no socket: `shake(pipe, peer)` is its `Handshakes.shake`.

    Each connection gets a task in `nursery` and stays in `connections` (the client's ends), oldest first.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        shake: Callable[[Pipe, str], Awaitable[None]],
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self._nursery = nursery
        self._shake = shake
        self._capacity = capacity
        self.refusing = False
        self.connections: list[MemoryPipe] = []

    async def dial(self, host: str, port: int) -> Pipe:
        """For `open_socket(dial=...)`. Raises ConnectionRefusedError while `refusing`."""
        await trio.lowlevel.checkpoint()
        if self.refusing:
            raise ConnectionRefusedError(f"{host}:{port} is refusing")
        ours, theirs = memory_pipe_pair(self._capacity)
        self.connections.append(ours)
        self._nursery.start_soon(self._shake, theirs, f"memory:{len(self.connections)}")
        return ours

    def refuse(self) -> None:
        """Take no more connections, as a server whose listener is closed."""
        self.refusing = True

    def cut(self) -> None:
        """Reset every connection."""
        for pipe in self.connections:
            pipe.cut()


class PipeStream(trio.abc.HalfCloseableStream):
    """A `Pipe` as a trio stream, for clients that others wrote. One task may send, and one receive."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._ended = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`; cancelled, an unknown part of it was sent."""
        await trio.lowlevel.checkpoint()
        if self._ended:
            raise trio.ClosedResourceError
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._pipe.send_nowait(rest) :]
            except BlockingIOError:
                await self._pipe.wait_writable()
            except OSError as error:
                raise trio.BrokenResourceError("the connection was lost") from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until a byte would be taken."""
        await self._pipe.wait_writable()

    async def send_eof(self) -> None:
        """Say that no more follows."""
        self._ended = True
        self._pipe.send_eof()
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; `b""` at the end."""
        return bytes(await self._pipe.receive_some(max_bytes or CAPACITY))

    async def aclose(self) -> None:
        """Close at once."""
        self._ended = True
        self._pipe.close()
        await trio.lowlevel.checkpoint()
