"""What is committed together: the units that gather while the journal is busy, and who waits for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from wsrecover.errors import StoreError, StoreFailed

from .store import Outcome, Unit

__all__ = ["Author", "Group", "Waiter"]

_log = structlog.get_logger(__name__)


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
            except Exception:  # noqa: BLE001  # One caller's bug must not end everybody's journal.
                _log.exception("commit callback failed")

    def fail(self, error: Exception) -> None:
        self._error = error
        self._done.set()

    async def wait(self) -> Outcome:
        await self._done.wait()
        if self._outcome is None:
            raise self._error or StoreFailed("the journal is closed")
        return self._outcome


class Group:
    """Units that are committed together, in the order of queueing, each with its author, if it has one.

    `waiters` are by the place of their unit, `size` is the bytes of all bodies. `settled` is set once their
    fate is known.
    """

    __slots__ = ("_done", "_listeners", "authors", "settled", "size", "units", "waiters")

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.authors: list[Author | None] = []
        self.waiters: dict[int, Waiter] = {}
        self.size = 0
        self.settled = False
        self._done: trio.Event | None = None
        self._listeners: list[Callable[[], None]] = []

    async def wait(self) -> None:
        """Wait until it is settled."""
        if self._done is None:
            self._done = trio.Event()
        await self._done.wait()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener` when it is settled."""
        self._listeners.append(listener)

    def refuse(self) -> None:
        """Take out what broken authors queued, but for their last words."""
        units, authors, waiters = self.units, self.authors, self.waiters
        self.units, self.authors, self.waiters = [], [], {}
        for place, (unit, author) in enumerate(zip(units, authors, strict=True)):
            waiter = waiters.get(place)
            if author is None or author.broken is None or (waiter is not None and waiter.final):
                if waiter is not None:
                    self.waiters[len(self.units)] = waiter
                self.units.append(unit)
                self.authors.append(author)
            elif waiter is not None:
                waiter.fail(_copy(author.broken))

    def fail(self, error: StoreError) -> None:
        """Nothing of it was committed, because of `error`."""
        for author in self.authors:
            if author is not None and author.broken is None:
                author.broken = error
        for waiter in self.waiters.values():
            waiter.fail(_copy(error))

    def settle(self) -> None:
        """Tell those who wait for all of it."""
        self.settled = True
        if self._done is not None:
            self._done.set()
        for listener in self._listeners:
            listener()


def _copy(error: StoreError) -> StoreError:
    """The same error for another task: one instance raised in many would gather all their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error
    return copy
