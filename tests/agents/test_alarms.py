"""Calls at a given time, all from one task."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.agents.alarms import AT_ONCE, Alarms


@pytest.fixture
def alarms(nursery: trio.Nursery) -> Alarms:
    alarms = Alarms()
    nursery.start_soon(alarms.run)
    return alarms


class Steps(trio.abc.Instrument):
    """Counts the steps of the task that rings."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "Alarms.run" in task.name


async def test_they_ring_in_the_order_of_their_times(alarms: Alarms, autojump_clock: MockClock) -> None:
    rung: list[tuple[float, float]] = []
    await wait_all_tasks_blocked()
    for at in (3.0, 1.0, 2.0, 2.0, -1.0, float("-inf")):
        alarms.set(at, lambda at: rung.append((at, trio.current_time())))
    await trio.sleep(10)
    assert rung == [(float("-inf"), 0), (-1, 0), (1, 1), (2, 2), (2, 2), (3, 3)]


async def test_one_that_is_set_while_others_ring_has_its_turn(
    alarms: Alarms, autojump_clock: MockClock
) -> None:
    rung: list[float] = []

    def again(at: float) -> None:
        rung.append(at)
        if at < 3:
            alarms.set(at + 1, again)

    alarms.set(1.0, again)
    await trio.sleep(10)
    assert rung == [1, 2, 3]


async def test_nothing_runs_while_none_is_set(alarms: Alarms, autojump_clock: MockClock) -> None:
    alarms.set(1.0, lambda _: None)
    await trio.sleep(2)
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await trio.sleep(10_000)
    assert steps.count == 0
    alarms.set(trio.current_time() + 1, lambda _: None)
    await trio.sleep(2)
    trio.lowlevel.remove_instrument(steps)
    assert 0 < steps.count <= 3


async def test_a_bug_in_one_does_not_silence_the_others(
    alarms: Alarms, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    rung: list[float] = []
    alarms.set(1.0, lambda at: 1 // 0)
    alarms.set(1.0, rung.append)
    alarms.set(2.0, rung.append)
    await trio.sleep(3)
    assert rung == [1, 2]
    assert "ZeroDivisionError" in capsys.readouterr().out


async def test_many_at_once_let_others_run(alarms: Alarms, mock_clock: MockClock) -> None:
    rung: list[float] = []
    for _ in range(100 * AT_ONCE):
        alarms.set(1.0, rung.append)
    await wait_all_tasks_blocked()
    mock_clock.jump(1)
    seen: set[int] = set()
    while len(rung) < 100 * AT_ONCE:
        seen.add(len(rung))
        await trio.lowlevel.checkpoint()
    assert len(seen) > 50
