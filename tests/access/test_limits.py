"""Token buckets: never more than the rate allows, never less, and `retry_after` is true."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from wsrecover.access.limits import Bucket, Buckets, Rate, moment

# Mostly near the edge: after a long pause every bucket is full, and after none it is empty.
MILLISECONDS = st.integers(0, 30) | st.integers(0, 2_000)
RATES = st.builds(Rate, st.integers(1, 60) | st.integers(1, 2_000), st.integers(1, 10))
STEPS = st.lists(st.tuples(MILLISECONDS, st.integers(1, 5)), min_size=1, max_size=60)


@given(RATES, STEPS)
def test_no_window_admits_more_than_its_burst_and_its_rate(rate: Rate, steps: list[tuple[int, int]]) -> None:
    bucket, now, admitted = Bucket(rate), 0, []
    for pause, amount in steps:
        now += pause
        if not bucket.take(moment(now / 1000), amount):
            admitted.append((now, amount))
    for first, (since, _) in enumerate(admitted):
        total = 0
        for until, amount in admitted[first:]:
            total += amount
            assert total <= rate.burst + Fraction((until - since) * rate.per_second, 1000)


@given(RATES, STEPS)
def test_it_admits_what_an_exact_bucket_admits(rate: Rate, steps: list[tuple[int, int]]) -> None:
    """Held to fractions, with an interval that is whole nanoseconds, as the bucket's is."""
    interval = Fraction(-(-1_000_000_000 // rate.per_second), 1_000_000)
    bucket, now, left = Bucket(rate), Fraction(0), Fraction(rate.burst)
    for pause, amount in steps:
        now += pause
        left = min(Fraction(rate.burst), left + pause / interval)
        wait = bucket.take(moment(float(now / 1000)), amount)
        assert (wait == 0.0) == (amount <= left)
        if wait == 0.0:
            left -= amount


@given(RATES, STEPS, st.integers(0, 1_000_000))
def test_retry_after_is_true_to_the_millisecond(rate: Rate, steps: list[tuple[int, int]], start: int) -> None:
    """Wherever the clock stands: trio's begins at any number of seconds up to a million."""
    now = start
    bucket = Bucket(rate)
    for pause, amount in steps:
        now += pause
        wait = bucket.take(moment(now / 1000), amount)
        if wait and amount <= rate.burst:
            assert wait == round(wait, 3) > 0
            before = bucket.take(moment((now + round(wait * 1000) - 1) / 1000), amount)
            assert 0 < before <= 0.001
            assert bucket.take(moment(now / 1000 + wait), amount) == 0.0
            now += round(wait * 1000)


def test_more_than_the_burst_is_never_taken() -> None:
    bucket = Bucket(Rate(10, 5))
    for now in (0.0, 1e3, 1e6):
        assert bucket.take(moment(now), 6) > 0
    assert bucket.take(moment(1e6), 5) == 0.0


def test_who_may_go_beyond_does_so_and_waits_the_longer_after_it() -> None:
    bucket = Bucket(Rate(1, 1))
    assert bucket.take(moment(0.0)) == 0.0
    assert bucket.take(moment(0.0)) == 1.0
    assert [bucket.take(moment(0.0), beyond=2) for _ in range(3)] == [0.0, 0.0, 1.0]
    assert bucket.take(moment(0.0)) == 3.0


@given(RATES, STEPS)
def test_who_asks_is_told_what_taking_gives_and_takes_nothing(
    rate: Rate, steps: list[tuple[int, int]]
) -> None:
    bucket, now = Bucket(rate), 0
    for pause, amount in steps:
        now += pause
        told = [bucket.wait(moment(now / 1000), amount) for _ in range(3)]
        assert told == [bucket.take(moment(now / 1000), amount)] * 3


def test_what_is_spent_on_credit_is_waited_for_and_what_is_put_back_is_there_again() -> None:
    bucket = Bucket(Rate(10, 5))
    bucket.spend(moment(0.0), 7)
    assert [bucket.take(moment(0.0), 0), bucket.take(moment(0.0))] == [0.2, 0.3]
    assert [bucket.take(moment(0.2), 0), bucket.take(moment(0.2))] == [0.0, 0.1]
    bucket.spend(moment(0.2), -3)
    assert [bucket.take(moment(0.2), 4), bucket.take(moment(0.2), 3), bucket.take(moment(0.2))] == [
        0.1,
        0.0,
        0.1,
    ]


def test_what_is_put_back_late_makes_no_more_than_the_burst() -> None:
    bucket = Bucket(Rate(10, 5))
    assert bucket.take(moment(0.0), 5) == 0.0
    bucket.spend(moment(10.0), -5)
    assert [bucket.take(moment(10.0), 5), bucket.take(moment(10.0))] == [0.0, 0.1]


def test_another_rate_does_not_give_back_what_was_taken() -> None:
    bucket = Bucket(Rate(1, 3))
    for _ in range(3):
        assert bucket.take(moment(0.0)) == 0.0
    bucket.change(Rate(10, 4), moment(0.0))
    assert [bucket.take(moment(0.0)), bucket.take(moment(0.0))] == [0.0, 0.1]
    bucket.change(Rate(1, 4), moment(0.1))
    assert [bucket.take(moment(0.1)), bucket.take(moment(0.1))] == [0.0, 1.0]


class TestBuckets:
    def test_each_key_has_its_own(self) -> None:
        buckets = Buckets(Rate(1, 1))
        assert [
            buckets.take("a", moment(0.0)),
            buckets.take("b", moment(0.0)),
            buckets.take("a", moment(0.0)),
        ] == [0.0, 0.0, 1.0]

    def test_only_full_ones_are_forgotten_while_that_makes_room(self) -> None:
        buckets = Buckets(Rate(1, 1), most=10)
        for key in range(9):
            buckets.take(key, moment(0.0))
        buckets.take("late", moment(0.9))
        buckets.take("one more", moment(1.0))
        assert len(buckets) == 2
        assert buckets.take("late", moment(1.0)) > 0

    def test_there_are_never_more_than_the_bound_and_the_first_go_first(self) -> None:
        buckets = Buckets(Rate(1, 1), most=16)
        for key in range(1000):
            buckets.take(key, moment(0.0))
            assert len(buckets) <= 16
        assert buckets.take(999, moment(0.0)) > 0
