"""What a crowd is sent, in slices, so that one broadcast to thousands does not hold up everybody else.

::

    commit of a ─▶ wave a: all who were live ──deliver a──▶ live
    commit of b ─▶ wave b: those live by then, and whoever comes out of wave a ──deliver b──▶ live

Who is in a wave has everything before that wave's batch. A slice takes about a millisecond.
"""

from __future__ import annotations

from collections import deque
from typing import Never

import attrs
import trio

from .served import Served
from .stream import Stream

__all__ = ["Fanout"]


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
