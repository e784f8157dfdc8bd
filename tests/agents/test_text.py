"""The text of messages on its way to the log: the first at once, what follows by time, all in order."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final, TypeAlias

import attrs
import pytest
import trio
from agents_world import KEY, NOW, Gated, World
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.agents.lifecycle import Execution
from wsrecover.agents.parts import MessageScope
from wsrecover.agents.run import Run
from wsrecover.agents.runlog import TEXT_BYTES
from wsrecover.errors import NoAnswer, RunBroken, StoreUnavailable
from wsrecover.streams.store import Entry

MS: Final = 0.001

FILLER: Final = b'{"type":"agent_filler"}'
"""An event that takes up all the room of a journal of one unit."""

EARLY: Final = 1 / 128
"""Seconds, of the eighth of one that an event takes: these add up exactly. Waits are told in whole `MS`."""


@attrs.define
class Hand:
    """A run whose agent does nothing until `end`, so that the test itself is the author."""

    execution: Execution
    end: trio.Event = attrs.field(factory=trio.Event)

    @property
    def run(self) -> Run:
        return self.execution.run


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    """As pytest-trio's, but it lasts until `by_hand` has ended its runs."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


ByHand: TypeAlias = Callable[..., Awaitable[Hand]]


@pytest.fixture
async def by_hand(gated: Gated, nursery: trio.Nursery) -> AsyncIterator[ByHand]:
    """Starts such runs; all of them end with the test."""
    hands: list[Hand] = []

    async def start(world: World, run: str = "r1") -> Hand:
        async def agent(run: Run) -> None:
            await hand.end.wait()

        hand = Hand(world.execution(agent, run=run))
        hands.append(hand)
        await hand.execution.start()
        world.nursery.start_soon(hand.execution.execute)
        await wait_all_tasks_blocked()
        return hand

    yield start
    gated.failure = None
    gated.open.set()
    for hand in hands:
        hand.end.set()
        await hand.execution.wait_ended()


async def begun(hand: Hand) -> MessageScope:
    """A message that nothing ends but the run."""
    message = hand.run.message()
    await message.__aenter__()
    return message


async def logged(world: World) -> list[str]:
    """What the log has by now but for the ends of runs: a delta as its text, anything else as its type."""
    await wait_all_tasks_blocked()
    events = [event for event in await world.events() if not event["type"].startswith("agent_")]
    return [event["data"]["text"] if event["type"] == "message_delta" else event["type"] for event in events]


async def texts(world: World) -> list[str]:
    """The texts of the deltas that the log has by now."""
    await wait_all_tasks_blocked()
    return [data["text"] for data in await world.told("message_delta")]


class Spawned(trio.abc.Instrument):
    """Counts tasks that are begun."""

    count = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


@contextmanager
def spawns() -> Iterator[Spawned]:
    """Counts the tasks that are begun meanwhile."""
    spawned = Spawned()
    trio.lowlevel.add_instrument(spawned)
    try:
        yield spawned
    finally:
        trio.lowlevel.remove_instrument(spawned)


async def add(message: MessageScope, pieces: str) -> None:
    for piece in pieces:
        await message.text(piece)


class TestByTime:
    @pytest.mark.parametrize(("after", "then"), [(24.999, ["a"]), (25, ["a", "bcd"])])
    async def test_the_first_goes_at_once_and_what_follows_after_the_interval(
        self, world: World, mock_clock: MockClock, by_hand: ByHand, after: float, then: list[str]
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as message:
            await add(message, "abcd")
            assert await texts(world) == ["a"]
            mock_clock.jump(after * MS)
            assert await texts(world) == then

    async def test_the_interval_begins_with_the_messages_last_delta(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as message:
            await add(message, "ab")
            mock_clock.jump(20 * MS)
            await add(message, "c")
            assert await texts(world) == ["a"]
            mock_clock.jump(6 * MS)
            assert await texts(world) == ["a", "bc"]
            await add(message, "d")
            mock_clock.jump(24 * MS)
            await add(message, "e")
            assert await texts(world) == ["a", "bc"]
            mock_clock.jump(2 * MS)
            assert await texts(world) == ["a", "bc", "de"]
            mock_clock.jump(100 * MS)
            await add(message, "f")
            assert await texts(world) == ["a", "bc", "de", "f"]

    async def test_an_author_that_never_waits_is_not_held_by_the_timer(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as message:
            await add(message, "ab")
            mock_clock.jump(25 * MS)
            await add(message, "cd")  # No other task has run since the clock moved.
            assert await texts(world) == ["a", "bc"]

    @pytest.mark.parametrize("held", [False, True])
    async def test_with_an_interval_of_0_each_is_an_event_of_its_own(
        self,
        small_world: Callable[..., Any],
        gated: Gated,
        mock_clock: MockClock,
        by_hand: ByHand,
        held: bool,
    ) -> None:
        world = await small_world(delta_interval=0)
        hand = await by_hand(world)
        async with hand.run.message() as message:
            if held:
                gated.hold()
            await add(message, "abc" * 40)
            gated.open.set()
            assert await texts(world) == list("abc" * 40)

    async def test_a_message_that_is_due_takes_along_what_another_gathered_before(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as one, hand.run.message() as two:
            await add(one, "ab")
            mock_clock.jump(10 * MS)
            await add(two, "A")
            assert await texts(world) == ["a", "b", "A"]
            mock_clock.jump(10 * MS)
            await add(two, "B")
            await add(one, "c")
            mock_clock.jump(14 * MS)
            assert await texts(world) == ["a", "b", "A"]
            mock_clock.jump(2 * MS)
            assert await texts(world) == ["a", "b", "A", "B", "c"]

    async def test_an_earlier_time_of_another_message_counts(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as one, hand.run.message() as two:
            await add(one, "a")
            mock_clock.jump(20 * MS)
            await add(two, "AB")
            await add(one, "b")
            mock_clock.jump(4 * MS)
            assert await texts(world) == ["a", "A"]
            mock_clock.jump(2 * MS)
            assert await texts(world) == ["a", "A", "B", "b"]

    async def test_an_alarm_that_another_came_before_is_not_set_anew(
        self, world: World, mock_clock: MockClock, by_hand: ByHand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        times: list[float] = []
        alarms, ring = world.place.alarms, world.place.alarms.set
        monkeypatch.setattr(alarms, "set", lambda at, call: (times.append(at), ring(at, call)))
        hand = await by_hand(world)
        async with hand.run.message() as one, hand.run.message() as two:
            await add(one, "a")
            mock_clock.jump(20 * MS)
            await add(two, "AB")  # Due at 45 ms, and now with the rest at 25.
            await add(one, "b")
            mock_clock.jump(10 * MS)
            assert await texts(world) == ["a", "A", "B", "b"]
            await add(one, "c")  # Due at 55.
            mock_clock.jump(20 * MS)
            await wait_all_tasks_blocked()
            mock_clock.jump(10 * MS)
            assert await texts(world) == ["a", "A", "B", "b", "c"]
        assert [round(at / MS) for at in times] == [45, 25, 55]

    async def test_each_run_has_its_own_time(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        first = await by_hand(world, "r1")
        second = await by_hand(world, "r2")
        async with first.run.message() as one, second.run.message() as two:
            await add(one, "ab")
            mock_clock.jump(10 * MS)
            await add(two, "AB")
            assert await texts(world) == ["a", "A"]
            mock_clock.jump(16 * MS)
            assert await texts(world) == ["a", "A", "b"]
            mock_clock.jump(10 * MS)
            assert await texts(world) == ["a", "A", "b", "B"]


Emits: TypeAlias = Callable[[Run], Awaitable[object]]


async def asks(run: Run) -> None:
    with pytest.raises(NoAnswer):
        await run.ask("Well?", timeout=0)


OTHERS: dict[str, tuple[Emits, list[str]]] = {
    "emit": (lambda run: run.emit("x", {}), ["x"]),
    "think": (lambda run: run.think("hm"), []),
    "tool": (lambda run: run.tool("search", {}).__aenter__(), ["tool_executing"]),
    "message": (lambda run: run.message().__aenter__(), ["message_started"]),
    "ask": (asks, ["input_requested", "input_resolved"]),
    "flush": (lambda run: run.flush(), []),
}


class TestOrder:
    @pytest.mark.parametrize("other", OTHERS)
    async def test_gathered_text_goes_before_anything_else_that_the_run_says(
        self, world: World, mock_clock: MockClock, by_hand: ByHand, other: str
    ) -> None:
        emits, types = OTHERS[other]
        hand = await by_hand(world)
        async with hand.run.message() as message:
            await add(message, "abc")
            await emits(hand.run)
            await add(message, "d")
            assert await logged(world) == ["message_started", "a", "bc", *types]
            order = [event["type"] for event in await world.events()]
            assert order[2:4] == ["message_delta", "message_delta"], "the text came first"

    async def test_the_end_of_the_message_has_all_of_it_before_it(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as message:
            await add(message, "abc")
        assert await logged(world) == ["message_started", "a", "bc", "message_completed"]

    async def test_a_run_that_ends_in_a_message_has_said_all_of_it(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        message = await begun(hand)
        await add(message, "abc")
        hand.end.set()
        await hand.execution.wait_ended()
        assert await logged(world) == ["message_started", "a", "bc"]
        assert (await world.types())[-1] == "agent_completed"

    @pytest.mark.parametrize("stopped", [False, True])
    async def test_a_run_that_is_ended_in_a_message_has_said_all_of_it(
        self, world: World, mock_clock: MockClock, stopped: bool
    ) -> None:
        async def agent(run: Run) -> None:
            async with run.message() as message:
                await add(message, "abc")
                await trio.sleep_forever()

        execution = world.execution(agent)
        await execution.start()
        async with trio.open_nursery() as session:
            session.start_soon(execution.execute)
            await trio.testing.wait_all_tasks_blocked()
            assert await logged(world) == ["message_started", "a"]
            if stopped:
                session.cancel_scope.cancel()
            else:
                execution.cancel()
        assert await logged(world) == ["message_started", "a", "bc", "message_completed"]
        (completed,) = await world.told("message_completed")
        assert (completed["text"], completed["interrupted"]) == ("abc", True)

    async def test_two_messages_of_one_run_stay_in_the_order_of_adding(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as one, hand.run.message() as two:
            for _ in range(3):
                await add(one, "a")
                await add(two, "b")
            mock_clock.jump(25 * MS)
            await add(one, "a")
            await add(two, "bb")
        assert "".join(await texts(world)) == "abababa" + "bb"
        deltas = await world.told("message_delta")
        assert [(data["text"], data["offset"]) for data in deltas[-2:]] == [("a", 3), ("bb", 3)]


class TestBounds:
    async def test_much_of_it_does_not_wait_for_its_time(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as message:
            await message.text("a")
            await message.text("x" * TEXT_BYTES)
            assert await texts(world) == ["a"]
            await message.text("y")
            assert await texts(world) == ["a", "x" * TEXT_BYTES + "y"]

    async def test_a_loop_that_only_adds_lets_others_run(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        added = 0
        seen: set[int] = set()

        async def look() -> None:
            while True:
                seen.add(added)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            async with hand.run.message() as message:
                for _ in range(5_000):
                    await message.text("piece ")
                    added += 1
            nursery.cancel_scope.cancel()
        steps = [after - before for before, after in pairwise(sorted(seen))]
        # In each tick trio takes one or the other first.
        assert max(steps) <= 2 * (TEXT_BYTES / len("piece ") + 1)

    async def test_an_author_that_computes_between_its_pieces_lets_others_run(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        added = 0
        seen: list[int] = []

        async def look() -> None:
            while True:
                seen.append(added)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            async with hand.run.message() as message:
                for _ in range(100):
                    mock_clock.jump(10 * MS)  # Nobody runs meanwhile.
                    await message.text("piece ")
                    added += 1
            nursery.cancel_scope.cancel()
        # It is due after each third; in each tick trio takes one or the other first.
        assert max(after - before for before, after in pairwise([0, *seen, 100])) <= 6
        assert "".join(await texts(world)) == "piece " * 100

    async def test_text_above_the_rate_is_gathered_for_longer(
        self, small_world: Callable[..., Any], mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        world = await small_world(events_per_second=8)
        hand = await by_hand(world)
        message = await begun(hand)  # One, and seven more.
        await add(message, "a")
        for piece in "bcdefg":
            await add(message, piece)
            await hand.run.flush()
        await add(message, "hi")
        mock_clock.jump(0.125 - EARLY)
        await add(message, "j")
        assert await texts(world) == list("abcdefg"), "its author did not wait, and it is not out"
        mock_clock.jump(EARLY + MS)
        assert await texts(world) == [*"abcdefg", "hij"]
        await add(message, "k")
        mock_clock.jump(0.125 - EARLY)
        assert await texts(world) == [*"abcdefg", "hij"]
        mock_clock.jump(EARLY + MS)
        assert await texts(world) == [*"abcdefg", "hij", "k"]

    async def test_each_delta_counts_as_one_event_of_the_runs_rate(
        self, small_world: Callable[..., Any], mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        world = await small_world(events_per_second=8)
        hand = await by_hand(world)
        message = await begun(hand)
        for piece in "abcdefg":
            await add(message, piece)
            await hand.run.flush()
        world.nursery.start_soon(hand.run.emit, "x", {})
        await wait_all_tasks_blocked()
        mock_clock.jump(0.125 - EARLY)
        assert await logged(world) == ["message_started", *"abcdefg"]
        mock_clock.jump(EARLY)
        assert await logged(world) == ["message_started", *"abcdefg", "x"]

    async def test_with_an_interval_of_0_its_author_waits_for_the_rate(
        self, small_world: Callable[..., Any], mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        world = await small_world(events_per_second=8, delta_interval=0)
        hand = await by_hand(world)
        message = await begun(hand)
        world.nursery.start_soon(add, message, "abcdefghij")
        assert await texts(world) == list("abcdefg")
        for said in ("abcdefgh", "abcdefghi", "abcdefghij"):
            mock_clock.jump(1 / 8)
            assert await texts(world) == list(said)


class TestTrouble:
    async def test_a_run_whose_log_broke_says_so_with_the_next_piece(
        self, world: World, gated: Gated, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        other = await by_hand(world, "r2")
        hand = await by_hand(world, "r1")
        async with other.run.message() as sound:
            message = await begun(hand)
            await add(message, "a")
            await hand.run.flush()
            await add(message, "b")
            gated.failure = StoreUnavailable("disk full")
            mock_clock.jump(25 * MS)
            assert await texts(world) == ["a"]
            gated.failure = None
            with pytest.raises(RunBroken):
                await message.text("c")
            mock_clock.jump(25 * MS)
            await add(sound, "AB")
            mock_clock.jump(25 * MS)
            assert await texts(world) == ["a", "A", "B"]

    async def test_text_that_is_gathered_when_the_log_breaks_disturbs_nobody(
        self,
        world: World,
        gated: Gated,
        mock_clock: MockClock,
        by_hand: ByHand,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        other = await by_hand(world, "r2")
        hand = await by_hand(world, "r1")
        async with other.run.message() as sound:
            message = await begun(hand)
            await add(message, "a")
            await wait_all_tasks_blocked()
            gated.failure = StoreUnavailable("disk full")
            await hand.run.emit("x", {})
            await add(message, "b")
            await wait_all_tasks_blocked()
            gated.failure = None
            mock_clock.jump(25 * MS)
            await add(sound, "AB")
            mock_clock.jump(25 * MS)
            assert await texts(world) == ["a", "A", "B"]
            with pytest.raises(RunBroken):
                await message.text("c")
            hand.end.set()
            assert await hand.execution.wait_ended() == "failed"
        assert "alarm_failed" not in capsys.readouterr().out

    async def test_text_that_finds_no_room_goes_when_there_is_some(
        self, small_world: Callable[..., Any], gated: Gated, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        world = await small_world(max_units=1)
        hand = await by_hand(world)
        message = await begun(hand)
        await add(message, "ab")
        await wait_all_tasks_blocked()
        gated.hold()
        world.place.journal.writer().append_nowait(Entry(KEY, FILLER, NOW))
        mock_clock.jump(25 * MS)
        await wait_all_tasks_blocked()
        gated.open.set()
        await wait_all_tasks_blocked()
        assert await texts(world) == ["a", "b"]

    async def test_text_of_a_cancelled_run_that_finds_no_room_keeps_nobody_busy(
        self, small_world: Callable[..., Any], gated: Gated, mock_clock: MockClock
    ) -> None:
        world, end = await small_world(max_units=1), trio.Event()

        async def agent(run: Run) -> None:
            async with run.message() as message:
                await add(message, "ab")
                with trio.CancelScope(shield=True):
                    await end.wait()

        execution = await world.launch(agent)
        await wait_all_tasks_blocked()
        gated.hold()
        world.place.journal.writer().append_nowait(Entry(KEY, FILLER, NOW))
        execution.cancel()
        try:
            with spawns() as spawned:
                mock_clock.jump(25 * MS)
                for _ in range(200):
                    await trio.lowlevel.checkpoint()
            assert spawned.count <= 1
            gated.open.set()
            await wait_all_tasks_blocked()
            mock_clock.jump(1)
            assert await texts(world) == ["a", "b"], "it goes by itself all the same"
        finally:
            end.set()
            gated.open.set()
            assert await execution.wait_ended() == "cancelled"

    async def test_what_comes_while_other_text_waits_for_room_goes_by_itself(
        self, small_world: Callable[..., Any], gated: Gated, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        world = await small_world(max_units=1)
        hand = await by_hand(world)
        message = await begun(hand)
        await add(message, "ab")
        await wait_all_tasks_blocked()
        gated.hold()
        world.place.journal.writer().append_nowait(Entry(KEY, FILLER, NOW))
        mock_clock.jump(25 * MS)
        await wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            world.nursery.start_soon(self.cancel_later, scope, mock_clock)
            await message.text("c")
        assert scope.cancelled_caught
        gated.open.set()
        assert await texts(world) == ["a", "b"]
        mock_clock.jump(25 * MS)
        assert await texts(world) == ["a", "b", "c"]

    async def test_with_an_interval_of_0_pieces_that_wait_together_stay_apart(
        self, small_world: Callable[..., Any], gated: Gated, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        world = await small_world(max_units=1, delta_interval=0)
        hand = await by_hand(world)
        message = await begun(hand)
        await wait_all_tasks_blocked()
        gated.hold()
        world.place.journal.writer().append_nowait(Entry(KEY, FILLER, NOW))
        for piece in "abc":
            world.nursery.start_soon(message.text, piece)
            await wait_all_tasks_blocked()
        gated.open.set()
        assert await texts(world) == ["a", "b", "c"]

    async def test_an_author_that_is_cancelled_while_it_waits_for_room_leaves_nothing_behind(
        self, small_world: Callable[..., Any], gated: Gated, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        world = await small_world(max_units=1)
        hand = await by_hand(world)
        message = await begun(hand)
        await add(message, "ab")
        await wait_all_tasks_blocked()
        gated.hold()
        world.place.journal.writer().append_nowait(Entry(KEY, FILLER, NOW))
        with trio.CancelScope() as scope:
            world.nursery.start_soon(self.cancel_later, scope, mock_clock)
            await hand.run.emit("x", {})
        assert scope.cancelled_caught
        gated.open.set()
        assert await texts(world) == ["a", "b"]
        assert "x" not in await logged(world)

    async def cancel_later(self, scope: trio.CancelScope, clock: MockClock) -> None:
        await wait_all_tasks_blocked()
        clock.jump(25 * MS)  # The timer comes, and finds that the author is at it.
        await wait_all_tasks_blocked()
        scope.cancel()

    async def test_a_piece_that_a_cancelled_author_adds_is_nowhere(
        self, world: World, mock_clock: MockClock, by_hand: ByHand
    ) -> None:
        hand = await by_hand(world)
        async with hand.run.message() as message:
            await add(message, "ab")
            with trio.CancelScope() as scope:
                scope.cancel()
                await message.text("lost")
            await add(message, "c")
        await wait_all_tasks_blocked()
        deltas = await world.told("message_delta")
        assert [(data["offset"], data["text"]) for data in deltas] == [(0, "a"), (1, "bc")]
        assert [data["text"] for data in await world.told("message_completed")] == ["abc"]


def numbers(events: list[dict[str, Any]], run: str) -> list[int]:
    """What a run of `Wanderer` said, in the order of the log."""
    found: list[int] = []
    for event in events:
        if event["run"] == run and event["type"] == "message_delta":
            found.extend(int(piece) for piece in event["data"]["text"].split(CLEF) if piece)
        elif event["run"] == run and event["type"] == "x":
            found.append(event["data"]["n"])
    return found


SEED: Final = 21

CLEF: Final = "𝄞"
"""Ends each piece: two UTF-16 units, one character, four bytes."""


@attrs.define
class Wanderer:
    """An author of two messages that says numbers, and loses some to its own time-outs."""

    dice: random.Random
    count: int = 0
    kept: list[int] = attrs.field(factory=list)
    """Numbers of calls that returned, and so are in the log."""

    async def work(self, run: Run) -> None:
        async with run.message() as one, run.message() as two:
            for _ in range(100):
                self.count += 1
                number, began = self.count, trio.current_time()
                with trio.CancelScope() as scope:
                    if self.dice.random() < 0.3:
                        scope.deadline = began + self.dice.choice([0, 0.001, 0.03])
                    await self.say(run, self.dice.choice([one, one, two]), number)
                    self.kept.append(number)
                if self.dice.random() < 0.3:
                    await trio.sleep(self.dice.choice([0, 0.01, 0.05]))

    async def say(self, run: Run, message: MessageScope, number: int) -> None:
        if self.dice.random() < 0.9:
            await message.text(f"{number}{CLEF}" + CLEF * self.dice.choice([0] * 19 + [1100]))
        else:
            await run.emit("x", {"n": number})


@pytest.mark.parametrize("interval", [0, 0.025])
@pytest.mark.parametrize("units", [1, 3, 1000])
async def test_whatever_an_author_does_the_log_has_it_in_order_and_whole(
    small_world: Callable[..., Any],
    gated: Gated,
    autojump_clock: MockClock,
    interval: float,
    units: int,
) -> None:
    dice = random.Random(f"{SEED} {interval} {units}")
    world: World = await small_world(max_units=units, delta_interval=interval)

    async def disturb() -> None:
        while True:
            gated.hold()
            await trio.sleep(dice.choice([0, 0.01, 0.1]))
            gated.open.set()
            await trio.sleep(dice.choice([0, 0.01, 0.1]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(disturb)
        wanderers = {f"r{number}": Wanderer(random.Random(dice.random())) for number in range(3)}
        runs = [await world.launch(one.work, run=run) for run, one in wanderers.items()]
        assert [await run.wait_ended() for run in runs] == ["completed"] * 3
        nursery.cancel_scope.cancel()
    gated.open.set()
    events = await world.events()
    for run, one in wanderers.items():
        said = numbers(events, run)
        assert said == sorted(set(said)), f"seed {SEED}"
        assert set(one.kept) <= set(said), f"seed {SEED}"
    whole: dict[str, str] = {}
    for event in events:
        data = event["data"]
        if event["type"] == "message_delta":
            before = whole.get(data["message_id"], "")
            assert data["offset"] == len(before.encode("utf-16-le")) // 2
            whole[data["message_id"]] = before + data["text"]
    completed = [event["data"] for event in events if event["type"] == "message_completed"]
    assert whole == {data["message_id"]: data["text"] for data in completed if data["text"]}
