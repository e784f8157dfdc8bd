"""What accept loops do where descriptors or memory run out: turn away, then pause, and say so once.

::

    descriptor of the new connection, the lowest one that is free
    0 ······ limit - reserve ······ limit - reserve / 2 ······ limit
      let in      │     told 503, and     │    told 503 as       │  accept itself fails:
                  │     why               │    far as it goes    │  pause, and try again

The reserve is for whatever else needs descriptors: the store, fetching keys, an agent's own files and calls.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import attrs
import trio

from wsrecover.logger import get_logger

from .handshake import Refusal

__all__ = [
    "FIRST_PAUSE",
    "FULL",
    "LONGEST_PAUSE",
    "QUIET",
    "AcceptStatistics",
    "Doorway",
    "raise_descriptor_limit",
]

log = get_logger(__name__)

RESERVE: Final = 64
"""Descriptors that connections do not take; a quarter where the system gives so few that it would be more."""

FIRST_PAUSE: Final = 0.05
"""Seconds until accept is tried again after it failed; twice as long after each further time."""

LONGEST_PAUSE: Final = 1.0
"""Seconds: what a peer waits at most once there is room again."""

QUIET: Final = 2 * LONGEST_PAUSE
"""Seconds without trouble after which it is over: what comes and goes faster is said once."""

FULL: Final = Refusal(503, "The server has no room for another connection.", (("Retry-After", "1"),))


@attrs.frozen
class AcceptStatistics:
    """Since the start: connections `turned_away` for want of descriptors, and `failures` to accept one.

    `troubled` is whether either went on when somebody last came.
    """

    turned_away: int
    failures: int
    troubled: bool


def descriptor_limit() -> float:
    """How many descriptors the process may have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may give itself: its soft limit becomes the hard one.

    The soft one is low for the sake of programs that use select(2). Where the system refuses it stays.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Doorway:
    """The trouble that all accept loops of one server share; `limit` tells how many descriptors there are."""

    def __init__(self, limit: Callable[[], float] = descriptor_limit) -> None:
        self._limit = limit
        self._turned_away = 0
        self._failures = 0
        self._said: set[str] = set()
        self._since = 0.0
        self._before = (0, 0)
        self._last = -math.inf
        self._pause = FIRST_PAUSE
        self._measure()

    def _measure(self) -> None:
        """The limit may be raised or lowered at any time."""
        self._most = self._limit()
        self._reserve = min(RESERVE, self._most // 4)
        self._full_from = self._most - self._reserve

    def enter(self, descriptor: int) -> Refusal | None:
        """A connection was accepted as this descriptor: None, or what to tell it instead of letting it in."""
        self._pause = FIRST_PAUSE
        if descriptor >= self._full_from:
            self._measure()
            if descriptor >= self._full_from:
                self._trouble("descriptors_short", limit=self._most, reserve=self._reserve)
                self._turned_away += 1
                return FULL
        if self._said and trio.current_time() - self._last >= QUIET:
            self._recover()
        return None

    def is_nearly_out(self, descriptor: int) -> bool:
        """Whether not even a refusal at leisure can be afforded."""
        return descriptor >= self._most - self._reserve // 2

    def failed(self, error: OSError) -> float:
        """Accepting raised `error`; the seconds to wait before the next try."""
        self._measure()
        self._trouble("accept_paused", error=str(error))
        self._failures += 1
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        return pause

    def _trouble(self, what: str, **details: object) -> None:
        now = trio.current_time()
        if not self._said:
            self._since = now
            self._before = (self._turned_away, self._failures)
        if what not in self._said:
            self._said.add(what)
            log.warning(what, **details)
        self._last = now

    def _recover(self) -> None:
        self._said.clear()
        turned_away, failures = self._before
        log.info(
            "accepting_again",
            troubled_seconds=round(self._last - self._since, 3),
            turned_away=self._turned_away - turned_away,
            failures=self._failures - failures,
        )

    def statistics(self) -> AcceptStatistics:
        """Counts, without waiting."""
        return AcceptStatistics(self._turned_away, self._failures, bool(self._said))
