"""How long a client waits before it connects again: full jitter, so that clients do not come all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["FIRST", "LONGEST", "STABLE_AFTER", "Backoff"]

FIRST: Final = 0.5
"""Seconds: the ceiling of the first delay. It doubles with every further one."""

LONGEST: Final = 20.0
"""Seconds: the ceiling that no delay's random part exceeds."""

STABLE_AFTER: Final = 60.0
"""Seconds of connection after which the next loss counts as the first."""


class Backoff:
    """The delays of one client. All times are seconds of one monotonic clock; `rng` gives [0, 1)."""

    __slots__ = ("_attempts", "_connected_at", "_rng")

    def __init__(self, rng: Callable[[], float]) -> None:
        self._rng = rng
        self._attempts = 0
        self._connected_at: float | None = None

    def connected(self, now: float) -> None:
        """A connection was welcomed at `now`."""
        self._connected_at = now

    def delay(self, now: float, *, retry_after: float = 0.0, jitter: float | None = None) -> float:
        """The seconds to wait before the next attempt, the last connection having ended at `now`.

        Never less than `retry_after`, which the random part comes on top of. `jitter` bounds the random part
        where the server named a bound (`drain`).
        """
        if self._connected_at is not None and now - self._connected_at >= STABLE_AFTER:
            self._attempts = 0
        self._connected_at = None
        ceiling = min(LONGEST, FIRST * 2 ** min(self._attempts, 16)) if jitter is None else jitter
        self._attempts += 1
        return retry_after + self._rng() * ceiling
