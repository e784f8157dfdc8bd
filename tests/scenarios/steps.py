"""Something that happens at a step of the scheduler, by its number, so that a test can try each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

__all__ = ["SEED", "AtStep", "interrupted"]

SEED = 3
"""Of the order in which trio runs the tasks of a tick; see `same_order_each_time` in conftest."""


class AtStep(trio.abc.Instrument):
    """Calls `act` once, after so many steps of any tasks from now on. `reached`: it did."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self.left = step
        self.act = act
        self.reached = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left < 0 and not self.reached:
            self.reached = True
            self.act()


@asynccontextmanager
async def interrupted(step: int, act: Callable[[], None]) -> AsyncIterator[AtStep]:
    instrument = AtStep(step, act)
    trio.lowlevel.add_instrument(instrument)
    try:
        yield instrument
    finally:
        trio.lowlevel.remove_instrument(instrument)
