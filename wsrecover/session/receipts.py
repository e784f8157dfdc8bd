"""Who has acknowledged a broadcast: exactly those that were entitled at its commit, by cumulative acks.

::

                      ack ≥ seq
    entitled ─▶ pending ─────────▶ acknowledged
                  │  ▲
      disconnects │  │ returns
                  ▼  │
                  gone ◀── for good, where the log was trimmed or the client began anew beyond the event
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable

import attrs
import trio

from wsrecover.protocol.cursor import Position
from wsrecover.streams.store import StreamKey

from .presence import Member, Presence

__all__ = ["MAX_PENDING", "MAX_RECEIPTS", "Receipt", "ReceiptCounts", "Receipts"]

MAX_PENDING = 1_000_000
"""Acknowledgements that all receipts together wait for: 100 MB or so. Beyond it the oldest receipts end."""

MAX_RECEIPTS = 10_000
"""Receipts that are kept, also those that nobody is missing from; beyond it the oldest end."""


@attrs.frozen
class ReceiptCounts:
    """Of the clients that were connected and `entitled` at the commit: how many have `acknowledged` the
    broadcast as processed, how many are `pending`, connected without having acknowledged it yet, and how many
    are `gone`.

    Who is gone is not connected, or not entitled any more, and counts again once it returns; or it never
    will, because the event was trimmed before it came or because it began anew beyond it.
    """

    entitled: int
    acknowledged: int
    pending: int
    gone: int

    @property
    def complete(self) -> bool:
        """Whether all have acknowledged."""
        return self.acknowledged == self.entitled


class Receipt:
    """Who has acknowledged one broadcast. `position` is the event's in `stream`, the name that clients know.

    It outlives its clients' connections but not its time-out nor the process: then it has `ended`, and its
    counts stand as they were.
    """

    def __init__(
        self,
        id: str,
        key: StreamKey,
        position: Position,
        presence: Presence,
        deadline: float,
    ) -> None:
        self.id = id
        self.key = key
        self.stream = key.wire_name
        self.position = position
        self.deadline = deadline
        self.ended = False
        self._presence = presence
        self._pending = presence.following(key)
        self._entitled = len(self._pending)
        self._missed = 0
        self._final: ReceiptCounts | None = None
        self._settled = trio.Event()
        self._settle()

    @property
    def counts(self) -> ReceiptCounts:
        """As they are now."""
        if self._final is not None:
            return self._final
        here = sum(self._presence.follows(member, self.key) for member in self._pending)
        away = len(self._pending) - here + self._missed
        return ReceiptCounts(self._entitled, self._entitled - here - away, here, away)

    @property
    def waiting(self) -> int:
        """How many may still acknowledge."""
        return len(self._pending)

    async def wait(self, timeout: float | None = None) -> ReceiptCounts:
        """Wait until nobody is left who may acknowledge, for `timeout` seconds at most (None: until it ends).

        The counts then say how it came out; `counts.complete` whether all have. Cancelling is safe.
        """
        with trio.move_on_after(math.inf if timeout is None else timeout):
            with trio.move_on_at(self.deadline):
                await self._settled.wait()
        return self.counts

    def acknowledge(self, member: Member) -> bool:
        """Note that it has; whether it was waited for."""
        return self._strike(member)

    def miss(self, member: Member) -> bool:
        """Note that it never will; whether it was waited for."""
        if not self._strike(member):
            return False
        self._missed += 1
        return True

    def _strike(self, member: Member) -> bool:
        if member not in self._pending:
            return False
        self._pending.discard(member)
        self._settle()
        return True

    def _settle(self) -> None:
        if not self._pending:
            self._settled.set()

    def end(self) -> None:
        """No acknowledgement counts from now on."""
        self._final = self.counts
        self.ended = True
        self._pending.clear()
        self._settled.set()


class Receipts:
    """The open receipts of the process, oldest first."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._by_id: dict[str, Receipt] = {}
        self._waiting: dict[StreamKey, list[Receipt]] = {}
        self._pending = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def open(self, id: str, key: StreamKey, position: Position, timeout: float) -> Receipt:
        """A receipt for what has this moment been committed at `position`, for `timeout` seconds."""
        receipt = Receipt(id, key, position, self._presence, trio.current_time() + timeout)
        self._by_id[id] = receipt
        if receipt.waiting:
            self._waiting.setdefault(key, []).append(receipt)
            self._pending += receipt.waiting
        while self._pending > MAX_PENDING or len(self._by_id) > MAX_RECEIPTS:
            self._end(next(iter(self._by_id.values())))
        return receipt

    def find(self, id: str) -> Receipt | None:
        """The receipt of this id, if it has not ended."""
        return self._by_id.get(id)

    def acknowledge(self, key: StreamKey, member: Member, after: int, upto: int) -> None:
        """`member` has processed what lies after seq `after`, up to `upto`."""
        for receipt in self._between(key, after + 1, upto):
            self._note(receipt, struck=receipt.acknowledge(member))

    def miss(self, key: StreamKey, member: Member, first: int, last: int) -> None:
        """What lies from `first` to `last` will never reach `member`."""
        for receipt in self._between(key, first, last):
            self._note(receipt, struck=receipt.miss(member))

    def _between(self, key: StreamKey, first: int, last: int) -> list[Receipt]:
        receipts = self._waiting.get(key)
        if receipts is None:
            return []
        begin = bisect_left(receipts, first, key=_seq)
        return receipts[begin : bisect_left(receipts, last + 1, begin, key=_seq)]

    def _note(self, receipt: Receipt, *, struck: bool) -> None:
        if struck:
            self._pending -= 1
            if not receipt.waiting:
                self._forget_waiting(receipt)

    def _forget_waiting(self, receipt: Receipt) -> None:
        receipts = self._waiting[receipt.key]
        receipts.remove(receipt)
        if not receipts:
            del self._waiting[receipt.key]

    def _end(self, receipt: Receipt) -> None:
        if receipt.waiting:
            self._pending -= receipt.waiting
            self._forget_waiting(receipt)
        del self._by_id[receipt.id]
        receipt.end()

    def expire(self, now: float) -> None:
        """End those whose time is up; `now` is trio's."""
        self._end_all([one for one in self._by_id.values() if one.deadline <= now])

    def close(self) -> None:
        """The server stops: end them all."""
        self._end_all(list(self._by_id.values()))

    def _end_all(self, receipts: Iterable[Receipt]) -> None:
        for receipt in receipts:
            self._end(receipt)


def _seq(receipt: Receipt) -> int:
    return receipt.position.seq
