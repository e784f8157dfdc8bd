"""What the fields of frames may hold: the types that both directions share, and the bounds on them."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

__all__ = [
    "MAX_DEPTH",
    "MAX_FRAMES",
    "MAX_ID",
    "MAX_INT",
    "MAX_STREAMS",
    "MAX_STREAM_NAME",
    "MAX_THREADS",
    "MAX_TOTAL",
    "Id",
    "Seconds",
    "Seq",
    "StreamName",
    "ThreadIds",
    "is_id",
]

MAX_ID: Final = 128
"""Characters of an id."""

MAX_STREAM_NAME: Final = 256
"""Characters of a stream's name: `role:` and what the token calls the role."""

MAX_INT: Final = 2**53 - 1
"""The largest integer that every JSON implementation keeps exact (RFC 8259, section 6)."""

MAX_DEPTH: Final = 64
"""Levels of objects and arrays in a client's message, and in an event's data."""

MAX_FRAMES: Final = 256
"""Frames in one message of a client."""

MAX_STREAMS: Final = 256
"""Streams that one frame names."""

MAX_THREADS: Final = 100
"""Threads that a filter names."""

MAX_TOTAL: Final = 8 * 1024 * 1024
"""Bytes of a frame that comes in parts."""

Id: TypeAlias = Annotated[str, "id"]
"""1 to 128 printable ASCII characters."""

StreamName: TypeAlias = Annotated[str, "stream name"]
"""1 to 256 characters."""

Seq: TypeAlias = Annotated[int, "seq"]
"""0 … 2^53-1."""

Seconds: TypeAlias = Annotated[float, "seconds"]
"""Finite, not negative."""

ThreadIds: TypeAlias = Annotated[tuple[Id, ...], "thread ids"]
"""At most 100."""


def is_id(value: object) -> bool:
    """Whether `value` is 1 to 128 printable ASCII characters."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isascii() and value.isprintable()
