"""Room in a queue, bounded in count and bytes, given out in the order of asking."""

from __future__ import annotations

from collections import OrderedDict

import trio

from wsrecover.errors import StoreError

__all__ = ["Room"]


class Room:
    """Admits what fits: `max_units`, and `max_bytes` in all, or anything where nothing else is held.

    `units` and `bytes` are held. What does not take them beyond `max_units` and `limit` may come in without
    more ado: that is -1 while somebody waits or enters, and once it is closed.
    """

    def __init__(self, max_units: int, max_bytes: int) -> None:
        self.units = 0
        self.bytes = 0
        self.max_units = max_units
        self._max_bytes = max_bytes
        self.limit = max_bytes
        self._waiting: OrderedDict[trio.lowlevel.Task, int] = OrderedDict()
        self._entering = 0  # Admitted, but not running yet: nobody may pass them.
        self._closed: StoreError | None = None

    @property
    def waiting(self) -> int:
        """How many tasks wait for room."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """The sizes of what they wait with."""
        return sum(self._waiting.values())

    def _fits(self, size: int) -> bool:
        return self.units < self.max_units and (self.bytes + size <= self._max_bytes or not self.units)

    def take_nowait(self, size: int) -> None:
        """Take room for one unit of `size` bytes, or raise `trio.WouldBlock`;

        once closed, the error given there.
        """
        total = self.bytes + size
        if total > self.limit or self.units >= self.max_units:
            self._check_entry(size)
        self.units += 1
        self.bytes = total

    def _check_entry(self, size: int) -> None:
        if self._closed is not None:
            raise type(self._closed)(*self._closed.args)
        if self._waiting or self._entering or not self._fits(size):
            raise trio.WouldBlock

    def _let_in_freely(self) -> None:
        """Where nobody is to be before them, let those who come in without more ado."""
        if not self._waiting and not self._entering and self._closed is None:
            self.limit = self._max_bytes

    async def take(self, size: int) -> None:
        """Wait for room and take it.

        Cancelled: nothing is taken. Only waits, and only then yields, where it is full.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self.take_nowait(size)
        except trio.WouldBlock:
            task = trio.lowlevel.current_task()
            self._waiting[task] = size
            self.limit = -1

            def abort(_: object) -> trio.lowlevel.Abort:
                del self._waiting[task]
                if self._closed is None:
                    self._admit()
                    self._let_in_freely()
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
            if self._waiting.pop(task, None) is not None:
                self.take_nowait(size)
                return
            self._entering -= 1
            if not self._entering and self._closed is None:
                self._admit()
                self._let_in_freely()

    def give(self, units: int, size: int) -> None:
        """Give back the room of `units` units, `size` bytes in all."""
        self.units -= units
        self.bytes -= size
        if self._waiting and self._closed is None:
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            task, size = next(iter(self._waiting.items()))
            if not self._fits(size):
                return
            del self._waiting[task]
            self.units += 1
            self.bytes += size
            self._entering += 1
            trio.lowlevel.reschedule(task)

    def close(self, error: StoreError) -> None:
        """Admit nobody any more: those who wait, and those who come, get `error`."""
        if self._closed is not None:  # Those who wait are awake already, and may not have run yet.
            return
        self._closed = error
        self.limit = -1
        for task in self._waiting:  # Those admitted before have left already, and may still enter.
            trio.lowlevel.reschedule(task)
