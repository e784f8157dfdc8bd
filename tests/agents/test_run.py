"""What agents emit: in the author's order, encoded at once, coalesced where it is text."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from agents_world import Gated, World

from wsrecover.agents.run import Run
from wsrecover.agents.runlog import RunLog
from wsrecover.errors import AgentError, InvalidEvent, RunBroken, RunEnded, ScopeEnded, StoreUnavailable
from wsrecover.protocol.context import TYPES as CONTEXT_TYPES
from wsrecover.protocol.events import OF_RUNS


class TestEmit:
    async def test_events_carry_run_thread_and_time(self, world: World) -> None:
        async def agent(run: Run) -> None:
            await run.emit("app.step", {"n": 1})
            await run.think("hm")

        await world.finish(agent)
        step, thought = (await world.events())[1:3]
        assert step == {"ts": 1.8e9, "type": "app.step", "thread": "t1", "run": "r1", "data": {"n": 1}}
        assert (thought["type"], thought["data"]) == ("agent_thinking", {"text": "hm"})

    async def test_what_is_no_text_is_refused_wherever_a_text_is_asked_for(self, world: World) -> None:
        wrong: Any = 5

        async def agent(run: Run) -> None:
            with pytest.raises(InvalidEvent, match="text: must be a string, not int"):
                await run.think(wrong)
            with pytest.raises(InvalidEvent, match="tool: must be a string, not int"):
                run.tool(wrong, {})
            with pytest.raises(InvalidEvent, match="role: must be a string, not int"):
                run.message(wrong)

        assert (await world.finish(agent))["status"] == "completed"
        assert await world.types() == ["agent_started", "agent_completed"]

    async def test_a_tool_is_not_called_outside_its_block(self, world: World) -> None:
        async def agent(run: Run) -> None:
            tool = run.tool("search", {})
            for call in (tool.complete, tool.progress):
                with pytest.raises(ScopeEnded, match=r"async with run\.tool"):
                    await call()

        assert (await world.finish(agent))["status"] == "completed"
        assert await world.types() == ["agent_started", "agent_completed"]

    @pytest.mark.parametrize("within", [False, True])
    async def test_a_scope_is_entered_once(self, world: World, within: bool) -> None:
        async def agent(run: Run) -> None:
            for scope in (run.tool("search", {}), run.message()):
                async with scope:
                    if within:
                        await refused(scope)
                if not within:
                    await refused(scope)

        async def refused(scope: Any) -> None:
            with pytest.raises(ScopeEnded, match=r"was entered before: make a `run\."):
                async with scope:
                    raise AssertionError("it began again")

        assert (await world.finish(agent))["status"] == "completed"
        kinds = ["tool_executing", "tool_completed", "message_started", "message_completed"]
        assert await world.types() == ["agent_started", *kinds, "agent_completed"]

    async def test_a_bad_event_raises_at_its_author_and_logs_nothing(self, world: World) -> None:
        async def agent(run: Run) -> None:
            for type_, data in [("Bad", {}), ("x", {"a": {1}}), ("x", {"a": float("nan")}), ("x", [])]:
                with pytest.raises(InvalidEvent):
                    await run.emit(type_, data)
            with pytest.raises(InvalidEvent, match="limit is 65536"):
                await run.emit("x", {"a": "a" * 70_000})

        assert (await world.finish(agent))["status"] == "completed"
        assert await world.types() == ["agent_started", "agent_completed"]

    @pytest.mark.parametrize("type_", sorted(OF_RUNS))
    async def test_what_the_run_itself_makes_is_not_an_authors(self, world: World, type_: str) -> None:
        async def agent(run: Run) -> None:
            with pytest.raises(InvalidEvent, match="by the run's own"):
                await run.emit(type_, {"request_id": "q", "prompt": "sure?"})

        assert (await world.finish(agent))["status"] == "completed"
        assert await world.types() == ["agent_started", "agent_completed"]

    async def test_what_scopes_make_may_be_made_by_hand(self, world: World) -> None:
        events = {
            "message_started": {"message_id": "m", "role": "assistant"},
            "message_delta": {"message_id": "m", "offset": 0, "text": "hi"},
            "message_completed": {"message_id": "m", "text": "hi"},
            "agent_thinking": {"message_id": "n", "offset": 0, "text": "hm"},
            "tool_executing": {"tool_call_id": "t", "tool": "search", "input": {}},
            "tool_failed": {"tool_call_id": "t", "tool": "search", "error": {"code": "x", "message": "y"}},
        }

        async def agent(run: Run) -> None:
            for type_, data in events.items():
                await run.emit(type_, data)

        await world.finish(agent)
        assert {event["type"]: event["data"] for event in (await world.events())[1:-1]} == events

    async def test_contexts_depend_on_what_is_reduced_to_them_alone(self, world: World) -> None:
        log = RunLog(world.place, "r1", None)
        kinds = [*CONTEXT_TYPES, "agent_thinking", "tool_progress", "app.step"]
        assert {kind for kind in kinds if log.encode(kind, {}).concerning} == CONTEXT_TYPES

    async def test_changing_the_data_afterwards_changes_nothing(self, world: World) -> None:
        async def agent(run: Run) -> None:
            data = {"n": 1}
            await run.emit("x", data)
            data["n"] = 2

        await world.finish(agent)
        assert await world.told("x") == [{"n": 1}]

    async def test_flush_waits_for_the_commit(self, world: World, gated: Gated) -> None:
        flushed = trio.Event()

        async def agent(run: Run) -> None:
            await run.emit("x", {})
            await run.flush()
            flushed.set()

        execution = world.execution(agent)
        await execution.start()
        gated.hold()
        world.nursery.start_soon(execution.execute)
        await gated.reached.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert not flushed.is_set()
        gated.open.set()
        await execution.wait_ended()
        assert flushed.is_set()

    async def test_flush_takes_the_text_that_still_waited(self, world: World, gated: Gated) -> None:
        async def agent(run: Run) -> None:
            async with run.message() as message:
                await run.flush()
                gated.hold()
                await message.text("a")
                await message.text("b")
                world.nursery.start_soon(later)
                await run.flush()
                told.append("".join(data["text"] for data in await world.told("message_delta")))

        async def later() -> None:
            await trio.testing.wait_all_tasks_blocked()
            gated.open.set()

        told: list[str] = []
        await world.finish(agent)
        assert told == ["ab"]

    async def test_a_full_journal_makes_the_author_wait(
        self, small_world: Callable[..., Any], gated: Gated
    ) -> None:
        world = await small_world(max_units=2)
        emitted: list[int] = []

        async def agent(run: Run) -> None:
            for n in range(5):
                await run.emit("x", {"n": n})
                emitted.append(n)

        execution = world.execution(agent)
        await execution.start()
        gated.hold()
        world.nursery.start_soon(execution.execute)
        await trio.testing.wait_all_tasks_blocked()
        assert emitted == [0, 1]
        gated.open.set()
        await execution.wait_ended()
        assert [data["n"] for data in await world.told("x")] == [0, 1, 2, 3, 4]

    async def test_a_loop_that_only_emits_lets_others_run(self, world: World) -> None:
        other = trio.Event()
        emitted = 0

        async def agent(run: Run) -> None:
            nonlocal emitted
            while not other.is_set():
                await run.emit("x", {})
                emitted += 1

        async def another() -> None:
            other.set()

        execution = await world.launch(agent)
        world.nursery.start_soon(another)
        await execution.wait_ended()
        assert emitted < 100

    async def test_after_the_end_it_says_so(self, world: World) -> None:
        kept: list[Run] = []

        async def agent(run: Run) -> None:
            kept.append(run)

        await world.finish(agent)
        with pytest.raises(RunEnded):
            await kept[0].emit("late", {})
        await world.terminal()

    async def test_after_a_failed_commit_it_says_so(self, world: World, gated: Gated) -> None:
        raised: list[type[Exception]] = []

        async def agent(run: Run) -> None:
            gated.failure = StoreUnavailable("disk full")
            await run.emit("x", {})
            for call in (run.flush, lambda: run.emit("y", {})):
                try:
                    await call()
                except RunBroken as error:
                    raised.append(type(error))
            gated.failure = None

        end = await world.finish(agent)
        assert raised == [RunBroken, RunBroken]
        assert end["status"] == "failed"
        assert end["error"]["code"] == "exception"
        assert "log failed" in end["error"]["message"]
        assert await world.types() == ["agent_started", "agent_completed"]


@attrs.frozen
class Order:
    item: str
    due: dt.datetime = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


TOLD = {"item": "lamp", "due": "2024-01-01T00:00:00+00:00"}


class TestAnInstanceOfAnAttrsClass:
    async def test_is_told_wherever_it_is_given(self, world: World) -> None:
        order = Order("lamp")

        async def agent(run: Run) -> Order:
            await run.emit("placed", order)
            await run.emit("placed", {"orders": [order]})
            async with run.tool("ship", order) as tool:
                await tool.progress(order=order)
                await tool.complete(order)
            async with run.tool("ship", {"order": order}) as tool:
                await tool.complete([order])
            run.usage = order
            return order

        end = await world.finish(agent)
        assert (end["status"], end["result"], end["usage"]) == ("completed", TOLD, TOLD)
        assert await world.told("placed") == [TOLD, {"orders": [TOLD]}]
        assert [data["input"] for data in await world.told("tool_executing")] == [TOLD, {"order": TOLD}]
        assert [data["order"] for data in await world.told("tool_progress")] == [TOLD]
        assert [data["output"] for data in await world.told("tool_completed")] == [TOLD, [TOLD]]

    async def test_comes_to_the_agent_it_starts_as_the_log_has_it(self, world: World) -> None:
        seen: list[Any] = []

        async def agent(run: Run) -> None:
            seen.append(run.input)

        await world.finish(agent, given={"order": Order("lamp")})
        assert seen == [{"order": TOLD}]

    async def test_that_cannot_be_logged_is_named_by_its_path(self, world: World) -> None:
        nan: Any = float("nan")

        async def agent(run: Run) -> dict[str, Order]:
            with pytest.raises(InvalidEvent, match=r"data\.input\.item: nan is not JSON"):
                async with run.tool("ship", Order(nan)):
                    raise AssertionError("it began")
            return {"order": Order(nan)}

        assert "data.result.order.item: nan" in (await world.finish(agent))["error"]["message"]


class TestLastWords:
    """What closes a scope gets its chance also where the run is cancelled while it waits for room."""

    async def scope_left_while_there_is_no_room(
        self, small_world: Callable[..., Any], gated: Gated, scope: Callable[[Run], Any]
    ) -> World:
        world: World = await small_world(max_units=1)

        async def agent(run: Run) -> None:
            async with scope(run):
                await run.flush()
                gated.hold()
                await run.emit("x", {})

        execution = await world.launch(agent)
        await trio.testing.wait_all_tasks_blocked()
        execution.cancel()
        await trio.testing.wait_all_tasks_blocked()
        gated.open.set()
        assert await execution.wait_ended() == "cancelled"
        await world.terminal()
        return world

    async def test_a_message_is_completed(self, small_world: Callable[..., Any], gated: Gated) -> None:
        world = await self.scope_left_while_there_is_no_room(small_world, gated, lambda run: run.message())
        assert (await world.types())[-3:] == ["x", "message_completed", "agent_completed"]

    async def test_a_tool_call_fails(self, small_world: Callable[..., Any], gated: Gated) -> None:
        world = await self.scope_left_while_there_is_no_room(
            small_world, gated, lambda run: run.tool("search", {})
        )
        assert (await world.types())[-3:] == ["x", "tool_failed", "agent_completed"]

    async def test_a_scope_that_its_agent_gives_up_has_nothing_to_do_with_earlier_ones(
        self, world: World, autojump_clock: trio.testing.MockClock
    ) -> None:
        async def agent(run: Run) -> None:
            with trio.move_on_after(60):
                async with run.tool("outer", {}):
                    with trio.move_on_after(1):
                        async with run.tool("inner", {}):
                            await trio.sleep_forever()
                    await trio.sleep_forever()  # Given up long after, with no event in between.
            with trio.move_on_after(1):
                async with run.message() as message:
                    await message.text("hello")
                    await trio.sleep_forever()
            with trio.move_on_after(1):
                await run.ask("sure?")

        assert (await world.finish(agent))["status"] == "completed"
        types = await world.types()
        assert [data["tool"] for data in await world.told("tool_failed")] == ["inner", "outer"]
        assert types[5:-1] == [
            "message_started",
            "message_delta",
            "message_completed",
            "input_requested",
            "input_resolved",
        ]

    @pytest.mark.parametrize("ended", ["cancel", "stop", "time-out"])
    async def test_but_no_longer_than_the_grace(
        self,
        small_world: Callable[..., Any],
        gated: Gated,
        autojump_clock: trio.testing.MockClock,
        ended: str,
    ) -> None:
        world: World = await small_world(max_units=1, grace=3.0)
        left: list[float] = []

        async def agent(run: Run) -> None:
            try:
                async with run.message(), run.tool("a", {}), run.tool("b", {}):
                    await run.flush()
                    gated.hold()
                    await run.emit("x", {})
                    await trio.sleep_forever()
            finally:
                left.append(trio.current_time())

        async with trio.open_nursery() as session:
            execution = world.execution(agent, timeout=20)
            await execution.start()
            session.start_soon(execution.execute)
            await trio.testing.wait_all_tasks_blocked()
            began = trio.current_time()
            if ended == "cancel":
                execution.cancel()
            elif ended == "stop":
                execution.hurry()
                session.cancel_scope.cancel()
            else:
                await trio.sleep_until(began := began + 20)
            with trio.CancelScope(shield=True):
                await trio.sleep(4)
            assert [at - began for at in left] == [3.0]
            gated.open.set()
        assert await execution.wait_ended() == ("cancelled" if ended == "cancel" else "failed")
        assert (await world.types())[-2:] == ["x", "agent_completed"]


class TestTool:
    async def test_a_tool_call_is_told_from_its_start_to_its_output(
        self, world: World, mock_clock: trio.testing.MockClock
    ) -> None:
        async def agent(run: Run) -> None:
            async with run.tool("search", {"q": "x"}) as tool:
                await tool.progress(found=1)
                mock_clock.jump(2.5)
                await tool.complete({"hits": 3})

        await world.finish(agent)
        executing, progress, completed = (await world.events())[1:4]
        assert (executing["type"], progress["type"], completed["type"]) == (
            "tool_executing",
            "tool_progress",
            "tool_completed",
        )
        call = executing["data"].pop("tool_call_id")
        assert executing["data"] == {"tool": "search", "input": {"q": "x"}}
        assert progress["data"] == {"tool_call_id": call, "found": 1}
        assert completed["data"] == {
            "tool_call_id": call,
            "tool": "search",
            "output": {"hits": 3},
            "duration": 2.5,
        }

    async def test_complete_waits_for_the_commit(self, world: World, gated: Gated) -> None:
        done = trio.Event()

        async def agent(run: Run) -> None:
            async with run.tool("search", {}) as tool:
                await tool.complete(1)
                done.set()

        execution = world.execution(agent)
        await execution.start()
        gated.hold()
        world.nursery.start_soon(execution.execute)
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        gated.open.set()
        await execution.wait_ended()
        assert done.is_set()

    async def test_leaving_without_complete_has_the_output_null(self, world: World) -> None:
        async def agent(run: Run) -> None:
            async with run.tool("search", {}):
                pass

        await world.finish(agent)
        assert [data["output"] for data in await world.told("tool_completed")] == [None]

    async def test_completing_twice_is_refused_and_logs_nothing(self, world: World) -> None:
        async def agent(run: Run) -> None:
            async with run.tool("search", {}) as tool:
                await tool.complete(1)
                with pytest.raises(ScopeEnded):
                    await tool.complete(2)
                with pytest.raises(ScopeEnded):
                    await tool.progress(n=1)

        assert (await world.finish(agent))["status"] == "completed"
        assert [data["output"] for data in await world.told("tool_completed", "tool_failed")] == [1]

    async def test_an_output_that_is_not_json_leaves_the_call_open(self, world: World) -> None:
        async def agent(run: Run) -> None:
            async with run.tool("search", {}) as tool:
                with pytest.raises(InvalidEvent):
                    await tool.complete({1})
                await tool.complete([1])

        await world.finish(agent)
        assert [data["output"] for data in await world.told("tool_completed", "tool_failed")] == [[1]]

    @pytest.mark.parametrize(
        ("raised", "error"),
        [
            (ValueError("password=1234"), {"code": "exception", "message": "ValueError"}),
            (AgentError("no such page", code="missing"), {"code": "missing", "message": "no such page"}),
            (ExceptionGroup("g", [KeyError(1)]), {"code": "exception", "message": "KeyError"}),
        ],
    )
    async def test_an_exception_fails_the_call_and_passes_on(
        self, world: World, raised: Exception, error: dict[str, str]
    ) -> None:
        async def agent(run: Run) -> None:
            with pytest.raises(type(raised)):
                async with run.tool("search", {}):
                    raise raised

        assert (await world.finish(agent))["status"] == "completed"
        assert [data["error"] for data in await world.told("tool_completed", "tool_failed")] == [error]

    async def test_a_time_out_around_the_call_fails_it_as_cancelled(
        self, world: World, autojump_clock: trio.testing.MockClock
    ) -> None:
        async def agent(run: Run) -> None:
            with trio.move_on_after(1):
                async with run.tool("search", {}):
                    await trio.sleep_forever()
            await run.think("next")

        assert (await world.finish(agent))["status"] == "completed"
        failed = await world.told("tool_failed")
        assert [data["error"]["code"] for data in failed] == ["cancelled"]
        assert (await world.types())[-2] == "agent_thinking"


class TestMessage:
    async def test_the_deltas_are_the_text(self, small_world: Callable[..., Any]) -> None:
        world = await small_world(delta_interval=0)

        async def agent(run: Run) -> None:
            async with run.message(role="assistant") as message:
                for token in ["Hé", "llo ", "𝄞", "!", ""]:
                    await message.text(token)

        await world.finish(agent)
        started, *deltas, completed = (await world.events())[1:-1]
        message = started["data"]["message_id"]
        assert (started["type"], started["data"]["role"]) == ("message_started", "assistant")
        assert [(event["data"]["offset"], event["data"]["text"]) for event in deltas] == [
            (0, "Hé"),
            (2, "llo "),
            (6, "𝄞"),
            (8, "!"),
        ]
        assert completed["data"] == {"message_id": message, "text": "Héllo 𝄞!"}

    async def test_much_text_waits_for_room(self, small_world: Callable[..., Any], gated: Gated) -> None:
        world = await small_world(max_units=3)
        sent = 0

        async def agent(run: Run) -> None:
            nonlocal sent
            async with run.message() as message:
                await run.flush()
                gated.hold()
                for _ in range(100):
                    await message.text("x" * 500)
                    sent += 1

        execution = await world.launch(agent)
        await trio.testing.wait_all_tasks_blocked()
        assert sent * 500 < 4 * 4096 + 1000
        gated.open.set()
        await execution.wait_ended()
        assert "".join(data["text"] for data in await world.told("message_delta")) == "x" * 50_000

    async def test_an_exception_completes_the_message_as_interrupted(self, world: World) -> None:
        async def agent(run: Run) -> None:
            async with run.message() as message:
                await message.text("half")
                raise ValueError

        assert (await world.finish(agent))["status"] == "failed"
        assert [(data["text"], data["interrupted"]) for data in await world.told("message_completed")] == [
            ("half", True)
        ]

    @pytest.mark.parametrize("token", [b"bytes", None, 1, "\ud800"])
    async def test_what_is_not_text_is_refused_and_the_message_goes_on(
        self, world: World, token: Any
    ) -> None:
        async def agent(run: Run) -> None:
            async with run.message() as message:
                await message.text("a")
                with pytest.raises(InvalidEvent, match="text"):
                    await message.text(token)
                await message.text("b")

        await world.finish(agent)
        assert [data["text"] for data in await world.told("message_completed")] == ["ab"]

    async def test_a_message_longer_than_an_event_is_refused_where_it_grows(self, world: World) -> None:
        async def agent(run: Run) -> dict[str, bool] | None:
            async with run.message() as message:
                for _ in range(65):
                    try:
                        await message.text('"' * 511)
                    except InvalidEvent:
                        return {"refused": True}
            return None

        end = await world.finish(agent)
        assert end["result"] == {"refused": True}

    async def test_before_its_block_it_takes_no_text(self, world: World) -> None:
        async def agent(run: Run) -> None:
            with pytest.raises(ScopeEnded, match=r"async with run\.message\(\)"):
                await run.message().text("early")

        assert (await world.finish(agent))["status"] == "completed"
        assert await world.types() == ["agent_started", "agent_completed"]

    async def test_after_its_end_it_takes_no_text(self, world: World) -> None:
        async def agent(run: Run) -> None:
            async with run.message() as message:
                pass
            with pytest.raises(ScopeEnded):
                await message.text("late")

        assert (await world.finish(agent))["status"] == "completed"
