"""What is shed at which share of the memory budget, for how long, and what that means for who connects."""

from __future__ import annotations

import pytest
import structlog
import trio

from wsrecover.session.lag import FRAME_BYTES, Lag
from wsrecover.session.pressure import (
    CALM,
    CALM_INTERVAL,
    CONNECTION_BYTES,
    HOLD,
    INTERVAL,
    MUCH,
    SESSION_BYTES,
    SLACK,
    Pressure,
    Stage,
    Weights,
)
from wsrecover.streams.page import Page

BUDGET = 100_000_000
EACH = SESSION_BYTES + CONNECTION_BYTES


def held(share: float) -> Weights:
    return Weights(tails=round(share * BUDGET))


@pytest.fixture
def pressure() -> Pressure:
    return Pressure(BUDGET)


def stages(pressure: Pressure, *shares: float, start: float = 0.0) -> list[Stage]:
    """The stage after each look, one a second."""
    found = []
    for place, share in enumerate(shares):
        pressure.note(held(share), start + place * INTERVAL)
        found.append(pressure.stage)
    return found


class TestStages:
    def test_come_in_order_as_memory_fills_and_all_before_the_budget_is_used_up(self, pressure) -> None:
        assert stages(pressure, 0.0, 0.79, 0.8, 0.85, 0.9, 1.0) == [
            Stage.NOTHING,
            Stage.NOTHING,
            Stage.EPHEMERAL,
            Stage.TAILS,
            Stage.CONNECTS,
            Stage.RESUMES,
        ]

    def test_end_in_the_reverse_order_a_tenth_lower(self, pressure) -> None:
        stages(pressure, 1.0)
        ends = [(0.9, 4), (0.89, 3), (0.8, 3), (0.79, 2), (0.75, 2), (0.74, 1), (0.7, 1)]
        for place, (share, stage) in enumerate(ends):
            assert stages(pressure, *[share] * 10, start=10 + 10 * place)[-1] == stage
        assert stages(pressure, 0.69, start=1000) == [Stage.NOTHING]

    def test_last_a_while_after_what_began_them(self, pressure) -> None:
        after = stages(pressure, 0.9, *[0.0] * 6)
        assert after == [Stage.CONNECTS] * 5 + [Stage.NOTHING] * 2

    def test_do_not_flap_where_memory_goes_to_and_fro_at_a_bound(self, pressure) -> None:
        with structlog.testing.capture_logs() as logs:
            stages(pressure, *[0.91, 0.89] * 50)
        assert [line["event"] for line in logs] == ["memory_short"]

    def test_are_said_when_they_begin_and_end(self, pressure) -> None:
        with structlog.testing.capture_logs() as logs:
            stages(pressure, 0.95, 1.0)
            stages(pressure, 0.85, 0.0, start=10)
            stages(pressure, 0.0, start=20)
        said = [(line["event"], line["sheds"], line["log_level"]) for line in logs]
        assert said == [
            ("memory_short", "connects", "warning"),
            ("memory_short", "resumes", "warning"),
            ("memory_eased", "connects", "info"),
            ("memory_recovered", "nothing", "info"),
        ]
        assert (logs[0]["held"], logs[0]["budget"], logs[0]["tails"]) == (95_000_000, BUDGET, 95_000_000)

    def test_that_tails_may_help_with_wait_for_that(self, pressure) -> None:
        pressure.note(held(2.0), 0.0, upto=Stage.TAILS)
        assert pressure.stage == Stage.TAILS
        assert pressure.reaches(Stage.CONNECTS)
        pressure.note(held(0.1), 0.0)
        assert pressure.stage == Stage.TAILS
        assert pressure.wait(0.0, resumes=False) == 0.0


class TestConnects:
    def test_new_ones_wait_before_those_that_resume(self, pressure) -> None:
        stages(pressure, 0.95)
        assert pressure.wait(0.0, resumes=False) == HOLD
        assert pressure.wait(0.0, resumes=True) == 0.0
        stages(pressure, 1.0, start=1.0)
        assert pressure.wait(1.0, resumes=True) == HOLD

    def test_are_let_in_when_their_wait_is_over_and_memory_fell_and_not_before(self, pressure) -> None:
        stages(pressure, 1.0, 0.0, 0.0, 0.0, 0.0)
        for resumes in (False, True):
            assert pressure.wait(HOLD - 0.001, resumes=resumes) == pytest.approx(0.001)
            assert pressure.wait(HOLD, resumes=resumes) == 0.0

    def test_wait_on_where_it_did_not(self, pressure) -> None:
        stages(pressure, *[0.85, 0.95] * 10)
        assert pressure.wait(19.0, resumes=False) == HOLD

    def test_between_two_looks_are_counted_and_those_over_the_budget_wait_for_the_next(
        self, pressure
    ) -> None:
        stages(pressure, 0.0)
        let_in = 0
        while not pressure.wait(0.25, resumes=False):
            pressure.enter()
            let_in += 1
        assert let_in == -(-BUDGET * 9 // 10 // EACH)
        assert pressure.wait(0.25, resumes=False) == 0.75
        while not pressure.wait(0.25, resumes=True):
            pressure.enter()
            let_in += 1
        assert let_in == -(-BUDGET // EACH)
        stages(pressure, 0.5, start=1.0)
        assert pressure.wait(1.0, resumes=False) == 0.0


class TestBetweenTwoLooks:
    def test_what_is_read_for_slow_readers_is_held_and_makes_connects_wait(self, pressure) -> None:
        stages(pressure, 0.5)
        pressure.take(round(0.45 * BUDGET))
        assert pressure.held == round(0.95 * BUDGET)
        assert pressure.wait(0.0, resumes=False) == INTERVAL
        assert pressure.wait(0.0, resumes=True) == 0.0
        stages(pressure, 0.5, start=1.0)
        assert pressure.wait(1.0, resumes=False) == 0.0

    def test_pages_are_whole_while_there_is_room_and_never_use_it_up(self, pressure) -> None:
        page = 256 * 1024
        stages(pressure, 0.5)
        assert pressure.portion(page) == page
        for _ in range(10_000):
            pressure.take(pressure.portion(page))
        assert pressure.portion(page) == 1
        assert pressure.held < BUDGET + 10_000

    def test_a_page_has_at_least_one_event_with_nothing_left(self, pressure) -> None:
        stages(pressure, 1.5)
        assert pressure.portion(256 * 1024) == 1

    async def test_much_that_was_taken_brings_the_next_one_forward(self, pressure, mock_clock) -> None:
        pressure.note(held(CALM), 0.0)
        pressure.take(round(MUCH * BUDGET))
        assert not pressure._hurry.is_set()
        pressure.take(1)
        with trio.fail_after(INTERVAL / 2):
            await pressure.wait_due()
        assert pressure.is_due(trio.current_time())

    async def test_much_that_was_taken_while_there_is_room_does_not(self, pressure, autojump_clock) -> None:
        pressure.note(held(0.1), 0.0)
        pressure.take(round(0.3 * BUDGET))
        await pressure.wait_due()
        assert trio.current_time() == INTERVAL
        assert not pressure.is_due(trio.current_time())


def test_what_a_store_in_memory_keeps_is_counted_once() -> None:
    assert Weights(log=10, tails=7, journal=1, backlog=2, contexts=3, sessions=4).total == 20
    assert Weights(tails=7, journal=1).total == 8


def test_looks_are_rare_while_there_is_much_room(pressure) -> None:
    assert pressure.is_due(0.0)
    for share, start, due in [(0.49, 0, CALM_INTERVAL), (0.51, 10, INTERVAL)]:
        stages(pressure, share, start=start)
        assert not pressure.is_due(start + due - 0.001) or due == INTERVAL
        assert pressure.is_due(start + due)
    stages(pressure, 0.9, 0.0, start=20)
    assert pressure.is_due(20 + 2 * INTERVAL), "what was shed is to end in time"
    stages(pressure, 0.3, start=40)
    while not pressure.is_due(40 + INTERVAL):
        pressure.enter()
    assert not pressure.wait(40 + INTERVAL, resumes=False)


def test_what_was_read_for_a_slow_reader_and_not_sent_is_held() -> None:
    lag = Lag(0, announce=False)
    assert lag.held == 0
    lag.frames.extend([b"12345", b"678"])
    lag.page = Page(1, [b"{}"] * 3)
    assert lag.held == 5 + 3 + 2 * FRAME_BYTES + 3 * (len(b"{}") + FRAME_BYTES)


def test_slack_keeps_the_order_of_the_stages() -> None:
    """A stage that lasts finds all before it lasting, whatever is held."""
    pressure, now = Pressure(BUDGET), 0.0
    for share in [1.0, 0.95, 0.9, 0.92, 0.85, 0.88, 0.8, 0.83, 0.75, 0.78, 0.72, 0.9, 0.79, 0.7, 0.65]:
        now += HOLD / 2
        pressure.note(held(share), now)
        untils = [pressure._until[stage] for stage in sorted(pressure._until)]
        assert untils == sorted(untils, reverse=True), f"at {share}, slack {SLACK}"
