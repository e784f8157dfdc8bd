"""Messages to frames, without a connection (RFC 6455, section 5.2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, TypeAlias

from wsrecover.protocol.closecodes import MAX_REASON_BYTES

__all__ = [
    "PING_FRAME",
    "TEXT",
    "Message",
    "cut_reason",
    "masked_frame",
    "payloads",
    "text_frame",
    "text_head",
]

Message: TypeAlias = str | bytes
"""Text or binary."""

TEXT: Final = 0x81
"""The first byte of a whole text frame: FIN and opcode 1."""

PING_FRAME: Final = b"\x89\x00"
"""An empty, unmasked ping: what a server sends."""


def text_frame(payload: bytes) -> bytes:
    """`payload`, UTF-8, as one unmasked text frame: what a server sends (RFC 6455, section 5.2)."""
    return text_head(len(payload)) + payload


def text_head(size: int) -> bytes:
    """What goes before a payload of `size` bytes."""
    return _HEADS[size] if size < len(_HEADS) else _text_head(size)


def _text_head(size: int) -> bytes:
    if size < 126:
        return b"\x81%c" % size
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big")
    return b"\x81\x7f" + size.to_bytes(8, "big")


_HEADS: Final[list[bytes]] = [_text_head(size) for size in range(2048)]
"""Of the usual sizes, which nearly each live event is among."""


def payloads(frames: bytes) -> Iterator[bytes]:
    """The payloads of frames that `text_frame` made, back to back."""
    start = 0
    while start < len(frames):
        size, start = frames[start + 1], start + 2
        if size >= 126:
            wide = 2 if size == 126 else 8
            size, start = int.from_bytes(frames[start : start + wide], "big"), start + wide
        yield frames[start : start + size]
        start += size


def masked_frame(message: Message) -> bytes:
    """`message` as one masked text or binary frame: what a client sends (RFC 6455, section 5.3)."""
    payload, opcode = (message.encode(), 0x81) if isinstance(message, str) else (message, 0x82)
    size = len(payload)
    if size < 126:
        head = bytes((opcode, 0x80 | size))
    elif size < 65536:
        head = bytes((opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((opcode, 0xFF)) + size.to_bytes(8, "big")
    mask = os.urandom(4)
    pad = int.from_bytes((mask * (size // 4 + 1))[:size], "little")
    masked = (int.from_bytes(payload, "little") ^ pad).to_bytes(size, "little")
    return head + mask + masked


def cut_reason(reason: str) -> str:
    """`reason` as it may stand in a close frame: at most `MAX_REASON_BYTES` of UTF-8, whole characters."""
    return reason.encode("utf-8", "replace")[:MAX_REASON_BYTES].decode("utf-8", "ignore")
