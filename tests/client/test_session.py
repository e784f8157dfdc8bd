"""What a session shows its app, against servers that do what the test says. Time is virtual."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import trio
import trio.testing
from scripted import Peer, Server, event, live, welcome
from talking import RESUMED, opened, seqs, stay, take
from trio.testing import MockClock

from wsrecover.client import Changed, Event, Forgotten, Gap, Position, Snapshot, connect
from wsrecover.errors import (
    ConfigError,
    TransportError,
)


class TestConnecting:
    async def test_the_url_says_who_and_the_header_says_by_what_right(
        self, autojump_clock: MockClock
    ) -> None:
        server = Server(stay)
        async with opened(server, client_id="tab", threads=["t1"], from_="live") as session:
            assert session.client_id == "tab"
        (peer,) = server.peers
        assert peer.hello == {"client": "tab", "threads": ["t1"], "from": "live"}
        assert peer.token == "t0"

    async def test_the_welcome_is_told(self, autojump_clock: MockClock) -> None:
        async with opened(Server(stay)) as session:
            assert (session.principal.user, session.principal.roles) == ("ann", ("dev",))
            assert [run.run for run in session.runs] == ["r1"]
            assert session.limits == {"message_bytes": 65536}
            await session.wait_status("live")
        assert session.status == "closed"

    async def test_positions_that_do_not_fit_in_a_url_go_into_a_hello(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            hello = await peer.hear()
            assert (hello["op"], len(hello["resume"])) == ("hello", 60)
            await stay(peer)

        server = Server(script)
        positions = {f"role:{number}{'x' * 50}": Position("e" * 40, 7) for number in range(60)}
        async with opened(server, positions=positions) as session:
            pass
        assert server.peers[0].hello == {}
        assert session.status == "closed"

    @pytest.mark.parametrize(
        ("field", "changes"),
        [
            ("connect_timeout", {"connect_timeout": 0}),
            ("give_up_after", {"give_up_after": -1}),
            ("buffer_items", {"buffer_items": 0}),
            ("client_id", {"client_id": "ü"}),
            ("threads", {"threads": "t1"}),
            ("threads", {"threads": ["x"] * 101}),
            ("token", {"token": None}),
            ("token", {"token": b"t0"}),
            ("positions", {"positions": [["user", "e-1", 1]]}),
            ("positions.user", {"positions": {"user": "e-1.1"}}),
            ("positions.user", {"positions": {"user": ["e-1", -1]}}),
            ("positions.user", {"positions": {"user": ["e-1", True]}}),
            ("positions.user", {"positions": {"user": ["", 1]}}),
            ("positions.user", {"positions": {"user": ["e-1", 1, 1]}}),
            ("positions.user", {"positions": {"user": ["e-1", 2**53]}}),
            ("positions.user", {"positions": {"user": Position("e-1", -1)}}),
            ("positions", {"positions": 0}),
        ],
    )
    async def test_a_wrong_argument_is_named(
        self, field: str, changes: dict[str, Any], autojump_clock: MockClock
    ) -> None:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            async with opened(Server(), **changes):
                pass

    @pytest.mark.parametrize("made", [None, b"t0", "t0\n"])
    async def test_a_callback_that_never_gave_a_token_is_not_asked_for_ever(
        self, made: Any, autojump_clock: MockClock
    ) -> None:
        with pytest.raises(ConfigError, match=r"^token: the callback gave (None|a bytes|no token); "):
            async with opened(Server(), token=lambda: made):
                pass

    @pytest.mark.parametrize(
        "url",
        [
            "http://x",
            "ws://",
            "ws://u:p@x",
            "ws://x?token=1",
            "ws://x#f",
            "ws://x:port",
            "ws://a..b",
            "ws://\u2603.com",
        ],
    )
    async def test_a_wrong_url_is_named(self, url: str, autojump_clock: MockClock) -> None:
        with pytest.raises(ConfigError, match=r"^url: "):
            async with connect(url, token="t"):
                pass

    async def test_one_task_at_a_time_waits_for_what_comes_next(self, autojump_clock: MockClock) -> None:
        async with opened(Server(stay)) as session, trio.open_nursery() as nursery:
            nursery.start_soon(anext, session)
            await session.wait_status("live")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError, match="another task is waiting"):
                await anext(session)
            with pytest.raises(trio.BusyResourceError, match="another task is waiting"):
                await anext(session.batches())
            nursery.cancel_scope.cancel()

    async def test_an_error_in_the_block_comes_out_as_it_is(self, autojump_clock: MockClock) -> None:
        with pytest.raises(KeyError):
            async with opened(Server(stay)):
                raise KeyError("mine")

    async def test_a_block_that_is_cancelled_ends_at_once(self, autojump_clock: MockClock) -> None:
        async def deaf(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            await trio.sleep_forever()

        start = trio.current_time()
        with trio.move_on_after(3):
            async with opened(Server(deaf)):
                await trio.sleep_forever()
        assert trio.current_time() == start + 3

    async def test_leaving_takes_two_seconds_where_the_server_does_not_answer(
        self, autojump_clock: MockClock
    ) -> None:
        async def deaf(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            await trio.sleep_forever()

        async with opened(Server(deaf)):
            start = trio.current_time()
        assert trio.current_time() == start + 2


class TestEvents:
    async def test_each_event_comes_once_over_a_reconnect(self, autojump_clock: MockClock) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(2, **{"from": 1}), event(1), event(2), live(2))
            peer.say(event(3))
            peer.close(1006)

        async def second(peer: Peer) -> None:
            assert peer.hello["resume"] == {"user": ["e-1", 3]}
            peer.say(welcome(4, epoch="e-2", **{"from": 4}, **RESUMED), event(3), event(4), live(4))
            await peer.until_bye()

        server = Server(first, second)
        async with opened(server) as session:
            assert seqs(await take(session, 4)) == [1, 2, 3, 4]
            assert session.received == {"user": Position("e-2", 4)}
            assert session.processed == {"user": Position("e-2", 3)}
        assert server.peers[0].hello["client"] == server.peers[1].hello["client"]

    async def test_a_hole_makes_it_reconnect_from_before_the_hole(self, autojump_clock: MockClock) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), event(1), event(3), live(3))

        async def second(peer: Peer) -> None:
            assert peer.hello["resume"] == {"user": ["e-1", 1]}
            peer.say(welcome(3, **{"from": 2}, **RESUMED), event(2), event(3), live(3))
            await peer.until_bye()

        async with opened(Server(first, second)) as session:
            assert seqs(await take(session, 3)) == [1, 2, 3]

    async def test_a_message_with_a_bad_frame_is_dropped_whole_and_makes_it_reconnect(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), event(1))
            peer.say(event(2), {"op": "event", "seq": "three"})

        async def second(peer: Peer) -> None:
            assert peer.hello["resume"] == {"user": ["e-1", 1]}
            peer.say(welcome(2, **{"from": 2}, **RESUMED), event(2), live(2))
            await peer.until_bye()

        async with opened(Server(first, second)) as session:
            assert seqs(await take(session, 2)) == [1, 2]
            assert isinstance(session.last_error, TransportError)

    async def test_parts_of_an_event_are_put_together_over_a_reconnect(
        self, autojump_clock: MockClock
    ) -> None:
        whole = json.dumps(event(1, data={"text": "x" * 1000})).encode()

        def part(offset: int, piece: bytes) -> dict[str, Any]:
            encoded = base64.b64encode(piece).decode()
            return {
                "op": "part",
                "stream": "user",
                "seq": 1,
                "offset": offset,
                "total": len(whole),
                "bytes": encoded,
            }

        async def first(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), part(0, whole[:700]))
            peer.close(1006)

        async def second(peer: Peer) -> None:
            assert peer.hello["part"] == {"user": [1, 700]}
            peer.say(welcome(1, **{"from": 1}, **RESUMED), part(700, whole[700:]), live(1))
            await peer.until_bye()

        async with opened(Server(first, second)) as session:
            (item,) = await take(session, 1)
            assert isinstance(item, Event)
            assert item.data == {"text": "x" * 1000}

    async def test_a_gap_and_the_snapshot_after_it_are_items(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            gap = {"op": "gap", "stream": "user", "reason": "trimmed", "from": 1, "to": 8}
            snapshot = {"op": "snapshot", "stream": "user", "seq": 9, "threads": {"t": {"messages": []}}}
            peer.say(welcome(9, **{"from": 1}), gap, snapshot, live(9))
            await peer.until_bye()

        async with opened(Server(script)) as session:
            gap, snapshot = await take(session, 2)
            assert isinstance(gap, Gap)
            assert isinstance(snapshot, Snapshot)
            with trio.move_on_after(5):
                await anext(session)
            assert session.processed == {"user": Position("e-1", 9)}

    async def test_a_gap_alone_moves_no_processed_position(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(
                welcome(9, **{"from": 1}), {"op": "gap", "stream": "user", "reason": "x", "from": 1, "to": 8}
            )
            await peer.until_bye()

        async with opened(Server(script)) as session:
            await take(session, 1)
            with trio.move_on_after(5):
                await anext(session)
            assert session.processed == {}
            assert session.received == {}, "a snapshot is to follow, and a position without it says nothing"

    async def test_a_refused_position_is_an_item_before_what_follows(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(2, epoch="f-1", reason="epoch_changed", **{"from": 2}), event(2), live(2))
            await peer.until_bye()

        async with opened(Server(script), positions={"user": Position("e-1", 7)}) as session:
            changed, second = await take(session, 2)
            assert changed == Changed("user", "epoch_changed", Position("e-1", 7), Position("f-1", 1))
            assert isinstance(second, Event)

    async def test_a_stream_that_is_no_longer_followed_is_an_item_and_its_position_is_dropped(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(0), live(0))
            await peer.until_bye()

        positions = {"role:dev": Position("e-1", 7)}
        async with opened(Server(script), positions=positions) as session:
            assert await take(session, 1) == [Forgotten("role:dev")]
            assert "role:dev" not in session.processed | session.received

    async def test_entitlements_that_come_and_go_are_followed(self, autojump_clock: MockClock) -> None:
        info = {"epoch": "e-1", "head": 5, "oldest": 1, "from": 5, "resumed": False, "reason": "new"}

        async def script(peer: Peer) -> None:
            peer.say(welcome(0), live(0), {"op": "streams", "added": {"tier": info}, "removed": ["user"]})
            await trio.sleep(1)
            peer.say(event(5, stream="tier"), {"op": "live", "stream": "tier", "seq": 5})
            await peer.until_bye()

        async with opened(Server(script)) as session:
            await session.wait_status("replaying")
            forgotten, fifth = await take(session, 2)
            assert forgotten == Forgotten("user")
            assert isinstance(fifth, Event)
            assert session.status == "live"


class TestWithoutEvents:
    async def test_what_comes_in_is_dropped_and_each_connection_asks_for_as_little_as_there_is(
        self, autojump_clock: MockClock
    ) -> None:
        large = {"op": "part", "stream": "user", "seq": 9, "offset": 0, "total": 2**40, "bytes": "eyJ"}

        async def script(peer: Peer) -> None:
            assert peer.hello == {"client": "tab", "from": "live", "threads": []}
            info = welcome(len(server.peers) * 100)
            peer.say(info, live(info["streams"]["user"]["head"]), event(1), event(7), large)
            for seq in range(8, 60):
                peer.say(event(seq))
            await peer.answer(ok=1)
            await trio.sleep(10)
            assert peer.acks == []
            if len(server.peers) == 1:
                peer.close(1006)
            else:
                await peer.until_bye()

        server = Server(script, script)
        async with opened(server, events=False, client_id="tab", buffer_items=2) as session:
            for _ in range(2):
                assert await session.send("chat", {}) == {"ok": 1}
                assert await session.wait_status("live") == "live"
                assert (session.received, session.processed, session.position) == ({}, {}, {})
                await trio.sleep(15)
        assert len(server.peers) == 2

    async def test_asking_for_events_says_how_to_get_them(self, autojump_clock: MockClock) -> None:
        async with opened(Server(stay), events=False) as session:
            for asked in (anext(session), anext(session.batches()), session.follow(["t1"])):
                with pytest.raises(ConfigError, match=r"^events: is False; accepted: True, to iterate"):
                    await asked
            await session.aclose()
            with pytest.raises(ConfigError):
                await anext(session)

    async def test_a_stream_that_is_lost_while_it_is_behind_leaves_the_session_live(
        self, autojump_clock: MockClock
    ) -> None:
        info = {"epoch": "e-1", "head": 5, "oldest": 1, "from": 6, "resumed": False, "reason": "new"}

        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "streams", "added": {"tier": info}, "removed": []})
            await trio.sleep(1)
            peer.say({"op": "streams", "added": {}, "removed": ["tier"]})
            await peer.until_bye()

        async with opened(Server(script), events=False) as session:
            await session.wait_status("replaying")
            await session.wait_status("live")

    @pytest.mark.parametrize(
        "changes", [{"positions": {}}, {"threads": ["t1"]}, {"threads": []}, {"from_": "start"}]
    )
    async def test_what_to_follow_is_refused_beside_it(
        self, changes: dict[str, Any], autojump_clock: MockClock
    ) -> None:
        with pytest.raises(ConfigError, match=r"^events: is False beside positions, threads or from_"):
            async with opened(Server(), events=False, **changes):
                pass


class TestBatches:
    async def test_a_replay_is_one_batch_and_live_events_follow_as_they_come(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(3, **{"from": 1}), event(1))
            await trio.sleep(1)
            peer.say(event(2), event(3))
            await trio.sleep(1)
            peer.say(live(3))
            await trio.sleep(1)
            peer.say(event(4), event(5))
            await peer.until_bye()

        async with opened(Server(script)) as session:
            batches = session.batches()
            assert seqs(await anext(batches)) == [1, 2, 3]
            assert session.processed == {}
            assert seqs(await anext(batches)) == [4, 5]
            assert session.processed == {"user": Position("e-1", 3)}
            await session.aclose()
            assert [batch async for batch in batches] == []

    async def test_a_replay_that_is_cut_off_does_not_hold_back_what_has_come(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(3, **{"from": 1}), event(1))
            peer.close(1006)

        server = Server(first, TransportError("gone"))
        async with opened(server) as session:
            assert seqs(await anext(session.batches())) == [1]

    async def test_a_replay_beyond_the_buffer_comes_in_several(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(9, **{"from": 1}))
            for seq in range(1, 10):
                peer.say(event(seq))
            peer.say(live(9))
            await peer.until_bye()

        async with opened(Server(script), buffer_items=4) as session:
            batches = session.batches()
            sizes = [len(await anext(batches)) for _ in range(3)]
            assert sizes == [4, 4, 1]
