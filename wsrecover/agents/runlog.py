"""The way of one run's events to the journal, in the order in which its author made them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Final

import trio

from wsrecover.access.limits import Bucket, Rate, moment
from wsrecover.errors import InvalidEvent, RunBroken, RunEnded
from wsrecover.protocol.codec import encode_event_of, event_author
from wsrecover.protocol.context import TYPES as CONTEXT_TYPES
from wsrecover.protocol.events import OF_RUNS
from wsrecover.protocol.schema import fitted
from wsrecover.streams.store import Entry, Unit

from .ending import is_cancelled
from .gathering import Gathering, Text
from .place import RunPlace

__all__ = ["RunLog"]

RESERVED: Final = OF_RUNS
"""For each event: a name of another module is looked up, compiled or not."""

BURST: Final = 32
"""Units in one commit after which each further one lets other tasks run first."""

LOOK_EVENTS: Final = 32
LOOK_INTERVAL: Final = 0.2
"""Events, and seconds, of `emit` after which the next one looks whether its task is cancelled."""

TEXT_BYTES: Final = 4096
"""Text that may be gathered: more goes at once, and its author waits where there is no room for it."""

NO_ROOM_PAUSE: Final = 0.05
"""Seconds until text is tried again for which there was no room, where nobody is left to wait for some."""


class RunLog:
    """Encodes and writes the events of one run.

    Raises `InvalidEvent` for a bad `thread`.

    Text is gathered: the first of a message goes at once, what follows `delta_interval` after its last delta,
    in the order of adding, and always before any other event of the run. `nursery`, while the agent's
    function runs, is where gathered text waits for room. `last_words_until` is the trio time at which no
    scope of the run may hold up its end any more.
    """

    __slots__ = (
        "_alarm",
        "_author",
        "_clock",
        "_ended",
        "_event_bytes",
        "_key",
        "_lock",
        "_looked_at",
        "_schemas",
        "_text",
        "_unlooked",
        "last_words_until",
        "nursery",
        "pace",
        "place",
        "run",
        "thread",
        "writer",
    )

    def __init__(self, place: RunPlace, run: str, thread: object) -> None:
        # What each event asks for comes first: compiled, it lies side by side in memory in this order.
        self._schemas = place.schemas
        self._unlooked = 0
        self._looked_at = -math.inf
        self._clock: Callable[[], object] = place.clock
        self._author = event_author(thread, run)
        self._event_bytes = place.event_bytes
        self._key = place.key
        self.thread = thread if isinstance(thread, str) else None
        most = place.events_per_second
        self.pace = None if most is None else Bucket(Rate(most, most))
        self.writer = place.journal.writer()
        self._text = Gathering(place.delta_interval)
        self._ended = False
        self.place = place
        self.run = run
        self.nursery: trio.Nursery | None = None
        self._alarm = math.inf
        self._lock = trio.Lock()
        self.last_words_until = math.inf

    def encode(self, type: object, data: object, id: str | None = None) -> Entry:
        """The event, encoded once. Raises `InvalidEvent`."""
        ts: Any = self._clock()
        body = encode_event_of(self._author, ts, type, data, self._event_bytes)
        return Entry(self._key, body, ts, self.thread, id, concerning=type in CONTEXT_TYPES)

    def show(self, event: Entry) -> None:
        """Hand the event, which is not logged, to whoever is connected. Raises `RunEnded`, `InvalidEvent`."""
        self._check()
        if self.place.show is not None:
            self.place.show(event)

    def offer(self, type: Any, data: object) -> Entry | None:
        """Encode and queue an event of the agent's own. None: that is done; else `write` is to queue it.

        It is given back where it must wait for something, and every so often (`LOOK_EVENTS`, `LOOK_INTERVAL`)
        so that `write` looks for a cancellation: to look at each event would cost as much as encoding it.
        Raises `InvalidEvent`, also where the type is `RESERVED` or the data misfits its schema, and
        `RunBroken`.
        """
        if type in RESERVED:
            raise InvalidEvent("type", f"{type} is made by the run's own lifecycle, documents or `ask`")
        if data.__class__ is not dict or type in self._schemas:
            data = fitted(type, data, self._schemas)
        event = self.encode(type, data)
        self._unlooked += 1
        looked = self._unlooked <= LOOK_EVENTS and 0.0 <= event.ts - self._looked_at < LOOK_INTERVAL
        return None if looked and self.pace is None and self._write_nowait(event) else event

    async def write(self, event: Entry) -> None:
        """Queue the event behind all that the run wrote before. Raises `RunBroken` or `RunEnded`.

        Cancelled: the event was not queued.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._unlooked, self._looked_at = 0, event.ts
        if self.pace is not None:
            while wait := self.pace.take(moment(trio.current_time())):  # noqa: ASYNC110  # For time.
                await trio.sleep(wait)
        if not self._write_nowait(event):
            await self._write((event,))

    def _write_nowait(self, event: Entry) -> bool:
        """Queue the event if nothing goes before it and nothing stands in its way. Raises `RunBroken`.

        The run's rate, if there is a `pace`, is not looked into here.
        """
        writer = self.writer
        if self._ended or self._text.deltas or writer.queued >= BURST:
            return False
        try:  # While another task of the run waits for room, there is none here.
            writer.append_nowait(event)
        except trio.WouldBlock:
            return False
        return True

    async def write_last(self, event: Entry, exc: BaseException | None) -> None:
        """Queue the event that closes a scope which `exc` ends (None: a regular end).

        Where the task is cancelled it still has `grace` seconds for that, and all scopes of a run that is
        ended have them together. Beside an exception neither `RunBroken` nor `RunEnded` is raised: the run's
        terminal event closes its scopes.
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
        with contextlib.suppress(RunBroken, RunEnded), self.last_words():
            await self.write(event)

    def last_words(self) -> trio.CancelScope:
        """A shield for what a cancelled scope has yet to say, with a deadline."""
        # A scope that its agent gave up by itself has nothing to do with those that it gave up before.
        until = min(trio.current_time() + self.place.grace, self.last_words_until)
        return trio.CancelScope(deadline=until, shield=True)

    async def add_text(self, text: Text, piece: str, size: int) -> None:
        """Add a piece, `size` bytes of it, to a message's text. Raises as `write`.

        Cancelled: it was added, and is sent when it is due.
        """
        self._check()
        self.writer.check()
        gathered = self._text
        gathered.add(text, piece, size)
        try:
            much = gathered.size > TEXT_BYTES
            if much:  # A loop that only adds text lets others run.
                await trio.lowlevel.checkpoint()
            if much or not self.place.delta_interval:
                while wait := self._over_rate():  # noqa: ASYNC110  # What it waits for is time.
                    await trio.sleep(wait)
            elif not self._is_due():
                return
            elif self._alarm < math.inf:  # That had no turn yet, nor has anybody else had one.
                await trio.lowlevel.checkpoint()
            if self.writer.queued >= BURST or not self._send_text():
                await self._write(())
        finally:
            if gathered.deltas:
                self._arm()

    async def flush(self) -> None:
        """Wait until all that was written is on stable storage. Raises `RunBroken`."""
        if self._text.deltas:
            await self._write(())
        await self.writer.flush()

    async def end(self) -> None:
        """Take no more events and wait until those there are, are on stable storage. Raises `RunBroken`.

        Cancelled: call it again.
        """
        async with self._lock:
            # Who waits for room holds the lock, so nothing can come behind the terminal event.
            self._ended = True
            if self._text.deltas:
                await self.writer.write(Unit(self._encode_text()))
                self._sent()
        await self.writer.flush()

    def close(self) -> None:
        """Take no more events, and forget what was not written."""
        self._ended = True
        self._text.deltas.clear()

    def _check(self) -> None:
        if self._ended:
            raise RunEnded(f"run {self.run} has ended")

    def _over_rate(self) -> float:
        """The time in seconds until one more event is within the run's rate."""
        return 0.0 if self.pace is None else self.pace.wait(moment(trio.current_time()))

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
            # The deltas leave when they are queued, and not before: cancelling must not lose them.
            deltas = self._encode_text()
            if deltas or events:
                await self.writer.write(Unit((*deltas, *events)))
            if deltas:
                self._sent()
        finally:
            self._text.kept()
            self._lock.release()
            if self._text.deltas:  # Of a write that was cancelled, or come while it waited.
                self._arm()

    def _encode_text(self) -> tuple[Entry, ...]:
        return tuple(self.encode("message_delta", data) for data in self._text.sending())

    def _sent(self) -> None:
        now = trio.current_time()
        count = self._text.sent(now)
        if self.pace is not None:  # Text that goes ahead of another event does not wait for the rate.
            self.pace.spend(moment(now), count)

    def _is_due(self) -> bool:
        """Whether the gathered text is to go now. Where the run's rate is against it, it is due later."""
        now, text = trio.current_time(), self._text
        if now < text.due:
            return False
        wait = self._over_rate()
        if wait:
            text.due = now + wait
        return not wait

    def _arm(self) -> None:
        """See to it that the gathered text is sent when it is due."""
        due = self._text.due
        if due < self._alarm:
            self._alarm = due
            self.place.alarms.set(due, self._on_alarm)

    def _on_alarm(self, at: float) -> None:
        if at != self._alarm:  # An earlier one was set after this.
            return
        self._alarm = math.inf
        # Who holds the lock sends the text, or arms anew.
        if not self._text.deltas or self._ended or self._lock.locked():
            return
        if not self._is_due():
            self._arm()
            return
        # Its author learns of a broken run with the next call.
        with contextlib.suppress(RunBroken):
            if not self._send_text() and self.nursery is not None:
                # In a run that is cancelled nobody waits, and text that stayed due would ring without end.
                self._text.due = trio.current_time() + NO_ROOM_PAUSE
                self.nursery.start_soon(self._send_late)

    def _send_text(self) -> bool:
        """Queue the gathered text if nothing stands in its way. Raises `RunBroken`."""
        if self._lock.locked() or self._ended:
            return False
        if self._text.deltas:
            try:
                first, *others = self._encode_text()
                if others:
                    self.writer.write_nowait(Unit((first, *others)))
                else:
                    self.writer.append_nowait(first)
            except trio.WouldBlock:
                self._text.kept()
                return False
            self._sent()
        return True

    async def _send_late(self) -> None:
        with contextlib.suppress(RunBroken, RunEnded):
            await self._write(())
