"""The way of one run's events to the journal, in the order in which its author made them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import trio

from wsrecover.access.limits import Bucket, Rate
from wsrecover.errors import RunBroken, RunEnded
from wsrecover.protocol.codec import encode_event_of, event_author
from wsrecover.protocol.schema import Schema
from wsrecover.streams.journal import Journal
from wsrecover.streams.store import Entry, StreamKey, Unit

from .ending import is_cancelled
from .requests import Requests
from .threads import Threads

__all__ = ["RunLog", "RunPlace"]

BURST: Final = 32
"""Units in one commit after which each further one lets other tasks run first."""

TEXT_BYTES: Final = 4096
"""Text that may wait for the commit under way; with more the author waits for room."""


@attrs.frozen
class RunPlace:
    """Where runs write, and under which limits.

    `key` is the user's stream. `schemas` are what is registered for types of events, `requests` those of the
    user's runs. `clock` gives unix seconds. `event_bytes` bounds one encoded event. `timeout` bounds a run
    whose agent has no time-out of its own, in seconds. `grace` is the time in seconds that a cancelled run
    has for its last words, and again for its terminal event. `retry` are the delays in seconds between tries
    to write the terminal event while the store is down; the last one is repeated. `show` hands an event that
    is not logged to whoever is connected; it raises `InvalidEvent` for a large one. None: nobody ever is.
    `events_per_second` is how many events a run may make, and as many at once; above it its author waits.
    Text, which is coalesced, is not counted. None: as many as the journal takes. `threads` are the contexts
    of the user's threads; None: nobody keeps them.
    """

    journal: Journal
    key: StreamKey
    clock: Callable[[], float]
    event_bytes: int
    timeout: float | None = None
    grace: float = 5.0
    retry: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0)
    schemas: Mapping[str, Schema[Any]] = attrs.field(factory=dict)
    requests: Requests = attrs.field(factory=Requests)
    show: Callable[[Entry], object] | None = None
    events_per_second: int | None = None
    threads: Threads | None = None


@attrs.define(eq=False)
class _Delta:
    """Text of one message that has not been handed to the journal. `offset` is in UTF-16 units."""

    message_id: str
    offset: int
    pieces: list[str]
    size: int


class RunLog:
    """Encodes and writes the events of one run.

    Text is coalesced: it goes out at once while nothing of the run is uncommitted, otherwise when the journal
    has settled what is under way, and always before any other event of the run. `nursery`, while the agent's
    function runs, is where such text waits for room.
    """

    __slots__ = (
        "_author",
        "_deltas",
        "_ended",
        "_last_words_until",
        "_listens",
        "_lock",
        "_pace",
        "_taken",
        "nursery",
        "place",
        "run",
        "thread",
        "writer",
    )

    def __init__(self, place: RunPlace, run: str, thread: str | None) -> None:
        self.place = place
        self.run = run
        self.thread = thread
        self._author = event_author(thread, run)
        self.writer = place.journal.writer()
        self.nursery: trio.Nursery | None = None
        self._deltas: list[_Delta] = []
        self._ended = False
        self._lock = trio.Lock()
        self._taken = 0
        self._listens = False
        self._last_words_until: float | None = None
        most = place.events_per_second
        self._pace = None if most is None else Bucket(Rate(most, most))

    def encode(self, type: str, data: Mapping[str, Any], *, id: str | None = None) -> Entry:  # noqa: A002  # The words of the wire.
        """The event, encoded once. Raises `InvalidEvent`."""
        place = self.place
        ts = place.clock()
        body = encode_event_of(self._author, ts=ts, type=type, data=data, max_bytes=place.event_bytes)
        return Entry(place.key, body, ts, self.thread, id)

    def show(self, event: Entry) -> None:
        """Hand the event, which is not logged, to whoever is connected. Raises `RunEnded`, `InvalidEvent`."""
        self._check()
        if self.place.show is not None:
            self.place.show(event)

    async def write(self, event: Entry) -> None:
        """Queue the event behind all that the run wrote before. Raises `RunBroken` or `RunEnded`.

        Cancelled: the event was not queued.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._pace is not None:
            while wait := self._pace.take(trio.current_time()):  # noqa: ASYNC110  # What it waits for is time.
                await trio.sleep(wait)
        if not self.write_nowait(event, paced=True):
            await self._write((event,))

    def write_nowait(self, event: Entry, *, paced: bool = False) -> bool:
        """Queue the event if nothing goes before it and nothing stands in its way. Raises `RunBroken`.

        `paced`: the run's rate allows it, which is otherwise not looked into here.
        """
        writer = self.writer
        if self._deltas or self._ended or writer.queued >= BURST or not (paced or self._pace is None):
            return False
        try:  # While another task of the run waits for room, there is none here.
            writer.append_nowait(event)
        except trio.WouldBlock:
            return False
        return True

    async def write_last(self, event: Entry, exc: BaseException | None) -> None:
        """Queue the event that closes a scope which `exc` ends (None: a regular end).

        Where the task is cancelled it still has `grace` seconds for that, one deadline for all scopes of the
        run. Beside an exception neither `RunBroken` nor `RunEnded` is raised: the run's terminal event closes
        its scopes.
        """
        if not is_cancelled(exc):
            try:
                await self.write(event)
            except trio.Cancelled:
                await self._write_shielded(event)
                raise
            except (RunBroken, RunEnded):
                if exc is None:
                    raise
        else:
            await self._write_shielded(event)

    async def _write_shielded(self, event: Entry) -> None:
        if self._last_words_until is None:
            self._last_words_until = trio.current_time() + self.place.grace
        with (
            contextlib.suppress(RunBroken, RunEnded),
            trio.CancelScope(deadline=self._last_words_until, shield=True),
        ):
            await self.write(event)

    async def add_text(self, message_id: str, offset: int, text: str, size: int) -> None:
        """Add text to a message: at `offset` in UTF-16 units, `size` bytes of it. Raises as `write`."""
        self._check()
        await trio.lowlevel.checkpoint_if_cancelled()
        last = self._deltas[-1] if len(self._deltas) > self._taken else None
        if last is not None and last.message_id == message_id:
            last.pieces.append(text)
            last.size += size
        else:
            self._deltas.append(_Delta(message_id, offset, [text], size))
        self._tell_text()
        if sum(delta.size for delta in self._deltas) > TEXT_BYTES:
            await self._write(())

    async def flush(self) -> None:
        """Wait until all that was written is on stable storage. Raises `RunBroken`."""
        if self._deltas:
            await self._write(())
        await self.writer.flush()

    async def end(self) -> None:
        """Take no more events and wait until those there are, are on stable storage. Raises `RunBroken`.

        Cancelled: call it again.
        """
        async with self._lock:
            # Who waits for room holds the lock, so nothing can come behind the terminal event.
            self._ended = True
            if self._deltas:
                await self.writer.write(Unit(self._encode_deltas()))
                self._deltas.clear()
        await self.writer.flush()

    def close(self) -> None:
        """Take no more events, and forget what was not written."""
        self._ended = True
        self._deltas.clear()

    def _check(self) -> None:
        if self._ended:
            raise RunEnded(f"run {self.run} has ended")

    async def _write(self, events: tuple[Entry, ...]) -> None:
        self._check()
        if self.writer.queued >= BURST:
            await trio.lowlevel.checkpoint()
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            self._check()
            # The deltas leave the buffer when they are queued, and not before: cancelling must not lose them.
            self._taken = len(self._deltas)
            events = (*self._encode_deltas(), *events)
            if events:
                await self.writer.write(Unit(events))
                del self._deltas[: self._taken]
        finally:
            self._taken = 0
            self._lock.release()
        if self._deltas:  # Text that came meanwhile found the lock held.
            self._tell_text()

    def _encode_deltas(self) -> tuple[Entry, ...]:
        return tuple(
            self.encode(
                "message_delta",
                {"message_id": delta.message_id, "offset": delta.offset, "text": "".join(delta.pieces)},
            )
            for delta in self._deltas
        )

    def _tell_text(self) -> None:
        """Send the buffered text at once, or when what is under way is settled."""
        if self.writer.settled:
            self._send_text()
        else:
            self._listen()

    def _listen(self) -> None:
        if not self._listens:
            self._listens = True
            self.writer.when_settled(self._on_settled)

    def _on_settled(self) -> None:
        # A broken run must not disturb the journal: its author learns of it with the next call.
        self._listens = False
        if self._deltas:
            if self.writer.settled:
                with contextlib.suppress(RunBroken):
                    self._send_text()
            else:
                self._listen()

    def _send_text(self) -> None:
        """Queue the buffered text, as soon as there is room."""
        if not self._deltas or self._lock.locked():
            return
        try:
            self.writer.write_nowait(Unit(self._encode_deltas()))
        except trio.WouldBlock:
            if self.nursery is not None:
                self.nursery.start_soon(self._send_late)
        else:
            self._deltas.clear()

    async def _send_late(self) -> None:
        with contextlib.suppress(RunBroken, RunEnded):
            await self._write(())
