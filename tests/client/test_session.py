"""What a session promises its app, against servers that do what the test says. Time is virtual."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from scripted import Peer, Server, event, live, welcome
from trio.testing import MockClock

from wsrecover.client import Changed, ClientSession, Event, Forgotten, Gap, Item, Position, Snapshot, connect
from wsrecover.errors import (
    CommandError,
    ConfigError,
    ConnectionClosed,
    HandshakeRefused,
    TokenError,
    TransportError,
)

URL = "ws://server"
RESUMED: dict[str, Any] = {"resumed": True}


@asynccontextmanager
async def opened(server: Server, **changes: Any) -> AsyncIterator[ClientSession]:
    """A session with `server`; what hangs fails after a virtual day."""
    given = {"token": "t0", "dial": server.dial, "rng": lambda: 0.5, **changes}
    with trio.fail_after(24 * 3600):
        async with connect(URL, **given) as session:
            yield session


async def take(session: ClientSession, count: int) -> list[Item]:
    return [await anext(session) for _ in range(count)]


def seqs(items: list[Item]) -> list[int]:
    return [item.seq for item in items if isinstance(item, Event)]


async def stay(peer: Peer) -> None:
    peer.say(welcome(), live(0))
    await peer.until_bye()


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
        ],
    )
    async def test_a_wrong_argument_is_named(
        self, field: str, changes: dict[str, Any], autojump_clock: MockClock
    ) -> None:
        with pytest.raises(ConfigError, match=f"^{field}: "):
            async with opened(Server(), **changes):
                pass

    @pytest.mark.parametrize(
        "url", ["http://x", "ws://", "ws://u:p@x", "ws://x?token=1", "ws://x#f", "ws://x:port"]
    )
    async def test_a_wrong_url_is_named(self, url: str, autojump_clock: MockClock) -> None:
        with pytest.raises(ConfigError, match=r"^url: "):
            async with connect(url, token="t"):
                pass

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
            assert session.received == {"user": Position("e-1", 8)}

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


class TestCommands:
    async def test_start_agent_and_cancel_give_what_the_server_answers(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            started = await peer.answer(run="r9")
            assert (started["type"], started["thread"]) == ("start_agent", "t1")
            assert started["data"] == {"agent": "triage", "input": {"q": 1}}
            assert "age" not in started
            assert (await peer.answer(run="r9", status="cancelled"))["data"] == {"run": "r9"}
            await peer.until_bye()

        async with opened(Server(script)) as session:
            assert await session.start_agent("triage", {"q": 1}, thread="t1") == "r9"
            assert await session.cancel("r9") == {"run": "r9", "status": "cancelled"}

    async def test_an_unanswered_one_is_repeated_with_its_id_and_its_age(
        self, autojump_clock: MockClock
    ) -> None:
        heard = []

        async def first(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            heard.append(await peer.hear())
            await trio.sleep(7)
            peer.close(1006)

        async def second(peer: Peer) -> None:
            peer.say(welcome(**RESUMED), live(0))
            frame = await peer.hear()
            heard.append(frame)
            peer.say({"op": "reply", "id": frame["id"], "status": "duplicate", "result": {"seq": 4}})
            await peer.until_bye()

        async with opened(Server(first, second)) as session:
            assert await session.send("chat", {"text": "hi"}) == {"seq": 4}
        age = heard[1].pop("age")
        assert heard[0] == heard[1]
        assert age == 7.25

    async def test_what_is_changed_after_the_call_is_not_sent(self, autojump_clock: MockClock) -> None:
        data = {"text": "before"}
        heard = []

        async def first(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            heard.append((await peer.hear())["data"])
            data["text"] = "after"
            peer.close(1006)

        async def second(peer: Peer) -> None:
            peer.say(welcome(**RESUMED), live(0))
            heard.append((await peer.answer())["data"])
            await peer.until_bye()

        async with opened(Server(first, second)) as session:
            await session.send("chat", data)
        assert heard == [{"text": "before"}, {"text": "before"}]

    @pytest.mark.parametrize("kind", ["reply", "error"])
    async def test_a_refusal_is_raised_with_its_fields(self, kind: str, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            frame = await peer.hear()
            error = {"code": "rate_limited", "message": "too many", "field": "data", "retry_after": 2.5}
            reply = {"op": "reply", "id": frame["id"], "status": "error", "error": error}
            peer.say(reply if kind == "reply" else {"op": "error", "ref": frame["id"], **error})
            await peer.until_bye()

        async with opened(Server(script)) as session:
            with pytest.raises(CommandError) as caught:
                await session.send("chat", {})
        error = caught.value
        assert (error.code, error.message, error.field, error.retry_after) == (
            "rate_limited",
            "too many",
            "data",
            2.5,
        )

    async def test_what_cannot_be_sent_is_refused_without_the_server(self, autojump_clock: MockClock) -> None:
        async with opened(Server(stay)) as session:
            with pytest.raises(CommandError, match="data") as caught:
                await session.send("chat", {"when": float("nan")})
            assert caught.value.code == "invalid"
            with pytest.raises(CommandError, match="65536") as caught:
                await session.send("chat", {"text": "x" * 65536})
            assert caught.value.code == "too_large"

    async def test_one_that_takes_too_long_is_given_up_and_not_repeated(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            await peer.hear()
            await trio.sleep(5)
            peer.close(1006)

        server = Server(first, stay)
        async with opened(server) as session:
            with pytest.raises(trio.TooSlowError):
                await session.send("chat", {}, timeout=3)
            await session.wait_status("waiting")
            await session.wait_status("live")
        assert server.peers[1].from_client.statistics().current_buffer_used == 0

    @pytest.mark.parametrize("code", [1007, 1009, 4502])
    async def test_one_outstanding_at_two_closes_for_a_protocol_error_fails(
        self, code: int, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(**(RESUMED if len(server.peers) > 1 else {})), live(0))
            await peer.hear()
            peer.close(code)

        async def last(peer: Peer) -> None:
            peer.say(welcome(**RESUMED), live(0))
            assert (await peer.answer(ok=1))["type"] == "good"
            await peer.until_bye()

        server = Server(script, script, last)
        async with opened(server) as session:
            with pytest.raises(CommandError) as caught:
                await session.send("bad", {})
            assert caught.value.code == "malformed"
            assert await session.send("good", {}) == {"ok": 1}

    async def test_more_than_the_server_takes_at_once_wait_for_their_turn(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            await trio.testing.wait_all_tasks_blocked()
            assert peer.from_client.statistics().current_buffer_used == 32
            for _ in range(40):
                await peer.answer()
            await peer.until_bye()

        async with opened(Server(script)) as session, trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(session.send, "chat", {})

    async def test_an_answer_behind_more_events_than_the_buffer_holds_arrives(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            for seq in range(1, 9):
                peer.say(event(seq))
            await peer.answer(ok=1)
            await peer.until_bye()

        async with opened(Server(script), buffer_items=2) as session:
            await trio.testing.wait_all_tasks_blocked()
            assert session.received["user"].seq == 1
            assert await session.send("chat", {}) == {"ok": 1}
            assert seqs(await take(session, 8)) == [1, 2, 3, 4, 5, 6, 7, 8]

    @pytest.mark.parametrize("bound", [{"buffer_items": 2}, {"buffer_bytes": 700}])
    async def test_the_reader_waits_for_a_slow_app(
        self, bound: dict[str, int], autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            for seq in range(1, 9):
                peer.say(event(seq))
            await peer.until_bye()

        async with opened(Server(script), **bound) as session:
            await trio.testing.wait_all_tasks_blocked()
            assert session.received["user"].seq < 8
            await trio.sleep(100)
            assert seqs(await take(session, 8)) == [1, 2, 3, 4, 5, 6, 7, 8]


class TestTokens:
    @staticmethod
    def counted() -> tuple[list[str], Any]:
        made: list[str] = []

        async def token() -> str:
            await trio.lowlevel.checkpoint()
            made.append(f"t{len(made)}")
            return made[-1]

        return made, token

    @pytest.mark.parametrize("refusal", [HandshakeRefused(401), 4001])
    async def test_a_refused_one_is_asked_for_again_before_the_next_try(
        self, refusal: Any, autojump_clock: MockClock
    ) -> None:
        async def expire(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(refusal)

        made, token = self.counted()
        server = Server(refusal if isinstance(refusal, HandshakeRefused) else expire, stay)
        async with opened(server, token=token) as session:
            await server.reached(2)
            await session.wait_status("live")
        assert [peer.token for peer in server.peers] == made == ["t0", "t1"]

    async def test_one_that_counts_is_used_again(self, autojump_clock: MockClock) -> None:
        async def drop(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(1006)

        made, token = self.counted()
        server = Server(drop, stay)
        async with opened(server, token=token):
            await server.reached(2)
        assert made == ["t0"]

    async def test_auth_required_is_answered_in_place(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "auth_required", "expires_in": 60.0})
            start = trio.current_time()
            frame = await peer.hear()
            assert (frame["op"], frame["token"]) == ("auth", "t1")
            assert trio.current_time() == start + 15
            peer.say({"op": "reply", "id": frame["id"], "status": "ok", "result": {}})
            answered.set()
            await peer.until_bye()

        answered = trio.Event()
        made, token = self.counted()
        async with opened(Server(script), token=token):
            await answered.wait()
        assert made == ["t0", "t1"]

    async def test_a_fixed_one_that_is_refused_ends_the_session(self, autojump_clock: MockClock) -> None:
        with pytest.raises(TokenError) as caught:
            async with opened(Server(HandshakeRefused(401))):
                pass
        assert isinstance(caught.value.__cause__, HandshakeRefused)

    async def test_three_fresh_ones_refused_end_the_session(self, autojump_clock: MockClock) -> None:
        made, token = self.counted()
        with pytest.raises(TokenError):
            async with opened(Server(HandshakeRefused(401)), token=token):
                pass
        assert made == ["t0", "t1", "t2"]

    async def test_refusals_are_counted_from_the_last_welcome(self, autojump_clock: MockClock) -> None:
        async def expire(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(4001)

        made, token = self.counted()
        server = Server(expire, expire, expire, expire, stay)
        async with opened(server, token=token) as session:
            await server.reached(5)
            await session.wait_status("live")
        assert made == ["t0", "t1", "t2", "t3", "t4"]

    async def test_a_callback_that_fails_is_tried_again(self, autojump_clock: MockClock) -> None:
        answers: list[Any] = [OSError("no network"), "with\nnewline", "t2"]

        def token() -> str:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        server = Server(stay)
        async with opened(server, token=token) as session:
            assert isinstance(session.last_error, TokenError)
        assert server.peers[0].token == "t2"

    async def test_a_callback_that_hangs_is_given_the_time_of_a_try(self, autojump_clock: MockClock) -> None:
        async def token() -> str:
            await trio.sleep_forever()
            raise AssertionError

        with pytest.raises(TokenError, match="within 4 s"):
            async with opened(Server(), token=token, connect_timeout=4, give_up_after=9):
                pass


class TestReconnecting:
    async def test_statuses_and_delays_follow_the_tries(self, autojump_clock: MockClock) -> None:
        async def drop(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}))
            await trio.sleep(1)
            peer.say(event(1), live(1))
            await trio.sleep(1)
            peer.close(1001)

        async def again(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 2}, **RESUMED), live(1))
            await peer.until_bye()

        statuses: list[str] = []
        server = Server(drop, TransportError("refused"), TransportError("refused"), again)
        async with opened(server, on_status=statuses.append) as session:
            await server.reached(4)
            await session.wait_status("live")
        assert statuses == [
            *("replaying", "live", "waiting"),
            *("connecting", "waiting"),
            *("connecting", "waiting"),
            *("connecting", "live", "closed"),
        ]
        waits = [
            later - sooner
            for sooner, later in zip(server.dialled_at[1:], server.dialled_at[2:], strict=False)
        ]
        assert waits == [0.5, 1.0]  # the half of 1 and 2 s

    @pytest.mark.parametrize("status", [429, 503])
    async def test_retry_after_of_a_refusal_is_honoured(self, status: int, autojump_clock: MockClock) -> None:
        server = Server(HandshakeRefused(status, retry_after=40), stay)
        async with opened(server):
            pass
        assert server.dialled_at[1] - server.dialled_at[0] == 40.25

    async def test_retry_after_of_the_error_before_a_close_is_honoured(
        self, autojump_clock: MockClock
    ) -> None:
        async def full(peer: Peer) -> None:
            peer.say({"op": "error", "code": "overloaded", "message": "too many", "retry_after": 30.0})
            peer.close(4006)

        server = Server(full, stay)
        async with opened(server):
            pass
        assert server.dialled_at[1] - server.dialled_at[0] == 30.25

    async def test_a_drain_names_its_own_jitter(self, autojump_clock: MockClock) -> None:
        async def drain(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "drain", "retry_after": 10.0, "jitter": 4.0})
            peer.close(4000)

        server = Server(drain, stay)
        async with opened(server) as session:
            await server.reached(2)
            await session.wait_status("live")
        assert server.dialled_at[1] - server.dialled_at[0] == 12

    async def test_retry_after_of_a_refused_command_does_not_delay_the_next_try(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            error = {"op": "error", "code": "rate_limited", "message": "no", "ref": "x", "retry_after": 30.0}
            peer.say(welcome(), live(0), error)
            peer.close(1006)

        server = Server(script, stay)
        async with opened(server):
            await server.reached(2)
        assert server.dialled_at[1] - server.dialled_at[0] == 0.25

    async def test_a_server_that_drains_without_closing_is_left(self, autojump_clock: MockClock) -> None:
        async def drain(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "drain", "retry_after": 3.0, "jitter": 4.0})
            await peer.gone.wait()

        server = Server(drain, stay)
        async with opened(server) as session:
            start = trio.current_time()
            await session.wait_status("waiting")
            assert trio.current_time() == start + 7

    async def test_stable_for_a_minute_it_may_be_replaced_again(self, autojump_clock: MockClock) -> None:
        async def replace(peer: Peer) -> None:
            peer.say(welcome(heartbeat=1000.0), live(0))
            await trio.sleep(60)
            peer.close(4500)

        server = Server(replace, replace, stay)
        async with opened(server) as session:
            await server.reached(3)
            await session.wait_status("live")
        assert len({peer.hello["client"] for peer in server.peers}) == 3

    async def test_a_minute_of_connection_starts_the_backoff_anew(self, autojump_clock: MockClock) -> None:
        async def minute(peer: Peer) -> None:
            peer.say(welcome(heartbeat=1000.0), live(0))
            await trio.sleep(60)
            peer.close(1006)

        server = Server(TransportError("a"), TransportError("b"), minute, stay)
        async with opened(server):
            await server.reached(4)
        assert server.dialled_at[3] - server.dialled_at[2] == 60.25

    @pytest.mark.parametrize("code", [4501, 4503, 4502, 4999, 1000])
    async def test_a_close_that_says_stop_ends_the_session(
        self, code: int, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), event(1), live(1))
            peer.close(code, "why")

        async with opened(Server(script)) as session:
            await session.wait_status("closed")
            assert seqs(await take(session, 1)) == [1]
            for _ in range(2):
                with pytest.raises(ConnectionClosed, match=f"{code}: why"):
                    await anext(session)
            with pytest.raises(ConnectionClosed):
                await session.send("chat", {})

    @pytest.mark.parametrize(
        "code", [1001, 1002, 1003, 1005, 1007, 1009, 1011, 1013, 4002, 4003, 4004, 4007, 4499]
    )
    async def test_a_close_that_does_not_is_followed_by_another_try(
        self, code: int, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(code)

        server = Server(script, stay)
        async with opened(server) as session:
            await session.wait_status("waiting")
            await session.wait_status("live")
        assert len(server.peers) == 2

    @pytest.mark.parametrize("status", [400, 403, 404, 426, 431])
    async def test_a_refusal_that_will_not_change_ends_the_session(
        self, status: int, autojump_clock: MockClock
    ) -> None:
        with pytest.raises(HandshakeRefused):
            async with opened(Server(HandshakeRefused(status))):
                pass

    async def test_who_is_replaced_comes_back_once_under_another_name(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), event(1), live(1))
            peer.close(4500)

        async def second(peer: Peer) -> None:
            assert peer.hello["resume"] == {"user": ["e-1", 1]}
            peer.say(welcome(1, **{"from": 2}, **RESUMED), live(1))
            await trio.sleep(5)
            peer.close(4500)

        server = Server(first, second)
        async with opened(server, client_id="mine") as session:
            await session.wait_status("closed")
            assert isinstance(session.last_error, ConnectionClosed)
        assert server.peers[0].hello["client"] == "mine"
        assert server.peers[1].hello["client"] == session.client_id != "mine"

    async def test_give_up_after_ends_with_the_last_error(self, autojump_clock: MockClock) -> None:
        server = Server(TransportError("no such host"))
        start = trio.current_time()
        with pytest.raises(TransportError, match="no such host"):
            async with opened(server, give_up_after=60):
                pass
        assert trio.current_time() == start + 60
        assert len(server.peers) > 5

    async def test_giving_up_is_counted_from_the_loss_of_the_connection(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(heartbeat=1000.0), live(0))
            await trio.sleep(500)
            peer.close(1006)

        async with opened(Server(script, TransportError("gone")), give_up_after=30) as session:
            start = trio.current_time()
            with pytest.raises(TransportError, match="gone"):
                await session.send("chat", {})
            assert trio.current_time() == start + 530
            with pytest.raises(TransportError, match="gone"):
                await anext(session)

    async def test_no_welcome_in_time_counts_as_a_failed_try(self, autojump_clock: MockClock) -> None:
        async def silent(peer: Peer) -> None:
            await trio.sleep_forever()

        server = Server(silent, stay)
        async with opened(server, connect_timeout=6) as session:
            assert "no welcome within 6 s" in str(session.last_error)
        assert server.dialled_at[1] - server.dialled_at[0] == 6.25


class TestLiveness:
    async def test_a_silent_server_is_asked_and_given_ten_seconds(self, autojump_clock: MockClock) -> None:
        async def silent(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            start = trio.current_time()
            assert await peer.hear() == {"op": "ping"}
            assert trio.current_time() == start + 25
            await trio.sleep(9)
            peer.say({"op": "pong"})
            assert await peer.hear() == {"op": "ping"}
            assert trio.current_time() == start + 59
            await peer.gone.wait()

        server = Server(silent, stay)
        async with opened(server) as session:
            start = trio.current_time()
            await session.wait_status("waiting")
            assert trio.current_time() == start + 69
            assert "nothing was heard" in str(session.last_error)

    async def test_a_ping_is_answered(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "ping"})
            assert await peer.hear() == {"op": "pong"}
            answered.set()
            await peer.until_bye()

        answered = trio.Event()
        async with opened(Server(script)):
            await answered.wait()

    async def test_silence_does_not_count_while_the_app_makes_the_reader_wait(
        self, autojump_clock: MockClock
    ) -> None:
        heard = []

        async def script(peer: Peer) -> None:
            peer.say(welcome(2, **{"from": 1}), event(1), event(2), live(2))
            heard.append(await peer.hear())
            peer.close(1000)

        server = Server(script)
        async with opened(server, buffer_items=2) as session:
            await trio.sleep(1000)
            assert seqs(await take(session, 2)) == [1, 2]
        assert heard == [{"op": "bye"}]

    async def test_a_server_that_takes_nothing_is_left_after_ten_seconds(
        self, autojump_clock: MockClock
    ) -> None:
        async def full(peer: Peer) -> None:
            peer.stop_taking()
            peer.say(welcome(), live(0), {"op": "ping"})
            await peer.gone.wait()

        server = Server(full, stay)
        async with opened(server) as session:
            start = trio.current_time()
            await session.wait_status("waiting")
            assert trio.current_time() == start + 10
            assert "took nothing for 10 s" in str(session.last_error)

    async def test_what_waits_for_a_server_that_takes_nothing_is_bounded(
        self, autojump_clock: MockClock
    ) -> None:
        async def full(peer: Peer) -> None:
            peer.stop_taking()
            peer.say(welcome(), live(0), *[{"op": "ping"}] * 1100)
            await peer.gone.wait()

        async with opened(Server(full, stay)) as session:
            await session.wait_status("waiting")
            assert "1024 messages wait" in str(session.last_error)
