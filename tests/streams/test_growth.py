"""Which streams have grown by their share, whoever has them open meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from wsrecover.streams import growth as growth_module
from wsrecover.streams.growth import COUNTED_BYTES, Growth
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import Entry, StreamKey

ANN = StreamKey("user", "acme", "ann")
BEN = StreamKey("user", "acme", "ben")
SHARE = 10


class Log:
    """Appends to streams without a journal."""

    def __init__(self) -> None:
        self.streams = Streams(MemoryStore())
        self.streams.growth.share = lambda _: SHARE
        self._heads: dict[StreamKey, int] = {}

    def append(self, key: StreamKey, *, count: int = 1, size: int = 1) -> None:
        head = self._heads.get(key, 0)
        self._heads[key] = head + count
        entries = [Entry(key, b"x" * size, 1.0, seq=head + number) for number in range(1, count + 1)]
        self.streams.extend(entries)

    def due(self) -> set[StreamKey]:
        grown, others = self.streams.growth.take()
        assert not others
        return grown


@pytest.fixture
def log() -> Log:
    return Log()


def counted(log: Log, key: StreamKey, appends: Sequence[int]) -> list[bool]:
    """Whether the stream is due after each of these appends."""
    told = []
    for count in appends:
        log.append(key, count=count)
        told.append(key in log.due())
    return told


async def test_one_that_is_open_is_due_after_its_share_and_again_after_another(log: Log) -> None:
    await log.streams.open(ANN)
    assert counted(log, ANN, [9, 1, 9, 1, 25, 9, 1]) == [False, True, False, True, True, False, True]


def test_one_that_nobody_has_open_is_due_likewise(log: Log) -> None:
    assert counted(log, ANN, [9, 1, 9, 1, 25, 9, 1]) == [False, True, False, True, True, False, True]


async def test_what_it_grew_while_it_was_open_counts_when_it_is_not_and_the_other_way_round(log: Log) -> None:
    stream = await log.streams.open(ANN)
    assert counted(log, ANN, [4]) == [False]
    log.streams.release(stream)
    assert counted(log, ANN, [3]) == [False]
    assert counted(log, BEN, [9]) == [False]
    stream = await log.streams.open(ANN)
    assert counted(log, ANN, [2, 1]) == [False, True]
    log.streams.release(stream)
    assert counted(log, ANN, [9, 1]) == [False, True]


async def test_who_was_only_looked_into_is_not_remembered(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_module, "MAX_TRACKED", 0)
    log.streams.release(await log.streams.open(ANN))
    log.append(BEN, count=SHARE)
    assert log.due() == {BEN}
    log.streams.release(await log.streams.open(BEN))
    assert log.due() == set()


@pytest.mark.parametrize("release_first", [True, False])
async def test_a_share_that_is_smaller_now_counts_from_the_next_opening(
    log: Log, release_first: bool
) -> None:
    log.streams.growth.share = lambda _: 10**9
    stream = await log.streams.open(ANN)
    log.append(ANN, count=50)
    if release_first:
        log.streams.release(stream)
    log.streams.growth.share = lambda _: SHARE
    if not release_first:
        log.streams.release(stream)
    await log.streams.open(ANN)
    assert counted(log, ANN, [9, 1]) == [False, True]


@pytest.mark.parametrize("is_open", [True, False])
async def test_bytes_use_up_the_share_as_events_do(log: Log, is_open: bool) -> None:
    if is_open:
        await log.streams.open(ANN)
    for _ in range(3):
        log.append(ANN, size=8 * COUNTED_BYTES)
        assert log.due() == set()
        log.append(ANN, size=2 * COUNTED_BYTES - 1)
        assert log.due() == set()
        log.append(ANN)
        assert log.due() == {ANN}


async def test_bytes_count_over_openings_too(log: Log) -> None:
    stream = await log.streams.open(ANN)
    log.append(ANN, size=8 * COUNTED_BYTES)
    log.streams.release(stream)
    log.append(ANN, size=2 * COUNTED_BYTES - 1)
    assert log.due() == set()
    await log.streams.open(ANN)
    log.append(ANN)
    assert log.due() == {ANN}


async def test_a_share_that_is_smaller_now_counts_in_bytes_too(log: Log) -> None:
    log.streams.growth.share = lambda _: 1000
    log.append(ANN, size=COUNTED_BYTES)
    log.streams.growth.share = lambda _: SHARE
    await log.streams.open(ANN)
    log.append(ANN, size=SHARE * COUNTED_BYTES)
    assert log.due() == {ANN}


async def test_what_an_erased_one_had_grown_is_not_its_successors(log: Log) -> None:
    log.append(ANN, count=9)
    log.streams.forget(ANN)
    old = await log.streams.open(ANN)
    log.append(ANN, count=9)
    log.streams.forget(ANN)
    assert log.due() == set()
    await log.streams.open(ANN)
    log.streams.release(old)
    log.append(ANN, count=9)
    assert log.due() == set()
    log.append(ANN)
    assert log.due() == {ANN}


async def test_those_of_which_too_many_are_kept_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_module, "MAX_TRACKED", 3)
    growth = Growth()
    growth.share = lambda _: SHARE
    keys = [StreamKey("user", "acme", f"user{number}") for number in range(5)]
    for key in keys[:3]:
        growth.add(key, [Entry(key, b"x", 1.0)])
    assert growth.take() == (set(), set())
    for key in keys[3:]:
        growth.add(key, [Entry(key, b"x", 1.0)])
    await growth.wait()
    assert growth.take() == (set(), set(keys[:4]))
