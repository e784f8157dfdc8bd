"""Delays between attempts."""

from __future__ import annotations

import random

import pytest

from wsrecover.protocol.backoff import FIRST, LONGEST, STABLE_AFTER, Backoff


def test_the_ceiling_doubles_up_to_the_longest() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.delay(0.0) for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    assert [Backoff(lambda: 0.0).delay(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_the_delays_of_many_clients_fill_the_whole_range() -> None:
    rng = random.Random(7)
    firsts = [Backoff(rng.random).delay(0.0) for _ in range(1000)]
    assert min(firsts) < 0.02
    assert max(firsts) > FIRST - 0.02
    assert abs(sum(firsts) / 1000 - FIRST / 2) < 0.02


@pytest.mark.parametrize("rolled", [0.0, 0.5, 0.999])
def test_retry_after_is_the_least_that_is_waited(rolled: float) -> None:
    assert Backoff(lambda: rolled).delay(0.0, retry_after=30.0) >= 30.0


def test_a_drains_jitter_bounds_the_random_part() -> None:
    assert Backoff(lambda: 0.5).delay(0.0, retry_after=2.0, jitter=10.0) == 7.0


@pytest.mark.parametrize(("held", "delay"), [(STABLE_AFTER, FIRST), (STABLE_AFTER - 0.1, 8.0)])
def test_only_a_stable_connection_starts_over(held: float, delay: float) -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(4):
        backoff.delay(0.0)
    backoff.connected(100.0)
    assert backoff.delay(100.0 + held) == delay


def test_failed_attempts_after_a_stable_connection_add_up() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.connected(0.0)
    assert [backoff.delay(now) for now in (100.0, 200.0, 300.0)] == [0.5, 1.0, 2.0]


def test_a_million_attempts_stay_below_the_longest() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff._attempts = 10**6
    assert backoff.delay(0.0) == LONGEST
