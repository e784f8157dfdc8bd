"""A TCP link that fails on command or by plan: it stands between a client and a server on loopback."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Final, Literal, NoReturn

import attrs
import trio

__all__ = ["Cut", "LossyLink", "cuts"]

Way = Literal["up", "down"]
"""`up` is from the client to the server."""

How = Literal["rst", "fin"]

FINS: Final = 0.25
"""The share of planned cuts that are no resets."""

_CHUNK: Final = 16 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, zero seconds


@attrs.frozen
class Cut:
    """End a connection after exactly `after` bytes went `way`, by a reset or by a FIN to both sides."""

    after: int
    way: Way = "down"
    how: How = "rst"


def cuts(rng: random.Random, *, mean_bytes: int) -> Iterator[Cut]:
    """An endless plan: the same `rng` seed gives the same cuts."""
    while True:
        yield Cut(
            after=int(rng.expovariate(1 / mean_bytes)),
            way=rng.choice(("up", "down")),
            how="fin" if rng.random() < FINS else "rst",
        )


class _Pair:
    """The two sockets of one connection through the link."""

    def __init__(self, client: trio.SocketStream, server: trio.SocketStream, cut: Cut | None) -> None:
        self.client = client
        self.server = server
        self.cut = cut
        self.scope = trio.CancelScope()

    def sever(self, how: How) -> None:
        for stream in (self.client, self.server):
            if how == "rst" and stream.socket.fileno() >= 0:
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            stream.socket.close()
        self.scope.cancel()


class LossyLink:
    """Listens on `port` of loopback, once `run` has started, and forwards to `host`:`target_port`.

    `plan` gives each connection, in the order of their arrival, its cut or None; afterwards there are none.

    Counters: `connections` accepted, `refusals`, `cuts` made (planned and by `cut`), `moved` bytes each way.
    """

    def __init__(self, host: str, target_port: int, *, plan: Iterable[Cut | None] = ()) -> None:
        self._host = host
        self._target_port = target_port
        self._plan = chain(plan, repeat(None))
        self._pairs: set[_Pair] = set()
        self._flowing: dict[Way, trio.Event] = {"up": trio.Event(), "down": trio.Event()}
        self._refusing = False
        self.port = 0
        self.connections = 0
        self.refusals = 0
        self.cuts = 0
        self.moved: dict[Way, int] = {"up": 0, "down": 0}
        self.resume()

    @property
    def open(self) -> int:
        """How many connections go through the link now."""
        return len(self._pairs)

    def cut(self, how: How = "rst") -> int:
        """End every connection now; returns how many there were."""
        severed = list(self._pairs)
        for pair in severed:
            self._sever(pair, how)
        return len(severed)

    def stall(self, way: Way | None = None) -> None:
        """Forward nothing any more, silently: a black hole, or with `way` the loss of one direction."""
        for stalled in (way,) if way else ("up", "down"):
            self._flowing[stalled] = trio.Event()

    def resume(self) -> None:
        """End a stall: what waited goes on."""
        for event in self._flowing.values():
            event.set()

    def refuse(self) -> None:
        """Reset new connections at once, until `accept`."""
        self._refusing = True

    def accept(self) -> None:
        """End `refuse`."""
        self._refusing = False

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Forward until cancelled; starts with the port. Cancelling it resets what is open."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        try:
            task_status.started(self.port)
            await trio.serve_listeners(self._serve, [listener])
        finally:
            self.cut()
        raise AssertionError("serving never ends by itself")

    async def _serve(self, client: trio.SocketStream) -> None:
        if self._refusing:
            self.refusals += 1
            _Pair(client, client, None).sever("rst")
            return
        self.connections += 1
        cut = next(self._plan)
        try:
            server = await trio.open_tcp_stream(self._host, self._target_port)
        except OSError:
            _Pair(client, client, None).sever("rst")
            return
        pair = _Pair(client, server, cut)
        self._pairs.add(pair)
        with pair.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, pair, "up")
                nursery.start_soon(self._forward, pair, "down")
        self._pairs.discard(pair)
        pair.sever("fin")

    async def _forward(self, pair: _Pair, way: Way) -> None:
        source, sink = (pair.client, pair.server) if way == "up" else (pair.server, pair.client)
        left = pair.cut.after if pair.cut is not None and pair.cut.way == way else None
        try:
            while data := await source.receive_some(_CHUNK):
                await self._flowing[way].wait()
                await sink.send_all(data if left is None else data[:left])
                self.moved[way] += len(data) if left is None else min(left, len(data))
                if left is not None:
                    left -= len(data)
                    if left <= 0 and pair.cut is not None:
                        self._sever(pair, pair.cut.how)
                        return
            await self._flowing[way].wait()
            with suppress(trio.BrokenResourceError):
                await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pair.sever("rst")  # One side reset: the other learns it the same way.

    def _sever(self, pair: _Pair, how: How) -> None:
        if pair in self._pairs:
            self._pairs.discard(pair)
            self.cuts += 1
            pair.sever(how)
