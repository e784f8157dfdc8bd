"""A session over real sockets, against a server of another make (trio-websocket's) that fails on purpose."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trustme
from scripted import event, live, welcome
from trio.testing import MockClock
from trio_websocket import WebSocketConnection, WebSocketRequest, serve_websocket

from wsrecover.client import ClientSession, Event, connect
from wsrecover.errors import ConnectionClosed, TokenError, TransportError, WsrecoverError
from wsrecover.protocol.frames import SUBPROTOCOL

Script = Callable[[WebSocketConnection], Awaitable[None]]

RESUMED: dict[str, Any] = {"resumed": True}


@asynccontextmanager
async def serving(
    *scripts: Script | int, ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[WebSocketRequest]]]:
    """A server with one script per connection; a number refuses the upgrade with this status."""
    todo = list(scripts)
    requests: list[WebSocketRequest] = []

    async def handle(request: WebSocketRequest) -> None:
        requests.append(request)
        script = todo.pop(0)
        if isinstance(script, int):
            await request.reject(script)
            return
        await script(await request.accept(subprotocol=SUBPROTOCOL))

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, handle, "127.0.0.1", 0, ssl_context)
        scheme = "ws" if ssl_context is None else "wss"
        yield f"{scheme}://127.0.0.1:{server.port}", requests
        nursery.cancel_scope.cancel()


async def say(ws: WebSocketConnection, *frames: dict[str, Any]) -> None:
    await ws.send_message(json.dumps(frames))


async def until_bye(ws: WebSocketConnection) -> None:
    while json.loads(await ws.get_message())["op"] != "bye":
        pass
    await ws.aclose(1000)


def quick(url: str, **changes: Any) -> Any:
    return connect(url, **{"token": "secret-token", "rng": lambda: 0.0, "give_up_after": 30, **changes})


async def seqs(session: ClientSession, count: int) -> list[int]:
    items = [await anext(session) for _ in range(count)]
    return [item.seq for item in items if isinstance(item, Event)]


async def test_a_message_cut_in_half_is_asked_for_again() -> None:
    async def cut(ws: WebSocketConnection) -> None:
        await say(ws, welcome(2, **{"from": 1}), event(1))
        half = json.dumps(event(2)).encode()
        # The head of a text frame promises the whole; the stream ends half-way.
        await ws._stream.send_all(bytes([0x81, len(half)]) + half[: len(half) // 2])
        await trio.aclose_forcefully(ws._stream)

    async def rest(ws: WebSocketConnection) -> None:
        await say(ws, welcome(2, **{"from": 2}, **RESUMED), event(2), live(2))
        await until_bye(ws)

    async with serving(cut, rest) as (url, requests), quick(url) as session:
        assert await seqs(session, 2) == [1, 2]
        assert "resume=%7B%22user%22%3A%5B%22e-1%22%2C1%5D%7D" in requests[1].path


async def test_the_token_is_in_the_header_alone_and_the_protocol_is_offered() -> None:
    async def stay(ws: WebSocketConnection) -> None:
        await say(ws, welcome(), live(0))
        await until_bye(ws)

    async with serving(stay) as (url, requests):
        async with quick(url):
            pass
        (request,) = requests
        assert request.path.startswith("/v1/connect?client=")
        assert "secret-token" not in request.path
        assert (b"authorization", b"Bearer secret-token") in request.headers
        assert request.proposed_subprotocols == (SUBPROTOCOL,)


async def test_a_token_refused_before_the_upgrade_is_refreshed() -> None:
    async def stay(ws: WebSocketConnection) -> None:
        await say(ws, welcome(), live(0))
        await until_bye(ws)

    tokens = iter(["old", "new"])
    async with serving(401, stay) as (url, requests):
        async with quick(url, token=lambda: next(tokens)):
            pass
        assert (b"authorization", b"Bearer new") in requests[1].headers


async def test_a_fixed_token_that_is_refused_is_an_error() -> None:
    async with serving(401) as (url, _):
        with pytest.raises(TokenError):
            async with quick(url):
                pass


async def test_the_code_and_reason_of_a_close_reach_the_app() -> None:
    async def revoke(ws: WebSocketConnection) -> None:
        await say(ws, welcome(), live(0))
        await ws.aclose(4503, "revoked")

    async with serving(revoke) as (url, _), quick(url) as session:
        with pytest.raises(ConnectionClosed) as caught:
            await anext(session)
        assert (caught.value.code, caught.value.reason) == (4503, "revoked")


async def test_leaving_says_bye_and_waits_for_the_close() -> None:
    heard: list[str] = []

    async def stay(ws: WebSocketConnection) -> None:
        await say(ws, welcome(), live(0))
        heard.append(json.loads(await ws.get_message())["op"])
        await ws.aclose(1000)
        heard.append("closed")

    async with serving(stay) as (url, _):
        async with quick(url) as session:
            pass
        assert session.status == "closed"
        assert heard[0] == "bye"
        with trio.fail_after(5):
            while len(heard) < 2:
                await trio.lowlevel.checkpoint()


async def test_a_refused_connection_is_reported_and_given_up(mock_clock: MockClock) -> None:
    statuses: list[str] = []

    def note(status: str) -> None:
        statuses.append(status)
        mock_clock.jump(20)

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(TransportError, match=str(port)):
            async with quick(f"ws://127.0.0.1:{port}", give_up_after=10, on_status=note):
                pass
    assert statuses == ["waiting", "closed"]


async def test_a_certificate_that_is_not_trusted_ends_it_at_once() -> None:
    strange = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(strange)
    errors: list[WsrecoverError] = []
    async with serving(ssl_context=strange) as (url, requests):
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            async with quick(url, give_up_after=None, on_error=errors.append):
                pass
    assert errors == []
    assert requests == []


async def test_a_name_that_does_not_resolve_is_reported_and_given_up() -> None:
    with pytest.raises(TransportError):
        async with quick("ws://no-such-host.invalid", give_up_after=0.2):
            pass


async def test_what_is_no_websocket_server_is_reported_and_given_up() -> None:
    async def babble(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example ESMTP\r\n\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, babble, [listener])
        with pytest.raises(TransportError):
            async with quick(f"ws://127.0.0.1:{listener.socket.getsockname()[1]}", give_up_after=0.2):
                pass
        nursery.cancel_scope.cancel()
