"""A stream as this process holds it: its head, the newest of its events, and who is at the head."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, Protocol

import attrs

from wsrecover.logger import get_logger
from wsrecover.protocol.codec import event_prefix
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import From, StreamInfo

from .budget import TailBudget
from .growth import Growth, Left
from .lineage import Lineage
from .page import Page, fitting, page_of
from .served import AT_ONCE, Sender, Served
from .store import Entry, Store, StreamKey, StreamState

__all__ = ["CROWD", "Follower", "Stream"]

log = get_logger(__name__)

CROWD: Final = 256
"""Followers that one step may serve: 2 ms of sends. More are served in slices of half as many."""

_SLACK: Final = 16
"""A tail that is full is shortened by this fraction of what it may hold."""

MAX_WAVES: Final = 16
"""Commits that a crowd may be behind; who has not got further by then reads on from the log."""


class Follower(Sender, Protocol):
    """One who is at the head of a stream. The methods are synchronous, and called in the journal's task."""

    def deliver(self, stream: Stream, entries: list[Entry]) -> bool:
        """Take what one commit appended, contiguous and next. False: it lags now, and leaves `live`."""

    def lag(self, stream: Stream, after: int) -> None:
        """It was dropped from `live` when it had everything up to `after`: read on from the log.

        What it raises is logged, and nobody tells it again.
        """


@attrs.define(eq=False)
class _Wave:
    """What one commit appended, on its way through a crowd. `followers` have everything up to `after`, and
    not it. It is `framed` once for all of them."""

    entries: list[Entry]
    followers: set[Follower]
    framed: bytes | None = None

    @property
    def after(self) -> int:
        """The seq before its first event."""
        return self.entries[0].seq - 1


class Stream:
    """One stream. `live` are its followers that are at the head; being in it *means* being there.

    `head` and `oldest` are as in SPEC.md; on no event behind `concerning_seq` a context depends. The tail
    holds the newest events, at most `tail_events` and `tail_bytes` of bodies, so that a client that was away
    briefly costs no read. Made by `Streams.open`, which registers it before its head is loaded: what is
    appended meanwhile is not missed.

    `crowded(stream)` is called when more followers than one step may serve wait for `serve_wave`; who takes
    something is put into `served`, to flush at the end of the step. `growth` hears when its share is used up.
    `framed` is what followers are being offered as it goes into the sockets: the first makes it, for all.
    `gathered` is for `Streams` alone: what of a commit is the stream's, while that is sorted.

    What need not be seen to with each event waits for `_look_seq` or `_look_total`. `_line` is who is at the
    head, to be served in one step: None once that has changed, and while there is a wave.
    """

    __slots__ = (
        "_budget",
        "_crowded",
        "_dropped",
        "_due_seq",
        "_due_total",
        "_growth",
        "_line",
        "_lineage",
        "_look_seq",
        "_look_total",
        "_max_bytes",
        "_max_events",
        "_served",
        "_store",
        "_tail",
        "_total",
        "_waves",
        "concerning_seq",
        "event_prefix",
        "framed",
        "gathered",
        "head",
        "key",
        "live",
        "loaded",
        "name",
        "oldest",
    )

    def __init__(
        self,
        key: StreamKey,
        store: Store,
        budget: TailBudget,
        *,
        tail_events: int,
        tail_bytes: int,
        crowded: Callable[[Stream], None],
        served: Served,
        growth: Growth,
    ) -> None:
        # What each event asks for comes first: compiled, it lies side by side in memory in this order.
        self.head = 0
        self.concerning_seq = 0
        self.gathered: list[Entry] = []
        self._tail: deque[bytes] = deque()  # The bodies alone: the newest is that of the head.
        self._budget = budget
        self._total = 0  # Bytes of the bodies that were ever in the tail.
        self._look_seq = self._look_total = 0  # With the first event that comes.
        self._line: tuple[Follower, ...] | None = None
        self.live: set[Follower] = set()
        self._served = served
        self.framed: bytes | None = None
        self.name = key.wire_name
        self.event_prefix = event_prefix(self.name)
        self.key = key
        self.oldest = 1
        self.loaded = False
        self._dropped = 0  # Bytes of the bodies that were in the tail and are not any more.
        self._growth = growth
        self._begin_share(growth.begin(key))
        self._lineage = Lineage(store)
        self._store = store
        self._crowded = crowded
        self._waves: deque[_Wave] = deque()
        self._max_events = tail_events
        self._max_bytes = tail_bytes

    @property
    def tail_events(self) -> int:
        """How many events the tail holds."""
        return len(self._tail)

    @property
    def _tail_begins(self) -> int:
        """The seq of its oldest event, or of the next one that comes."""
        return self.head - len(self._tail) + 1

    @property
    def tail_bytes(self) -> int:
        """Bytes of their bodies."""
        return self._total - self._dropped

    @property
    def share_left(self) -> Left:
        """What is left until it is due, for `Growth`."""
        return Left(self._due_seq - self.head, self._due_total - self._total)

    @property
    def epoch(self) -> str:
        """As in SPEC.md."""
        return self._lineage.epoch

    def load(self, state: StreamState) -> None:
        """Take what the store said; what was learnt while it was asked stands."""
        self._lineage.load(state)
        if state.head > self.head:
            self.drop_tail()
            self._skip_to(state.head)
        self.oldest = max(self.oldest, state.oldest)
        self.loaded = True

    def extend(self, entries: list[Entry]) -> None:
        """Take what was appended, contiguous in itself, and offer it to the followers.

        What is known already is ignored. After a hole (appends learnt out of order) the tail starts anew, and
        every live follower is told to `lag`: the log has what is between.
        """
        if entries[0].seq != self.head + 1:
            entries = self._reconcile(entries)
            if not entries:
                return
        self.head = head = entries[-1].seq
        keep, size = self._tail.append, 0
        for entry in entries:
            body = entry.body
            keep(body)
            size += len(body)
            if entry.concerning:
                self.concerning_seq = head
        self._budget.used += size
        self._total = total = self._total + size
        if head >= self._look_seq or total >= self._look_total:
            self._look(entries[0].seq)
        line = self._line
        if line is None:
            line = self._line_up(entries)
        if line:
            self._deliver(entries, line, self.live)
            self.framed = None

    def _reconcile(self, entries: list[Entry]) -> list[Entry]:
        entries = [entry for entry in entries if entry.seq > self.head]
        if entries and entries[0].seq != self.head + 1:
            self.drop_tail()
            while self._waves:
                self._break_wave()
            behind, self.live, self._line = self.live, set(), None
            for follower in behind:
                self._drop(follower, self.head)
            self._skip_to(entries[0].seq - 1)
        return entries

    def _skip_to(self, head: int) -> None:
        """The head is there: what lies between was not learnt here, and does not count."""
        self._due_seq += head - self.head
        self.head = self.concerning_seq = head

    def _begin_share(self, share: Left) -> None:
        self._due_seq = self.head + share.events
        self._due_total = self._total + share.bytes

    def _look(self, first: int) -> None:
        """See to what need not be seen to with each event; `first` is the seq of what came now."""
        self._lineage.mark(first)
        if self.head >= self._due_seq or self._total >= self._due_total:
            self._begin_share(self._growth.due(self.key))
        self._shorten_tail()
        self._look_seq = min(self._due_seq, self._tail_begins + self._max_events)
        self._look_total = min(self._due_total, self._dropped + self._max_bytes + 1)

    def _line_up(self, entries: list[Entry]) -> tuple[Follower, ...]:
        """Those to serve at once; none where they are so many that `entries` go to them as a wave."""
        if self._waves or len(self.live) > CROWD:
            self._begin_wave(entries)
            return ()
        self._line = line = tuple(self.live)
        return line

    def _deliver(self, entries: list[Entry], followers: Sequence[Follower], members: set[Follower]) -> None:
        """Offer what was appended to each of them; those that do not take it are `members` no more."""
        waiting = self._served.followers
        for follower in followers:
            try:
                taken = follower.deliver(self, entries)
            except Exception:
                # One connection's bug must not end everybody's journal: its own task meets it again.
                log.exception("follower_failed", stream=self.name, seq=entries[-1].seq)
                self._drop(follower, entries[0].seq - 1)
                taken = False
            if taken:
                waiting.append(follower)
            else:
                members.discard(follower)
                self._line = None
        if len(waiting) >= AT_ONCE:
            self._served.flush()

    def _drop(self, follower: Follower, after: int) -> None:
        try:
            follower.lag(self, after)
        except Exception:  # Likewise; it is in `live` no more.
            log.exception("follower_lost", stream=self.name, seq=after)

    def _begin_wave(self, entries: list[Entry]) -> None:
        if not self._waves:
            self._crowded(self)
        elif len(self._waves) == MAX_WAVES:
            self._break_wave()
        self._waves.append(_Wave(entries, self.live))
        self.live = set()

    def _break_wave(self) -> None:
        """Leave those in the oldest wave to their own catch-up."""
        wave = self._waves.popleft()
        for follower in wave.followers:
            self._drop(follower, wave.after)

    def serve_wave(self) -> bool:
        """Deliver the oldest wave's events to a slice of it; whether anybody still waits."""
        waves = self._waves
        if not waves:
            return False
        wave = waves[0]
        followers = [wave.followers.pop() for _ in range(min(CROWD // 2, len(wave.followers)))]
        ahead = waves[1].followers if len(waves) > 1 else self.live
        ahead.update(followers)  # Before they are served: who ends meanwhile leaves it again.
        self.framed = wave.framed
        self._deliver(wave.entries, followers, ahead)
        wave.framed, self.framed = self.framed, None
        if ahead is not self.live:
            # One that could not take it as it is may have read on to the head by itself.
            ahead.difference_update([follower for follower in followers if follower in self.live])
        if not wave.followers:
            waves.popleft()
        return bool(waves)

    def _shorten_tail(self) -> None:
        """Drop the oldest of a tail that is too long, some more than must go, so that this is rare."""
        tail, freed = self._tail, 0
        if len(tail) > self._max_events:
            for _ in range(len(tail) - self._max_events + self._max_events // _SLACK):
                freed += len(tail.popleft())
        while tail and self.tail_bytes - freed > self._max_bytes:
            freed += len(tail.popleft())
        self._freed(freed)

    def drop_tail(self) -> None:
        """Forget the events in memory; the log has them."""
        self._tail.clear()
        self._freed(self.tail_bytes)

    def _freed(self, size: int) -> None:
        self._dropped += size
        self._budget.used -= size

    def trim(self, oldest: int) -> None:
        """What lies before `oldest` is gone."""
        # The store trims what it has committed, and may say so before the commit itself is handed on here: a
        # stream that begins beyond head + 1 has no place where a follower could join it.
        oldest = min(oldest, self.head + 1)
        if oldest <= self.oldest:
            return
        self.oldest = oldest
        tail, freed = self._tail, 0
        while tail and self._tail_begins < oldest:
            freed += len(tail.popleft())
        self._freed(freed)

    def judge(self, position: Position | None, begin: From) -> StreamInfo:
        """Whether who is at `position` may go on from there, and where it begins otherwise; for `welcome`."""
        return self._lineage.judge(position, begin, oldest=self.oldest, head=self.head)

    def join(self, follower: Follower, after: int) -> bool:
        """Put `follower`, which has everything up to `after`, into `live` iff that is the head."""
        if after != self.head:
            return False
        self.live.add(follower)
        self._line = None
        return True

    def leave(self, follower: Follower) -> None:
        """Take `follower`, if it is at the head or waits for what was appended last, out of there."""
        self.live.discard(follower)
        self._line = None
        for wave in self._waves:
            wave.followers.discard(follower)

    def reached(self, follower: Follower) -> int:
        """The seq up to which `follower`, which does not lag, has been served."""
        for wave in self._waves:
            if follower in wave.followers:
                return wave.after
        return self.head

    def page_nowait(self, after: int, *, max_events: int, max_bytes: int) -> Page | None:
        """What follows `after`, from memory; None where the store must be read.

        At most `max_events`, and as many as fit `max_bytes` of bodies but at least one.
        """
        start = max(after + 1, self.oldest)
        gap = (after + 1, start - 1) if start > after + 1 else None
        if start > self.head:
            return Page(start, (), gap)
        skipped = start - self._tail_begins
        if skipped < 0:
            return None
        bodies = list(islice(self._tail, skipped, skipped + max_events))
        if self.tail_bytes > max_bytes:
            bodies = fitting(bodies, max_bytes)
        return Page(start, bodies, gap)

    async def page(self, after: int, *, max_events: int, max_bytes: int) -> Page:
        """What follows `after`, from memory or the store; see `page_nowait`. May be abandoned at any time.

        Raises what `Store.read` raises, and `StoreCorrupt` where that has a hole.
        """
        page = self.page_nowait(after, max_events=max_events, max_bytes=max_bytes)
        if page is not None:
            return page
        upto = self.head
        entries = await self._store.read(
            self.key, after, upto=upto, max_events=max_events, max_bytes=max_bytes
        )
        return page_of(entries, after=after, upto=upto)
