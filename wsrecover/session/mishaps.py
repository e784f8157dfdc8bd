"""What went wrong lately, by kind: the last hour, in memory that does not grow with the number of errors."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs
import trio

from wsrecover.protocol.closecodes import CloseCode

__all__ = ["KINDS", "QUIET_ENDS", "WINDOW", "ErrorCount", "Mishaps"]

WINDOW: Final = 3600.0
"""Seconds after which an error is forgotten, give or take a minute."""

KINDS: Final = 100
"""Kinds that are told apart at once; any others are counted as `other`."""

QUIET_ENDS: Final = frozenset(
    {
        CloseCode.NORMAL_CLOSURE,
        CloseCode.GOING_AWAY,
        CloseCode.NO_STATUS,
        CloseCode.DRAIN,
        CloseCode.REPLACED,
    }
)
"""Ends of a connection that nobody needs to look into."""

_SLICE: Final = 60.0
"""Seconds whose errors are forgotten together."""


@attrs.frozen
class ErrorCount:
    """How often within the window, and when last (unix s)."""

    count: int
    last: float


@attrs.define
class _Slice:
    begun: float
    counts: Counter[str] = attrs.field(factory=Counter)


class Mishaps:
    """Errors by kind: `frame.<code>` and `command.<code>` as clients were told, also of what a limit refused;
    `run.failed`; `connection.<close code>`; `authenticator`, where that of the program failed."""

    def __init__(self) -> None:
        self._slices: deque[_Slice] = deque()
        self._last: dict[str, float] = {}

    def note(self, kind: str, at: float) -> None:
        """One more of a kind, at unix time `at`."""
        now = trio.current_time()
        self._forget(now)
        if kind not in self._last and len(self._last) >= KINDS:
            kind = "other"
        self._last[kind] = at
        if not self._slices or now - self._slices[-1].begun >= _SLICE:
            self._slices.append(_Slice(now))
        self._slices[-1].counts[kind] += 1

    def statistics(self) -> Mapping[str, ErrorCount]:
        """The kinds of the window, without waiting."""
        self._forget(trio.current_time())
        total: Counter[str] = Counter()
        for one in self._slices:
            total += one.counts
        return MappingProxyType({kind: ErrorCount(count, self._last[kind]) for kind, count in total.items()})

    def _forget(self, now: float) -> None:
        if not self._slices or now - self._slices[0].begun < WINDOW + _SLICE:
            return
        while self._slices and now - self._slices[0].begun >= WINDOW + _SLICE:
            self._slices.popleft()
        kept = {kind for one in self._slices for kind in one.counts}
        self._last = {kind: at for kind, at in self._last.items() if kind in kept}
