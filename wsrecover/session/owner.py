"""What a delivery may ask of the connection that owns it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVarTuple, Unpack

from wsrecover.config import Limits, Timeouts

__all__ = ["Owner"]

Args = TypeVarTuple("Args")


class Owner(Protocol):
    """The connection, as its delivery sees it."""

    @property
    def limits(self) -> Limits:
        """The limits in force for this connection."""

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts in force for this connection."""

    def start(self, member: Callable[[Unpack[Args]], Awaitable[None]], *args: *Args) -> None:
        """Run a task in the session's nursery."""

    def close(self, code: int, reason: str) -> None:
        """End the connection with a close frame; returns at once."""

    def kill(self) -> None:
        """End the connection without one; returns at once."""

    def replayed(self, events: int) -> None:
        """Count events that were sent from the log."""
