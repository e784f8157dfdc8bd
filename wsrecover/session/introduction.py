"""How a connection begins: what its client said of itself, and how it will speak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs

from wsrecover.errors import FrameError
from wsrecover.protocol.codec import decode_client
from wsrecover.protocol.frames import ClientFrame, Hello

__all__ = ["Decode", "Frame", "Introduction"]

Frame: TypeAlias = ClientFrame | FrameError
"""What a client sent, or what is wrong with it."""


class Decode(Protocol):
    """The frames of a client's message. Raises `FrameError` where it is bad as a whole."""

    def __call__(self, message: str | bytes, *, max_bytes: int) -> list[Frame]: ...


@attrs.frozen
class Introduction:
    """A client's `hello`, with the frames that came right behind it. `decode` is for what comes later."""

    hello: Hello
    early: Sequence[Frame] = ()
    decode: Decode = decode_client
