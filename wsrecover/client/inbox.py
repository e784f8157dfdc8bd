"""What has been received and not yet handled: between the reader of a connection and the app."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import trio

from wsrecover.errors import BufferFull
from wsrecover.protocol.frames import Ephemeral, Event, Gap, Snapshot
from wsrecover.protocol.receiver import Changed, Forgotten

from .contexts import Contexts
from .progress import Progress, Track

__all__ = ["URGENT_FACTOR", "Entry", "Inbox", "Item"]


Item: TypeAlias = Event | Ephemeral | Snapshot | Gap | Changed | Forgotten
"""What a session yields: events, each once and in its stream's order, or explicit words about what is not."""

Entry: TypeAlias = tuple[Item | None, Track | None, int]
"""An item (None: only a position), and the position that is processed once the app is done with it."""

URGENT_FACTOR: Final = 8
"""How far past its bounds the inbox may grow for the sake of an answer that lies behind the events."""

PATIENCE: Final = 10.0
"""Seconds in which nothing is taken, though an answer waits behind a full inbox: nobody iterates."""


class Inbox:
    """Bounded by `max_items` and `max_bytes` (of messages as received): a reader that finds it full waits.

    For one consumer at a time. An item counts as handled when the consumer asks for the next one.
    """

    def __init__(self, progress: Progress, contexts: Contexts, *, max_items: int, max_bytes: int) -> None:
        self._progress = progress
        self._contexts = contexts
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._entries: deque[tuple[Entry, int]] = deque()
        self._bytes = 0
        self._handed: list[tuple[Track, int]] = []
        self._arrival = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._patience_ends = math.inf
        self._replaying = False
        self._end: Exception | None = None

    def put(self, entries: list[Entry], size: int) -> None:
        """Take the entries of one message of `size` bytes, whether there is room or not. None after `end`."""
        if not entries or self._end is not None:
            return
        self._entries += [(entry, 0) for entry in entries]
        self._entries[-1] = (entries[-1], size)
        self._bytes += size
        self._arrival.unpark_all()

    async def wait_room(self, reach: Callable[[], float]) -> None:
        """Wait until there is room, with bounds `reach` times as wide: more than 1 where it is urgent.

        Raises `BufferFull` where it is and nobody took anything for 10 s, over however many calls.
        """
        while self._full(factor := reach()):
            if factor > 1 and self._patience_ends == math.inf:
                self._patience_ends = trio.current_time() + PATIENCE
            with trio.move_on_at(self._patience_ends if factor > 1 else math.inf) as scope:
                await self._room.park()
            if scope.cancelled_caught:
                raise BufferFull(self._why_full(factor))

    def _why_full(self, factor: float) -> str:
        unread, name, most = len(self._entries), "buffer_items", self._max_items
        if unread < most * factor:
            unread, name, most = self._bytes, "buffer_bytes", self._max_bytes
        return (
            f"nobody iterates over the session: {name} is {most}, {unread} lie unread, and no answer is read "
            f"behind {factor:g} times as many; a program that only sends connects with events=False"
        )

    def poke(self) -> None:
        """What is urgent has changed: a reader that waits for room shall look again."""
        self._room.unpark_all()

    def replaying(self, going_on: bool) -> None:  # noqa: FBT001 - a state, set by its one caller
        """Whether a replay is under way, which `take_batch` waits for."""
        self._replaying = going_on
        self._arrival.unpark_all()

    def end(self, error: Exception | None) -> None:
        """Take nothing more: once empty, the consumer gets `error`, or the end of the iteration.

        The first end counts.
        """
        self._end = self._end or error or trio.EndOfChannel()
        self._arrival.unpark_all()

    async def take(self) -> Item:
        """The next item; what was taken before is handled. Cancelling it loses nothing.

        Raises what `end` was given, or `trio.EndOfChannel`, when there are no more, and
        `trio.BusyResourceError` while another task waits for one.
        """
        self._mark_handed()
        await trio.lowlevel.checkpoint_if_cancelled()
        while (item := self._pop()) is None:
            await self._wait()
        return item

    async def take_batch(self) -> list[Item]:
        """All items there are, at least one; a replay is waited for, as far as it fits. Else like `take`."""
        self._mark_handed()
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            batch: list[Item] = []
            if not self._replaying or self._full(1):
                while (item := self._pop()) is not None:
                    batch.append(item)
            if batch:
                return batch
            await self._wait()

    @property
    def handed(self) -> Sequence[tuple[Track, int]]:
        """The positions of what the consumer has taken and may still be handling."""
        return self._handed

    def _mark_handed(self) -> None:
        for track, seq in self._handed:
            self._progress.mark(track, seq)
        self._handed.clear()

    def _pop(self) -> Item | None:
        while self._entries:
            (item, track, seq), size = self._entries.popleft()
            self._bytes -= size
            self._patience_ends = math.inf
            if self._room:
                self._room.unpark_all()
            if item is None and track is not None and not self._handed:
                self._progress.mark(track, seq)
            elif track is not None:
                self._handed.append((track, seq))
            if item is not None:
                self._contexts.note(item)
                return item
        return None

    async def _wait(self) -> None:
        if self._end is not None and not self._entries:
            raise self._end
        if self._arrival:
            raise trio.BusyResourceError("another task is waiting for the session's next item")
        await self._arrival.park()

    def _full(self, factor: float) -> bool:
        return len(self._entries) >= self._max_items * factor or self._bytes >= self._max_bytes * factor
