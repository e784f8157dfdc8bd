"""A server that follows scripts, one per connection, over memory."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trio

from wsrecover.errors import ConnectionClosed, TransportError

JSON_FIELDS = ("resume", "part", "threads", "fresh")


def welcome(head: int = 0, *, heartbeat: float = 25.0, **changes: Any) -> dict[str, Any]:
    """A welcome with a user stream whose head is `head`; `changes` are those of the stream's info."""
    info = {"epoch": "e-1", "head": head, "oldest": 1, "from": head + 1, "resumed": False, "reason": "new"}
    info.update(changes)
    if info["resumed"]:
        del info["reason"]
    return {
        "op": "welcome",
        "protocol": 1,
        "connection": "c1",
        "principal": {"tenant": "acme", "user": "ann", "roles": ["dev"], "tier": "free"},
        "streams": {"user": info},
        "heartbeat": heartbeat,
        "limits": {"message_bytes": 65536},
        "token_expires_in": 3600.0,
        "runs": [{"run": "r1", "agent": "triage", "status": "running"}],
    }


def event(seq: int, **changes: Any) -> dict[str, Any]:
    return {
        "op": "event",
        "stream": "user",
        "seq": seq,
        "ts": 1.0,
        "type": "app.n",
        "data": {"n": seq},
        **changes,
    }


def live(seq: int) -> dict[str, Any]:
    return {"op": "live", "stream": "user", "seq": seq}


class Peer:
    """The server's side of one connection. `hello` is what the URL asked for, as the frame would say it."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.headers = headers
        self.hello: dict[str, Any] = {
            name: json.loads(value) if name in JSON_FIELDS else value
            for name, value in parse_qsl(urlsplit(url).query)
        }
        self.acks: list[dict[str, int]] = []
        self.to_client, self.from_server = trio.open_memory_channel[str | ConnectionClosed](math.inf)
        self.to_server, self.from_client = trio.open_memory_channel[str](math.inf)
        self.gone = trio.Event()
        self.takes = trio.Event()
        self.takes.set()

    @property
    def token(self) -> str:
        return self.headers["Authorization"].removeprefix("Bearer ")

    async def hear(self) -> dict[str, Any]:
        """The client's next frame that is no ack; those are kept in `acks`."""
        while True:
            frame: dict[str, Any] = json.loads(await self.from_client.receive())
            if frame["op"] != "ack":
                return frame
            self.acks.append(frame["pos"])

    async def hear_ack(self) -> dict[str, int]:
        frame = json.loads(await self.from_client.receive())
        assert frame["op"] == "ack", frame
        return dict(frame["pos"])

    def say(self, *frames: dict[str, Any]) -> None:
        """Send one message of one or several frames."""
        self.to_client.send_nowait(json.dumps(frames[0] if len(frames) == 1 else frames))

    def close(self, code: int, reason: str = "") -> None:
        self.to_client.send_nowait(ConnectionClosed(code, reason))

    def stop_taking(self) -> None:
        """Leave what the client sends where it is, as a full network buffer does."""
        self.takes = trio.Event()

    async def answer(self, **result: Any) -> dict[str, Any]:
        """Hear a command and answer it."""
        frame = await self.hear()
        self.say({"op": "reply", "id": frame["id"], "status": "ok", "result": result})
        return frame

    async def until_bye(self) -> None:
        while (await self.hear())["op"] != "bye":
            pass
        self.close(1000)


class _Socket:
    """The client's side of a `Peer`."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.ended: ConnectionClosed | None = None

    async def send(self, payload: str | bytes) -> None:
        await self.peer.takes.wait()
        if self.ended is not None:
            raise ConnectionClosed(self.ended.code)
        assert isinstance(payload, str)
        self.peer.to_server.send_nowait(payload)

    async def receive(self) -> str | bytes:
        if self.ended is not None:
            raise ConnectionClosed(self.ended.code)
        message = await self.peer.from_server.receive()
        if isinstance(message, ConnectionClosed):
            self.ended = message
            raise message
        return message

    async def aclose(self, code: int, reason: str = "", *, timeout: float) -> None:
        self.kill()
        await trio.lowlevel.checkpoint()

    def kill(self) -> None:
        self.ended = self.ended or ConnectionClosed(1006)


Script = Callable[[Peer], Awaitable[None]]


class Server:
    """Pass `dial` to `connect`. A script that is an error refuses the connection with it."""

    def __init__(self, *scripts: Script | TransportError) -> None:
        self.scripts = list(scripts)
        self.peers: list[Peer] = []
        self.dialled_at: list[float] = []
        self._dialled = trio.lowlevel.ParkingLot()

    async def reached(self, count: int) -> None:
        """Wait until so many connections were tried."""
        while len(self.peers) < count:
            await self._dialled.park()

    @asynccontextmanager
    async def dial(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        subprotocols: Sequence[str],
        ssl_context: Any,
        timeout: float,
        max_message_bytes: int,
    ) -> AsyncIterator[_Socket]:
        await trio.lowlevel.checkpoint()
        self.dialled_at.append(trio.current_time())
        peer = Peer(url, headers)
        self.peers.append(peer)
        self._dialled.unpark_all()
        assert self.scripts, "a connection beyond the script"
        # The last script, where it is a refusal, stays.
        stays = len(self.scripts) == 1 and isinstance(self.scripts[0], TransportError)
        script = self.scripts[0] if stays else self.scripts.pop(0)
        if isinstance(script, TransportError):
            raise script
        async with trio.open_nursery() as nursery:
            nursery.start_soon(script, peer)
            socket = _Socket(peer)
            try:
                yield socket
            finally:
                socket.kill()
                peer.gone.set()
                nursery.cancel_scope.cancel()
