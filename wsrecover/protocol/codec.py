"""Bytes to frames and back: the one place to import from. See `encode`, `greeting` and `decode` for how."""

from __future__ import annotations

from .decode import (
    decode_body,
    decode_client,
    decode_event,
    decode_hello,
    decode_plain,
    decode_server,
    decode_snapshot,
    event_thread,
)
from .encode import (
    Logged,
    digest,
    encode,
    encode_event,
    encode_event_of,
    encode_json,
    ephemeral_frame,
    event_author,
    event_frame,
    event_frames,
    event_prefix,
    join,
    live_frame,
    parts,
    snapshot_frame,
)
from .greeting import welcome_frame

__all__ = [
    "Logged",
    "decode_body",
    "decode_client",
    "decode_event",
    "decode_hello",
    "decode_plain",
    "decode_server",
    "decode_snapshot",
    "digest",
    "encode",
    "encode_event",
    "encode_event_of",
    "encode_json",
    "ephemeral_frame",
    "event_author",
    "event_frame",
    "event_frames",
    "event_prefix",
    "event_thread",
    "join",
    "live_frame",
    "parts",
    "snapshot_frame",
    "welcome_frame",
]
