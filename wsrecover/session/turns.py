"""Frames that are handled in tasks of their own, and yet in the order in which they came."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from wsrecover.errors import CommandError

from .members import Members

__all__ = ["Turns"]

F = TypeVar("F")


class Turns:
    """Starts tasks in a session, each of which begins when the one before says that it may.

    At most `most` of those that `admit` was asked for wait for the one before.
    """

    def __init__(self, members: Members, most: int) -> None:
        self._most = most
        self._waiting = 0
        self._members = members
        self._last: trio.Event | None = None

    def admit(self) -> None:
        """Make room for one that will be started as `admitted`. Raises `CommandError("overloaded")`."""
        if self._waiting >= self._most:
            problem = f"{self._most} frames wait for their turn, the limit"
            raise CommandError("overloaded", problem, retry_after=1.0)
        self._waiting += 1

    def start(
        self,
        handle: Callable[[F, trio.Event], Awaitable[None]],
        frame: F,
        *,
        admitted: bool,
        fail: Callable[[], None],
    ) -> None:
        """Handle a frame in its turn; `handle` sets the event, or ends, when the next one may begin.

        `fail` is called where it raises. Raises `StoreClosed` once the session has ended.
        """
        before, self._last = self._last, trio.Event()
        self._members.start(self._run, handle, frame, before, self._last, admitted, fail)

    async def _run(
        self,
        handle: Callable[[F, trio.Event], Awaitable[None]],
        frame: F,
        before: trio.Event | None,
        begun: trio.Event,
        admitted: bool,  # noqa: FBT001  # As a task is given its arguments.
        fail: Callable[[], None],
    ) -> None:
        # Tasks that start in one tick run in any order, and what a client says is to be logged in its own.
        try:
            if before is not None and not before.is_set():
                await before.wait()
            self._waiting -= admitted
            await handle(frame, begun)
        except Exception:  # The session's members log it; the connection cannot tell what it left undone.
            fail()
            raise
        finally:
            begun.set()
