"""Who took something in this step and has not sent it yet."""

from __future__ import annotations

from typing import Final, Protocol

from wsrecover.logger import get_logger

__all__ = ["AT_ONCE", "Sender", "Served"]

log = get_logger(__name__)

AT_ONCE: Final = 64
"""Followers that take before they send, and those of one stream beyond: few enough for their frames to be in
the caches still, where each has its own."""


class Sender(Protocol):
    """One who takes first and sends later."""

    def flush(self) -> None:
        """Send what was taken: all who are served in this step have taken theirs."""


class Served:
    """The `followers` that took something and have not sent it.

    First some take, then these send: a `send` drops from the processor's caches what the next follower's
    taking would find there, which nearly doubles what that costs.
    """

    __slots__ = ("followers",)

    def __init__(self) -> None:
        self.followers: list[Sender] = []

    def flush(self) -> None:
        """Have all of them send."""
        for follower in self.followers:
            try:
                follower.flush()
            except Exception:  # As in `Stream`: one connection's bug is its own task's.
                log.exception("follower_send_failed")
        self.followers.clear()
