"""The memory that all tails share."""

from __future__ import annotations

__all__ = ["TailBudget"]


class TailBudget:
    """Bytes that the tails of all streams together may hold (`limit`), and do (`used`)."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
