"""A server changes settings of the whole process, and leaves them as they were."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator

import pytest
import trio

from wsrecover import App, Config, StoreError, serve
from wsrecover.interpreter import GC_THRESHOLDS, SWITCH_INTERVAL
from wsrecover.testing import local_server

MINE = ((901, 11, 12), 0.004)
SERVED = (GC_THRESHOLDS, SWITCH_INTERVAL)


def settings() -> tuple[tuple[int, int, int], float]:
    return gc.get_threshold(), pytest.approx(sys.getswitchinterval())


@pytest.fixture(autouse=True)
def mine() -> Iterator[None]:
    """The program's own settings, before any server."""
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(*MINE[0])
    sys.setswitchinterval(MINE[1])
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


class Running:
    """A server in a task of its own, so that several may end in any order."""

    def __init__(self) -> None:
        self._scope, self._ended = trio.CancelScope(), trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with local_server():
                task_status.started()
                await trio.sleep_forever()
        self._ended.set()

    async def end(self) -> None:
        self._scope.cancel()
        await self._ended.wait()


@pytest.mark.parametrize("ends_last", ["first", "second"])
async def test_the_last_of_several_servers_puts_back_what_was_there_before_the_first(
    nursery: trio.Nursery, ends_last: str
) -> None:
    for _ in range(2):
        first, second = Running(), Running()
        await nursery.start(first.run)
        assert settings() == SERVED
        await nursery.start(second.run)
        early, late = (second, first) if ends_last == "first" else (first, second)
        await early.end()
        assert settings() == SERVED
        await late.end()
        assert settings() == MINE


async def test_one_that_cannot_start_leaves_them_too() -> None:
    with pytest.raises(StoreError):
        await serve(App(), Config(port=0, store="sqlite:/nowhere/log.db", secret=bytes(32)))
    assert settings() == MINE
