"""What a crowd is sent, in slices, so that one broadcast to thousands does not hold up everybody else.

::

    commit of a ─▶ wave a: all who were live ──deliver a──▶ live
    commit of b ─▶ wave b: those live by then, and whoever comes out of wave a ──deliver b──▶ live

Who is in a wave has everything before that wave's batch. A slice takes about a millisecond.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Never

import attrs
import structlog
import trio

from .stream import Follower, Stream

__all__ = ["Fanout", "Served"]

_log = structlog.get_logger(__name__)

AT_ONCE: Final = 64
"""Followers that take before they send: their frames are still in the caches then."""


class Served:
    """Who took something in this step and has not sent it yet.

    First some take, then these send: a `send` drops from the processor's caches what the next follower's
    taking would find there, which nearly doubles what that costs.
    """

    __slots__ = ("_followers",)

    def __init__(self) -> None:
        self._followers: list[Follower] = []

    def add(self, follower: Follower) -> None:
        """It took something."""
        self._followers.append(follower)
        if len(self._followers) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Have all of them send."""
        followers, self._followers = self._followers, []
        for follower in followers:
            try:
                follower.flush()
            except Exception:  # noqa: BLE001  # As in `Stream`: one connection's bug is its own task's.
                _log.exception("follower failed to send")


@attrs.define(eq=False)
class Fanout:
    """Serves the waves of streams in turn, a slice of each. `run` is its only task."""

    _served: Served
    _streams: deque[Stream] = attrs.field(factory=deque)
    _wake: trio.Event = attrs.field(factory=trio.Event)

    def add(self, stream: Stream) -> None:
        """`stream` has its first wave."""
        self._streams.append(stream)
        self._wake.set()

    async def run(self) -> Never:
        """Serve until cancelled; then those who are in a wave stay behind."""
        while True:
            await self._wake.wait()
            while self._streams:
                stream = self._streams.popleft()
                if stream.serve_wave():
                    self._streams.append(stream)
                self._served.flush()
                await trio.lowlevel.checkpoint()
            self._wake = trio.Event()
