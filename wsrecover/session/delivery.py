"""What one connection is sent: a cursor per stream that is either live (at the head) or lags.

::

                     pump() reached the head
        lagging ─────────────────────────────▶ live
           ▲                                    │
           └────────────────────────────────────┘
              the socket would not take an event

Live means being in `Stream.live`, which means being at its head; only a lagging stream has a cursor here.
Nothing queues for a slow reader: what it was not sent stays in the log, and its catch-up, which exists only
while something is owed, reads on as the socket drains. So it holds at most one page and the outbox's last
write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import trio

from wsrecover.errors import CommandError
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.protocol.codec import Logged, encode, live_frame
from wsrecover.protocol.frames import ServerFrame, Skip
from wsrecover.streams.store import Entry
from wsrecover.streams.stream import Stream
from wsrecover.transport.websocket import ServerSocket, text_frame

from .calls import refusal
from .catchup import CatchUp, page_share
from .contexts import Snapshot
from .lag import Lag, Pair
from .owner import Owner
from .replay import Filter, frames_of, live_message, pack, passes
from .snapshots import MAX_SWITCHES, Switch

__all__ = ["Delivery"]

CONTROLS = 128
"""Replies and the like that may wait for a socket that takes nothing."""

SKIP_EVERY = 100
"""Events filtered out after which a live client is told: else its position, left behind, would be trimmed."""


class Delivery:
    """The sending half of a connection. A `Follower` of each of its `streams`, which are by wire name.

    `wanted` is the filter of the user's stream. With `snapshots` a gap in that is followed by one.
    """

    __slots__ = (
        "_catch_up",
        "_controls",
        "_ended",
        "_lags",
        "_limits",
        "_opening",
        "_outbox",
        "_owner",
        "_part_bytes",
        "_snapshots",
        "_unsaid",
        "streams",
        "wanted",
    )
    __deletable__ = ("_owner",)  # Where this module is compiled, others may not be.

    def __init__(
        self, owner: Owner, socket: ServerSocket, wanted: Filter, *, snapshots: bool = False
    ) -> None:
        self._owner = owner
        self._outbox = socket.outbox
        self.wanted = wanted
        self._snapshots = snapshots
        self._limits = owner.limits
        self._part_bytes = owner.limits.part_bytes
        self.streams: Mapping[str, Stream] = {}
        self._lags: dict[Stream, Lag] = {}
        self._unsaid: dict[Stream, int] = {}
        self._controls: list[bytes] = []
        self._catch_up: CatchUp | None = None
        self._opening: trio.Event | None = None
        self._ended = False

    @property
    def lagging(self) -> bool:
        """Whether some stream is not at its head."""
        return bool(self._lags)

    @property
    def backlog(self) -> int:
        """Bytes that wait for the socket to take them."""
        waiting = sum(map(len, self._controls)) if self._controls else 0
        return self._outbox.pending + waiting + sum([lag.held for lag in self._lags.values()])

    def begin(
        self,
        streams: Mapping[str, Stream],
        after: Mapping[str, int],
        part: Mapping[str, Pair],
        first: bytes,
        *,
        gaps: Mapping[str, Pair] = MappingProxyType({}),
        switch: Switch | None = None,
    ) -> None:
        """Send `first`, then each stream from `after` on; as much as goes at once is one write.

        `gaps` are told before, and the user's stream makes the `switch`.
        """
        self.streams = streams
        self._controls.append(first)
        for name, stream in streams.items():
            own = switch if stream.key.scope == "user" else None
            self._set_out(stream, after[name], part.get(name), gaps.get(name), own)
        self._go_on()

    def _set_out(
        self, stream: Stream, after: int, part: Pair = None, gap: Pair = None, switch: Switch | None = None
    ) -> None:
        if gap is None and switch is None and stream.join(self, after):
            self._controls.append(live_frame(stream.name, after))
            return
        lag = self._lags[stream] = Lag(after, announce=True, part=part)
        if gap is not None:
            lag.tell_gap(stream, gap)
        if switch is not None:
            self.wanted = switch.before
            lag.switches.append(switch)
            if switch.first:
                lag.opening = self._opening = trio.Event()

    async def opened(self) -> None:
        """Wait until the snapshot that it begins with, if any, was taken: what is done then comes as events.

        No longer than the store may take. No checkpoint once it was taken.
        """
        if self._opening is not None and not self._opening.is_set():
            with trio.move_on_after(self._owner.timeouts.store):
                await self._opening.wait()
            self._opening = None  # Those behind this one have waited as long.

    def follow(self, streams: Mapping[str, Stream], after: Mapping[str, int], notice: ServerFrame) -> None:
        """Send `notice`, then follow `streams` alone; those in `after` are new, and begin there."""
        if self._ended:
            return
        kept = set(streams.values())
        for stream in self.streams.values():
            if stream not in kept:
                stream.leave(self)
                self._lags.pop(stream, None)
                self._unsaid.pop(stream, None)
        self.streams = streams
        self.control(notice)
        for name, seq in after.items():
            self._set_out(streams[name], seq)
        self._go_on()

    def refilter(self, wanted: Filter, ref: str) -> None:
        """Change the filter of the user's stream, as the `follow` with the id `ref` asks."""
        if self._ended:
            return
        stream = self.streams["user"]
        lag = self._lags.get(stream)
        if lag is None:
            lag = self._note_lag(stream, stream.reached(self))
            stream.leave(self)
        if len(lag.switches) >= MAX_SWITCHES:
            problem = f"{MAX_SWITCHES} follows wait for their snapshots"
            self.control(refusal(ref, CommandError("overloaded", problem, retry_after=1.0)))
            return
        before = lag.switches[-1].after if lag.switches else self.wanted
        lag.switches.append(Switch(before, wanted, ref=ref))
        self._go_on()

    def end(self) -> None:
        """Leave every stream; nothing is sent any more."""
        self._ended = True
        if self._opening is not None:
            self._opening.set()
        for stream in self.streams.values():
            stream.leave(self)
        self._lags.clear()
        self._controls.clear()
        if self._catch_up is not None:
            self._catch_up.cancel()

    def forget_owner(self) -> None:
        """After the end, when nothing is asked of it any more.

        They hold each other, and with them all that a connection has: else that would wait for the garbage
        collector, which comes by once in thousands of connections.
        """
        del self._owner

    def position(self, name: str) -> int | None:
        """The last seq that was handed to the socket, or None for a stream that is not followed."""
        stream = self.streams.get(name)
        if stream is None:
            return None
        lag = self._lags.get(stream)
        return stream.reached(self) if lag is None else lag.after

    def control(self, frame: ServerFrame) -> None:
        """Send a frame that is not an event, before any backlog. A peer that lets too many pile up is cut."""
        if self._ended:
            return
        encoded = encode(frame)
        if not self._controls and self._outbox.offer(text_frame(encoded)):
            if self._outbox.pending:
                self._go_on()
            return
        if len(self._controls) >= CONTROLS:
            self._owner.close(CloseCode.TOO_SLOW, f"{CONTROLS} frames wait to be read")
            return
        self._controls.append(encoded)
        self._go_on()

    def show(self, message: bytes) -> bool:
        """Send what may be lost, a framed message, iff nothing else is owed: it is the first to be shed."""
        if self._ended or self._lags or self._controls or not self.streams:
            return False
        outbox = self._outbox
        if not outbox.offer(message):
            return False
        if outbox.pending:
            self._go_on()
        return True

    def deliver(self, stream: Stream, entries: list[Entry]) -> bool:
        """What was just committed, to the outbox. False: this stream lags now (`Follower`)."""
        frame = stream.framed
        if self.wanted is not None and stream.key.scope == "user":
            frame = self._filtered(stream, entries, self.wanted)
            if not frame:
                return True
        elif frame is None:
            frame = stream.framed = live_message(stream, entries)
        if len(frame) <= self._part_bytes and self._outbox.hold(frame):
            if self.wanted is not None:  # What is filtered out is all that goes unsaid.
                self._unsaid.pop(stream, None)
            return True
        self._note_lag(stream, entries[0].seq - 1)
        self._go_on()
        # What was too large for one message may be on its way already, and the cursor at the head again.
        return not self._ended and stream not in self._lags

    def flush(self) -> None:
        """Send what `deliver` took (`Follower`)."""
        if self._outbox.flush():
            self._go_on()

    def lag(self, stream: Stream, after: int) -> None:
        """The stream dropped this follower when it was at `after` (`Follower`)."""
        self._note_lag(stream, after)
        # Not at once: the stream has yet to move its head, and joining it before that would miss what is new.
        self._catch_up_on()

    def _note_lag(self, stream: Stream, after: int) -> Lag:
        lag = Lag(self._unsaid.pop(stream, after), announce=False)
        if not self._ended:
            self._lags[stream] = lag
        return lag

    def _filtered(self, stream: Stream, entries: list[Entry], wanted: frozenset[str]) -> bytes:
        """The events as the filter sees them; if none passes, the skip waits for one that does."""
        before, last = entries[0].seq - 1, entries[-1].seq
        if not any(passes(wanted, entry.thread) for entry in entries):
            since = self._unsaid.setdefault(stream, before)
            if last - since < SKIP_EVERY:
                return b""
            return text_frame(encode(Skip(stream.name, last)))
        events = [(entry.seq, entry.body) for entry in entries]
        frames = frames_of(stream, events, wanted=wanted, part_bytes=self._limits.part_bytes)
        if stream in self._unsaid:
            frames = [encode(Skip(stream.name, before)), *frames]
        return pack(frames)

    def _go_on(self) -> None:
        """Send what goes at once; a catch-up task does the rest, or all where there is one already."""
        if self._catch_up is not None or not self._pump():
            self._catch_up_on()

    def _catch_up_on(self) -> None:
        if self._catch_up is not None:
            self._catch_up.nudge()
        elif not self._ended:
            self._catch_up = CatchUp(self._owner, self._outbox, self._lags, self._pump)
            self._owner.start(self._run_catch_up, self._catch_up)

    def _pump(self) -> bool:
        """Send as much as goes without waiting; True once nothing is owed.

        Synchronous, so no event can slip in between reaching the head and being live.
        """
        outbox = self._outbox
        while not self._ended:
            if outbox.pending and outbox.flush():
                return False
            if not self._controls and not self._lags:
                return True
            frames = self._next_frames()
            if not frames:
                return not self._lags
            if not outbox.offer(pack(frames)):
                # A close frame is on its way, or the link is lost: whoever reads from it says which.
                self.end()
                return True
        return True

    def _next_frames(self) -> list[bytes]:
        """At most about `part_bytes` of what is owed: controls first, then a share for each lagging stream.

        Those that still lag then go to the end of the line, so that none is stuck behind another's backlog.
        """
        frames, self._controls = self._controls, []
        room = self._limits.part_bytes - sum(map(len, frames))
        owing = len(self._lags)
        for stream, lag in list(self._lags.items()):
            if frames and room <= 0:
                break
            share, owing = room // owing, owing - 1
            if not lag.frames and not self._render(stream, lag):
                continue
            taken = lag.pop(share)
            frames += taken
            room -= sum(map(len, taken))
            if not lag.frames and not lag.switches and stream.join(self, lag.after):
                del self._lags[stream]
                if lag.announce:
                    frames.append(live_frame(stream.name, lag.after))
            else:
                self._lags[stream] = self._lags.pop(stream)
        return frames

    def _render(self, stream: Stream, lag: Lag) -> bool:
        """Turn the next page, or piece of a snapshot, into frames. False: it must be fetched first."""
        while lag.switches:
            if lag.snapshot is None:
                if not lag.switches[0].is_silent:
                    return False
                self._tell(stream, lag, ())
                lag.begin_snapshot(stream, Snapshot(lag.after, {}), part_bytes=self._part_bytes)
            told = lag.tell_snapshot()
            if told is None:
                break
            if told:
                self._owner.quota.settle_replay(told)
            if lag.frames:
                return True
            self.wanted = lag.switches.popleft().after
            lag.snapshot = None
        return self._render_page(stream, lag)

    def _render_page(self, stream: Stream, lag: Lag) -> bool:
        upto = stream.head if lag.snapshot is None else lag.snapshot.seq
        if lag.after >= upto:
            return True
        page, lag.page = lag.page, None
        if page is None:
            quota = self._owner.quota
            most = quota.pressure.portion(page_share(self._limits, len(self._lags)))
            page = stream.page_nowait(lag.after, max_events=self._limits.page_events, max_bytes=most)
            if page is None:
                return False
            size = page.size
            if lag.announce and quota.take_replay(size):
                return False
            quota.pressure.take(size)
        if page.gap is not None:
            self._tell(stream, lag, ())
            lag.tell_gap(stream, page.gap)
            self._owner.missed(stream, *page.gap)
            if self._snapshots and stream.key.scope == "user":
                lag.snapshot = None  # What is behind the gap as well is of no use.
                lag.switches.appendleft(Switch(self.wanted, self.wanted, first=True))
                return True
        events = list(page.events)[: max(0, upto - lag.after)]
        if events:
            lag.after = events[-1][0]
            self._tell(stream, lag, events, going_on=lag.after < upto)
            self._owner.count("replayed", len(events))
        return True

    def _tell(self, stream: Stream, lag: Lag, events: Sequence[Logged], *, going_on: bool = False) -> None:
        wanted = self.wanted if stream.key.scope == "user" else None
        lag.tell(stream, events, wanted=wanted, part_bytes=self._part_bytes, going_on=going_on)

    async def _run_catch_up(self, catch_up: CatchUp) -> None:
        try:
            await catch_up.run()
        finally:
            self._catch_up = None
