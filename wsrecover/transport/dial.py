"""Opening a WebSocket from the client's side (RFC 6455, section 4.1)."""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import SplitResult, urlsplit

import attrs
import trio

from wsrecover.errors import ConfigError, HandshakeRefused, TransportError

from .handshake import accept_key, check_clean
from .head import HeadError, Headers, parse_headers
from .outbox import Outbox
from .pipe import Pipe, SocketPipe
from .upgrade import read_head
from .websocket import CLOSE_TIMEOUT, ClientSocket

__all__ = ["Dial", "dial_tcp", "open_socket"]

Dial = Callable[[str, int], Awaitable[Pipe]]
"""Connects to a host and port. Raises OSError."""

_HEAD_BYTES: Final = 16 * 1024
_BODY_BYTES: Final = 4 * 1024
_STATUS_LINE: Final = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")


@attrs.frozen
class _Target:
    """Where a ws: or wss: URL leads."""

    secure: bool
    host: str
    port: int
    authority: str
    resource: str


async def dial_tcp(host: str, port: int) -> Pipe:
    """Connect by TCP, trying the addresses of `host` as RFC 8305 says. Raises OSError."""
    stream = await trio.open_tcp_stream(host, port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)  # noqa: FBT003  the stdlib's signature
    return SocketPipe(sock)


@asynccontextmanager
async def open_socket(
    url: str,
    *,
    headers: Mapping[str, str],
    subprotocols: Sequence[str],
    ssl_context: ssl.SSLContext | None = None,
    timeout: float,
    max_message_bytes: int,
    dial: Dial = dial_tcp,
) -> AsyncIterator[ClientSocket]:
    """Open a WebSocket for the block. Connecting and the handshake together take at most `timeout` seconds.

    `ssl_context` is for wss: URLs, the system's trust by default. At the end of the block the socket is
    closed with 1000, or killed where the block raised or was cancelled.

    Raises:
        HandshakeRefused: the server answered with another HTTP status than 101.
        TransportError: refused, unknown host, time-out, TLS that failed, or not a WebSocket server.
        ConfigError: its host can be none.
        ValueError: `url` is no ws: or wss: URL, or a header holds something other than visible ASCII.
    """
    target = _parse_url(url)
    outbox: Outbox | None = None
    try:
        try:
            with trio.fail_after(timeout):
                outbox = Outbox(await dial(target.host, target.port))
                if target.secure:
                    context = ssl_context or ssl.create_default_context()
                    await outbox.start_tls(context, server_hostname=target.host)
                subprotocol, early = await _shake(outbox, target, headers, subprotocols)
        except UnicodeError as error:
            raise ConfigError("url", f"names no host: {error}", "a name of DNS, or an address") from error
        except trio.TooSlowError as error:
            raise TransportError(f"{target.authority}: no answer within {timeout} s") from error
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise TransportError(f"{target.authority}: {error.__cause__ or error}") from error
        client = ClientSocket(outbox, subprotocol, early=early, max_message_bytes=max_message_bytes)
        yield client
        await client.aclose(1000, timeout=CLOSE_TIMEOUT)
    finally:
        if outbox is not None:
            outbox.close()


def _parse_url(url: str) -> _Target:
    parts: SplitResult = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ValueError("url: not ws://host or wss://host")
    if parts.username is not None or parts.fragment:
        raise ValueError("url: neither a user name nor a fragment may stand in it")
    secure = parts.scheme == "wss"
    resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not resource.isascii() or " " in resource:
        raise ValueError("url: its path and query must be percent-encoded")
    return _Target(secure, parts.hostname, parts.port or (443 if secure else 80), parts.netloc, resource)


async def _shake(
    outbox: Outbox, target: _Target, headers: Mapping[str, str], subprotocols: Sequence[str]
) -> tuple[str | None, bytes]:
    key = base64.b64encode(os.urandom(16)).decode()
    outbox.put(_encode_request(target, key, headers, subprotocols))
    await outbox.drain()
    try:
        head, early = await read_head(outbox, _HEAD_BYTES)
        line, answer = parse_headers(head)
    except HeadError as error:
        raise TransportError(f"{target.authority}: not an HTTP answer: {error.problem}") from error
    status = _STATUS_LINE.fullmatch(line)
    if status is None:
        raise TransportError(f"{target.authority}: not an HTTP answer")
    if status[1] != "101":
        raise HandshakeRefused(
            int(status[1]), await _read_body(outbox, answer, early), retry_after=_retry_after(answer)
        )
    subprotocol = answer.get("sec-websocket-protocol")
    if (
        answer.get("upgrade", "").lower() != "websocket"
        or answer.get("sec-websocket-accept") != accept_key(key)
        or subprotocol not in (None, *subprotocols)
        or "sec-websocket-extensions" in answer
    ):
        raise TransportError(f"{target.authority}: its 101 does not answer what was asked")
    return subprotocol, early


def _encode_request(
    target: _Target, key: str, headers: Mapping[str, str], subprotocols: Sequence[str]
) -> bytes:
    fields = {
        "Host": target.authority,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": key,
        "Sec-WebSocket-Version": "13",
        **({"Sec-WebSocket-Protocol": ", ".join(subprotocols)} if subprotocols else {}),
        **headers,
    }
    check_clean(fields.items())
    lines = [f"GET {target.resource} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"


async def _read_body(outbox: Outbox, headers: Headers, early: bytes) -> str:
    """As much of a refusal's body as is worth showing to somebody."""
    length = headers.get("content-length", "")
    wanted = min(int(length), _BODY_BYTES) if length.isdecimal() else _BODY_BYTES
    body = early
    try:
        while len(body) < wanted and (data := await outbox.receive_some()):
            body += data
    except trio.BrokenResourceError:
        pass  # The status has arrived, and that is what counts.
    return body[:wanted].decode("utf-8", "replace").strip()


def _retry_after(headers: Headers) -> float | None:
    value = headers.get("retry-after", "")
    return float(value) if value.isdecimal() and len(value) < 10 else None
