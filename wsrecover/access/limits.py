"""How often something may be done: token buckets that know no clock, time comes with each call.

A bucket is the time at which it is full again (GCRA, the generic cell rate algorithm of ITU-T I.371), in
whole nanoseconds: nothing drifts, and one that is full needs no memory. So is the time of a call, its
`moment`: whoever asks several buckets about one thing makes it once.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import attrs

__all__ = ["Bucket", "Buckets", "Rate", "moment"]

_MICROSECOND: Final = 1_000
_MILLISECOND: Final = 1_000_000
_SECOND: Final = 1_000_000_000


@attrs.frozen
class Rate:
    """`burst` at once, and `per_second` in the long run."""

    per_second: int
    burst: int


def moment(now: float) -> int:
    """`now`, in seconds of any clock that does not go back, as buckets take it.

    Whole microseconds, in nanoseconds: finer than that a float of seconds is noise.
    """
    return round(now * 1_000_000) * _MICROSECOND


class Bucket:
    """What is left of a rate."""

    __slots__ = ("_full_at", "_interval", "_room")

    def __init__(self, rate: Rate) -> None:
        self._full_at = 0
        self._interval = -(-_SECOND // rate.per_second)
        self._room = rate.burst * self._interval

    def change(self, rate: Rate, at: int) -> None:
        """Another rate from the moment `at` on; what was taken stays taken."""
        before = self._interval
        self._interval = -(-_SECOND // rate.per_second)
        self._room = rate.burst * self._interval
        self._full_at = at - (-max(self._full_at - at, 0) * self._interval // before)

    def take(self, at: int, amount: int = 1, *, beyond: int = 0) -> float:
        """Take `amount` at the moment `at`; the burst is `beyond` larger.

        0.0: it was taken. Else nothing was, and it is the time in seconds, up to the millisecond, after which
        it would be; an `amount` above the burst never is.
        """
        full_at = self._full_at
        if full_at < at:
            full_at = at
        full_at += amount * self._interval
        wait = full_at - at - self._room
        if beyond:
            wait -= beyond * self._interval
        if wait > 0:
            return -(-wait // _MILLISECOND) / 1000
        self._full_at = full_at
        return 0.0

    def wait(self, at: int, amount: int = 1) -> float:
        """What `take` would give at the moment `at`; nothing is taken.

        Of an `amount` of 0 it is the time until what was spent on credit is there again.
        """
        wait = max(self._full_at - at, 0) + amount * self._interval - self._room
        return -(-wait // _MILLISECOND) / 1000 if wait > 0 else 0.0

    def spend(self, at: int, amount: int) -> None:
        """Take `amount`, if need be on credit: until that is there again nothing can be taken. Below 0: put
        back what was taken and not used."""
        self._full_at = max(self._full_at, at) + amount * self._interval

    def is_full(self, at: int) -> bool:
        """Whether it is as if nothing had been taken."""
        return self._full_at <= at


@attrs.define
class Buckets:
    """A bucket of one rate for each key, such as an address; `most` of them are kept.

    The full ones are forgotten first: forgetting them changes nothing. Only where so many are below full at
    once, those that came first go, an eighth of all, and have their burst anew.
    """

    rate: Rate
    most: int = 16_384
    _buckets: dict[Hashable, Bucket] = attrs.field(factory=dict, init=False)

    def take(self, key: Hashable, at: int, amount: int = 1, *, beyond: int = 0) -> float:
        """See `Bucket.take`."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self.most:
                self._forget(at)
            bucket = self._buckets[key] = Bucket(self.rate)
        return bucket.take(at, amount, beyond=beyond)

    def __len__(self) -> int:
        return len(self._buckets)

    def _forget(self, at: int) -> None:
        for key in [key for key, bucket in self._buckets.items() if bucket.is_full(at)]:
            del self._buckets[key]
        for key in list(self._buckets)[: max(len(self._buckets) - self.most * 7 // 8, 0)]:
            del self._buckets[key]
