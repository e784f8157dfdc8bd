from collections.abc import Sequence
from typing import Any

import orjson
import pytest
import trio
import trio.testing

from wsrecover.errors import StoreCorrupt, StoreUnavailable
from wsrecover.protocol.cursor import Position
from wsrecover.streams.memory import MemoryStore, open_memory
from wsrecover.streams.page import Page
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import Entry, NewSnapshot, Retention, StreamKey, StreamState, Unit
from wsrecover.streams.stream import Stream

ANN = StreamKey("user", "tenant", "ann")


def entries(first: int, last: int, size: int = 1, key: StreamKey = ANN) -> list[Entry]:
    return [Entry(key, b'{"n":%d}' % seq + b" " * size, 1.0, seq=seq) for seq in range(first, last + 1)]


def seqs(page: Page) -> list[int]:
    """The seqs of its events, which are those that `entries` makes."""
    assert [orjson.loads(body)["n"] for body in page.bodies] == [seq for seq, _ in page.events]
    return [seq for seq, _ in page.events]


class Recorder:
    """A follower that writes down what it is told, and stays at the head while `keeps_up`."""

    def __init__(self, *, keeps_up: bool = True) -> None:
        self.keeps_up = keeps_up
        self.taken: list[int] = []
        self.lagged: list[int] = []

    def flush(self) -> None:
        pass

    def deliver(self, stream: Stream, entries: Sequence[Entry]) -> bool:
        if self.keeps_up:
            self.taken += range(entries[0].seq, entries[-1].seq + 1)
        return self.keeps_up

    def lag(self, stream: Stream, after: int) -> None:
        self.lagged.append(after)


async def filled(store: MemoryStore, count: int) -> None:
    await store.commit([Unit(tuple(entries(1, count))), Unit(snapshots=(NewSnapshot(ANN, count, {}),))])


def test_wire_names_are_relative_to_the_principal() -> None:
    names = [StreamKey(scope, "t", "x").wire_name for scope in ("user", "tenant", "tier", "role", "all")]
    assert names == ["user", "tenant", "tier", "role:x", "all"]


class TestConcerning:
    """The newest event on which a context may depend: behind it nothing need be read to know them."""

    async def test_it_is_the_last_commit_that_had_one(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        told = entries(1, 6)
        for entry in (told[0], *told[3:]):
            entry.concerning = False
        known = []
        for first, last in ((1, 1), (2, 4), (5, 6)):
            stream.extend(told[first - 1 : last])
            known.append(stream.concerning_seq)
        assert known == [0, 4, 4]

    async def test_of_what_was_not_seen_all_may_be(self) -> None:
        store = await open_memory()
        await filled(store, 3)
        stream = await Streams(store).open(ANN)
        assert stream.concerning_seq == 3
        late = entries(7, 7)
        late[0].concerning = False
        stream.extend(late)
        assert stream.concerning_seq == 6


async def test_streams_that_an_error_kept_from_a_commit_take_the_next_one() -> None:
    bob = StreamKey("user", "tenant", "bob")
    streams = Streams(await open_memory())
    first, second = await streams.open(ANN), await streams.open(bob)

    def break_down(_: StreamKey) -> int:
        raise RuntimeError("a bug")

    streams.growth.share = break_down
    first._due_seq = first._look_seq = 0
    with pytest.raises(RuntimeError):
        streams.extend([*entries(1, 1), *entries(1, 1, key=bob)])
    assert second.head == 0
    streams.extend(entries(2, 2, key=bob))
    assert second.head == 2


class TestExtend:
    async def test_followers_at_the_head_get_each_event_once_and_in_order(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        follower = Recorder()
        assert stream.join(follower, 0)
        stream.extend(entries(1, 3))
        stream.extend(entries(2, 3))
        stream.extend(entries(3, 5))
        assert follower.taken == [1, 2, 3, 4, 5]
        assert stream.head == 5

    async def test_a_follower_that_cannot_take_a_batch_leaves_live(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        slow, fast = Recorder(keeps_up=False), Recorder()
        stream.join(slow, 0)
        stream.join(fast, 0)
        stream.extend(entries(1, 1))
        assert stream.live == {fast}
        assert slow.lagged == []
        assert not stream.join(slow, 0)
        assert stream.join(slow, 1)

    async def test_one_that_has_left_gets_nothing_more(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        leaving, staying = Recorder(), Recorder()
        stream.join(leaving, 0)
        stream.join(staying, 0)
        stream.extend(entries(1, 1))
        stream.leave(leaving)
        stream.extend(entries(2, 2))
        late = Recorder()
        assert stream.join(late, 2)
        stream.extend(entries(3, 3))
        assert (leaving.taken, staying.taken, late.taken) == ([1], [1, 2, 3], [3])

    async def test_a_hole_drops_every_follower_to_lagging_and_the_tail_starts_anew(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        follower = Recorder()
        stream.join(follower, 0)
        stream.extend(entries(1, 2))
        stream.extend(entries(5, 6))
        assert (follower.taken, follower.lagged) == ([1, 2], [2])
        assert not stream.live
        assert stream.head == 6
        assert stream.page_nowait(2, max_events=9, max_bytes=999) is None
        page = stream.page_nowait(4, max_events=9, max_bytes=999)
        assert page is not None
        assert seqs(page) == [5, 6]

    async def test_a_follower_that_raises_harms_nobody_else(self) -> None:
        class Broken(Recorder):
            def deliver(self, stream: Stream, entries: Sequence[Entry]) -> bool:
                raise RuntimeError("a bug in a connection")

        stream = await Streams(await open_memory()).open(ANN)
        broken, fine = Broken(), Recorder()
        stream.join(broken, 0)
        stream.join(fine, 0)
        stream.extend(entries(1, 2))
        assert fine.taken == [1, 2]
        assert stream.live == {fine}
        assert broken.lagged == [0]


class TestPages:
    async def test_the_tail_is_bounded_in_count_and_bytes(self) -> None:
        streams = Streams(await open_memory(), tail_events=4, tail_bytes=1000)
        stream = await streams.open(ANN)
        stream.extend(entries(1, 9))
        assert stream.page_nowait(4, max_events=9, max_bytes=9999) is None
        page = stream.page_nowait(5, max_events=9, max_bytes=9999)
        assert page is not None
        assert seqs(page) == [6, 7, 8, 9]
        stream.extend(entries(10, 12, size=400))
        assert stream.tail_bytes <= 1000
        assert stream.page_nowait(9, max_events=9, max_bytes=9999) is None

    async def test_a_tail_holds_as_much_as_it_may_and_not_one_more(self) -> None:
        size = len(entries(1, 1)[0].body)
        for limits in ({"tail_events": 4}, {"tail_bytes": 4 * size}):
            stream = await Streams(await open_memory(), **limits).open(ANN)
            held = []
            for seq in range(1, 9):
                stream.extend(entries(seq, seq))
                held.append((stream.tail_events, stream.tail_bytes))
            assert held == [(n, n * size) for n in (1, 2, 3, 4, 4, 4, 4, 4)]
        stream = await Streams(await open_memory(), tail_bytes=5 * size - 1).open(ANN)
        stream.extend(entries(1, 4))
        stream.extend(entries(5, 5))
        assert stream.tail_events == 4, "one byte too many"

    async def test_all_that_is_trimmed_while_it_is_read_is_a_gap_up_to_the_head(self) -> None:
        class Trimmed(MemoryStore):
            async def read(self, *args: Any, **kwargs: Any) -> list[Entry]:
                await trio.lowlevel.checkpoint()
                return []

        store = Trimmed()
        await filled(store, 20)
        page = await (await Streams(store).open(ANN)).page(3, max_events=2, max_bytes=9999)
        assert (page.last, page.bodies, page.gap) == (20, [], (4, 20))

    async def test_a_store_that_leaves_one_out_is_found_out(self) -> None:
        class Holey(MemoryStore):
            async def read(self, *args: Any, **kwargs: Any) -> list[Entry]:
                page = await super().read(*args, **kwargs)
                return [page[0], *page[2:]]

        store = Holey()
        await filled(store, 20)
        stream = await Streams(store).open(ANN)
        with pytest.raises(StoreCorrupt, match="what follows 3 has a hole"):
            await stream.page(3, max_events=5, max_bytes=9999)

    async def test_a_page_keeps_to_its_limits_and_holds_at_least_one_event(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        stream.extend(entries(1, 9, size=93))
        for max_events, max_bytes, wanted in ((2, 9999, [1, 2]), (9, 300, [1, 2, 3]), (9, 1, [1])):
            page = stream.page_nowait(0, max_events=max_events, max_bytes=max_bytes)
            assert page is not None
            assert seqs(page) == wanted

    async def test_at_the_head_a_page_is_empty(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        stream.extend(entries(1, 3))
        page = stream.page_nowait(3, max_events=9, max_bytes=999)
        assert page is not None
        assert (list(page.bodies), page.gap) == ([], None)

    async def test_what_the_tail_lacks_is_read_from_the_store(self) -> None:
        store = await open_memory()
        await filled(store, 20)
        stream = await Streams(store).open(ANN)
        page = await stream.page(5, max_events=3, max_bytes=9999)
        assert (seqs(page), page.gap) == ([6, 7, 8], None)

    async def test_what_was_trimmed_is_told_as_a_gap(self) -> None:
        store = await open_memory()
        await filled(store, 20)
        streams = Streams(store)
        stream = await streams.open(ANN)
        streams.trim((await store.retain({ANN: Retention(events=5)}, now=1.0)).oldest)
        page = await stream.page(3, max_events=2, max_bytes=9999)
        assert (seqs(page), page.gap) == ([16, 17], (4, 15))
        streams.trim((await store.retain({ANN: Retention(age=1.0)}, now=1e6)).oldest)
        page = await stream.page(3, max_events=2, max_bytes=9999)
        assert (list(page.bodies), page.gap) == ([], (4, 20))

    async def test_a_trim_that_the_stream_has_not_heard_of_is_a_gap_too(self) -> None:
        store = await open_memory()
        await filled(store, 20)
        stream = await Streams(store).open(ANN)
        await store.retain({ANN: Retention(events=5)}, now=1.0)
        page = await stream.page(3, max_events=2, max_bytes=9999)
        assert (seqs(page), page.gap) == ([16, 17], (4, 15))

    async def test_a_trim_takes_from_the_tail(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        stream.extend(entries(1, 9))
        stream.trim(5)
        page = stream.page_nowait(0, max_events=9, max_bytes=999)
        assert page is not None
        assert (seqs(page), page.gap) == ([5, 6, 7, 8, 9], (1, 4))


class TestJudge:
    async def test_a_position_of_this_opening_resumes(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        stream.extend(entries(1, 3))
        info = stream.judge(Position(stream.epoch, 2), "snapshot")
        assert (info.from_, info.head, info.oldest, info.resumed, info.reason) == (3, 3, 1, True, None)

    async def test_a_position_of_another_log_does_not(self) -> None:
        stream = await Streams(await open_memory()).open(ANN)
        stream.extend(entries(1, 3))
        info = stream.judge(Position("other-epoch", 2), "live")
        assert (info.from_, info.resumed, info.reason) == (4, False, "epoch_changed")


class SlowStore(MemoryStore):
    """A store whose `load` answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.loads = 0
        self.fails = False

    async def load(self, key: StreamKey) -> StreamState:
        self.loads += 1
        state = await super().load(key)
        await self.gate.wait()
        if self.fails:
            raise StoreUnavailable("on purpose")
        return state


class TestOpen:
    async def test_concurrent_opens_share_one_load(self) -> None:
        store = SlowStore()
        streams = Streams(store)
        opened: list[Stream] = []

        async def open_one() -> None:
            opened.append(await streams.open(ANN))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(open_one)
            await trio.testing.wait_all_tasks_blocked()
            assert streams.get(ANN) is None
            store.gate.set()
        assert store.loads == 1
        assert len({id(stream) for stream in opened}) == 1
        for stream in opened:
            assert streams.get(ANN) is stream
            streams.release(stream)
        assert streams.get(ANN) is None

    async def test_what_is_appended_while_the_head_is_loaded_is_not_missed(self) -> None:
        store = SlowStore()
        await filled(store, 3)
        streams = Streams(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.open, ANN)
            await trio.testing.wait_all_tasks_blocked()
            late = Entry(ANN, b'{"n":4}', 1.0)
            await store.commit([Unit((late,))])
            streams.extend([late])
            store.gate.set()
        stream = streams.get(ANN)
        assert stream is not None
        assert stream.head == 4
        page = await stream.page(0, max_events=9, max_bytes=999)
        assert seqs(page) == [1, 2, 3, 4]

    async def test_an_open_that_fails_or_is_cancelled_leaves_nothing(self) -> None:
        store = SlowStore()
        streams = Streams(store)
        with trio.move_on_after(0):
            await streams.open(ANN)
        assert streams.statistics().streams == 0
        store.fails = True
        store.gate.set()
        with pytest.raises(StoreUnavailable):
            await streams.open(ANN)
        assert streams.statistics().streams == 0
        store.fails = False
        assert (await streams.open(ANN)).loaded

    async def test_the_next_opener_loads_where_the_first_is_cancelled(self) -> None:
        store = SlowStore()
        streams = Streams(store)
        opened: list[Stream] = []

        async def open_one() -> None:
            opened.append(await streams.open(ANN))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as first:
                    first.start_soon(streams.open, ANN)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(open_one)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            store.gate.set()
        assert store.loads == 2
        assert streams.get(ANN) is opened[0]

    async def test_tails_grow_by_what_is_allowed_for_now(self) -> None:
        streams = Streams(await open_memory(), budget_bytes=128_000)
        stream = await streams.open(ANN)
        streams.extend(entries(1, 5, size=1000))
        streams.allow(6_000)
        streams.extend(entries(6, 10, size=1000))
        assert stream.tail_events == 10
        streams.extend(entries(11, 11, size=1000))
        assert stream.tail_bytes == 0
        streams.allow(-1)
        streams.extend(entries(12, 12, size=1000))
        assert stream.tail_events == 1, "a little in any case"
        streams.allow(1_000_000)
        streams.extend(entries(13, 140, size=1000))
        assert stream.tail_bytes == 0, "what they may ever have is the most"

    async def test_tails_of_streams_without_followers_go_first(self) -> None:
        streams = Streams(await open_memory(), budget_bytes=10_000)
        keys = [StreamKey("user", "tenant", f"u{number}") for number in range(4)]
        opened = [await streams.open(key) for key in keys]
        opened[0].join(Recorder(), 0)
        for key in keys:
            streams.extend(entries(1, 3, size=1000, key=key))
        assert streams.statistics().tail_bytes <= 7500
        assert opened[0].tail_bytes
        for stream in opened:
            streams.release(stream)
        assert streams.statistics().tail_bytes == 0
