"""What keeps a session alive: its connections, its commands under way and its runs, in one nursery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple, Unpack

import trio

from wsrecover.errors import StoreClosed
from wsrecover.logger import get_logger

__all__ = ["Members"]

log = get_logger(__name__)

Args = TypeVarTuple("Args")


class Members:
    """The tasks of one session, counted. An exception that one lets out is logged and ends that one alone.

    Whoever is started before the nursery is there waits for it, so that starting is synchronous from the
    first moment: ownership passes without a checkpoint at which it could be lost.
    """

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._waiting: list[Callable[[trio.Nursery], None]] = []
        self._count = 0
        self._over = False
        self._idle_since = trio.current_time()
        self._emptied = trio.Event()

    def __len__(self) -> int:
        return self._count

    def start(self, member: Callable[[Unpack[Args]], Awaitable[None]], *args: *Args) -> None:
        """Run a member; returns at once. Raises `StoreClosed` once the session has ended."""
        if self._nursery is None:
            self._waiting.append(lambda nursery: nursery.start_soon(self._live, member, args))
        else:
            try:
                self._nursery.start_soon(self._live, member, args)
            except RuntimeError as error:  # trio's word for a nursery that is closed
                raise StoreClosed("the server has stopped") from error
        self._count += 1

    def cancel(self) -> None:
        """Cancel all members, those too that were started and have not begun; returns at once."""
        self._over = True
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    async def until_idle(self, nursery: trio.Nursery, linger: float) -> None:
        """Run the members in `nursery` until there has been none for `linger` seconds.

        It returns in the step in which it finds that out: what the caller does before its next checkpoint
        comes before any new member.
        """
        self._nursery = nursery
        # Not in a loop of its own variable: that would keep the last of them for as long as the session is.
        while self._waiting:
            self._waiting.pop(0)(nursery)
        if self._over:
            nursery.cancel_scope.cancel()
        while True:
            if self._count:
                self._emptied = trio.Event()
                await self._emptied.wait()
            # Who comes while it lingers wakes nobody: each connect would pay for it with two task switches.
            await trio.sleep_until(self._idle_since + linger)
            if not self._count and trio.current_time() >= self._idle_since + linger:
                return

    async def _live(self, member: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        try:
            await member(*args)
        except Exception:
            log.exception("member_failed", member=getattr(member, "__qualname__", repr(member)))
        finally:
            self._count -= 1
            if not self._count:
                self._idle_since = trio.current_time()
                self._emptied.set()
