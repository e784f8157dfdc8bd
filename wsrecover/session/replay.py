"""From a page of the log to what goes over the wire: frames, a filter's skips, large events in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from wsrecover.protocol.coalesce import MESSAGE_ID, Coalescer
from wsrecover.protocol.codec import (
    Logged,
    encode,
    event_frame,
    event_frames,
    event_thread,
    join,
    parts,
)
from wsrecover.protocol.frames import Skip
from wsrecover.streams.store import Entry
from wsrecover.streams.stream import Stream
from wsrecover.transport.framing import text_frame, text_head

__all__ = ["Filter", "coalesced", "frames_of", "has_fragments", "live_message", "pack", "passes"]

Filter = frozenset[str] | None
"""The threads that are wanted, or None for all; events without a thread always pass."""


def passes(wanted: Filter, thread: str | None) -> bool:
    """Whether an event of `thread` is sent under this filter."""
    return wanted is None or thread is None or thread in wanted


def live_message(stream: Stream, entries: list[Entry]) -> bytes:
    """The `event` frames of what was just committed as one WebSocket message, whatever its size."""
    if len(entries) > 1:
        return text_frame(join(event_frames(stream.name, [(entry.seq, entry.body) for entry in entries])))
    entry = entries[0]
    # As `event_frame` and `text_frame` do it, without the calls: nearly each live event is made here.
    frame = stream.event_prefix + b"%d," % entry.seq + entry.body[1:]
    return text_head(len(frame)) + frame


def has_fragments(events: Sequence[Logged]) -> bool:
    """Whether there may be something to merge in a page. Of two neighbours one is looked at."""
    return MESSAGE_ID in b"".join([body for _, body in events[1::2]])


def coalesced(events: Iterable[Logged], merging: Coalescer, *, going_on: bool) -> list[Logged]:
    """`events`, a page of a replay, with the fragments of messages merged.

    Where the replay is `going_on` behind them, `merging` keeps what the next page may add to.
    """
    told: list[Logged] = []
    for event in events:
        if merging.open is None and MESSAGE_ID not in event[1]:
            told.append(event)
        else:
            told += merging.take(event)
    if not going_on:
        told += merging.rest()
    return told


def frames_of(
    stream: Stream,
    events: Sequence[Logged],
    *,
    wanted: Filter,
    part_bytes: int,
    resume_part: tuple[int, int] | None = None,
) -> Sequence[bytes]:
    """The frames that tell `events`: them, parts of those above `part_bytes`, and skips over what is
    filtered out.

    `resume_part` is (seq, offset): the bytes of that event which its receiver holds already.
    """
    if wanted is None:
        frames = event_frames(stream.name, events)
        if max(map(len, frames), default=0) <= part_bytes:
            return frames
    return list(_frames_of(stream, events, wanted, part_bytes, resume_part))


def _frames_of(
    stream: Stream,
    events: Sequence[Logged],
    wanted: Filter,
    part_bytes: int,
    resume_part: tuple[int, int] | None,
) -> Iterator[bytes]:
    skipped: int | None = None
    for seq, body in events:
        if wanted is not None and not passes(wanted, event_thread(body)):
            skipped = seq
            continue
        if skipped is not None:
            yield encode(Skip(stream.name, skipped))
            skipped = None
        frame = event_frame(stream.name, seq, body)
        if len(frame) <= part_bytes:
            yield frame
        else:
            offset = resume_part[1] if resume_part is not None and resume_part[0] == seq else 0
            yield from parts(stream.name, seq, frame, part_bytes=part_bytes, offset=offset)
    if skipped is not None:
        yield encode(Skip(stream.name, skipped))


MESSAGE_BYTES: Final = 8 * 1024
"""What a connection must live for to get on: of a message that is cut its client has nothing."""


def pack(frames: Sequence[bytes]) -> bytes:
    """WebSocket text messages, back to back, of at most `MESSAGE_BYTES` unless a single frame is larger."""
    if frames and sum(map(len, frames)) + len(frames) <= MESSAGE_BYTES:
        return text_frame(join(frames))
    framed: list[bytes] = []
    chunk: list[bytes] = []
    size = 0
    for frame in frames:
        if chunk and size + len(frame) > MESSAGE_BYTES:
            framed.append(text_frame(join(chunk)))
            chunk, size = [], 0
        chunk.append(frame)
        size += len(frame) + 1
    if chunk:
        framed.append(text_frame(join(chunk)))
    return b"".join(framed)
