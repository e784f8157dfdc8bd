"""However a run ends, its log has exactly one terminal event, last, and the store has no run under way."""

from __future__ import annotations

import contextlib
import json
import types
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from agents_world import NOW, Gated, World, make_journal, make_place

from wsrecover.agents.app import AgentFunction
from wsrecover.agents.ending import call
from wsrecover.agents.lifecycle import _terminal_id, close_lost_runs
from wsrecover.agents.run import Run
from wsrecover.errors import AgentError, InvalidEvent, RunEnded, StoreFailed, StoreUnavailable
from wsrecover.streams.store import Answer, AnswerKey, Applied, Conflict, Duplicate, Entry, Unit


def make_answer(name: str = "c1", digest: bytes = b"d") -> Answer:
    return Answer(AnswerKey("acme", "ann", name), digest, NOW, b"{}")


class NoText:
    def __str__(self) -> str:
        raise ValueError("it has no text")


NOT_TEXT: Any = NoText()
NO_TEXT = AgentError(NOT_TEXT)
NOT_CODE: Any = object()
NO_CODE = AgentError("m", code=NOT_CODE, retryable=NOT_CODE)


async def sleeper(run: Run) -> None:
    await trio.sleep_forever()


async def silent(run: Run) -> None:
    return None


class TestStart:
    async def test_the_start_its_record_and_its_answer_are_one_commit(self, world: World) -> None:
        execution = world.execution(silent, given={"text": "hi"})
        outcome = await execution.start(make_answer())
        assert isinstance(outcome, Applied)
        assert await world.told("agent_started") == [{"agent": "helper", "input": {"text": "hi"}}]
        assert [record.run for record in await world.store.runs()] == ["r1"]
        answered = await world.store.answer(make_answer().key)
        assert answered is not None
        assert [position.seq for position in answered[1]] == [1]

    async def test_a_repeated_command_starts_nothing(self, world: World) -> None:
        await world.execution(silent).start(make_answer())
        assert isinstance(await world.execution(silent, run="r2").start(make_answer()), Duplicate)
        other = make_answer(digest=b"other")
        assert isinstance(await world.execution(silent, run="r3").start(other), Conflict)
        assert await world.types() == ["agent_started"]
        assert [record.run for record in await world.store.runs()] == ["r1"]

    async def test_an_input_that_cannot_be_logged_starts_nothing(self, world: World) -> None:
        with pytest.raises(InvalidEvent):
            await world.execution(silent, given={"x": {1}}).start()
        assert await world.events() == []

    async def test_a_store_that_is_down_starts_nothing(self, world: World, gated: Gated) -> None:
        gated.failure = StoreUnavailable("disk full")
        with pytest.raises(StoreUnavailable):
            await world.execution(silent).start()
        assert await world.store.runs() == []

    async def test_cancelling_it_still_tells_what_was_committed(self, world: World, gated: Gated) -> None:
        execution = world.execution(silent)
        outcomes: list[Any] = []

        async def start() -> None:
            with scope:
                outcomes.append(await execution.start())

        gated.hold()
        scope = trio.CancelScope()
        world.nursery.start_soon(start)
        await gated.reached.wait()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        gated.open.set()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(outcome) for outcome in outcomes] == [Applied]

    async def test_a_store_that_never_answers_is_not_waited_for_forever(
        self, world: World, gated: Gated, autojump_clock: trio.testing.MockClock
    ) -> None:
        gated.hold()
        with pytest.raises(StoreFailed):
            await world.execution(silent).start()
        gated.open.set()


class TestCompleted:
    async def test_the_result_is_told(self, world: World, mock_clock: trio.testing.MockClock) -> None:
        async def agent(run: Run) -> dict[str, Any]:
            assert (run.status, run.started, run.agent, run.user) == ("running", NOW, "helper", "ann")
            mock_clock.jump(2)
            run.usage = {"tokens": 7}
            return {"answer": 42}

        execution = await world.launch(agent)
        assert await execution.wait_ended() == "completed"
        assert await world.terminal() == {
            "status": "completed",
            "result": {"answer": 42},
            "usage": {"tokens": 7},
            "duration": 2.0,
        }

    async def test_no_result_is_no_field(self, world: World) -> None:
        assert set(await world.finish(silent)) == {"status", "duration"}

    @pytest.mark.parametrize(
        ("result", "message"),
        [
            ([1], "list, not a JSON object"),
            ("text", "str, not a JSON object"),
            ({"x": {1}}, "result.x"),
            ({"x": float("nan")}, "nan is not JSON"),
            ({"x": "a" * 70_000}, "limit is 65536"),
            ({"x": "\ud800"}, "surrogate"),
        ],
    )
    async def test_a_result_that_cannot_be_logged_fails_the_run(
        self, world: World, result: Any, message: str
    ) -> None:
        async def agent(run: Run) -> Any:
            return result

        end = await world.finish(agent)
        assert (end["status"], end["error"]["code"]) == ("failed", "exception")
        assert message in end["error"]["message"]

    async def test_usage_that_cannot_be_logged_fails_the_run(self, world: World) -> None:
        async def agent(run: Run) -> None:
            run.usage = {"x": object()}

        assert "data.usage.x" in (await world.finish(agent))["error"]["message"]

    async def test_usage_that_is_no_object_is_refused_where_it_is_set(self, world: World) -> None:
        text: Any = "12 tokens"

        async def agent(run: Run) -> None:
            with pytest.raises(InvalidEvent, match="usage: must be an object, not str"):
                run.usage = text
            with pytest.raises(InvalidEvent, match="usage: must be an object, not Counter"):
                run.usage = Counter(tokens=12)  # What is nested in an event must be a dict itself.
            assert run.usage is None

        assert set(await world.finish(agent)) == {"status", "duration"}


class TestFailed:
    @pytest.mark.parametrize(
        ("raised", "error"),
        [
            (ValueError("secret"), {"code": "exception", "message": "ValueError", "retryable": False}),
            (
                AgentError("try later", code="busy", retryable=True),
                {"code": "busy", "message": "try later", "retryable": True},
            ),
            (
                ExceptionGroup("g", [KeyError(), ExceptionGroup("h", [ValueError(), KeyError()])]),
                {"code": "exception", "message": "KeyError, ValueError", "retryable": False},
            ),
            (
                ExceptionGroup("g", [KeyError(), AgentError("mine")]),
                {"code": "exception", "message": "mine", "retryable": False},
            ),
            (trio.TooSlowError(), {"code": "exception", "message": "TooSlowError", "retryable": False}),
            (AgentError("\ud800"), {"code": "exception", "message": "?", "retryable": False}),
            (AgentError("m", code="\ud800"), {"code": "?", "message": "m", "retryable": False}),
            (NO_CODE, {"code": "exception", "message": "m", "retryable": False}),
            (NO_TEXT, {"code": "exception", "message": "AgentError", "retryable": False}),
        ],
    )
    @pytest.mark.parametrize("within", ["agent", "tool"])
    async def test_an_exception_is_told_without_internals(
        self, world: World, raised: Exception, error: dict[str, Any], within: str
    ) -> None:
        async def agent(run: Run) -> None:
            if within == "agent":
                raise raised
            async with run.tool("x", {}):
                raise raised

        end = await world.finish(agent)
        assert (end["status"], end["error"]) == ("failed", error)
        if within == "tool":
            (failed,) = await world.told("tool_failed")
            assert failed["error"] == {"code": error["code"], "message": error["message"]}

    async def test_a_message_of_any_length_is_cut(self, world: World) -> None:
        async def agent(run: Run) -> None:
            raise AgentError("x" * 5000)

        assert len((await world.finish(agent))["error"]["message"]) == 1000

    async def test_tasks_that_the_agent_started_end_with_it(self, world: World) -> None:
        async def child(run: Run) -> None:
            async with run.tool("slow", {}):
                await trio.sleep_forever()

        async def agent(run: Run) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child, run)
                await trio.testing.wait_all_tasks_blocked()
                raise ValueError

        assert (await world.finish(agent))["error"]["message"] == "ValueError"
        assert await world.types() == ["agent_started", "tool_executing", "tool_failed", "agent_completed"]

    async def test_a_cancellation_that_was_kept_and_raised_later_is_a_failure(self, world: World) -> None:
        async def agent(run: Run) -> None:
            kept: list[BaseException] = []
            with trio.CancelScope() as scope:
                scope.cancel()
                try:
                    await trio.lowlevel.checkpoint()
                except trio.Cancelled as cancelled:
                    kept.append(cancelled)
            raise kept[0]

        error = (await world.finish(agent))["error"]
        assert (error["code"], error["message"]) == ("exception", "Cancelled")

    @pytest.mark.parametrize(
        ("raised", "told"), [(SystemExit, "SystemExit"), (GeneratorExit, "RuntimeError")]
    )
    @pytest.mark.parametrize("in_a_task", [False, True])
    async def test_an_agent_that_exits_ends_its_run_and_not_the_process(
        self, world: World, raised: type[BaseException], told: str, in_a_task: bool
    ) -> None:
        async def leave(run: Run) -> None:
            async with run.tool("x", {}):
                raise raised

        async def agent(run: Run) -> None:
            if in_a_task:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(leave, run)
            else:
                await leave(run)

        error = (await world.finish(agent))["error"]
        assert (error["code"], error["message"]) == ("exception", told)

    async def test_what_is_being_closed_passes(self) -> None:
        """As Python does with all that a crashed program leaves: nothing may be awaited then."""

        @types.coroutine
        def suspended() -> Iterator[None]:
            yield

        async def agent() -> None:
            await suspended()

        coroutine = call(agent)

        async def begin() -> None:
            coroutine.send(None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
        coroutine.close()

    @pytest.mark.parametrize(
        ("result", "words"), [("done", "returned a str"), ({"x": object()}, "cannot be logged")]
    )
    async def test_why_a_run_failed_is_in_the_servers_log_too(
        self, world: World, result: Any, words: str
    ) -> None:
        async def agent(run: Run) -> Any:
            return result

        with structlog.testing.capture_logs() as logged:
            await world.finish(agent)
        (line,) = (line for line in logged if line["event"] == "run_failed")
        assert words in line["error"]["message"]
        assert (line["agent"], line["thread"]) == ("helper", "t1")

    @pytest.mark.parametrize("beside", [False, True])
    async def test_what_ends_the_process_passes_on(self, world: World, beside: bool) -> None:
        async def agent(run: Run) -> None:
            async with run.tool("x", {}), run.message():
                if beside:
                    raise BaseExceptionGroup("both", [GeneratorExit(), KeyboardInterrupt()])
                raise KeyboardInterrupt

        execution = world.execution(agent)
        await execution.start()
        with pytest.raises(BaseExceptionGroup) as caught:
            await execution.execute()
        assert caught.group_contains(KeyboardInterrupt)
        assert await execution.wait_ended() == "failed"
        await trio.testing.wait_all_tasks_blocked()
        assert await world.types() == ["agent_started", "tool_executing", "message_started"]
        assert len(await world.store.runs()) == 1


class TestCancelled:
    async def test_a_cancelled_run_says_so_once_and_answers_in_the_same_commit(self, world: World) -> None:
        execution = await world.launch(sleeper)
        assert execution.cancel(make_answer("c1"))
        assert execution.cancel(make_answer("c2"))
        assert await execution.wait_ended() == "cancelled"
        assert (await world.terminal())["status"] == "cancelled"
        for name in ("c1", "c2"):
            answered = await world.store.answer(make_answer(name).key)
            assert answered is not None
            assert json.loads(answered[0].result or b"") == {"run": "r1", "status": "cancelled"}
        assert not execution.cancel(make_answer("c3"))

    @pytest.mark.parametrize("digest", [b"d", b"other"])
    async def test_a_repeated_cancel_does_not_keep_the_run_from_ending(
        self, world: World, digest: bytes
    ) -> None:
        await world.place.journal.commit(Unit(answers=(make_answer(),)))
        execution = await world.launch(sleeper)
        execution.cancel(make_answer(digest=digest))
        execution.cancel(make_answer("c2"))
        await execution.wait_ended()
        assert (await world.terminal())["status"] == "cancelled"
        assert await world.store.answer(make_answer("c2").key) is not None

    async def test_before_its_first_step_too(self, world: World) -> None:
        execution = world.execution(sleeper)
        await execution.start()
        execution.cancel()
        await execution.execute()
        assert (await world.terminal())["status"] == "cancelled"

    @pytest.mark.parametrize("afterwards", ["returns", "raises"])
    async def test_what_the_code_does_afterwards_changes_nothing(self, world: World, afterwards: str) -> None:
        async def agent(run: Run) -> dict[str, Any]:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                if afterwards == "raises":
                    raise ValueError from None
            return {"answer": 42}

        execution = await world.launch(agent)
        await trio.testing.wait_all_tasks_blocked()
        execution.cancel()
        await execution.wait_ended()
        end = await world.terminal()
        assert (end["status"], "result" in end, "error" in end) == ("cancelled", False, False)

    async def test_the_first_cause_counts(self, world: World, autojump_clock: trio.testing.MockClock) -> None:
        async def agent(run: Run) -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

        execution = await world.launch(agent, timeout=5)
        await trio.sleep(6)
        execution.cancel(make_answer())
        await execution.wait_ended()
        assert (await world.terminal())["error"]["code"] == "timeout"
        answered = await world.store.answer(make_answer().key)
        assert answered is not None
        assert json.loads(answered[0].result or b"")["status"] == "failed"


class TestTimeout:
    async def test_a_run_over_its_time_fails(
        self, world: World, autojump_clock: trio.testing.MockClock
    ) -> None:
        end = await world.finish(sleeper, timeout=5)
        assert (end["error"]["code"], end["duration"]) == ("timeout", 5.0)
        assert "5" in end["error"]["message"]

    async def test_the_place_bounds_agents_without_a_limit_of_their_own(
        self, small_world: Callable[..., Any], autojump_clock: trio.testing.MockClock
    ) -> None:
        world = await small_world(timeout=7)
        assert (await world.finish(sleeper))["duration"] == 7.0

    async def test_code_that_ignores_it_cannot_complete_any_more(
        self, world: World, autojump_clock: trio.testing.MockClock
    ) -> None:
        async def agent(run: Run) -> dict[str, Any]:
            with contextlib.suppress(trio.Cancelled):
                await trio.sleep_forever()
            return {"late": True}

        assert (await world.finish(agent, timeout=5))["error"]["code"] == "timeout"


class TestStopped:
    async def stopped(self, world: World, function: AgentFunction) -> dict[str, Any]:
        """Stop the server while an agent is at work: the data of the terminal event."""
        async with trio.open_nursery() as session:
            execution = world.execution(function)
            await execution.start()
            session.start_soon(execution.execute)
            await trio.testing.wait_all_tasks_blocked()
            execution.hurry()
            session.cancel_scope.cancel()
        return await world.terminal()

    async def test_a_stopped_run_may_be_tried_again(self, world: World) -> None:
        assert (await self.stopped(world, sleeper))["error"] | {"message": ""} == {
            "code": "server_stopped",
            "message": "",
            "retryable": True,
        }

    async def test_one_that_comes_to_its_end_behind_a_shield_is_told_as_it_ended(
        self, world: World, autojump_clock: trio.testing.MockClock
    ) -> None:
        async def agent(run: Run) -> dict[str, Any]:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.05)
            return {"charged": 1}

        end = await self.stopped(world, agent)
        assert (end["status"], end["result"]) == ("completed", {"charged": 1})

    async def test_cancelling_the_nursery_ends_the_run_first_and_passes_on(self, world: World) -> None:
        async with trio.open_nursery() as session:
            execution = world.execution(sleeper)
            await execution.start()
            session.start_soon(execution.execute)
            await trio.testing.wait_all_tasks_blocked()
            session.cancel_scope.cancel()
        assert session.cancel_scope.cancelled_caught
        assert (await world.terminal())["error"]["code"] == "server_stopped"

    async def test_a_terminal_event_under_way_when_the_nursery_is_cancelled_is_written_once(
        self, world: World, gated: Gated
    ) -> None:
        execution = world.execution(silent)
        await execution.start()
        gated.hold()
        async with trio.open_nursery() as session:
            session.start_soon(execution.execute)
            await gated.reached.wait()
            session.cancel_scope.cancel()
            gated.open.set()
        assert (await world.terminal())["status"] == "completed"

    async def test_nothing_comes_behind_a_terminal_event_under_way(self, world: World, gated: Gated) -> None:
        execution = world.execution(silent)
        await execution.start()
        gated.hold()
        world.nursery.start_soon(execution.execute)
        await gated.reached.wait()
        with pytest.raises(RunEnded):
            await execution.run.emit("late", {})
        assert not execution.cancel(make_answer())
        gated.open.set()
        await execution.wait_ended()
        await world.terminal()

    async def test_a_run_that_was_started_in_a_cancelled_nursery_ends_too(self, world: World) -> None:
        async with trio.open_nursery() as session:
            execution = world.execution(sleeper)
            session.cancel_scope.cancel()
            assert isinstance(await execution.start(), Applied)
            session.start_soon(execution.execute)
        assert (await world.terminal())["error"]["code"] == "server_stopped"

    async def test_an_error_beside_the_cancellation_does_not_pass_on(self, world: World) -> None:
        async def child() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

        async def agent(run: Run) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child)
                nursery.start_soon(trio.sleep_forever)

        async with trio.open_nursery() as session:
            execution = world.execution(agent)
            await execution.start()
            session.start_soon(execution.execute)
            await trio.testing.wait_all_tasks_blocked()
            session.cancel_scope.cancel()
        await world.terminal()

    async def test_a_store_that_does_not_answer_holds_it_up_no_longer_than_the_grace(
        self, world: World, gated: Gated, autojump_clock: trio.testing.MockClock
    ) -> None:
        began = trio.current_time()
        async with trio.open_nursery() as session:
            execution = world.execution(sleeper)
            await execution.start()
            gated.hold()
            session.start_soon(execution.execute)
            await trio.testing.wait_all_tasks_blocked()
            session.cancel_scope.cancel()
        assert trio.current_time() - began == world.place.grace
        assert execution.run.status == "failed"
        gated.open.set()


class TestStoreDown:
    async def test_the_terminal_event_is_tried_until_the_store_heals(
        self, world: World, gated: Gated, autojump_clock: trio.testing.MockClock
    ) -> None:
        async def agent(run: Run) -> None:
            gated.failure = StoreUnavailable("disk full")
            await run.emit("lost", {})
            await run.flush()

        execution = await world.launch(agent)
        await trio.sleep(60)
        assert execution.run.status == "running"
        gated.failure = None
        assert await execution.wait_ended() == "failed"
        end = await world.terminal()
        assert "log failed" in end["error"]["message"]
        assert "lost" not in await world.types()

    async def test_a_run_whose_last_events_were_lost_does_not_complete(
        self, world: World, gated: Gated, autojump_clock: trio.testing.MockClock
    ) -> None:
        async def agent(run: Run) -> dict[str, Any]:
            gated.failure = StoreUnavailable("disk full")
            await run.emit("lost", {})
            return {"answer": 42}

        execution = await world.launch(agent)
        await trio.sleep(1)
        gated.failure = None
        assert await execution.wait_ended() == "failed"
        assert "result" not in await world.terminal()

    async def test_a_store_that_failed_for_good_leaves_the_end_to_the_next_start(
        self, world: World, gated: Gated
    ) -> None:
        async def agent(run: Run) -> None:
            gated.failure = StoreFailed("EIO")

        execution = await world.launch(agent)
        assert await execution.wait_ended() == "failed"
        gated.failure = None
        assert await close_lost_runs(gated, world.place.journal, clock=lambda: NOW) == 1
        assert (await world.terminal())["error"]["code"] == "producer_lost"


class TestLostRuns:
    async def test_every_run_under_way_is_ended_at_start_up(self, world: World) -> None:
        for n in range(250):
            await world.execution(silent, run=f"r{n}").start()
        journal = world.place.journal
        assert await close_lost_runs(world.store, journal, clock=lambda: NOW + 5) == 250
        ends = [event for event in await world.events() if event["type"] == "agent_completed"]
        assert {event["run"] for event in ends} == {f"r{n}" for n in range(250)}
        assert all(event["thread"] == "t1" for event in ends)
        assert ends[0]["data"]["status"] == "failed"
        assert (ends[0]["data"]["error"]["code"], ends[0]["data"]["error"]["retryable"]) == (
            "producer_lost",
            True,
        )
        assert ends[0]["data"]["duration"] == 5.0
        assert await close_lost_runs(world.store, journal, clock=lambda: NOW) == 0

    async def test_one_that_cannot_be_ended_keeps_no_other_from_its_end(self, world: World) -> None:
        for n in range(3):
            await world.execution(silent, run=f"r{n}").start()
        journal = world.place.journal
        taken = Entry(world.place.key, b"{}", NOW, id=_terminal_id("r1"), digest=b"another")
        assert await journal.commit(Unit((taken,))) == Applied()
        assert await close_lost_runs(world.store, journal, clock=lambda: NOW) == 3
        ends = [event for event in await world.events() if event.get("type") == "agent_completed"]
        assert {event["run"] for event in ends} == {"r0", "r2"}
        assert [record.run for record in await world.store.runs()] == ["r1"]


async def busy(run: Run) -> dict[str, Any]:
    """A small agent with all parts, and a task of its own."""

    async def aside() -> None:
        async with run.tool("aside", {}) as tool:
            await tool.progress(n=1)

    await run.think("hm")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(aside)
        async with run.message() as message:
            for token in "abc":
                await message.text(token)
        async with run.tool("search", {}) as tool:
            await trio.lowlevel.checkpoint()
            await tool.complete({"hits": 3})
    await run.flush()
    return {"answer": 42}


class AtStep(trio.abc.Instrument):
    """Calls `act` before the `step`-th step of any task of the run."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.left = step
        self.act = act

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if "busy" in task.name or "aside" in task.name or "execute" in task.name:
            self.left -= 1
            if self.left == 0:
                self.act()


def check_parts(events: list[dict[str, Any]]) -> None:
    """Every part that began ended once, and the deltas are the text."""
    calls = [event["data"]["tool_call_id"] for event in events if event["type"] == "tool_executing"]
    over = [
        event["data"]["tool_call_id"]
        for event in events
        if event["type"] in ("tool_completed", "tool_failed")
    ]
    assert sorted(calls) == sorted(over)
    started = [event for event in events if event["type"] == "message_started"]
    completed = [event["data"]["text"] for event in events if event["type"] == "message_completed"]
    deltas = [event["data"] for event in events if event["type"] == "message_delta"]
    assert len(completed) == len(started)
    assert "".join(delta["text"] for delta in deltas) == "".join(completed)
    text = ""
    for delta in deltas:
        assert delta["offset"] == len(text)
        text += delta["text"]


class TestCancelAtEveryCheckpoint:
    @pytest.fixture(params=["memory", "sqlite"])
    async def any_world(
        self, request: pytest.FixtureRequest, nursery: trio.Nursery, tmp_path: Path
    ) -> AsyncIterator[Callable[[], Any]]:
        stores: list[Any] = []

        async def make() -> World:
            if request.param == "memory":
                store: Any = Gated()
            else:
                sqlite = pytest.importorskip("wsrecover.streams.sqlite")
                store = await sqlite.open_sqlite(tmp_path / f"{len(stores)}.db")
            stores.append(store)
            journal = make_journal(store)
            await nursery.start(journal.run)
            return World(nursery, store, make_place(nursery, journal))

        yield make
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            for store in stores:
                await store.aclose()

    @pytest.mark.parametrize("way", ["cancel", "stop", "nursery", "timeout"])
    async def test_there_is_one_terminal_event(self, any_world: Callable[[], Any], way: str) -> None:
        steps = 0
        for step in range(1, 1000):
            world = await any_world()
            execution = world.execution(busy)
            await execution.start()
            with trio.CancelScope() as scope:
                acts: dict[str, Callable[[], object]] = {
                    "cancel": execution.cancel,
                    "stop": lambda e=execution, s=scope: (e.hurry(), s.cancel()),
                    "nursery": scope.cancel,
                    "timeout": lambda e=execution: setattr(e._scope, "deadline", -float("inf")),
                }
                instrument = AtStep(step, acts[way])
                trio.lowlevel.add_instrument(instrument)
                async with trio.open_nursery() as session:
                    session.start_soon(execution.execute)
            trio.lowlevel.remove_instrument(instrument)
            end = await world.terminal()
            check_parts(await world.events())
            assert end["status"] == execution.run.status
            if instrument.left > 0:
                assert end["status"] == "completed"
                break
            expected = {"cancel": "cancelled"}.get(way, "failed")
            assert end["status"] in (expected, "completed")
            steps += end["status"] == expected
        assert steps >= 3
