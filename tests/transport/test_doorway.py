"""What becomes of those who come when descriptors or memory run out, and what is said of it."""

from __future__ import annotations

import errno
import math
import resource
from typing import Any

import pytest
import structlog
import trio
from trio.testing import MockClock

from wsrecover.transport.doorway import (
    FIRST_PAUSE,
    FULL,
    LONGEST_PAUSE,
    QUIET,
    Doorway,
    raise_descriptor_limit,
)

NONE_LEFT = OSError(errno.EMFILE, "Too many open files")


class System:
    """How many descriptors there are."""

    def __init__(self, most: float) -> None:
        self.most = most

    def __call__(self) -> float:
        return self.most


def events(logs: list[Any]) -> list[str]:
    return [line["event"] for line in logs]


async def test_connections_leave_a_reserve_and_of_a_small_limit_a_quarter() -> None:
    for most, first_refused in ((20_000, 20_000 - 64), (1024, 960), (100, 75)):
        doorway = Doorway(System(most))
        assert doorway.enter(first_refused - 1) is None
        assert doorway.enter(first_refused) is FULL
        assert doorway.statistics().turned_away == 1


async def test_half_of_the_reserve_is_not_even_for_refusals() -> None:
    doorway = Doorway(System(1024))
    assert not doorway.is_nearly_out(1024 - 33)
    assert doorway.is_nearly_out(1024 - 32)


async def test_a_limit_that_is_raised_or_lowered_holds_without_a_restart() -> None:
    system = System(100)
    doorway = Doorway(system)
    assert doorway.enter(90) is FULL
    system.most = 200
    assert doorway.enter(90) is None
    assert doorway.enter(140) is None
    system.most = 100
    doorway.failed(NONE_LEFT)
    assert doorway.enter(90) is FULL


async def test_without_a_limit_nobody_is_refused() -> None:
    assert Doorway(System(math.inf)).enter(10**9) is None


async def test_pauses_grow_to_a_bound_and_begin_anew_once_somebody_came_in() -> None:
    doorway = Doorway(System(1000))
    pauses = [doorway.failed(NONE_LEFT) for _ in range(10)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    doorway.enter(7)
    assert doorway.failed(NONE_LEFT) == FIRST_PAUSE


async def test_trouble_is_said_once_and_its_end_once_it_was_quiet(mock_clock: MockClock) -> None:
    doorway = Doorway(System(100))
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            doorway.failed(NONE_LEFT)
            doorway.enter(99)
            doorway.enter(7)
            mock_clock.jump(QUIET * 0.9)
        assert events(logs) == ["accept_paused", "descriptors_short"]
        assert doorway.statistics().troubled
        mock_clock.jump(QUIET * 0.2)
        doorway.enter(7)
        doorway.enter(7)
        assert events(logs[2:]) == ["accepting_again"]
        assert (logs[2]["turned_away"], logs[2]["failures"]) == (100, 100)
        assert not doorway.statistics().troubled
        doorway.enter(99)
        mock_clock.jump(QUIET)
        doorway.enter(7)
    assert events(logs[3:]) == ["descriptors_short", "accepting_again"]
    assert (logs[-1]["turned_away"], logs[-1]["failures"]) == (1, 0)
    statistics = doorway.statistics()
    assert (statistics.turned_away, statistics.failures) == (101, 100)
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_system_that_gives_no_more_descriptors_is_no_trouble(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    asked: list[object] = []

    def refuse(*arguments: object) -> None:
        asked.append(arguments)
        raise error("no")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_descriptor_limit()
    assert len(asked) == 1
