"""The plain mode of a connection: within it is like any other, and only speaks and hears differently."""

from __future__ import annotations

import secrets

import orjson

from wsrecover.protocol.codec import decode_hello, decode_plain
from wsrecover.protocol.frames import SUBPROTOCOL, Hello
from wsrecover.protocol.plain import PLAIN, Outward, parse_id
from wsrecover.transport.framing import PING_FRAME, Message, text_frame
from wsrecover.transport.head import Request
from wsrecover.transport.websocket import ServerSocket

from .introduction import Frame

__all__ = ["hear_plain", "is_plain", "plain_hello", "speak_plain"]


def is_plain(request: Request) -> bool:
    """Whether a client asks for the plain mode: by its name, or by no subprotocol and an Authorization."""
    offered = request.subprotocols
    if SUBPROTOCOL in offered:
        return False
    return PLAIN in offered or (not offered and "authorization" in request.headers)


def plain_hello(request: Request, max_bytes: int) -> Hello:
    """The `hello` that a plain client need not know. Raises `FrameError` where the query is wrong.

    After `since` the user's stream goes on, from its start if need be; without one it begins live.
    """
    client = request.query.get("client", secrets.token_hex(16))
    since = request.query.get("since")
    if since is None:
        return decode_hello({"client": client, "from": "live"}, max_bytes=max_bytes)
    position = parse_id(since)
    resume = orjson.dumps({"user": [position.epoch, position.seq]}).decode()
    return decode_hello({"client": client, "from": "start", "resume": resume}, max_bytes=max_bytes)


def speak_plain(socket: ServerSocket) -> ServerSocket:
    """Let a socket, which nothing was sent on yet, speak plainly."""
    words = Outward()

    def outwards(payload: bytes) -> bytes:
        said = orjson.loads(payload)
        told: list[bytes] = []
        for frame in said if isinstance(said, list) else [said]:
            if frame["op"] == "ping":
                told.append(PING_FRAME)
            told += [text_frame(orjson.dumps(word)) for word in words.tell(frame)]
        return b"".join(told)

    socket.translate(outwards)
    return socket


def hear_plain(message: Message, *, max_bytes: int) -> list[Frame]:
    """What a plain client says in a message: see `decode_plain`."""
    return decode_plain(message, secrets.token_hex(16), max_bytes=max_bytes)
