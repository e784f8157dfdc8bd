"""What a client follows and what it holds of it, without a server."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from wsrecover.client.contexts import MAX_NEWS, Contexts
from wsrecover.client.following import Following
from wsrecover.errors import CommandError, ConfigError, TransportError
from wsrecover.protocol.codec import decode_client
from wsrecover.protocol.context import EMPTY
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import ErrorBody, Event, Follow, Gap, Snapshot
from wsrecover.protocol.receiver import Changed


def said(seq: int, text: str, thread: str | None = "t") -> Event:
    return Event("user", seq, 1.0, "user_message", {"text": text}, thread)


def snapshot(seq: int, *threads: str, more: bool = False) -> Snapshot:
    return Snapshot("user", seq, {thread: EMPTY.json() for thread in threads}, more)


class TestContexts:
    def test_are_as_of_what_was_noted(self) -> None:
        contexts = Contexts()
        for seq in range(1, 2 * MAX_NEWS):
            contexts.note(said(seq, str(seq), None if seq % 2 else "t"))
        assert {name: len(context.messages) for name, context in contexts.current().items()} == {
            "": MAX_NEWS,
            "t": MAX_NEWS - 1,
        }

    def test_other_streams_make_none(self) -> None:
        contexts = Contexts()
        contexts.note(Event("all", 1, 1.0, "chat", {"text": "hi"}, "t"))
        assert contexts.current() == {}

    def test_behind_a_gap_they_are_what_the_snapshot_says_and_no_more(self) -> None:
        contexts = Contexts()
        for item in (said(1, "a", "gone"), said(2, "b"), Gap("user", "trimmed", 3, 9)):
            contexts.note(item)
        assert [context.truncated for context in contexts.current().values()] == [True, True]
        contexts.note(snapshot(12, "t", more=True))
        contexts.note(snapshot(12, "u"))
        assert sorted(contexts.current()) == ["t", "u"]
        assert not contexts.current()["t"].truncated

    def test_another_history_voids_them(self) -> None:
        contexts = Contexts()
        contexts.note(said(1, "a"))
        contexts.note(Changed("user", "epoch_changed", Position("e", 1), Position("f", 0)))
        assert contexts.current() == {}


async def following(threads: tuple[str, ...] | None) -> tuple[Following, list[Any]]:
    """One that is connected, and what it posts."""
    posted: list[Any] = []
    one = Following(threads, lambda: None)
    one.hello(resumes=False)
    one.attach(lambda message: posted.extend(decode_client(message.decode(), max_bytes=9999)))
    return one, posted


class TestFollowing:
    async def test_threads_are_fresh_until_a_snapshot_names_them(self, nursery: trio.Nursery) -> None:
        one, posted = await following(("a",))
        nursery.start_soon(one.follow, ["a", "b", "c"])
        await trio.testing.wait_all_tasks_blocked()
        assert one.hello(resumes=True) == (("a", "b", "c"), ("b", "c"))
        one.received(snapshot(5, "b", more=True))
        assert one.hello(resumes=True) == (("a", "b", "c"), ("c",))
        one.received(snapshot(5, "c"))
        assert one.hello(resumes=True) == (("a", "b", "c"), ())
        (frame,) = posted
        assert isinstance(frame, Follow)
        assert one.answer(frame.id, None)

    async def test_all_threads_cannot_be_named_and_so_a_hello_keeps_the_filter_until_the_answer(
        self, nursery: trio.Nursery
    ) -> None:
        one, posted = await following(("a", "b"))
        nursery.start_soon(one.follow, None)
        await trio.testing.wait_all_tasks_blocked()
        one.received(snapshot(5, "c", more=True))
        for _ in range(2):  # The connection breaks before the answer, twice.
            one.detach()
            assert one.hello(resumes=True) == (("a", "b"), ())
            one.attach(lambda message: posted.extend(decode_client(message.decode(), max_bytes=9999)))
        assert [frame.threads for frame in posted] == [None] * 3
        assert one.answer(posted[-1].id, None)
        assert one.hello(resumes=True) == (None, ())

    async def test_without_a_position_everything_is_told_from_its_beginning(
        self, nursery: trio.Nursery
    ) -> None:
        one, posted = await following(("a",))
        one.detach()
        nursery.start_soon(one.follow, None)
        await trio.testing.wait_all_tasks_blocked()
        assert one.hello(resumes=False) == (None, ())
        one.attach(posted.append)
        assert one.hello(resumes=True) == (None, ())
        assert posted == []

    async def test_what_was_not_followed_for_a_while_is_not_known_any_more(
        self, nursery: trio.Nursery
    ) -> None:
        one, posted = await following(None)
        nursery.start_soon(one.follow, ["a"])
        await trio.testing.wait_all_tasks_blocked()
        assert one.answer(posted[0].id, None)
        nursery.start_soon(one.follow, ["a", "b"])
        await trio.testing.wait_all_tasks_blocked()
        assert one.hello(resumes=True) == (("a", "b"), ("b",))
        assert one.answer(posted[1].id, None)
        assert one.hello(resumes=True) == (("a", "b"), ())

    async def test_nor_is_what_may_not_have_been_followed_for_a_while(self, nursery: trio.Nursery) -> None:
        one, posted = await following(None)
        async with trio.open_nursery() as given_up:
            given_up.start_soon(one.follow, ["a"])
            await trio.testing.wait_all_tasks_blocked()
            given_up.cancel_scope.cancel()
        assert posted[0].threads == ("a",)
        one.detach()
        nursery.start_soon(one.follow, ["a", "b"])
        await trio.testing.wait_all_tasks_blocked()
        assert one.hello(resumes=True) == (("a", "b"), ("b",))
        one.attach(lambda _: None)

    async def test_a_refusal_after_a_drop_leaves_threads_that_were_fresh_before_it(
        self, nursery: trio.Nursery
    ) -> None:
        one, posted = await following(("a",))
        one.detach()
        nursery.start_soon(one.follow, ["a", "b"])
        await trio.testing.wait_all_tasks_blocked()
        assert one.hello(resumes=True) == (("a", "b"), ("b",))
        one.attach(lambda message: posted.extend(decode_client(message.decode(), max_bytes=9999)))
        await trio.testing.wait_all_tasks_blocked()

        async def change() -> None:
            with pytest.raises(CommandError):
                await one.follow(None)

        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        one.detach()
        assert one.hello(resumes=True) == (("a", "b"), ("b",)), "with its snapshot still to come"
        one.attach(lambda message: posted.extend(decode_client(message.decode(), max_bytes=9999)))
        assert one.answer(posted[-1].id, ErrorBody("rate_limited", "too often", retry_after=1.0))
        assert one.threads == ("a", "b")

    async def test_one_that_was_given_up_and_is_refused_leaves_what_the_server_has(
        self, nursery: trio.Nursery
    ) -> None:
        one, posted = await following(("a",))
        async with trio.open_nursery() as given_up:
            given_up.start_soon(one.follow, None)
            await trio.testing.wait_all_tasks_blocked()
            given_up.cancel_scope.cancel()
        assert one.threads is None
        assert one.answer(posted[0].id, ErrorBody("rate_limited", "too often", retry_after=1.0))
        assert one.threads == ("a",)

    async def test_a_refusal_leaves_what_is_known(self, nursery: trio.Nursery) -> None:
        one, posted = await following(("a",))

        async def change() -> None:
            with pytest.raises(CommandError):
                await one.follow(None)

        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        assert one.answer(posted[0].id, ErrorBody("overloaded", "too many", retry_after=1.0))
        await trio.testing.wait_all_tasks_blocked()
        one.attach(posted.append)
        assert one.hello(resumes=True) == (("a",), ())
        assert len(posted) == 1

    async def test_a_connection_that_ends_before_the_answer_carries_the_change_in_the_next_hello(
        self, nursery: trio.Nursery
    ) -> None:
        one, posted = await following(("a",))
        done = trio.Event()

        async def change() -> None:
            await one.follow(["b"])
            done.set()

        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        one.detach()
        assert one.hello(resumes=True) == (("b",), ("b",))
        one.attach(posted.append)
        await done.wait()
        assert len(posted) == 1, "the hello said it"

    async def test_a_change_after_the_hello_is_told_at_the_welcome(self, nursery: trio.Nursery) -> None:
        posted: list[Any] = []
        one = Following(("a",), lambda: None)
        one.hello(resumes=False)
        nursery.start_soon(one.follow, ["b"])
        await trio.testing.wait_all_tasks_blocked()
        one.attach(lambda message: posted.extend(decode_client(message.decode(), max_bytes=9999)))
        (frame,) = posted
        assert frame.threads == ("b",)
        assert one.answer(frame.id, None)

    async def test_a_refusal_leaves_what_was_followed(self, nursery: trio.Nursery) -> None:
        one, posted = await following(("a",))
        refused: list[CommandError] = []

        async def change() -> None:
            with pytest.raises(CommandError) as error:
                await one.follow(["b"])
            refused.append(error.value)

        nursery.start_soon(change)
        await trio.testing.wait_all_tasks_blocked()
        assert not one.answer("another", None)
        assert one.answer(posted[0].id, ErrorBody("overloaded", "too many", retry_after=1.0))
        await trio.testing.wait_all_tasks_blocked()
        assert refused[0].code == "overloaded"
        assert one.hello(resumes=True) == (("a",), ())

    async def test_nothing_is_followed_once_the_session_has_ended(self) -> None:
        one = Following(None, lambda: None)
        one.end(TransportError("over"))
        with pytest.raises(TransportError, match="over"):
            await one.follow(["a"])

    @pytest.mark.parametrize("threads", ["abc", [""], ["a"] * 101])
    async def test_what_is_no_filter_is_refused(self, threads: Any) -> None:
        with pytest.raises(ConfigError):
            await Following(None, lambda: None).follow(threads)
