"""An echo server over real sockets, and a raw client that speaks to it byte by byte."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from wsrecover.errors import ConnectionClosed
from wsrecover.transport import (
    Acceptance,
    Refusal,
    Request,
    ServerSocket,
    open_listeners,
    serve_sockets,
)

UPGRADE = (
    b"GET /echo HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class EchoServer:
    """Echoes text and binary messages. `ended` collects how connections ended, `sockets` all of them."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.port = 0
        self.requests: list[Request] = []
        self.sockets: list[ServerSocket] = []
        self.ended: list[ConnectionClosed] = []
        self.on_message: Callable[[ServerSocket, str | bytes], None] = self.echo
        self.answer: Callable[[Request], Awaitable[Refusal | Acceptance]] = self.accept
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/echo"

    async def accept(self, request: Request) -> Refusal | Acceptance:
        self.requests.append(request)
        return Acceptance(next(iter(request.subprotocols), None), self.own)

    def own(self, sock: ServerSocket) -> None:
        self.sockets.append(sock)
        self.nursery.start_soon(self.serve, sock)

    async def serve(self, sock: ServerSocket) -> None:
        self.ended.append(await sock.run(lambda message: self.on_message(sock, message)))
        self._changed.unpark_all()

    def echo(self, sock: ServerSocket, message: str | bytes) -> None:
        data = message.encode() if isinstance(message, str) else message
        sock.outbox.put(frame(0x1 if isinstance(message, str) else 0x2, data, mask=None))
        if sock.outbox.pending:
            self.nursery.start_soon(self.drain, sock)

    async def drain(self, sock: ServerSocket) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await sock.outbox.drain()

    async def how_it_ended(self, count: int = 1) -> ConnectionClosed:
        """Wait until `count` connections have ended; the last one."""
        while len(self.ended) < count:
            await self._changed.park()
        return self.ended[-1]


@asynccontextmanager
async def running_server(**options: Any) -> AsyncIterator[EchoServer]:
    async with trio.open_nursery() as nursery:
        server = EchoServer(nursery)
        listeners = await open_listeners("127.0.0.1", 0)
        ((_, server.port),) = await nursery.start(
            partial(serve_sockets, listeners, lambda request: server.answer(request), **options)
        )
        yield server
        nursery.cancel_scope.cancel()
        for sock in server.sockets:
            sock.kill()
    for listener in listeners:
        listener.close()


MASK = b"\x01\x02\x03\x04"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = MASK) -> bytes:
    """One frame, written out here a second time so that the library's own is not its judge."""
    size = len(payload)
    masked = 0x80 if mask else 0
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([masked | size])
    elif size < 65536:
        head += bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([masked | 127]) + size.to_bytes(8, "big")
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


class RawClient:
    """A TCP stream with a reader of frames: no WebSocket library between the test and the wire."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(f"ended after {self.buffer!r}")
            self.buffer += data
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    async def head(self) -> bytes:
        while b"\r\n\r\n" not in self.buffer:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(f"ended after {self.buffer!r}")
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return head

    async def frame(self) -> tuple[int, bytes]:
        """The opcode and payload of the next frame, which must be final and unmasked."""
        first, second = await self.exactly(2)
        assert first & 0xF0 == 0x80, f"{first:#x}"
        assert second < 128
        if second == 126:
            second = int.from_bytes(await self.exactly(2), "big")
        elif second == 127:
            second = int.from_bytes(await self.exactly(8), "big")
        return first & 0x0F, await self.exactly(second)

    async def close_code(self) -> int:
        """Read up to the close frame; its code."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                return int.from_bytes(payload[:2], "big")

    async def rest(self) -> bytes:
        """Everything up to the end."""
        async for data in self.stream:
            self.buffer += data
        return self.buffer


class Wire:
    """What the tests of this room share. The connections made through it end with the test."""

    upgrade = UPGRADE
    server = staticmethod(running_server)
    frame = staticmethod(frame)

    def __init__(self) -> None:
        self.clients: list[RawClient] = []

    def client(self, stream: trio.SocketStream) -> RawClient:
        self.clients.append(RawClient(stream))
        return self.clients[-1]

    async def connect(self, server: EchoServer) -> RawClient:
        """A raw TCP connection."""
        return self.client(await trio.open_tcp_stream("127.0.0.1", server.port))

    async def upgraded(self, server: EchoServer, early: bytes = b"") -> RawClient:
        """A connection past its handshake; `early` is sent with it."""
        client = await self.connect(server)
        await client.send(UPGRADE + early)
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        return client


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire()
    yield wire
    for client in wire.clients:
        await trio.aclose_forcefully(client.stream)


@pytest.fixture
async def server() -> AsyncIterator[EchoServer]:
    async with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's context around a self-signed certificate for 127.0.0.1 and localhost."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(Encoding.PEM)
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cadata=pem.decode())
