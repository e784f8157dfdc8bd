"""Commands over however many connections they take. Time is virtual."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from scripted import Peer, Server, event, live, welcome
from talking import RESUMED, opened, seqs, stay, take
from trio.testing import MockClock

from wsrecover.client import ClientSession
from wsrecover.client.outbox import Outbox
from wsrecover.errors import BufferFull, CommandError
from wsrecover.protocol.frames import Reply


@attrs.frozen
class Note:
    name: str
    raw: bytes = b""


def allowing(most: int, **changes: Any) -> dict[str, Any]:
    """A welcome that allows so many commands under way."""
    greeting = welcome(**changes)
    greeting["limits"]["commands_in_flight"] = most
    return greeting


async def heard(peer: Peer) -> list[tuple[int, dict[str, Any]]]:
    """The commands that were sent, each with its `data.n`, a second later."""
    await trio.sleep(1)
    waiting = peer.from_client.statistics().current_buffer_used
    frames = [await peer.hear() for _ in range(waiting)]
    return [(frame["data"]["n"], frame) for frame in frames]


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
            given = MappingProxyType({"q": 1})
            assert await session.start_agent("triage", given, thread="t1") == "r9"
            assert await session.cancel("r9") == {"run": "r9", "status": "cancelled"}

    async def test_what_is_said_and_answered_goes_out_as_its_command(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            for type_, data, result in (
                ("user_message", {"text": "hello"}, {"seq": 7}),
                ("chat", {"name": "a", "raw": "aGk="}, {"seq": 8}),
                ("respond", {"request": "r1", "answer": [None]}, {}),
                ("note", {"name": "b", "raw": ""}, {"kept": True}),
            ):
                heard = await peer.answer(**result)
                assert (heard["type"], heard["data"]) == (type_, data)
                assert heard.get("thread") == (None if type_ == "respond" else "t1")
            await peer.until_bye()

        async with opened(Server(script)) as session:
            assert await session.user_message("hello", thread="t1") == 7
            assert await session.chat(Note("a", b"hi"), thread="t1") == 8
            await session.respond("r1", [None])
            assert await session.send("note", Note("b"), thread="t1") == {"kept": True}
            for wrong in ("text", [1], None):
                with pytest.raises(CommandError, match="must be an object") as caught:
                    await session.send("note", wrong)
                assert (caught.value.code, caught.value.field) == ("invalid", "data")

    async def test_one_goes_out_under_the_id_that_it_was_given(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            frame = await peer.hear()
            assert frame["id"] == "mine"
            await trio.sleep(1)
            peer.say({"op": "reply", "id": "mine", "status": "ok", "result": {"seq": 4}})
            await peer.until_bye()

        async with opened(Server(script)) as session, trio.open_nursery() as nursery:
            with pytest.raises(CommandError, match=r"invalid: id: is not 1 to 128"):
                await session.send("chat", {}, id="")
            nursery.start_soon(partial(session.send, "chat", {}, id="mine"))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(CommandError, match=r"invalid: id: a command with it waits"):
                await session.send("chat", {}, id="mine")

    async def test_one_that_comes_right_behind_the_answer_to_its_like_is_answered_too(self) -> None:
        """In the same tick: whichever task then goes on first."""
        outbox, sent, results = Outbox(lambda: None), list[bytes](), []
        outbox.attach(sent.append, {})

        async def call() -> None:
            results.append(await outbox.call("mine", "chat", {}, None))

        for _ in range(20):
            results.clear()
            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(call)
                    await trio.testing.wait_all_tasks_blocked()
                    outbox.reply(Reply("mine", "ok", result={"seq": 4}))
                    nursery.start_soon(call)
                    await trio.testing.wait_all_tasks_blocked()
                    outbox.reply(Reply("mine", "duplicate", result={"seq": 4}))
            assert results == [{"seq": 4}] * 2

    async def test_one_does_not_get_the_answer_to_another_that_was_given_up(self) -> None:
        outbox, sent = Outbox(lambda: None), list[bytes]()
        outbox.attach(sent.append, {})
        with trio.move_on_after(0):
            await outbox.call("mine", "chat", {"a": 1, "b": 2}, None)
        with trio.fail_after(5), pytest.raises(CommandError, match="id_conflict"):
            await outbox.call("mine", "order", {"a": 1, "b": 2}, None)
        assert not outbox.waiting
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.call, "mine", "chat", {"b": 2, "a": 1}, None)
            await trio.testing.wait_all_tasks_blocked()
            assert len(sent) == 1, "the server is at work on it"
            outbox.reply(Reply("mine", "ok"))

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

    async def test_a_change_of_the_filter_goes_ahead_of_commands_that_wait(
        self, autojump_clock: MockClock
    ) -> None:
        """A server takes so many at once that the change behind them would be one too many."""

        async def cut(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            await peer.hear()
            peer.close(1006)

        async def last(peer: Peer) -> None:
            peer.say(welcome(**RESUMED), live(0))
            heard = [await peer.answer(), await peer.answer()]
            assert [frame["op"] for frame in heard] == ["follow", "send"]
            await peer.until_bye()

        async with (
            opened(Server(cut, last), threads=["a"]) as session,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(session.send, "chat", {})
            await session.wait_status("waiting")
            await session.follow(None)

    async def test_its_age_counts_the_time_in_which_the_machine_slept(
        self, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On Linux the clock of all deadlines stands still then, and the wall clock does not."""
        ages, wall = [], 1.8e9
        monkeypatch.setattr("wsrecover.client.outbox.time.time", lambda: wall)

        async def cut(peer: Peer) -> None:
            nonlocal wall
            peer.say(welcome(), live(0))
            ages.append((await peer.hear()).get("age"))
            wall += 1800.0 if len(ages) == 1 else -7200.0
            peer.close(1006)

        async def last(peer: Peer) -> None:
            peer.say(welcome(**RESUMED), live(0))
            ages.append((await peer.answer(seq=4))["age"])
            await peer.until_bye()

        async with opened(Server(cut, cut, last)) as session:
            assert await session.send("chat", {"text": "hi"}) == {"seq": 4}
        assert ages[:2] == [None, 1800.0]
        assert 0 < ages[2] < 60, "nor does a clock that is set back make it younger than it is"

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
        assert str(error) == "rate_limited: data: too many"

    async def test_what_cannot_be_sent_is_refused_without_the_server(self, autojump_clock: MockClock) -> None:
        async with opened(Server(stay)) as session:
            with pytest.raises(CommandError, match="data") as caught:
                await session.send("chat", {"when": float("nan")})
            assert caught.value.code == "invalid"
            with pytest.raises(CommandError, match="65536") as caught:
                await session.send("chat", {"text": "x" * 65536})
            assert caught.value.code == "too_large"
            with pytest.raises(CommandError, match=r"^invalid: data\.input: must be an object, not list$"):
                await session.start_agent("triage", [1])
            with pytest.raises(CommandError, match=r"^invalid: data\.input: must be an object, not int$"):
                await session.start_agent("triage", 0)

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

    async def test_as_many_are_under_way_as_each_connections_welcome_allows_repeats_first(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(allowing(4), live(0))
            assert [n for n, _ in await heard(peer)] == [0, 1, 2, 3]
            peer.close(1006)

        async def second(peer: Peer) -> None:
            peer.say(allowing(2, **RESUMED), live(0))
            for expected in ([0, 1], [2, 3], [4, 5], [6, 7]):
                frames = await heard(peer)
                assert [n for n, _ in frames] == expected
                assert all(("age" in frame) == (n < 4) for n, frame in frames), "which were sent before"
                for _, frame in frames:
                    peer.say({"op": "reply", "id": frame["id"], "status": "ok", "result": {}})
            await peer.until_bye()

        async with opened(Server(first, second)) as session, trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(session.send, "chat", {"n": n})
                await trio.testing.wait_all_tasks_blocked()  # In this order.

    async def test_one_that_was_given_up_has_its_turn_until_the_server_has_answered_it(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(allowing(1), live(0))
            ((n, frame),) = await heard(peer)
            assert n == 0
            await trio.sleep(5)
            assert await heard(peer) == []
            peer.say({"op": "reply", "id": frame["id"], "status": "ok", "result": {}})
            assert (await peer.answer())["data"] == {"n": 1}
            await peer.until_bye()

        async with opened(Server(script)) as session:
            with pytest.raises(trio.TooSlowError):
                await session.send("chat", {"n": 0}, timeout=3)
            await session.send("chat", {"n": 1})

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

    @pytest.mark.parametrize(
        ("bound", "named"),
        [
            ({"buffer_items": 2}, r"buffer_items is 2, 16 lie unread, .* 8 times as many; .* events=False"),
            ({"buffer_bytes": 200}, "buffer_bytes is 200, 16[0-9][0-9] lie unread"),
        ],
    )
    async def test_where_nobody_iterates_a_call_whose_answer_cannot_be_read_says_so(
        self, bound: dict[str, int], named: str, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(heartbeat=1.0), live(0))
            for seq in range(1, 21):
                peer.say(event(seq))
            await trio.sleep(4)
            peer.close(4003)

        async def again(peer: Peer) -> None:
            peer.say(welcome(20, **{"from": 17}, **RESUMED))
            await peer.until_bye()

        async with opened(Server(script, again, again), rng=lambda: 0.0, **bound) as session:
            start = trio.current_time()
            with pytest.raises(BufferFull, match=f"^nobody iterates over the session: {named}"):
                await session.send("chat", {})
            assert trio.current_time() == start + 10, "over two connections"
            for call in (session.send("chat", {}), session.follow(["t1"])):
                with pytest.raises(BufferFull):
                    await call
            assert trio.current_time() == start + 10, "and nothing was taken since"
            assert seqs(await take(session, 8)) == list(range(1, 9))

    async def test_a_change_of_the_filter_within_the_iteration_is_answered_behind_what_waits(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            for seq in range(1, 9):
                peer.say(event(seq))
            assert (await peer.answer())["op"] == "follow"
            await peer.until_bye()

        async with opened(Server(script), buffer_items=2) as session:
            await take(session, 1)
            await session.follow(["t1"])

    async def test_a_call_waits_for_an_app_that_takes_one_now_and_then(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            for seq in range(1, 21):
                peer.say(event(seq))
            await peer.answer(ok=1)
            await peer.until_bye()

        async def iterate(session: ClientSession) -> None:
            async for _ in session:
                await trio.sleep(9)

        async with opened(Server(script), buffer_items=2) as session, trio.open_nursery() as nursery:
            nursery.start_soon(iterate, session)
            assert await session.send("chat", {}) == {"ok": 1}
            nursery.cancel_scope.cancel()

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
