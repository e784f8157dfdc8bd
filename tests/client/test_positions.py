"""What a session resumes from and acknowledges. Time is virtual."""

from __future__ import annotations

import json

import attrs
import trio
from scripted import Peer, Server, event, live, welcome
from talking import RESUMED, opened, seqs, take
from trio.testing import MockClock

from wsrecover.client import Event, Forgotten, Position


class TestPositions:
    async def test_an_event_is_processed_when_the_next_one_is_asked_for(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(2, **{"from": 1}), event(1), event(2), live(2))
            await peer.until_bye()

        async with opened(Server(script)) as session:
            await take(session, 1)
            assert session.processed == {}
            assert session.received == {"user": Position("e-1", 2)}
            await take(session, 1)
            assert session.processed == {"user": Position("e-1", 1)}

    async def test_after_a_crash_what_was_received_but_not_handled_comes_again(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(3, **{"from": 1}), event(1), event(2), event(3), live(3))
            await peer.until_bye()

        async def second(peer: Peer) -> None:
            assert peer.hello["resume"] == {"user": ["e-1", 1]}
            peer.say(welcome(3, **{"from": 2}, **RESUMED), event(2), event(3), live(3))
            await peer.until_bye()

        server = Server(first, second)
        async with opened(server) as session:
            await take(session, 2)
        async with opened(server, positions=session.processed) as session:
            assert seqs(await take(session, 2)) == [2, 3]

    async def test_a_position_kept_as_json_goes_on_behind_what_was_handed(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(3, **{"from": 1}), event(1), event(2), event(3), live(3))
            await peer.until_bye()

        async def second(peer: Peer) -> None:
            assert peer.hello["resume"] == {"user": ["e-1", 2]}
            peer.say(welcome(3, **{"from": 3}, **RESUMED), event(3), live(3))
            await peer.until_bye()

        server = Server(first, second)
        async with opened(server) as session:
            await take(session, 2)
            kept = json.dumps(session.position, default=attrs.astuple)
        async with opened(server, positions=json.loads(kept)) as session:
            assert seqs(await take(session, 1)) == [3]

    async def test_skipped_events_are_processed_once_what_was_before_them_is(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            skip = {"op": "skip", "stream": "user", "to": 6}
            peer.say(welcome(6, **{"from": 1}), event(1), skip, live(6))
            await peer.until_bye()

        async with opened(Server(script)) as session:
            await take(session, 1)
            assert session.processed == {}
            with trio.move_on_after(1):
                await anext(session)
            assert session.processed == {"user": Position("e-1", 6)}

    async def test_a_snapshot_is_processed_with_its_last_frame(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            snapshot = {"op": "snapshot", "stream": "user", "seq": 4, "threads": {}}
            peer.say(welcome(4), {**snapshot, "more": True}, snapshot, live(4))
            await peer.until_bye()

        async with opened(Server(script)) as session:
            await take(session, 2)
            assert session.processed == {}
            with trio.move_on_after(1):
                await anext(session)
            assert session.processed == {"user": Position("e-1", 4)}

    async def test_acks_come_after_a_second_at_a_hundred_and_after_each_welcome(
        self, autojump_clock: MockClock
    ) -> None:
        times: list[tuple[float, dict[str, int]]] = []

        async def first(peer: Peer) -> None:
            start = trio.current_time()
            peer.say(welcome(0), *[event(seq) for seq in range(1, 103)], live(102))
            for _ in range(2):
                ack = await peer.hear_ack()
                times.append((trio.current_time() - start, ack))
            peer.close(1006)

        async def second(peer: Peer) -> None:
            peer.say(welcome(102, **{"from": 103}, **RESUMED), live(102))
            start = trio.current_time()
            ack = await peer.hear_ack()
            times.append((trio.current_time() - start, ack))
            await peer.until_bye()

        async with opened(Server(first, second)) as session:
            await take(session, 101)
            await trio.sleep(5)
            await take(session, 1)
            with trio.move_on_after(10):
                await anext(session)
        (at_hundred, hundred), (later, second_ack), (at_once, third_ack) = times
        assert (at_hundred, hundred) == (0, {"user": 100})
        assert (later, second_ack) == (6, {"user": 102})
        assert (at_once, third_ack) == (0, {"user": 102})

    async def test_a_position_in_a_history_that_ended_is_not_acknowledged_in_the_next(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(2, **{"from": 1}), event(1), event(2), live(2))
            peer.close(1006)

        async def second(peer: Peer) -> None:
            peer.say(welcome(1, epoch="f-1", reason="epoch_changed", **{"from": 1}), live(0))
            await trio.sleep(3)
            peer.say(event(1))
            await peer.until_bye()

        server = Server(first, second)
        async with opened(server) as session:
            await take(session, 3)
            await session.wait_status("live")
            await trio.sleep(2)
            assert server.peers[1].acks == []
            await take(session, 1)
            with trio.move_on_after(2):
                await anext(session)
        assert server.peers[1].acks[-1] == {"user": 1}

    async def test_what_was_handled_is_acknowledged_before_leaving(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(2, **{"from": 1}), event(1), event(2), live(2))
            await peer.until_bye()

        server = Server(script)
        async with opened(server) as session:
            await take(session, 2)
        assert server.peers[0].acks == [{"user": 1}]

    async def test_what_waits_of_a_forgotten_stream_leaves_no_position(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), event(1), {"op": "streams", "added": {}, "removed": ["user"]})
            await peer.until_bye()

        async with opened(Server(script)) as session:
            event_item, forgotten = await take(session, 2)
            assert isinstance(event_item, Event)
            assert forgotten == Forgotten("user")
            assert session.processed == {}
            assert session.status == "live"
