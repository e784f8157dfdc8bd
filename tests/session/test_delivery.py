"""The sending half of a connection: live or lagging, never both, and nothing between the two."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import orjson
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.config import Config, Limits, Retention, Timeouts
from wsrecover.errors import StoreUnavailable
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.protocol.codec import encode_event
from wsrecover.protocol.context import EMPTY
from wsrecover.protocol.frames import ErrorFrame, Pong
from wsrecover.session.contexts import Snapshot
from wsrecover.session.delivery import Delivery, Lag
from wsrecover.session.lag import FRAME_BYTES
from wsrecover.session.pressure import Weights
from wsrecover.session.quota import Quota, Quotas
from wsrecover.session.snapshots import Switch
from wsrecover.streams.journal import Journal
from wsrecover.streams.memory import open_memory
from wsrecover.streams.page import Page
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import Entry, NewSnapshot, Store, StreamKey, Unit
from wsrecover.streams.stream import Stream
from wsrecover.testing import MemoryPipe, memory_pipe_pair
from wsrecover.transport.outbox import Outbox
from wsrecover.transport.websocket import ServerSocket

KEY = StreamKey("user", "acme", "ada")


class Connection:
    """As much of a connection as a delivery asks for."""

    def __init__(self, nursery: trio.Nursery, limits: Limits) -> None:
        self.limits = limits
        self.timeouts = Timeouts()
        self.closed: list[int] = []
        self.counts: Counter[str] = Counter()
        self.quota = Quota(Quotas(Config(store="memory", limits=limits)), KEY)
        self.gone: list[tuple[int, int]] = []
        self.snapshots: list[int] = []
        self.before_snapshot: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.head: Callable[[], int] = lambda: 0
        self._nursery = nursery

    def start(self, member: Callable[..., Awaitable[None]], *args: object) -> None:
        self._nursery.start_soon(member, *args)

    def close(self, code: int, reason: str) -> None:
        self.closed.append(code)

    def kill(self) -> None:
        self.closed.append(1006)

    def missed(self, stream: Stream, first: int, last: int) -> None:
        self.gone.append((first, last))

    def count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    async def snapshot(self) -> Snapshot:
        await self.before_snapshot()
        self.snapshots.append(self.head())
        return Snapshot(self.head(), {"a": EMPTY, "b": EMPTY})


class Bench:
    """A journal on a memory store, one stream, and one delivery whose far end the test reads."""

    def __init__(
        self, nursery: trio.Nursery, store: Store, stream: Stream, journal: Journal, limits: Limits
    ) -> None:
        self.store, self.stream, self.journal = store, stream, journal
        self.connection = Connection(nursery, limits)
        near, self.far = memory_pipe_pair(capacity=4096)
        self.socket = ServerSocket(Outbox(near), "test", max_message_bytes=65536)
        self.delivery = Delivery(self.connection, self.socket, None)
        self.published = 0
        self._bytes = b""

    async def publish(self, count: int = 1, *, size: int = 10, thread: str | None = None) -> None:
        """Log events of which the n-th carries n."""
        for _ in range(count):
            self.published += 1
            now = trio.current_time()
            data = {"n": self.published, "pad": "x" * size}
            body = encode_event(ts=now, type="noted", data=data, thread=thread, max_bytes=1 << 20)
            await self.journal.commit(Unit((Entry(KEY, body, now, thread),)))

    async def write(self, *events: tuple[str, dict[str, Any]], thread: str | None = None) -> None:
        """Log these events in one commit."""
        now = trio.current_time()
        bodies = [
            encode_event(ts=now, type=kind, data=data, thread=thread, max_bytes=1 << 20)
            for kind, data in events
        ]
        await self.journal.commit(Unit(tuple(Entry(KEY, body, now, thread) for body in bodies)))

    def begin(self, after: int = 0) -> None:
        self.delivery.begin({"user": self.stream}, {"user": after}, {}, b'{"op":"welcome"}')

    async def frames(self) -> list[dict[str, Any]]:
        """Everything that the far end can read until nothing more comes."""
        got: list[dict[str, Any]] = []
        while True:
            await wait_all_tasks_blocked()
            chunk = await read_now(self.far)
            if not chunk:
                return got
            self._bytes += chunk
            got.extend(self._messages())

    def _messages(self) -> list[dict[str, Any]]:
        frames: list[dict[str, Any]] = []
        while len(self._bytes) >= 2:
            length, start = self._bytes[1], 2
            if length == 126:
                length, start = int.from_bytes(self._bytes[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(self._bytes[2:10], "big"), 10
            if len(self._bytes) < max(start + length, 10):
                break
            message = orjson.loads(self._bytes[start : start + length])
            self._bytes = self._bytes[start + length :]
            frames.extend(message if isinstance(message, list) else [message])
        return frames


async def read_now(pipe: MemoryPipe) -> bytes:
    """What is there, without waiting for more."""
    return await pipe.receive_some(65536) if pipe._inward.buffer else b""


async def open_bench(nursery: trio.Nursery, *, tail: int = 8, kept: int = 50) -> Bench:
    """A bench whose log has at most so many events, the newest of them in memory."""
    store = await open_memory(clock=trio.current_time)
    streams = Streams(store, tail_events=tail, tail_bytes=512 * tail)
    journal = Journal(
        store,
        streams,
        max_units=100,
        max_bytes=1 << 20,
        retention=lambda key: Retention(events=kept),
        clock=trio.current_time,
    )

    async def cover(keys: Sequence[StreamKey], store: bool) -> None:
        await journal.commit(Unit(snapshots=(NewSnapshot(KEY, stream.head, {}),)))

    journal.make_snapshots_with(cover)
    await nursery.start(journal.run)
    stream = await streams.open(KEY)
    return Bench(nursery, store, stream, journal, Limits(page_events=5, page_bytes=4096, part_bytes=1024))


@pytest.fixture
async def bench(nursery: trio.Nursery) -> AsyncIterator[Bench]:
    yield await open_bench(nursery)
    nursery.cancel_scope.cancel()


def numbers(frames: list[dict[str, Any]]) -> list[int]:
    return [frame["data"]["n"] for frame in frames if frame["op"] == "event"]


def ops(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["op"] for frame in frames]


async def test_a_connection_at_the_head_is_live_at_once(bench: Bench) -> None:
    bench.begin()
    assert ops(await bench.frames()) == ["welcome", "live"]
    assert bench.delivery in bench.stream.live
    assert not bench.delivery.lagging


async def test_what_the_socket_took_in_part_is_sent_to_its_end(bench: Bench) -> None:
    bench.begin()
    await bench.frames()
    while not bench.socket.outbox.pending:
        await bench.publish(size=600)
    assert numbers(await bench.frames()) == list(range(1, bench.published + 1))


async def test_what_was_missed_comes_before_live_and_once(bench: Bench) -> None:
    await bench.publish(30)
    bench.begin(after=10)
    frames = await bench.frames()
    assert numbers(frames) == list(range(11, 31))
    assert ops(frames)[0] == "welcome"
    assert ops(frames)[-1] == "live"


async def test_events_that_commit_during_a_replay_follow_it_without_hole_or_repeat(bench: Bench) -> None:
    await bench.publish(30)
    bench.begin()
    await bench.publish(25)
    assert numbers(await bench.frames()) == list(range(1, 56))


async def test_an_event_at_each_step_of_a_catch_up_is_neither_lost_nor_repeated(
    bench: Bench,
) -> None:
    # The head moves at each checkpoint of the catch-up, so also right before and after it joins `live`.
    await bench.publish(20)
    bench.begin()
    got: list[int] = []
    for _ in range(20):
        await bench.publish(1, size=200)
        got += numbers(await bench.frames())
    assert got == list(range(1, 41))
    assert bench.delivery in bench.stream.live


async def test_a_reader_that_stalls_lags_and_holds_no_more_than_one_write(bench: Bench) -> None:
    bench.begin()
    await bench.publish(45, size=400)
    assert bench.delivery.lagging
    assert bench.delivery not in bench.stream.live
    assert bench.socket.outbox.pending <= 2 * bench.connection.limits.part_bytes
    assert numbers(await bench.frames()) == list(range(1, 46))
    assert bench.connection.quota._replay is None  # It asked for nothing that it had before.
    assert bench.delivery in bench.stream.live


class Held(trio.abc.Instrument):
    """The most that a delivery holds after any step of any task: bytes, and frames of what it has read."""

    def __init__(self, delivery: Delivery) -> None:
        self.bytes = self.frames = 0
        self._delivery = delivery

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.bytes = max(self.bytes, self._delivery.backlog)
        for lag in self._delivery._lags.values():
            self.frames = max(self.frames, len(lag.frames))


@pytest.mark.parametrize("size", [10, 400, 800, 3000])
@pytest.mark.parametrize("tail", [8, 10_000], ids=["from the store", "from memory"])
async def test_what_a_stalled_reader_is_owed_takes_one_page_and_one_write_however_long_its_log_is(
    nursery: trio.Nursery, mock_clock: MockClock, tail: int, size: int
) -> None:
    # Its time stands still: however long this takes, nobody finds the reader too slow.
    bench = await open_bench(nursery, tail=tail, kept=2000)
    limits = bench.connection.limits
    await bench.publish(300, size=size)
    held = Held(bench.delivery)
    trio.lowlevel.add_instrument(held)
    try:
        bench.begin()
        await bench.publish(300, size=size)
        await wait_all_tasks_blocked()
        assert bench.delivery.lagging
        assert bench.delivery.position("user") < 100, "the rest is in the log alone"
        frames = await bench.frames()
    finally:
        trio.lowlevel.remove_instrument(held)
    told = [frame["seq"] for frame in frames if frame["op"] == "event" or frame.get("offset") == 0]
    assert told == list(range(1, 601))
    page, write = limits.page_bytes + limits.page_events * FRAME_BYTES, 2 * limits.part_bytes
    assert limits.page_events * min(size, 400) < held.bytes <= page + write
    assert held.frames <= limits.page_events
    nursery.cancel_scope.cancel()


async def test_a_reader_that_was_trimmed_past_is_told_the_gap(bench: Bench) -> None:
    bench.begin()
    await bench.publish(20, size=400)
    await bench.publish(200)
    frames = await bench.frames()
    gaps = [frame for frame in frames if frame["op"] == "gap"]
    assert len(gaps) == 1
    told = numbers(frames)
    before = [n for n in told if n < gaps[0]["from"]]
    assert before == list(range(1, gaps[0]["from"]))
    assert told[len(before) :] == list(range(gaps[0]["to"] + 1, 221))


async def test_a_reader_that_takes_nothing_is_closed_as_too_slow(
    bench: Bench, autojump_clock: MockClock
) -> None:
    bench.begin()
    await bench.publish(45, size=400)
    await trio.sleep(bench.connection.timeouts.write_progress + 0.1)
    assert bench.connection.closed == [CloseCode.TOO_SLOW]


async def test_one_that_takes_a_little_now_and_then_is_not(bench: Bench, autojump_clock: MockClock) -> None:
    bench.begin()
    await bench.publish(45, size=400)
    for _ in range(10):
        await trio.sleep(bench.connection.timeouts.write_progress * 0.9)
        assert await bench.far.receive_some(100)
    assert bench.connection.closed == []


async def test_controls_go_before_the_backlog_and_too_many_cut_the_connection(bench: Bench) -> None:
    bench.begin()
    await bench.publish(45, size=400)
    bench.delivery.control(Pong())
    frames = await bench.frames()
    assert "pong" in ops(frames)[: ops(frames).index("event") + 20]
    assert numbers(frames) == list(range(1, 46))
    await bench.publish(45, size=400)
    for _ in range(200):
        bench.delivery.control(Pong())
    assert bench.connection.closed
    assert set(bench.connection.closed) == {CloseCode.TOO_SLOW}


async def test_what_waits_for_the_quota_holds_up_nothing_else(bench: Bench) -> None:
    """Replies that did not fit the socket, and an event that did not, go out as it drains."""
    await bench.publish(30)
    bench.connection.quota.settle_replay(1 << 30)
    assert bench.connection.quota.take_replay(1 << 20) == 0.0  # The last small change.
    bench.begin()
    assert ops(await bench.frames()) == ["welcome"]
    assert bench.connection.counts["replay.paced"] > 0
    for _ in range(20):
        bench.delivery.control(ErrorFrame("invalid", "x" * 1000))
    assert bench.socket.outbox.pending
    assert ops(await bench.frames()) == ["error"] * 20
    bench.connection.quota.settle_replay(-1 << 31)
    bench.delivery._catch_up_on()
    assert numbers(await bench.frames()) == list(range(1, 31))


async def test_what_waits_for_its_turn_holds_up_nothing_else(bench: Bench) -> None:
    await bench.publish(30)
    held = [bench.connection.quota.pages.ask(lambda: None) for _ in range(2)]
    bench.begin()
    assert ops(await bench.frames()) == ["welcome"]
    for _ in range(20):
        bench.delivery.control(ErrorFrame("invalid", "x" * 1000))
    assert bench.socket.outbox.pending
    assert ops(await bench.frames()) == ["error"] * 20
    for place in held:
        bench.connection.quota.pages.leave(place)
    assert numbers(await bench.frames()) == list(range(1, 31))


async def test_pages_shrink_to_one_event_while_memory_is_short_and_all_of_it_comes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of one who was in the line while there was room."""
    await bench.publish(30, size=400)
    pages = bench.connection.quota.pages
    held = [pages.ask(lambda: None) for _ in range(2)]
    bench.begin()
    await wait_all_tasks_blocked()
    assert len(pages) == 1
    bench.connection.quota.pressure.note(Weights(backlog=bench.connection.limits.memory_bytes), 0.0)
    sizes: list[int] = []
    monkeypatch.setattr(bench.connection.quota.pressure, "take", sizes.append)
    for place in held:
        pages.leave(place)
    assert numbers(await bench.frames()) == list(range(1, 31))
    assert len(sizes) == 30
    assert max(sizes) < 2 * 400


class Hanging:
    """A store, or what makes snapshots, that does not answer until it is let go."""

    def __init__(self) -> None:
        self.asked, self.let_go = trio.Event(), trio.Event()

    async def __call__(self) -> None:
        self.asked.set()
        await self.let_go.wait()


@pytest.fixture
def hanging(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Hanging:
    """What `bench` reads pages and snapshots from."""
    hanging, read = Hanging(), bench.store.read

    async def slow(*args: Any, **given: Any) -> Any:
        await hanging()
        return await read(*args, **given)

    monkeypatch.setattr(bench.store, "read", slow)
    bench.connection.before_snapshot = hanging
    bench.connection.head = lambda: 10
    return hanging


FIRST: Final = Switch(None, None, first=True)


@pytest.mark.parametrize(("switch", "missed"), [(None, range(1, 31)), (FIRST, range(11, 31))])
async def test_what_waits_for_a_store_that_hangs_holds_up_nothing_else(
    bench: Bench, hanging: Hanging, switch: Switch | None, missed: range
) -> None:
    await bench.publish(30)
    bench.delivery.begin({"user": bench.stream}, {"user": 0}, {}, b'{"op":"welcome"}', switch=switch)
    assert ops(await bench.frames()) == ["welcome"]
    assert hanging.asked.is_set()
    for _ in range(3):
        for _ in range(20):
            bench.delivery.control(ErrorFrame("invalid", "x" * 1000))
        assert bench.socket.outbox.pending
        assert ops(await bench.frames()) == ["error"] * 20
    hanging.let_go.set()
    assert numbers(await bench.frames()) == list(missed)
    assert bench.delivery in bench.stream.live


async def test_nor_does_what_waits_for_one_that_has_failed(
    bench: Bench, hanging: Hanging, monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        await hanging()
        raise StoreUnavailable("down")

    monkeypatch.setattr(bench.store, "read", fail)
    await bench.publish(30)
    bench.begin()
    assert ops(await bench.frames()) == ["welcome"]
    for _ in range(20):
        bench.delivery.control(ErrorFrame("invalid", "x" * 1000))
    await wait_all_tasks_blocked()
    hanging.let_go.set()
    assert ops(await bench.frames()) == ["error"] * 20


async def test_a_reader_that_takes_nothing_is_closed_also_while_the_store_hangs(
    bench: Bench, hanging: Hanging, autojump_clock: MockClock
) -> None:
    await bench.publish(30)
    bench.begin()
    await hanging.asked.wait()
    for _ in range(20):
        bench.delivery.control(ErrorFrame("invalid", "x" * 1000))
    await trio.sleep(bench.connection.timeouts.write_progress + 0.1)
    assert bench.connection.closed == [CloseCode.TOO_SLOW]
    bench.delivery.end()
    await wait_all_tasks_blocked()
    assert bench.delivery._catch_up is None


async def test_the_end_stops_what_is_sent_while_the_store_hangs(bench: Bench, hanging: Hanging) -> None:
    await bench.publish(30)
    await wait_all_tasks_blocked()
    before = trio.lowlevel.current_statistics().tasks_living
    bench.begin()
    await hanging.asked.wait()
    bench.delivery.control(ErrorFrame("invalid", "x" * 6000))
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before + 2
    bench.delivery.end()
    await wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before


async def test_a_page_that_comes_when_its_place_was_passed_is_not_told(
    bench: Bench, hanging: Hanging
) -> None:
    """While it is read the log is trimmed to what the tail has, and that is told beside it."""
    await bench.publish(30)
    bench.begin()
    assert ops(await bench.frames()) == ["welcome"]
    bench.stream.trim(25)
    bench.delivery.control(ErrorFrame("invalid", "x" * 6000))
    bench._bytes += await bench.far.receive_some(2000)  # There is room for its end and a little more.
    await wait_all_tasks_blocked()
    assert bench.socket.outbox.pending
    assert bench.delivery.lagging
    hanging.let_go.set()
    frames = await bench.frames()
    assert [(frame["from"], frame["to"]) for frame in frames if frame["op"] == "gap"] == [(1, 24)]
    assert numbers(frames) == list(range(25, 31))


async def test_a_slow_reader_that_lost_its_turn_is_not_charged_for_it(bench: Bench) -> None:
    await bench.publish(30)
    quota, most = bench.connection.quota, bench.connection.limits.page_bytes
    quota.settle_replay(63 * 1024 * 1024 - 10 * most)
    held = [quota.pages.ask(lambda: None) for _ in range(2)]
    bench.begin()
    for _ in range(50):
        for _ in range(10):
            bench.delivery.control(ErrorFrame("invalid", "x" * 1000))
        assert ops(await bench.frames())[-10:] == ["error"] * 10
    for place in held:
        quota.pages.leave(place)
    assert numbers(await bench.frames()) == list(range(1, 31))
    assert quota.take_replay(9 * most) == 0


async def test_who_leaves_before_its_turn_came_pays_for_no_page(bench: Bench) -> None:
    await bench.publish(30)
    quota, most = bench.connection.quota, bench.connection.limits.page_bytes
    quota.settle_replay(63 * 1024 * 1024 - 10 * most)
    held = [quota.pages.ask(lambda: None) for _ in range(2)]
    for _ in range(300):  # The first MiB of them would be small change.
        bench.delivery = Delivery(bench.connection, bench.socket, None)
        bench.begin()
        await bench.frames()
        assert len(quota.pages) == 1, "it waits for the quota"
        bench.delivery.end()
        await wait_all_tasks_blocked()
        assert len(quota.pages) == 0
    for place in held:
        quota.pages.leave(place)


async def test_one_whose_catch_up_has_a_bug_is_closed_and_does_not_lag_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    await bench.publish(30)
    monkeypatch.setattr(bench.store, "read", read)
    raised: list[str] = []

    async def live(member: Callable[..., Awaitable[None]], *args: object) -> None:
        try:
            await member(*args)
        except RuntimeError as error:  # As a session does, which logs it.
            raised.append(str(error))

    start = bench.connection.start
    monkeypatch.setattr(bench.connection, "start", lambda member, *args: start(live, member, *args))
    bench.begin()
    assert ops(await bench.frames()) == ["welcome"]
    assert (raised, bench.connection.closed) == (["a bug"], [CloseCode.INTERNAL_ERROR])
    assert not bench.connection.quota.pages


async def test_a_large_event_comes_in_parts_that_make_the_whole(bench: Bench) -> None:
    bench.begin()
    await bench.publish(1, size=5000)
    await bench.publish(1)
    frames = await bench.frames()
    assert ops(frames)[:2] == ["welcome", "live"]
    assert set(ops(frames)[2:-1]) == {"part"}
    assert numbers(frames) == [2]


async def test_the_end_leaves_every_stream_and_stops_the_catch_up(bench: Bench) -> None:
    await bench.publish(30, size=400)
    bench.begin()
    bench.delivery.end()
    await wait_all_tasks_blocked()
    assert bench.delivery not in bench.stream.live
    taken = bench.socket.outbox.taken
    await bench.publish(3)
    await read_now(bench.far)
    await wait_all_tasks_blocked()
    assert bench.socket.outbox.taken == taken


async def test_an_event_behind_our_close_frame_does_not_turn_it_into_a_kill(bench: Bench) -> None:
    bench.begin()
    await bench.frames()
    bench.socket.close_nowait(CloseCode.MESSAGE_TOO_BIG, "too large")
    await bench.publish(3)
    await wait_all_tasks_blocked()
    assert bench.connection.closed == []
    assert bench.delivery not in bench.stream.live
    assert (await read_now(bench.far))[:1] == b"\x88"


async def test_a_trim_that_is_known_before_its_commit_leaves_a_stream_that_can_be_joined(
    bench: Bench,
) -> None:
    await bench.publish(3)
    bench.stream.trim(10)
    assert bench.stream.oldest == bench.stream.head + 1
    bench.begin()
    frames = await bench.frames()
    assert ops(frames) == ["welcome", "gap", "live"]
    assert bench.connection.gone == [(1, 3)]
    assert bench.delivery in bench.stream.live


class TestFilter:
    async def test_only_wanted_threads_come_and_the_rest_is_skipped_in_words(self, bench: Bench) -> None:
        bench.delivery = Delivery(bench.connection, bench.socket, frozenset({"a"}))
        await bench.publish(3, thread="a")
        await bench.publish(2, thread="b")
        bench.begin()
        await bench.publish(1, thread="b")
        await bench.publish(1)
        frames = await bench.frames()
        assert numbers(frames) == [1, 2, 3, 7]
        assert reconstruct(frames) == 7

    async def test_one_that_nothing_passes_is_told_so_now_and_then(self, bench: Bench) -> None:
        bench.delivery = Delivery(bench.connection, bench.socket, frozenset({"a"}))
        bench.begin()
        await bench.publish(250, thread="b")
        frames = await bench.frames()
        assert ops(frames) == ["welcome", "live", "skip", "skip"]
        assert reconstruct(frames) == 200

    async def test_one_that_lags_while_skipping_tells_every_seq_once(self, bench: Bench) -> None:
        bench.delivery = Delivery(bench.connection, bench.socket, frozenset({"a"}))
        bench.begin()
        for _ in range(6):
            await bench.publish(3, thread="b", size=300)
            await bench.publish(4, thread="a", size=300)
        frames = await bench.frames()
        assert numbers(frames) == [n for n in range(1, 43) if (n - 1) % 7 >= 3]
        assert reconstruct(frames) == 42


def reconstruct(frames: list[dict[str, Any]]) -> int:
    """The last seq a client knows of; fails where it would see a hole or a repeat."""
    last = 0
    for frame in frames:
        if frame["op"] == "event":
            assert frame.get("first_seq", frame["seq"]) == last + 1
            last = frame["seq"]
        elif frame["op"] == "skip":
            assert frame["to"] > last
            last = frame["to"]
    return last


def fragment(
    offset: int, text: str, *, kind: str = "message_delta", **more: Any
) -> tuple[str, dict[str, Any]]:
    return kind, {"message_id": "m", "offset": offset, "text": text, **more}


def spans(frames: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [
        (frame.get("first_seq", frame["seq"]), frame["seq"]) for frame in frames if frame["op"] == "event"
    ]


class TestCoalescing:
    async def test_fragments_merge_over_the_pages_of_a_replay(self, bench: Bench) -> None:
        await bench.publish(2)
        await bench.write(*(fragment(n, "x") for n in range(30)))
        await bench.publish(1)
        bench.begin()
        frames = await bench.frames()
        assert spans(frames) == [(1, 1), (2, 2), (3, 32), (33, 33)]
        assert frames[3]["data"]["text"] == "x" * 30
        assert ops(frames)[-1] == "live"
        assert bench.connection.counts["replayed"] == 33

    async def test_live_ones_come_one_by_one_and_those_that_wait_for_a_slow_reader_merged(
        self, bench: Bench
    ) -> None:
        bench.begin()
        await bench.write(fragment(0, "a"), fragment(1, "b"))
        frames = await bench.frames()
        assert spans(frames) == [(1, 1), (2, 2)]
        await bench.publish(10, size=900)
        await bench.write(*(fragment(n, "x") for n in range(2, 22)))
        frames += await bench.frames()
        assert reconstruct(frames) == 32
        assert spans(frames)[-1] == (13, 32)

    async def test_live_ones_that_pass_a_filter_come_one_by_one_too(self, bench: Bench) -> None:
        bench.delivery = Delivery(bench.connection, bench.socket, frozenset({"a"}))
        bench.begin()
        await bench.write(fragment(0, "a"), fragment(1, "b"), thread="a")
        assert spans(await bench.frames()) == [(1, 1), (2, 2)]

    async def test_what_is_held_comes_before_the_word_that_more_is_gone(self, bench: Bench) -> None:
        await bench.write(*(fragment(n, "x") for n in range(40)))
        page = await bench.stream.page(0, max_events=5, max_bytes=4096)
        lag = Lag(0, announce=True, page=page)
        assert bench.delivery._render(bench.stream, lag)
        assert not lag.frames
        lag.page = Page(41, (), gap=(6, 40))
        assert bench.delivery._render(bench.stream, lag)
        merged, gap = map(orjson.loads, lag.frames)
        assert (merged["op"], merged["first_seq"], merged["seq"]) == ("event", 1, 5)
        assert (gap["op"], gap["from"], gap["to"]) == ("gap", 6, 40)

    async def test_a_merged_event_is_no_larger_than_a_part(self, bench: Bench) -> None:
        await bench.write(*(fragment(100 * n, "x" * 100) for n in range(40)))
        bench.begin()
        frames = await bench.frames()
        assert {frame["op"] for frame in frames} == {"welcome", "event", "live"}
        assert "".join(frame["data"]["text"] for frame in frames if frame["op"] == "event") == "x" * 4000
        assert reconstruct(frames) == 40

    async def test_those_of_a_thread_that_is_not_wanted_are_skipped(self, bench: Bench) -> None:
        bench.delivery = Delivery(bench.connection, bench.socket, frozenset({"a"}))
        await bench.write(*(fragment(n, "x") for n in range(10)), thread="a")
        await bench.write(*(fragment(n, "y") for n in range(10)), thread="b")
        await bench.write(*(fragment(n, "x") for n in range(10, 20)), thread="a")
        bench.begin()
        frames = await bench.frames()
        assert ops(frames) == ["welcome", "event", "skip", "event", "live"]
        assert spans(frames) == [(1, 10), (21, 30)]
        assert reconstruct(frames) == 30


async def test_a_reader_that_was_trimmed_past_and_wants_snapshots_gets_one_behind_the_gap(
    bench: Bench,
) -> None:
    bench.delivery = Delivery(bench.connection, bench.socket, None, snapshots=True)
    bench.connection.head = lambda: bench.stream.head
    bench.begin()
    await bench.publish(20, size=400)
    await bench.publish(200)
    frames = await bench.frames()
    told = [op for op in ops(frames) if op != "event"]
    assert told == ["welcome", "gap", "snapshot", "live"] or told == ["welcome", "live", "gap", "snapshot"]
    place = ops(frames).index("snapshot")
    assert frames[place]["seq"] == 220
    assert numbers(frames[place:]) == []
    await bench.publish(1)
    assert numbers(await bench.frames()) == [221]


async def test_a_follow_that_a_gap_overtakes_gets_a_snapshot_of_behind_the_gap(bench: Bench) -> None:
    bench.delivery = Delivery(bench.connection, bench.socket, frozenset("a"))
    bench.connection.head = lambda: bench.stream.head
    bench.begin()
    await bench.publish(20, size=400, thread="a")
    bench.delivery.refilter(frozenset("b"), "f1")
    got: list[dict[str, Any]] = []
    while not bench.connection.snapshots:  # It is taken once the socket has taken what was on its way.
        bench._bytes += await read_now(bench.far)
        got += bench._messages()
        await wait_all_tasks_blocked()
    assert bench.connection.snapshots == [20]
    assert bench.delivery.position("user") in range(1, 20), "the snapshot waits for events before it"
    await bench.publish(200, thread="b")
    got += await bench.frames()
    (gap,) = [frame for frame in got if frame["op"] == "gap"]
    (snapshot,) = [frame for frame in got if frame["op"] == "snapshot"]
    (reply,) = [frame for frame in got if frame["op"] == "reply"]
    assert gap["to"] > 20
    assert snapshot["seq"] == reply["result"]["seq"] == 220
    place = got.index(snapshot)
    assert got.index(gap) < place < got.index(reply)
    assert numbers(got[:place]) == list(range(1, gap["from"]))
    assert numbers(got[place:]) == []
    assert bench.delivery.wanted == frozenset("b")
    await bench.publish(1, thread="b")
    assert numbers(await bench.frames()) == [221]


async def test_a_gap_that_ends_before_the_snapshot_of_a_follow_leaves_it_as_it_is(bench: Bench) -> None:
    await bench.publish(3)
    lag = Lag(0, announce=False, switches=deque([Switch(frozenset("a"), frozenset("b"), ref="f1")]))
    lag.begin_snapshot(bench.stream, Snapshot(3, {"b": EMPTY}), part_bytes=1024)
    lag.tell_gap(bench.stream, (1, 2))
    assert lag.snapshot is not None
    assert not lag.tell_snapshot()
    lag.tell_gap(bench.stream, (3, 3))
    assert lag.tell_snapshot()
    assert [orjson.loads(frame)["op"] for frame in lag.frames] == ["gap", "gap", "snapshot"]


async def test_a_first_snapshot_may_be_newer_than_welcome_said(bench: Bench) -> None:
    await bench.publish(3)

    async def meanwhile() -> None:
        await bench.publish(4)

    bench.connection.before_snapshot = meanwhile
    bench.connection.head = lambda: bench.stream.head
    switch = Switch(None, None, first=True)
    bench.delivery.begin({"user": bench.stream}, {"user": 3}, {}, b'{"op":"welcome"}', switch=switch)
    frames = await bench.frames()
    assert ops(frames) == ["welcome", "snapshot", "live"]
    assert (frames[1]["seq"], frames[2]["seq"]) == (7, 7)


async def test_a_filter_holds_from_its_snapshot_on_also_in_the_middle_of_a_page(bench: Bench) -> None:
    bench.delivery = Delivery(bench.connection, bench.socket, frozenset("a"))
    for thread in "abababab":
        await bench.publish(1, thread=thread)
    bench.connection.head = lambda: 8
    bench.delivery.begin({"user": bench.stream}, {"user": 0}, {}, b'{"op":"welcome"}')
    await bench.frames()

    async def meanwhile() -> None:
        for thread in "abab":
            await bench.publish(1, thread=thread)

    bench.connection.before_snapshot = meanwhile
    bench.connection.head = lambda: bench.stream.head - 2
    bench.delivery.refilter(frozenset("b"), "f1")
    frames = await bench.frames()
    place = ops(frames).index("snapshot")
    assert frames[place]["seq"] == 10
    assert numbers(frames[:place]) == [9]
    assert numbers(frames[place:]) == [12]
    assert [frame["result"] for frame in frames if frame["op"] == "reply"] == [{"seq": 10}]
