"""What a delivery does where it has to wait: for its socket, its turn, its user's quota, or the store.

::

    pump ──┬─ nothing is owed ──▶ end
      ▲    ├─ the socket is full ──▶ drain ─────────────────────────────────┐
      │    └─ a page is needed ──▶ quota, turn ──▶ read it, send from it ───┤
      │                             └─ nudged: there is more to send ───────┤
      └─────────────────────────────────────────────────────────────────────┘

A nudge while a page is read starts a task beside it, which sends until the socket has taken all: a store
that does not answer, or has failed and is left alone for a while, holds up what was to be read from it, and
nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

import trio

from wsrecover.config import Limits
from wsrecover.errors import StoreCorrupt, StoreError
from wsrecover.logger import get_logger
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.streams.stream import Stream
from wsrecover.transport.outbox import Outbox

from .lag import Lag
from .owner import Owner

__all__ = ["CatchUp", "page_share"]

log = get_logger(__name__)

STORE_RETRY = 1.0
"""Seconds between two tries to read a page from a store that is unavailable."""


def page_share(limits: Limits, lagging: int) -> int:
    """Bytes of a page of one stream: all that lag share what one page may take, for a reader may stall with
    each."""
    return limits.page_bytes // lagging


class CatchUp:
    """A task, which lives while something is owed. `pump` sends what goes at once; True: nothing is owed.

    A replay that the connection asked for, and each snapshot, is paid for by its user's quota: where that is
    used up it waits, and what is live goes on.
    """

    __slots__ = ("_beside", "_lags", "_nudged", "_outbox", "_owner", "_pump", "_reading", "_scope")

    def __init__(
        self, owner: Owner, outbox: Outbox, lags: Mapping[Stream, Lag], pump: Callable[[], bool]
    ) -> None:
        self._owner = owner
        self._outbox = outbox
        self._lags = lags
        self._pump = pump
        self._scope = trio.CancelScope()
        self._beside: trio.CancelScope | None = None
        self._reading = False
        self._nudged: trio.Event | None = None

    def cancel(self) -> None:
        """End it. A page that is being read stays paid; one whose turn has not come does not."""
        self._scope.cancel()
        if self._beside is not None:
            self._beside.cancel()

    def nudge(self) -> None:
        """There is something to send that need not wait for a turn or the quota."""
        if self._nudged is not None:
            self._nudged.set()
        elif self._reading and self._beside is None:
            self._beside = trio.CancelScope()
            self._owner.start(self._send_beside, self._beside)

    async def run(self) -> None:
        """Send what is owed as the socket drains, reading the store where the tail does not reach back."""
        await self._guarded(self._scope, self._send_all)

    async def _send_all(self) -> None:
        while not self._pump():
            if self._outbox.pending:
                await self._drain()
                continue
            try:
                await self._fetch()
            except StoreCorrupt:
                raise
            except (StoreError, trio.TooSlowError) as error:
                log.warning("page_unavailable", error=repr(error))
                await self._pause(STORE_RETRY)

    async def _send_beside(self, scope: trio.CancelScope) -> None:
        try:
            await self._guarded(scope, self._send_meanwhile)
        finally:
            self._beside = None

    async def _send_meanwhile(self) -> None:
        while not self._pump() and self._outbox.pending:
            await self._drain()

    async def _drain(self) -> None:
        await self._outbox.drain(progress_timeout=self._owner.timeouts.write_progress)

    async def _guarded(self, scope: trio.CancelScope, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work in the scope; what fails ends the connection."""
        try:
            with scope:
                await work()
        except trio.TooSlowError:
            self._owner.close(CloseCode.TOO_SLOW, "the socket took nothing for too long")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._owner.kill()
        except StoreCorrupt:
            log.exception("stream_unreadable")
            self._owner.close(CloseCode.INTERNAL_ERROR, "the log cannot be read")
        except Exception:  # Else its peer would wait for ever for what is owed.
            self._owner.close(CloseCode.INTERNAL_ERROR, "internal error")
            raise

    async def _fetch(self) -> None:
        """Get a page or a snapshot for the first stream that the quota lets go on, or wait until it does."""
        wait = math.inf
        most = page_share(self._owner.limits, len(self._lags))
        for stream, lag in self._lags.items():
            snapshot = bool(lag.switches) and lag.snapshot is None
            refused = 0.0
            if snapshot or lag.announce:
                # How large a snapshot is shows as it is sent: what it overdraws is waited for afterwards.
                refused = self._owner.quota.take_replay(0 if snapshot else most)
            if not refused:
                await (self._take_snapshot(stream, lag) if snapshot else self._take_page(stream, lag, most))
                return
            wait = min(wait, refused)
        self._owner.count("replay.paced", 1)
        await self._pause(wait)

    async def _take_snapshot(self, stream: Stream, lag: Lag) -> None:
        with self._a_read():
            snapshot = await self._owner.snapshot()
        if self._lags.get(stream) is lag:
            lag.begin_snapshot(stream, snapshot, part_bytes=self._owner.limits.part_bytes)

    async def _take_page(self, stream: Stream, lag: Lag, most: int) -> None:
        """Read a page in its turn, and send from it. Of the `most` bytes paid the rest is given back."""
        with self._owner.quota.pages.ask(self.nudge) as place:
            while not place.has_turn:
                try:
                    await self._pause()
                except trio.Cancelled:
                    self._settle(lag, -most)
                    raise
                if self._pump() or self._outbox.pending or self._lags.get(stream) is not lag:
                    self._settle(lag, -most)
                    return
            after = lag.after
            try:
                with self._a_read():
                    events = self._owner.limits.page_events
                    room = self._owner.quota.pressure.portion(most)
                    page = await stream.page(after, max_events=events, max_bytes=room)
            except (StoreError, trio.TooSlowError):
                self._settle(lag, -most)
                raise
            size = page.size
            self._settle(lag, size - most)
            if self._lags.get(stream) is lag and lag.after == after:
                self._owner.quota.pressure.take(size)
                lag.page = page
                self._pump()

    @contextmanager
    def _a_read(self) -> Iterator[None]:
        """One call to the store. Raises `trio.TooSlowError`."""
        self._reading = True
        try:
            with trio.fail_after(self._owner.timeouts.store):
                yield
        finally:
            self._reading = False

    def _settle(self, lag: Lag, amount: int) -> None:
        if lag.announce:
            self._owner.quota.settle_replay(amount)

    async def _pause(self, seconds: float = math.inf) -> None:
        """Wait so long, or until nudged."""
        self._nudged = trio.Event()
        with trio.move_on_after(seconds):
            await self._nudged.wait()
        self._nudged = None
