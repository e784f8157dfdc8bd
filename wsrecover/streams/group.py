"""What is committed together: the units that gather while the journal is busy, and who waits for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from wsrecover.errors import StoreError, StoreFailed
from wsrecover.logger import get_logger

from .erasing import Erasure
from .store import Applied, Entry, Outcome, Unit

__all__ = ["Author", "Group", "Waiter", "appended"]

log = get_logger(__name__)


class Author(Protocol):
    """Who queued a unit. `broken` is the error of the first of its units that was not committed."""

    broken: StoreError | None


class Waiter:
    """One who waits for a unit's outcome. A `final` unit is committed even if its writer is broken.

    `then`, if given, is called with the outcome in the step in which the streams learn of the commit.
    """

    __slots__ = ("_done", "_error", "_outcome", "_then", "final")

    def __init__(self, *, final: bool = False, then: Callable[[Outcome], None] | None = None) -> None:
        self.final = final
        self._then = then
        self._done = trio.Event()
        self._outcome: Outcome | None = None
        self._error: Exception | None = None

    def settle(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._done.set()
        if self._then is not None:
            try:
                self._then(outcome)
            except Exception:  # One caller's bug must not end everybody's journal.
                log.exception("commit_callback_failed")

    def fail(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    async def wait(self) -> Outcome:
        await self._done.wait()
        if self._outcome is None:
            raise self._error or StoreFailed("the journal is closed")
        return self._outcome


class Group:
    """What is committed together, in the order of queueing.

    Entries that are appended one after the other, each by its author, share one unit: nearly all events come
    in this way, and to make and carry a unit for each would cost as much as to encode it. `units` is complete
    once the group is `closed`, `count` and `size` are how many units were queued and the bytes of all bodies.
    `entries` and `entry_authors`, to which writers add, are what was appended since the last unit, by whom.
    `waiters` are by the place of their unit. `erasures` come after the units. `settled` is set once the fate
    of all is known.
    """

    __slots__ = (
        "_authors",
        "_done",
        "count",
        "entries",
        "entry_authors",
        "erasures",
        "settled",
        "size",
        "units",
        "waiters",
    )

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.waiters: dict[int, Waiter] = {}
        self.erasures: list[Erasure] = []
        self.count = 0
        self.size = 0
        self.settled = False
        self._authors: list[Sequence[Author | None]] = []  # Of each unit, or of each of its entries.
        self.entries: list[Entry] = []
        self.entry_authors: list[Author] = []
        self._done: trio.Event | None = None

    def add(self, unit: Unit, size: int, author: Author | None, waiter: Waiter | None) -> None:
        """Queue a unit of `size` bytes."""
        self.close()
        if waiter is not None:
            self.waiters[len(self.units)] = waiter
        self.units.append(unit)
        self._authors.append((author,))
        self.count += 1
        self.size += size

    def close(self) -> None:
        """Make the unit of what was appended."""
        if self.entries:
            self.units.append(Unit(tuple(self.entries)))
            self._authors.append(self.entry_authors)
            self.count += len(self.entries)
            self.entries, self.entry_authors = [], []

    async def wait(self) -> None:
        """Wait until it is settled."""
        if self._done is None:
            self._done = trio.Event()
        await self._done.wait()

    def refuse(self) -> None:
        """Take out what broken authors queued, but for their last words."""
        queued, waiters = zip(self.units, self._authors, strict=True), self.waiters
        self.units, self._authors, self.waiters, self.count = [], [], {}, 0
        for place, (unit, authors) in enumerate(queued):
            waiter = waiters.get(place)
            broken = [author.broken for author in authors if author is not None and author.broken is not None]
            if not broken or (waiter is not None and waiter.final):
                self._keep(unit, authors, waiter)
            elif waiter is not None:
                waiter.fail(_copy(broken[0]))
            elif len(broken) < len(authors):
                self._keep(*_spared(unit, authors), None)

    def _keep(self, unit: Unit, authors: Sequence[Author | None], waiter: Waiter | None) -> None:
        if waiter is not None:
            self.waiters[len(self.units)] = waiter
        self.units.append(unit)
        self._authors.append(authors)
        self.count += len(authors)

    def fail(self, error: StoreError) -> None:
        """Nothing of it was committed, because of `error`."""
        for authors in self._authors:
            for author in authors:
                if author is not None and author.broken is None:
                    author.broken = error
        for waiter in self.waiters.values():
            waiter.fail(_copy(error))
        for erasure in self.erasures:
            erasure.end(error)
        self.erasures.clear()

    def settle(self) -> None:
        """Tell those who wait for all of it, and let go of it: its authors hold the group until they write to
        another one."""
        self.settled = True
        self.units, self._authors = [], []
        if self._done is not None:
            self._done.set()


def appended(unit: Unit, applied: Applied) -> list[Entry]:
    """What of the unit was not there already."""
    return [entry for place, entry in enumerate(unit.entries) if place not in applied.repeats]


def _spared(unit: Unit, authors: Sequence[Author | None]) -> tuple[Unit, list[Author | None]]:
    """Of a unit of many authors what those appended who are not broken."""
    kept = [
        (entry, author)
        for entry, author in zip(unit.entries, authors, strict=True)
        if author is None or author.broken is None
    ]
    return Unit(tuple([entry for entry, _ in kept])), [author for _, author in kept]


def _copy(error: StoreError) -> StoreError:
    """The same error for another task: one instance raised in many would gather all their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
