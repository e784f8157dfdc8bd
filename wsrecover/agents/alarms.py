"""Calls at a given time, all from one task: a timer for each run would be a task for each run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, Never, TypeAlias

import trio

from wsrecover.logger import get_logger

__all__ = ["Alarms"]

log = get_logger(__name__)

Ring: TypeAlias = Callable[[float], None]

AT_ONCE: Final = 32
"""Calls in one step, after which other tasks run first: about a millisecond."""


class Alarms:
    """What is to be called and when. While nothing is, `run` sleeps."""

    def __init__(self) -> None:
        self._set: list[tuple[float, int, Ring]] = []
        self._number = itertools.count()
        self._sleep = trio.CancelScope()

    def set(self, at: float, ring: Ring) -> None:
        """Call `ring(at)` when trio's clock is at `at` seconds, or soon where that is past.

        It must neither wait nor raise. There is no taking back: who changed its mind ignores the call.
        """
        heappush(self._set, (at, next(self._number), ring))
        if at < self._sleep.deadline:
            self._sleep.deadline = at

    async def run(self) -> Never:
        """Call what is due, until cancelled; what is due later is not called then."""
        while True:
            await self._ring_those_due()
            until = self._set[0][0] if self._set else math.inf
            with trio.CancelScope(deadline=until) as self._sleep:
                await trio.sleep_forever()

    async def _ring_those_due(self) -> None:
        rung = 0
        while self._set and self._set[0][0] <= trio.current_time():
            at, _, ring = heappop(self._set)
            try:
                ring(at)
            except Exception:  # One run's bug must not silence all others.
                log.exception("alarm_failed")
            rung += 1
            if rung % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
