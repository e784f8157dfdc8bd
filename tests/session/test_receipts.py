"""The arithmetic of receipts: who counts as what, and when a receipt ends."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.protocol.cursor import Position
from wsrecover.session import receipts as module
from wsrecover.session.presence import Member, Presence
from wsrecover.session.receipts import Receipt, ReceiptCounts, Receipts
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import StreamKey
from wsrecover.streams.stream import Stream

ALL = StreamKey("all")
OPS = StreamKey("role", "acme", "ops")


@attrs.define(eq=False)
class Connection:
    member: Member
    streams: Mapping[str, Stream]


class Hall:
    """Clients that come and go, and the receipts of what is said to them."""

    def __init__(self, streams: Mapping[str, Stream]) -> None:
        self.streams = streams
        self.presence = Presence()
        self.receipts = Receipts(self.presence)
        self.seq = 0
        self._connections: dict[str, Connection] = {}

    def enter(self, *names: str, ops: bool = True) -> None:
        for name in names:
            streams = {key: one for key, one in self.streams.items() if ops or key == "all"}
            self._connections[name] = Connection(Member("acme", name, "tab"), streams)
            self.presence.arrive(self._connections[name])

    def leave(self, *names: str) -> None:
        for name in names:
            self.presence.leave(self._connections[name])

    def say(self, key: StreamKey = ALL, *, timeout: float = 600.0) -> Receipt:
        self.seq += 1
        return self.receipts.open(f"r{self.seq}", key, Position("e", self.seq), timeout)

    def ack(self, name: str, upto: int, after: int = 0, key: StreamKey = ALL) -> None:
        self.receipts.acknowledge(key, Member("acme", name, "tab"), after, upto)

    def miss(self, name: str, first: int, last: int) -> None:
        self.receipts.miss(ALL, Member("acme", name, "tab"), first, last)


@pytest.fixture
async def hall() -> Hall:
    streams = Streams(MemoryStore())
    return Hall({"all": await streams.open(ALL), "role:ops": await streams.open(OPS)})


def counts(receipt: Receipt) -> tuple[int, int, int, int]:
    return attrs.astuple(receipt.counts)  # type: ignore[return-value]  # attrs types it as any tuple.


async def test_it_counts_those_who_are_there_and_follow_the_stream(hall: Hall) -> None:
    hall.enter("ada", "bob")
    hall.enter("eve", ops=False)
    to_all, to_ops = hall.say(), hall.say(OPS)
    hall.enter("zoe")
    assert counts(to_all) == (3, 0, 3, 0)
    assert counts(to_ops) == (2, 0, 2, 0)


async def test_an_ack_counts_for_all_that_lies_before_it_and_once(hall: Hall) -> None:
    hall.enter("ada", "bob")
    first, second, third = hall.say(), hall.say(), hall.say()
    for _ in range(2):
        hall.ack("ada", 2)
        assert [counts(each) for each in (first, second, third)] == [(2, 1, 1, 0), (2, 1, 1, 0), (2, 0, 2, 0)]
    hall.ack("ada", 3, after=2)
    hall.ack("bob", 3)
    assert all(each.counts == ReceiptCounts(2, 2, 0, 0) and each.counts.complete for each in (first, third))


async def test_an_ack_of_another_stream_or_of_one_who_was_not_there_counts_nothing(hall: Hall) -> None:
    hall.enter("ada")
    receipt = hall.say()
    hall.enter("zoe")
    hall.ack("ada", 1, key=OPS)
    hall.ack("zoe", 1)
    assert counts(receipt) == (1, 0, 1, 0)


async def test_who_disconnects_is_gone_until_it_returns(hall: Hall) -> None:
    hall.enter("ada", "bob")
    receipt = hall.say()
    hall.leave("ada")
    assert counts(receipt) == (2, 0, 1, 1)
    hall.enter("ada")
    assert counts(receipt) == (2, 0, 2, 0)
    hall.enter("ada", ops=False)
    hall.ack("ada", 1)
    hall.leave("ada")
    assert counts(receipt) == (2, 1, 1, 0)


async def test_who_is_not_entitled_any_more_is_gone(hall: Hall) -> None:
    hall.enter("ada")
    receipt = hall.say(OPS)
    hall.enter("ada", ops=False)
    assert counts(receipt) == (1, 0, 0, 1)


async def test_who_will_never_get_it_is_gone_whatever_it_acknowledges(hall: Hall) -> None:
    hall.enter("ada", "bob")
    first, second = hall.say(), hall.say()
    hall.miss("ada", 1, 1)
    hall.ack("ada", 2)
    assert (counts(first), counts(second)) == ((2, 0, 1, 1), (2, 1, 1, 0))
    hall.ack("bob", 2)
    assert not first.counts.complete
    assert await first.wait() == ReceiptCounts(2, 1, 0, 1), "nobody is left to wait for"


async def test_a_takeover_does_not_take_its_successor_away(hall: Hall) -> None:
    hall.enter("ada")
    older = hall._connections["ada"]
    hall.enter("ada")
    hall.presence.leave(older)
    assert counts(hall.say()) == (1, 0, 1, 0)


async def test_what_nobody_is_there_to_hear_is_complete(hall: Hall) -> None:
    receipt = hall.say()
    assert (await receipt.wait()).complete
    assert hall.receipts.find(receipt.id) is receipt
    assert not hall.receipts


class TestWait:
    async def test_returns_with_the_last_acknowledgement(self, hall: Hall, nursery: trio.Nursery) -> None:
        hall.enter("ada", "bob")
        receipt = hall.say()
        outcome: list[ReceiptCounts] = []

        async def wait() -> None:
            outcome.append(await receipt.wait())

        nursery.start_soon(wait)
        hall.ack("ada", 1)
        await wait_all_tasks_blocked()
        assert not outcome
        hall.ack("bob", 1)
        await wait_all_tasks_blocked()
        assert outcome == [ReceiptCounts(2, 2, 0, 0)]

    async def test_returns_after_its_timeout_with_what_there_is(
        self, hall: Hall, autojump_clock: MockClock
    ) -> None:
        hall.enter("ada", "bob")
        receipt = hall.say()
        hall.ack("ada", 1)
        start = trio.current_time()
        assert await receipt.wait(5.0) == ReceiptCounts(2, 1, 1, 0)
        assert trio.current_time() - start == 5.0
        assert not receipt.ended

    async def test_returns_when_the_receipt_ends(self, hall: Hall, autojump_clock: MockClock) -> None:
        hall.enter("ada")
        start = trio.current_time()
        assert await hall.say(timeout=60.0).wait() == ReceiptCounts(1, 0, 1, 0)
        assert trio.current_time() - start == 60.0


class TestTheEnd:
    @pytest.fixture(params=["time", "process"])
    def ended(self, request: pytest.FixtureRequest, hall: Hall) -> tuple[Receipt, Receipt]:
        hall.enter("ada", "bob")
        receipts = hall.say(timeout=60.0), hall.say(timeout=60.0)
        hall.ack("ada", 1)
        hall.leave("bob")
        if request.param == "time":
            hall.receipts.expire(receipts[0].deadline - 1)
            assert not receipts[0].ended
            hall.receipts.expire(receipts[1].deadline)
        else:
            hall.receipts.close()
        return receipts

    async def test_says_so_and_what_it_came_to(self, hall: Hall, ended: tuple[Receipt, Receipt]) -> None:
        assert [counts(each) for each in ended] == [(2, 1, 0, 1), (2, 0, 1, 1)]
        assert all(each.ended for each in ended)
        assert await ended[0].wait() == ended[0].counts

    async def test_is_final(self, hall: Hall, ended: tuple[Receipt, Receipt]) -> None:
        hall.enter("bob")
        hall.ack("bob", 2)
        hall.miss("ada", 1, 2)
        assert [counts(each) for each in ended] == [(2, 1, 0, 1), (2, 0, 1, 1)]

    async def test_leaves_nothing_behind(self, hall: Hall, ended: tuple[Receipt, Receipt]) -> None:
        assert hall.receipts.find(ended[0].id) is None
        assert not hall.receipts
        assert hall.receipts._pending == 0


async def test_the_oldest_end_where_too_much_is_waited_for(
    hall: Hall, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 5)
    hall.enter("ada", "bob")
    first, second, third = hall.say(), hall.say(), hall.say()
    assert [each.ended for each in (first, second, third)] == [True, False, False]
    monkeypatch.setattr(module, "MAX_RECEIPTS", 2)
    hall.leave("ada", "bob")
    hall.say()
    assert [second.ended, third.ended] == [True, False]
