"""From a page of the log to what goes over the wire: frames, a filter's skips, large events in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from wsrecover.protocol.coalesce import MESSAGE_ID, Coalescer
from wsrecover.protocol.codec import encode, event_frame, event_frames, join, parts
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


def live_message(stream: Stream, entries: Sequence[Entry]) -> bytes:
    """The `event` frames of what was just committed as one WebSocket message, whatever its size."""
    if len(entries) > 1:
        return text_frame(join(event_frames(stream.name, entries)))
    entry = entries[0]
    # As `event_frame` and `text_frame` do it, without the calls: nearly each live event is made here.
    frame = b"%b%d,%b" % (stream.event_prefix, entry.seq, entry.body[1:])
    return text_head(len(frame)) + frame


def has_fragments(entries: Sequence[Entry]) -> bool:
    """Whether there may be something to merge in a page. Of two neighbours one is looked at."""
    return MESSAGE_ID in b"".join([entry.body for entry in entries[1::2]])


def coalesced(entries: Sequence[Entry], merging: Coalescer[Entry], *, going_on: bool) -> Sequence[Entry]:
    """`entries`, a page of a replay, with the fragments of messages merged.

    Where the replay is `going_on` behind them, `merging` keeps what the next page may add to.
    """
    told: list[tuple[Entry, bytes]] = []
    for entry in entries:
        if merging.open is None and MESSAGE_ID not in entry.body:
            told.append((entry, entry.body))
        else:
            told += merging.take(entry)
    if not going_on:
        told += merging.rest()
    return [entry if body is entry.body else attrs.evolve(entry, body=body) for entry, body in told]


def frames_of(
    stream: Stream,
    entries: Sequence[Entry],
    *,
    wanted: Filter,
    part_bytes: int,
    resume_part: tuple[int, int] | None = None,
) -> Sequence[bytes]:
    """The frames that tell `entries`: events, parts of those above `part_bytes`, and skips over what is
    filtered out.

    `resume_part` is (seq, offset): the bytes of that event which its receiver holds already.
    """
    if wanted is None:
        frames = event_frames(stream.name, entries)
        if max(map(len, frames), default=0) <= part_bytes:
            return frames
    return list(_frames_of(stream, entries, wanted, part_bytes, resume_part))


def _frames_of(
    stream: Stream,
    entries: Sequence[Entry],
    wanted: Filter,
    part_bytes: int,
    resume_part: tuple[int, int] | None,
) -> Iterator[bytes]:
    skipped: int | None = None
    for entry in entries:
        if not passes(wanted, entry.thread):
            skipped = entry.seq
            continue
        if skipped is not None:
            yield encode(Skip(stream.name, skipped))
            skipped = None
        frame = event_frame(stream.name, entry.seq, entry.body)
        if len(frame) <= part_bytes:
            yield frame
        else:
            offset = resume_part[1] if resume_part is not None and resume_part[0] == entry.seq else 0
            yield from parts(stream.name, entry.seq, frame, part_bytes=part_bytes, offset=offset)
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
