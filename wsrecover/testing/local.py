"""A real server on a free port of this machine, and raw WebSocket peers that talk to it frame by frame."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final
from urllib.parse import urlencode

import attrs
import orjson
import trio

from wsrecover.access.authenticator import Authenticator
from wsrecover.access.tokens import sign
from wsrecover.agents.app import App
from wsrecover.config import Config
from wsrecover.protocol.frames import SUBPROTOCOL
from wsrecover.server import Server, serve
from wsrecover.session.admission import PATH
from wsrecover.transport.dial import Dial, dial_tcp, open_socket
from wsrecover.transport.websocket import ClientSocket

__all__ = ["LocalServer", "Peer", "local_server"]

TENANT: Final = "acme"
SECRET: Final = b"for tests on this machine alone, not a secret"
MESSAGE_BYTES: Final = 4 * 1024 * 1024


class Peer:
    """A client without manners: it sends what it is told and keeps what it gets, as plain JSON objects."""

    def __init__(self, socket: ClientSocket) -> None:
        self.socket = socket
        self._frames: deque[dict[str, Any]] = deque()
        self._catching_up: set[str] = set()

    async def frame(self) -> dict[str, Any]:
        """The next frame. Raises `ConnectionClosed`, as everything that reads does."""
        while not self._frames:
            message = orjson.loads(await self.socket.receive())
            self._frames.extend(message if isinstance(message, list) else [message])
        frame = self._frames.popleft()
        match frame["op"]:
            case "welcome" | "streams":
                self._catching_up.update(frame.get("streams") or frame["added"])
                self._catching_up.difference_update(frame.get("removed", ()))
            case "live":
                self._catching_up.discard(frame["stream"])
        return frame

    async def until(self, op: str, **fields: Any) -> list[dict[str, Any]]:
        """The frames up to and including the first with this op and these fields.

        `live` without a stream: the one with which every stream that follows is live.
        """
        frames: list[dict[str, Any]] = []
        while True:
            frame = await self.frame()
            frames.append(frame)
            if frame["op"] != op or any(frame.get(name) != value for name, value in fields.items()):
                continue
            if op != "live" or fields or not self._catching_up:
                return frames

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next `count` events; other frames are passed over."""
        events: list[dict[str, Any]] = []
        while len(events) < count:
            frame = await self.frame()
            if frame["op"] == "event":
                events.append(frame)
        return events

    async def send(self, frame: object) -> None:
        """Send a frame, or a list of them, as one message."""
        await self.socket.send(orjson.dumps(frame).decode())

    async def command(
        self,
        type: str,
        data: dict[str, Any],
        *,
        id: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Send a command; its reply. Frames that come before it are kept for later."""
        ref = id or secrets.token_hex(16)
        await self.send({"op": "send", "id": ref, "type": type, "data": data, **more})
        passed: list[dict[str, Any]] = []
        while (frame := await self.frame()).get("id") != ref or frame["op"] != "reply":
            passed.append(frame)
        self._frames.extendleft(reversed(passed))
        return frame


@attrs.define
class LocalServer:
    """A running server with its configuration, and ways to reach it."""

    server: Server
    config: Config
    secret: bytes
    wall_clock: Callable[[], float]

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.server.url

    def token(
        self,
        user: str = "ada",
        *,
        tenant: str = TENANT,
        roles: Sequence[str] = (),
        tier: str | None = None,
        lifetime: float = 3600.0,
    ) -> str:
        """A token for a user."""
        return sign(
            self.secret,
            tenant=tenant,
            user=user,
            roles=roles,
            tier=tier,
            lifetime=lifetime,
            clock=self.wall_clock,
        )

    def peer(
        self,
        user: str = "ada",
        *,
        tenant: str = TENANT,
        roles: Sequence[str] = (),
        tier: str | None = None,
        token: str | None = None,
        client: str | None = None,
        dial: Dial = dial_tcp,
        **hello: Any,
    ) -> AbstractAsyncContextManager[Peer]:
        """A raw peer, connected with its hello in the URL; `hello` are further fields of it."""
        token = token or self.token(user, tenant=tenant, roles=roles, tier=tier)
        return self._connected({"Authorization": f"Bearer {token}"}, client, dial, hello)

    def stranger(
        self, *, headers: dict[str, str] | None = None, dial: Dial = dial_tcp
    ) -> AbstractAsyncContextManager[Peer]:
        """A raw peer that has said nothing yet."""
        return self._connected(headers or {}, None, dial, None)

    @asynccontextmanager
    async def _connected(
        self, headers: dict[str, str], client: str | None, dial: Dial, hello: dict[str, Any] | None
    ) -> AsyncIterator[Peer]:
        query = ""
        if hello is not None:
            fields = {name: value if name == "from" else orjson.dumps(value) for name, value in hello.items()}
            query = "?" + urlencode({"client": client or secrets.token_hex(16), **fields})
        async with open_socket(
            f"{self.url}{PATH}{query}",
            headers=headers,
            subprotocols=[SUBPROTOCOL],
            timeout=10.0,
            max_message_bytes=MESSAGE_BYTES,
            dial=dial,
        ) as socket:
            yield Peer(socket)


@asynccontextmanager
async def local_server(
    app: App | None = None,
    config: Config | None = None,
    *,
    authenticator: Authenticator | None = None,
    wall_clock: Callable[[], float] = time.time,
    **settings: Any,
) -> AsyncIterator[LocalServer]:
    """Serve `app` for the block: on a free port, in memory and with the secret `SECRET`.

    `settings` are those of `Config` and override these. At the end of the block the server is cancelled, and
    has ended. What the block raises, or `serve`, comes in no group unless both do.
    """
    given = {"port": 0, "store": "memory", "secret": SECRET, **settings}
    config = (config or Config()).evolve(**given)
    run = partial(serve, app or App(), config, authenticator=authenticator, wall_clock=wall_clock)
    try:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(run)
            yield LocalServer(server, config, given["secret"], wall_clock)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
    else:
        return
    raise alone  # Out here it keeps the context that it has.
