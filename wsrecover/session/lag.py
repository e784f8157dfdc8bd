"""One stream of a connection that is not at its head."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, TypeAlias

import attrs
import trio

from wsrecover.protocol.coalesce import Coalescer
from wsrecover.protocol.codec import Logged, encode
from wsrecover.protocol.frames import Gap
from wsrecover.streams.page import Page
from wsrecover.streams.stream import Stream

from .contexts import Snapshot
from .replay import Filter, coalesced, frames_of, has_fragments
from .snapshots import SnapshotFrames, Switch

__all__ = ["FRAME_BYTES", "Lag", "Pair"]

FRAME_BYTES: Final = 56
"""What a frame or a body takes in memory beside its bytes: 46 to 58, resident, of 140 to 1,030 bytes."""

Pair: TypeAlias = tuple[int, int] | None
"""The seq and offset of a part that is held, or the first and last seq of a gap."""


@attrs.define(eq=False)
class Lag:
    """Where a lagging stream's cursor is: all up to `after` was sent, or is in `frames` or `merging`.

    `snapshot` is that of the first of `switches`: the stream is told up to it, and then it. `opening`
    is set when the one that the stream begins with was taken.
    """

    after: int
    announce: bool
    part: Pair = None
    frames: deque[bytes] = attrs.field(factory=deque)
    merging: Coalescer | None = None
    page: Page | None = None
    switches: deque[Switch] = attrs.field(factory=deque)
    snapshot: SnapshotFrames | None = None
    opening: trio.Event | None = None

    @property
    def held(self) -> int:
        """Bytes of what was read and is still to be sent."""
        waiting = sum(map(len, self.frames)) + len(self.frames) * FRAME_BYTES
        return waiting + (0 if self.page is None else self.page.size + len(self.page.bodies) * FRAME_BYTES)

    def tell(
        self, stream: Stream, events: Sequence[Logged], *, wanted: Filter, part_bytes: int, going_on: bool
    ) -> None:
        """Add the frames of `events`, and, unless it is `going_on`, of what was kept back for more of it."""
        if self.merging is None and has_fragments(events):
            self.merging = Coalescer(stream.name, part_bytes)
        if self.merging is not None:
            events = coalesced(events, self.merging, going_on=going_on)
        self.frames.extend(
            frames_of(stream, events, wanted=wanted, part_bytes=part_bytes, resume_part=self.part)
        )

    def pop(self, share: int) -> list[bytes]:
        """Take about `share` bytes of frames: whole ones, and at least one."""
        if sum(map(len, self.frames)) <= share:
            frames, self.frames = self.frames, deque()
            return list(frames)
        taken: list[bytes] = []
        size = 0
        while self.frames and (size < share or not taken):
            taken.append(self.frames.popleft())
            size += len(taken[-1])
        return taken

    def tell_gap(self, stream: Stream, gap: tuple[int, int]) -> None:
        """Say that these events, the first and the last of them, are gone.

        A snapshot of before the last of them is out of date: whoever takes it would miss what is between.
        """
        self.frames.append(encode(Gap(stream.name, "trimmed", from_=gap[0], to=gap[1])))
        self.after = max(self.after, gap[1])
        if self.snapshot is not None and self.snapshot.seq < self.after:
            self.snapshot = None

    def begin_snapshot(self, stream: Stream, snapshot: Snapshot, *, part_bytes: int) -> None:
        """Tell the first switch by this snapshot."""
        switch = self.switches[0]
        self.snapshot = SnapshotFrames(stream.name, switch, snapshot, part_bytes=part_bytes)
        if switch.first:
            self.after = snapshot.seq
            if self.opening is not None:
                self.opening.set()

    def tell_snapshot(self) -> int | None:
        """Add its next frame, if there is one left: its bytes. None: the stream has not come as far."""
        if self.snapshot is None or self.after < self.snapshot.seq:
            return None
        frame = self.snapshot.next_frame()
        if frame is None:
            return 0
        self.frames.append(frame)
        return len(frame)
