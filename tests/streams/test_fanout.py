"""A crowd is served in slices; whoever is in one gets each event once and in order all the same."""

from __future__ import annotations

import random
from collections.abc import Sequence

import trio
from trio.testing import wait_all_tasks_blocked

from wsrecover.streams.fanout import Fanout
from wsrecover.streams.memory import open_memory
from wsrecover.streams.registry import Streams
from wsrecover.streams.served import AT_ONCE
from wsrecover.streams.store import Entry, StreamKey
from wsrecover.streams.stream import CROWD, MAX_WAVES, Stream

ALL = StreamKey("all")


def entries(first: int, last: int) -> list[Entry]:
    return [Entry(ALL, b'{"n":%d}' % seq, 1.0, seq=seq) for seq in range(first, last + 1)]


class Listener:
    """Takes everything, or lags from the seq `until` on."""

    def __init__(self, until: int = 10**9) -> None:
        self.until = until
        self.taken: list[int] = []
        self.lagged: list[int] = []
        self.sent = 0

    def flush(self) -> None:
        self.sent = len(self.taken)

    def deliver(self, stream: Stream, entries: Sequence[Entry]) -> bool:
        if entries[-1].seq >= self.until:
            return False
        self.taken += range(entries[0].seq, entries[-1].seq + 1)
        return True

    def lag(self, stream: Stream, after: int) -> None:
        self.lagged.append(after)


class Broken(Listener):
    """Fails, and fails again when it is told to lag."""

    def deliver(self, stream: Stream, entries: Sequence[Entry]) -> bool:
        raise ArithmeticError("deliver")

    def lag(self, stream: Stream, after: int) -> None:
        super().lag(stream, after)
        raise ArithmeticError("lag")


async def crowd(count: int) -> tuple[Streams, Stream, list[Listener]]:
    streams = Streams(await open_memory())
    stream = await streams.open(ALL)
    listeners = [Listener() for _ in range(count)]
    for listener in listeners:
        assert stream.join(listener, 0)
    return streams, stream, listeners


async def test_a_small_audience_is_served_in_the_step_of_the_commit() -> None:
    _, stream, listeners = await crowd(CROWD)
    stream.extend(entries(1, 1))
    assert all(listener.taken == [1] for listener in listeners)


async def test_a_crowd_is_served_in_slices_between_which_others_run(nursery: trio.Nursery) -> None:
    streams, stream, listeners = await crowd(4 * CROWD)
    nursery.start_soon(streams.fanout.run)
    await wait_all_tasks_blocked()
    stream.extend(entries(1, 1))
    served = []
    while not all(listener.taken for listener in listeners):
        await trio.lowlevel.checkpoint()
        served.append(sum(bool(listener.taken) for listener in listeners))
    # Two slices: tasks run in any order, so one round's last and the next one's first may be neighbours.
    assert max(after - before for before, after in zip([0, *served], served, strict=False)) <= CROWD
    assert stream.live == set(listeners)


async def test_what_comes_while_a_crowd_is_served_reaches_each_once_and_in_order() -> None:
    rng = random.Random(5)
    _, stream, listeners = await crowd(2 * CROWD)
    for seq in range(1, 60):
        stream.extend(entries(seq, seq))
        for _ in range(rng.randrange(8)):
            stream.serve_wave()
    while stream.serve_wave():
        pass
    assert all(listener.taken == list(range(1, 60)) or listener.lagged for listener in listeners)
    assert stream.live == {listener for listener in listeners if not listener.lagged}


class Framer(Listener):
    """Takes what the first follower has framed for all, as a connection does."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[bytes] = []

    def deliver(self, stream: Stream, entries: Sequence[Entry]) -> bool:
        if stream.framed is None:
            stream.framed = b"".join([entry.body for entry in entries])
        self.frames.append(stream.framed)
        return super().deliver(stream, entries)


async def test_what_is_framed_once_for_all_is_never_another_commits() -> None:
    _, stream, _ = await crowd(0)
    framers = [Framer() for _ in range(2 * CROWD)]
    for framer in framers:
        stream.join(framer, 0)
    stream.extend(entries(1, 1))
    stream.serve_wave()
    stream.extend(entries(2, 2))
    while stream.serve_wave():
        pass
    few, others = framers[:2], framers[2:]
    for other in others:
        stream.leave(other)
    stream.extend(entries(3, 3))
    stream.extend(entries(4, 4))
    assert {tuple(framer.frames) for framer in others} == {(b'{"n":1}', b'{"n":2}')}
    assert {tuple(framer.frames) for framer in few} == {tuple([b'{"n":%d}' % n for n in (1, 2, 3, 4)])}
    one = few[0].frames
    assert all(framer.frames[0] is one[0] for framer in framers), "it was framed once"
    assert stream.framed is None, "and is not kept"


class Leaver(Listener):
    """Takes, and leaves when it is to send: its connection is lost."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def flush(self) -> None:
        self.stream.leave(self)


async def test_those_that_leave_while_a_crowd_is_served_are_gone() -> None:
    streams, stream, listeners = await crowd(CROWD)
    leavers = [Leaver(stream) for _ in range(CROWD)]
    for leaver in leavers:
        assert stream.join(leaver, 0)
    for seq in (1, 2):
        stream.extend(entries(seq, seq))
    while stream.serve_wave():
        streams.flush()
    assert stream.live == set(listeners)
    assert all(leaver.taken == [1] for leaver in leavers)


async def test_one_that_does_not_take_its_slice_lags_and_the_others_go_on() -> None:
    _, stream, listeners = await crowd(CROWD + 1)
    listeners[7].until = 2
    for seq in (1, 2, 3):
        stream.extend(entries(seq, seq))
    while stream.serve_wave():
        pass
    assert listeners[7].taken == [1]
    assert stream.live == set(listeners) - {listeners[7]}
    assert all(listener.taken == [1, 2, 3] for listener in listeners if listener is not listeners[7])


async def test_who_joins_at_the_head_is_served_only_what_follows() -> None:
    _, stream, _ = await crowd(CROWD + 1)
    stream.extend(entries(1, 1))
    late = Listener()
    assert stream.join(late, 1)
    stream.extend(entries(2, 2))
    while stream.serve_wave():
        pass
    assert late.taken == [2]


async def test_who_leaves_is_served_nothing_more() -> None:
    _, stream, listeners = await crowd(CROWD + 1)
    stream.extend(entries(1, 1))
    stream.leave(listeners[0])
    while stream.serve_wave():
        pass
    assert listeners[0].taken == []


async def test_what_a_follower_has_reached_is_told_from_where_it_waits() -> None:
    _, stream, listeners = await crowd(CROWD + 1)
    stream.extend(entries(1, 3))
    stream.extend(entries(4, 5))
    assert {stream.reached(listener) for listener in listeners} == {0}
    while stream.serve_wave():
        for listener in listeners:
            assert stream.reached(listener) == (listener.taken or [0])[-1]
    assert {stream.reached(listener) for listener in listeners} == {5}


async def test_a_crowd_that_falls_too_far_behind_reads_on_from_the_log() -> None:
    _, stream, listeners = await crowd(CROWD + 1)
    for seq in range(1, MAX_WAVES + 2):
        stream.extend(entries(seq, seq))
    assert all(listener.lagged == [0] for listener in listeners)
    while stream.serve_wave():
        pass
    assert not stream.live


async def test_a_hole_sends_those_in_every_wave_to_the_log_from_where_they_are() -> None:
    _, stream, listeners = await crowd(CROWD + 1)
    stream.extend(entries(1, 2))
    stream.serve_wave()
    stream.extend(entries(3, 3))
    stream.extend(entries(9, 9))
    served = [listener for listener in listeners if listener.taken]
    assert served
    assert all(listener.lagged == [2 if listener.taken else 0] for listener in listeners)
    assert not stream.live
    assert not stream.serve_wave()


class TestAFollowerThatFails:
    """It is told once, and all others of its stream are served as ever."""

    async def broken(self, count: int) -> tuple[Stream, list[Listener], list[Broken]]:
        _, stream, listeners = await crowd(count)
        broken = [Broken() for _ in range(3)]
        for one in broken:
            assert stream.join(one, 0)
        return stream, listeners, broken

    async def test_in_a_small_audience_and_in_a_slice_of_a_crowd(self) -> None:
        for count in (CROWD // 2, 2 * CROWD):
            stream, listeners, broken = await self.broken(count)
            stream.extend(entries(1, 1))
            stream.extend(entries(2, 2))
            while stream.serve_wave():
                pass
            assert all(listener.taken == [1, 2] for listener in listeners)
            assert stream.live == set(listeners)
            assert [one.lagged for one in broken] == [[0]] * 3

    async def test_when_a_crowd_falls_too_far_behind(self) -> None:
        stream, listeners, broken = await self.broken(CROWD + 1)
        for seq in range(1, MAX_WAVES + 2):
            stream.extend(entries(seq, seq))
        assert all(one.lagged == [0] for one in [*listeners, *broken])
        assert not stream.live
        late = Listener()
        assert stream.join(late, MAX_WAVES + 1)
        stream.extend(entries(MAX_WAVES + 2, MAX_WAVES + 2))
        while stream.serve_wave():
            pass
        assert late.taken == [MAX_WAVES + 2]

    async def test_when_there_is_a_hole(self) -> None:
        stream, listeners, broken = await self.broken(5)
        stream.extend(entries(3, 3))
        assert all(one.lagged == [0] for one in [*listeners, *broken])
        assert not stream.live
        assert stream.head == 3


async def test_streams_take_turns(nursery: trio.Nursery) -> None:
    streams = Streams(await open_memory())
    crowds = []
    for name in ("a", "b"):
        stream = await streams.open(StreamKey("tenant", name))
        listeners = [Listener() for _ in range(2 * CROWD)]
        for listener in listeners:
            stream.join(listener, 0)
        crowds.append((stream, listeners))
    for stream, _ in crowds:
        stream.extend(entries(1, 1))
    assert isinstance(streams.fanout, Fanout)
    nursery.start_soon(streams.fanout.run)
    while not all(listener.taken for listener in crowds[0][1]):
        await trio.lowlevel.checkpoint()
    assert sum(bool(listener.taken) for listener in crowds[1][1]) >= CROWD


async def test_all_who_took_something_send_it_and_soon_after() -> None:
    streams, _, listeners = await crowd(CROWD)
    streams.extend(entries(1, 1))
    unsent = sum(not listener.sent for listener in listeners)
    assert unsent < AT_ONCE, f"{unsent} frames are held"
    streams.flush()
    assert all(listener.sent == 1 for listener in listeners)


async def test_one_that_fails_to_send_harms_nobody_else() -> None:
    class Broken(Listener):
        def flush(self) -> None:
            raise RuntimeError("a bug in a connection")

    streams, stream, listeners = await crowd(2)
    assert stream.join(Broken(), 0)
    streams.extend(entries(1, 1))
    streams.flush()
    assert all(listener.sent == 1 for listener in listeners)


async def test_a_wave_is_sent_to_its_end() -> None:
    streams, _, listeners = await crowd(CROWD + 1)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(streams.fanout.run)
            streams.extend(entries(1, 1))
            await wait_all_tasks_blocked()
            assert all(listener.sent == 1 for listener in listeners)
            nursery.cancel_scope.cancel()
