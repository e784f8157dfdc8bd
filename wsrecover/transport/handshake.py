"""The WebSocket opening handshake (RFC 6455, sections 4.1 and 4.2), without a socket."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

import attrs

from .head import Headers, Request

__all__ = [
    "Refusal",
    "accept_key",
    "check_clean",
    "check_upgrade",
    "encode_refusal",
    "encode_switch",
    "refuse_head",
]

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY: Final = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64
_CLEAN: Final = re.compile(r"[\t -~]*")


def check_clean(headers: Iterable[tuple[str, str]]) -> None:
    """Raise `ValueError` where a name or value holds something other than visible ASCII, blanks and tabs."""
    for name, value in headers:
        if not _CLEAN.fullmatch(name) or not _CLEAN.fullmatch(value):
            raise ValueError(f"headers: {name!r} holds something other than visible ASCII")


@attrs.frozen
class Refusal:
    """An HTTP answer instead of an upgrade: `status` 400 to 599, `body` one line of plain text."""

    status: int
    body: str
    headers: tuple[tuple[str, str], ...] = attrs.field(
        default=(), validator=lambda _, __, headers: check_clean(headers)
    )


_PLAIN_HTTP: Final = Refusal(
    426,
    "This is a WebSocket endpoint. Connect with a WebSocket client (ws:// or wss://, RFC 6455, version 13), "
    "for example: websocat --protocol wsrecover.v1 -H 'Authorization: Bearer TOKEN' ws://HOST:PORT/v1/connect",
    (("Upgrade", "websocket"),),
)
_WITHOUT_UPGRADE: Final = re.compile(
    rb"[A-Z]+ [^\r\n ]+ HTTP/1\.[01](?:\r\n(?![ \t]*upgrade[ \t]*:)[^\r\n]*)*", re.IGNORECASE
)


def refuse_head(head: bytes, status: int, problem: str) -> Refusal:
    """The answer to a head that is not a proper one.

    Where it asks for no upgrade at all, as those of health checks and old proxies, its sender is to hear what
    this port is for, and not what is wrong with an upgrade.
    """
    return _PLAIN_HTTP if _WITHOUT_UPGRADE.fullmatch(head) else Refusal(status, problem)


def check_upgrade(request: Request) -> Refusal | None:
    """What is wrong with `request` as a WebSocket upgrade, or None where nothing is."""
    headers = request.headers
    if not headers.names("upgrade", "websocket"):
        return _PLAIN_HTTP
    problem = _flaw(request.method, headers)
    if problem is not None:
        return Refusal(400, problem)
    if headers.lower.get("sec-websocket-version") != "13":
        return Refusal(
            426, "Sec-WebSocket-Version: only 13 is spoken here", (("Sec-WebSocket-Version", "13"),)
        )
    if not _KEY.fullmatch(headers.lower.get("sec-websocket-key", "")):
        return Refusal(400, "Sec-WebSocket-Key: not 16 bytes in base64")
    return None


def _flaw(method: str, headers: Headers) -> str | None:
    if method != "GET":
        return "method: an upgrade is a GET"
    if not headers.names("connection", "upgrade"):
        return "Connection: does not name upgrade"
    for name in ("content-length", "transfer-encoding"):
        if name in headers.lower:
            return f"{name}: an upgrade has no body"
    return None


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept that answers `key`."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def encode_switch(key: str, subprotocol: str | None) -> bytes:
    """The 101 answer. Extensions are never accepted, so compression is never negotiated."""
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol is not None else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept_key(key)}\r\n{chosen}\r\n"
    ).encode("ascii")


def encode_refusal(refusal: Refusal) -> bytes:
    """The whole answer: plain text, its length, and the word that the connection ends."""
    body = refusal.body.encode() + b"\n"
    lines = [
        f"HTTP/1.1 {refusal.status} {_phrase(refusal.status)}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close" if refusal.status != 426 else "Connection: close, upgrade",
        *(f"{name}: {value}" for name, value in refusal.headers),
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"
