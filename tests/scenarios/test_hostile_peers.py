"""Faults P1 and P5: what strangers do to their connections ends those, and no other client notices."""

from __future__ import annotations

import os
import random
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
import trio
from figures import Figure
from serving import frames_until_closed

from wsrecover import Credentials, Grant, Principal, connect
from wsrecover.client import ClientSession, Event
from wsrecover.config import Limits
from wsrecover.errors import HandshakeRefused
from wsrecover.testing import LocalServer, local_server

SEED: Final = 1
RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)

BAD_REQUESTS: Final = (
    b"",
    b"\x00" * 64,
    b"GET",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # The beginning of a TLS hello.
    b"GET /v1/connect HTTP/9.9\r\n\r\n",
    b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf",
    b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    b"POST /v1/connect HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/connect HTTP/1.1\r\n" + b"A: b\r\n" * 3000 + b"\r\n",
    b"GET /" + b"%ff" * 2000 + b" HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    b"\r\n" * 500,
)


class Bystander:
    """A client that works on the same server, and must not notice anything of what strangers do."""

    def __init__(self, local: LocalServer, session: ClientSession, statuses: list[str]) -> None:
        self._local = local
        self._session = session
        self._statuses = statuses
        self._count = 0

    async def works(self) -> None:
        """Another event reaches it, and another command of its own is answered."""
        with trio.fail_after(10):
            self._count += 1
            await self._local.server.publish("acme", "ada", "noted", {"n": self._count})
            assert (await self._session.send("chat", {"n": self._count})) == {"seq": 2 * self._count}
            for _ in range(2):
                event = await anext(self._session)
                assert isinstance(event, Event)
                assert event.data == {"n": self._count}

    async def worst_percent(self, samples: int) -> float:
        """The 99th percentile of the time that this takes, in milliseconds."""
        taken = []
        for _ in range(samples):
            started = time.perf_counter()
            await self.works()
            taken.append((time.perf_counter() - started) * 1000)
        return sorted(taken)[int(samples * 0.99)]

    def assert_undisturbed(self) -> None:
        assert self._statuses[-1] == "live"
        assert self._statuses.count("connecting") <= 1
        assert "waiting" not in self._statuses


@asynccontextmanager
async def bystander(local: LocalServer) -> AsyncIterator[Bystander]:
    statuses: list[str] = []
    async with connect(local.url, token=local.token(), on_status=statuses.append) as session:
        await session.wait_status("live")
        one = Bystander(local, session, statuses)
        await one.works()
        yield one
        await one.works()
        one.assert_undisturbed()


async def dial(local: LocalServer) -> trio.SocketStream:
    return await trio.open_tcp_stream(*local.server.addresses[0])


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    stream.socket.close()


async def test_fault_p1_a_thousand_bad_requests_that_end_in_a_reset_disturb_nobody() -> None:
    rng = random.Random(SEED)
    async with local_server() as local, bystander(local) as neighbour:
        for n in range(1000):
            stream = await dial(local)
            request = rng.choice(BAD_REQUESTS)
            await stream.send_all(request[: rng.randrange(len(request) + 1)] if n % 2 else request)
            if n % 3 == 0:  # Some give the server the time to answer, others are gone before it reads.
                await trio.lowlevel.checkpoint()
            reset(stream)
            if n % 50 == 0:
                await neighbour.works()


def client_frame(opcode: int, payload: bytes = b"") -> bytes:
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


PING: Final = client_frame(0x9, b"hello?")
CLOSE: Final = client_frame(0x8, struct.pack("!H", 1000))
TEXT: Final = client_frame(0x1, b'{"op":"ping"}')

AFTER_ITS_CLOSE: Final = {
    "ping": CLOSE + PING,
    "many pings": CLOSE + PING * 1000,
    "text": CLOSE + TEXT,
    "another close": CLOSE + CLOSE,
    "noise": CLOSE + bytes(range(256)),
}


@pytest.mark.parametrize("after", AFTER_ITS_CLOSE)
async def test_fault_p1_frames_after_a_close_disturb_nobody(after: str) -> None:
    async with local_server() as local, bystander(local) as neighbour:
        for n in range(100):
            async with local.peer("eve") as peer:
                await peer.until("live")
                peer.socket.outbox.put(AFTER_ITS_CLOSE[after])
                await peer.socket.outbox.drain()
                peer.socket.kill()
            if n % 20 == 0:
                await neighbour.works()


async def test_fault_p1_a_ping_behind_the_servers_own_close_disturbs_nobody() -> None:
    async with local_server() as local, bystander(local) as neighbour:
        for n in range(100):
            async with local.peer("eve") as peer:
                await peer.until("live")
                await peer.send({"op": "bye"})  # It closes; what follows comes behind its close frame.
                peer.socket.outbox.put(PING * 10)
                await peer.socket.outbox.drain()
                peer.socket.kill()
            if n % 20 == 0:
                await neighbour.works()


async def flood(local: LocalServer, user: str, cut: list[str]) -> None:
    """Ping as fast as the socket takes it, without ever reading; once cut, connect and go on."""
    while True:
        async with local.peer(user) as peer:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while True:
                    peer.socket.outbox.put(PING * 200)
                    await peer.socket.outbox.drain()
            cut.append(user)
            peer.socket.kill()


async def test_fault_p5_floods_of_pings_by_peers_that_never_read_are_cut(figure: Figure) -> None:
    samples = 500 if os.environ.get("WSRECOVER_FAULTS") == "1" else 50
    limits = Limits(address_connects_per_second=10_000, address_connects_burst=10_000)
    cut: list[str] = []
    async with local_server(limits=limits) as local, bystander(local) as neighbour:
        alone = await neighbour.worst_percent(samples)
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(flood, local, f"eve{number}", cut)
            beside = await neighbour.worst_percent(samples)
            while len(set(cut)) < 10:
                await neighbour.works()
            nursery.cancel_scope.cancel()
    what = f"p99 of others beside 10 floods of pings, cut {len(cut)} times ({alone:.1f} ms alone), ms"
    figure("P5", what, f"{beside:.1f}")


class Treacherous:
    """A wall clock that fails the next handler that reads it, when `armed`: a bug in the middle of it.

    The server's own tasks read it as well, each second; they are not meant.
    """

    def __init__(self) -> None:
        self.armed = False

    def __call__(self) -> float:
        handling = ("._accept", "Handshakes._finish", "Members._live")
        if self.armed and trio.lowlevel.current_task().name.endswith(handling):
            self.armed = False
            raise ArithmeticError("a bug of the server's own")
        return time.time()


async def in_the_handshake(clock: Treacherous, local: LocalServer) -> None:
    token = local.token("eve")
    clock.armed = True
    with pytest.raises(HandshakeRefused) as refused:
        async with local.peer("eve", token=token):
            pass
    assert refused.value.status == 500


async def in_a_command(clock: Treacherous, local: LocalServer) -> None:
    async with local.peer("eve") as peer:
        await peer.until("live")
        clock.armed, ref = True, secrets.token_hex(8)
        failed = await peer.command("chat", {"text": "hello"}, id=ref)
        assert (failed["status"], failed["error"]["code"]) == ("error", "internal")
        repeated = await peer.command("chat", {"text": "hello"}, id=ref)
        assert repeated["status"] == "ok"


async def in_the_connection(clock: Treacherous, local: LocalServer) -> None:
    token = local.token("eve")
    async with local.peer("eve", token=token) as peer:
        await peer.until("live")
        clock.armed = True
        await peer.send({"op": "auth", "id": "a1", "token": token + "x"})
        assert (await peer.until("reply"))[-1]["error"]["code"] == "internal"


Failing = Callable[[Treacherous, LocalServer], Awaitable[Any]]


@pytest.mark.parametrize("fails", [in_the_handshake, in_a_command, in_the_connection])
async def test_fault_p1_a_handler_that_raises_ends_its_own_connection_at_most(fails: Failing) -> None:
    clock = Treacherous()
    async with local_server(wall_clock=clock) as local, bystander(local) as neighbour:
        for _ in range(10):
            await fails(clock, local)
            assert not clock.armed, "somebody ran into it"
            await neighbour.works()


class Ends(float):
    """When a token of an embedder's own kind expires: a number that cannot be reckoned with, later."""

    odd = False

    def __sub__(self, other: float) -> float:
        if self.odd:
            raise ArithmeticError("a bug of the embedder's")
        return float(self) - other


class Embedding:
    """An embedder's: eve's tokens are of that kind."""

    def __init__(self) -> None:
        self.ends = Ends(time.time() + 3600)

    async def authenticate(self, credentials: Credentials) -> Grant | None:
        await trio.lowlevel.checkpoint()
        assert credentials.token is not None
        eve = credentials.token == "eve's"
        return Grant(Principal("acme", "eve" if eve else "ada"), self.ends if eve else time.time() + 3600)


async def test_fault_p1_a_bug_that_shows_once_a_second_ends_its_own_connection_at_most() -> None:
    embedding = Embedding()
    async with local_server(authenticator=embedding) as local, bystander(local) as neighbour:
        async with local.peer("eve", token="eve's") as eve:
            await eve.until("live")
            embedding.ends.odd = True
            _, code = await frames_until_closed(eve)
            assert code == 1011
        await neighbour.works()
