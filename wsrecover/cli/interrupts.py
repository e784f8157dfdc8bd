"""Ctrl-C as something that happens, not as an exception between any two instructions."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from typing import Never, TypeVar, TypeVarTuple, Unpack

import trio

__all__ = ["run"]

Args = TypeVarTuple("Args")
R = TypeVar("R")


def run(function: Callable[[Unpack[Args]], Awaitable[R]], *args: *Args) -> R:
    """`trio.run`, in which SIGINT cancels `function`; then `KeyboardInterrupt` comes out, in a group.

    Python would raise it wherever the program is at that moment. In a weak reference's callback, or where a
    generator is collected, nobody hears of it, and the program would go on for ever. What `function` raises
    comes out in a group, too. A second SIGINT is raised as ever.
    """
    return trio.run(_run, function, args)


async def _run(function: Callable[[Unpack[Args]], Awaitable[R]], args: tuple[*Args]) -> R:
    async with trio.open_nursery() as nursery:
        # A shell's background job is to ignore it.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            await nursery.start(_interrupt)
        result = await function(*args)
        nursery.cancel_scope.cancel()
    return result


async def _interrupt(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> Never:
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
    raise KeyboardInterrupt
