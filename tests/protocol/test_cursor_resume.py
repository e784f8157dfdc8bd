"""Positions: what an event is to a cursor, and which resumes are accepted."""

from __future__ import annotations

import itertools
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrecover.protocol.cursor import Position, Step, step
from wsrecover.protocol.frames import From, Hello, StreamInfo
from wsrecover.protocol.resume import Verdict, held_part, judge, make_epoch, parse_epoch

WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)


@given(st.integers(0, 50), st.integers(1, 60), st.integers(0, 20))
def test_a_step_says_which_of_its_seqs_are_new(last: int, first: int, more: int) -> None:
    """NEW: all, the next among them; DUPLICATE: none; OVERLAP: some; HOLE: the next is not among them."""
    seq = first + more
    fresh = [n for n in range(first, seq + 1) if n > last]
    expected = (
        Step.DUPLICATE
        if not fresh
        else Step.HOLE
        if last + 1 not in fresh
        else Step.NEW
        if len(fresh) == more + 1
        else Step.OVERLAP
    )
    assert step(last, first, seq) is expected


@given(WORDS, WORDS)
def test_an_epoch_names_its_incarnation_and_generation(incarnation: str, generation: str) -> None:
    """parse(make(i, g)) == (i, g)."""
    assert parse_epoch(make_epoch(incarnation, generation)) == (incarnation, generation)


@pytest.mark.parametrize("epoch", ["", "-", "a-", "-a", "a"])
def test_what_is_no_epoch_has_no_names(epoch: str) -> None:
    assert parse_epoch(epoch) is None


@attrs.define
class Log:
    """A log whose every entry is unique, kept as a store keeps it; a copy of it is a backup."""

    generations: list[str]
    entries: list[int] = attrs.field(factory=list)
    marks: list[tuple[str, int]] = attrs.field(factory=list)
    oldest: int = 1

    def copy(self) -> Log:
        return Log(list(self.generations), list(self.entries), list(self.marks), self.oldest)

    def write(self, value: int) -> None:
        if not self.marks or self.marks[-1][0] != self.generations[-1]:
            self.marks.append((self.generations[-1], len(self.entries) + 1))
        self.entries.append(value)

    def judge(self, position: Position | None, begin: From = "start") -> Verdict:
        return judge(
            position,
            incarnation="log",
            lineage=self.generations,
            marks=self.marks,
            oldest=self.oldest,
            head=len(self.entries),
            begin=begin,
        )


@given(
    st.lists(st.sampled_from(["write", "restart", "backup", "restore", "trim"]), max_size=40), st.randoms()
)
def test_a_resume_is_accepted_exactly_where_the_log_holds_the_clients_past(
    actions: list[str], rng: random.Random
) -> None:
    """Accepted iff what the position stands for is a prefix of the log, and nothing after it was trimmed."""
    values, names = itertools.count(), (f"g{n}" for n in itertools.count())
    log = Log([next(names)])
    backup = log.copy()
    seen = [(Position("log-g0", 0), [])]
    for action in actions:
        if action == "write":
            log.write(next(values))
        elif action == "restart":
            log.generations.append(next(names))
        elif action == "backup":
            backup = log.copy()
        elif action == "restore":
            log = backup.copy()
            log.generations.append(next(names))
        elif log.oldest <= len(log.entries):
            log.oldest = rng.randint(log.oldest, len(log.entries) + 1)
        position = Position(make_epoch("log", log.generations[-1]), len(log.entries))
        seen.append((position, list(log.entries)))
        for held, past in seen:
            verdict = log.judge(held)
            same = past == log.entries[: len(past)]
            if verdict.resumed:
                assert same
                assert verdict == Verdict(held.seq + 1, resumed=True)
            else:
                assert verdict.from_seq == log.oldest
                known = held.epoch.removeprefix("log-") in log.generations
                expected = (
                    "trimmed"
                    if same and held.seq < log.oldest - 1
                    else "ahead"
                    if known and held.seq > len(log.entries)
                    else "epoch_changed"
                )
                assert verdict.reason in {expected, "epoch_changed"}
                assert not same or not known or held.seq < log.oldest - 1


def restored_backup() -> Log:
    log = Log(["a"])
    for value in range(5):
        log.write(value)
    log.generations.append("b")
    return log


def test_a_lost_future_is_refused_at_once_and_after_the_head_has_passed_it() -> None:
    log = restored_backup()
    lost = Position("log-a", 8)
    assert log.judge(lost) == Verdict(1, resumed=False, reason="ahead")
    for value in range(100, 110):
        log.write(value)
    assert log.judge(lost) == Verdict(1, resumed=False, reason="epoch_changed")
    assert log.judge(Position("log-a", 6)).reason == "epoch_changed"
    assert log.judge(Position("log-a", 5)) == Verdict(6, resumed=True)


@pytest.mark.parametrize(
    ("position", "begin", "verdict"),
    [
        (None, "start", Verdict(3, resumed=False, reason="new")),
        (None, "snapshot", Verdict(6, resumed=False, reason="new")),
        (None, "live", Verdict(6, resumed=False, reason="new")),
        (Position("log-a", 1), "start", Verdict(3, resumed=False, reason="trimmed")),
        (Position("log-a", 1), "live", Verdict(6, resumed=False, reason="trimmed")),
        (Position("log-a", 2), "live", Verdict(3, resumed=True)),
        (Position("log-b", 5), "start", Verdict(6, resumed=True)),
        (Position("log-b", 6), "start", Verdict(3, resumed=False, reason="ahead")),
        (Position("log-c", 5), "start", Verdict(3, resumed=False, reason="epoch_changed")),
        (Position("other-b", 5), "start", Verdict(3, resumed=False, reason="epoch_changed")),
        (Position("junk", 5), "start", Verdict(3, resumed=False, reason="epoch_changed")),
    ],
)
def test_what_a_client_is_told(position: Position | None, begin: str, verdict: Verdict) -> None:
    log = restored_backup()
    log.oldest = 3
    assert log.judge(position, begin) == verdict


def test_an_empty_log_accepts_its_beginning_only() -> None:
    log = Log(["a"])
    assert log.judge(Position("log-a", 0)) == Verdict(1, resumed=True)
    assert log.judge(Position("log-a", 1)).reason == "ahead"


def test_a_position_over_what_was_trimmed_is_refused_where_another_event_was_written_under_it() -> None:
    log = Log(["a", "b"])
    log.write(100)
    assert log.judge(Position("log-a", 1)).reason == "epoch_changed"
    assert log.judge(Position("log-a", 0)) == Verdict(1, resumed=True)


@pytest.mark.parametrize(
    ("resume", "resumed", "held"),
    [
        ({"user": Position("log-b", 4)}, True, (5, 80)),
        ({"user": Position("log-a", 4)}, True, None),
        ({"user": Position("log-b", 4)}, False, None),
        ({"all": Position("log-b", 4)}, True, None),
    ],
)
def test_a_cut_off_event_is_gone_on_with_only_under_the_epoch_in_which_it_began(
    resume: dict[str, Position], resumed: bool, held: tuple[int, int] | None
) -> None:
    hello = Hello("c", resume=resume, part={"user": (5, 80)})
    assert held_part(hello, "user", StreamInfo("log-b", 9, 1, 5, resumed)) == held
    assert held_part(attrs.evolve(hello, part={}), "user", StreamInfo("log-b", 9, 1, 5, resumed)) is None
