"""Agents that are cancelled while they emit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from agents_world import NOW, Gated, World

from wsrecover.agents.run import Run
from wsrecover.agents.runlog import LOOK_EVENTS, LOOK_INTERVAL


class TestEmit:
    async def test_cancelled_while_it_waits_for_room_it_was_not_queued(
        self, small_world: Callable[..., Any], gated: Gated
    ) -> None:
        world = await small_world(max_units=1)

        async def agent(run: Run) -> None:
            await run.emit("x", {"n": 0})
            with trio.CancelScope() as scope:
                world.nursery.start_soon(self.cancel_later, scope, gated)
                await run.emit("x", {"n": 1})
            assert scope.cancelled_caught
            await run.emit("x", {"n": 2})

        execution = world.execution(agent)
        await execution.start()
        gated.hold()
        world.nursery.start_soon(execution.execute)
        await execution.wait_ended()
        assert (await world.terminal())["status"] == "completed"
        assert [data["n"] for data in await world.told("x")] == [0, 2]

    @staticmethod
    async def cancel_later(scope: trio.CancelScope, gated: Gated) -> None:
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
        gated.open.set()

    @pytest.mark.parametrize("unlooked", [LOOK_EVENTS, 3])
    async def test_that_its_task_is_cancelled_is_noticed_after_so_many_events_or_so_long(
        self, world: World, unlooked: int
    ) -> None:
        now = NOW
        world.place = attrs.evolve(world.place, clock=lambda: now)

        async def agent(run: Run) -> None:
            nonlocal now
            await run.emit("x", {})
            await run.flush()  # A burst of one commit would look by itself.
            with trio.CancelScope() as scope:
                scope.cancel()
                for n in range(100):
                    if n == unlooked:
                        now += 2 * LOOK_INTERVAL
                    await run.emit("unlooked", {"n": n})
            assert scope.cancelled_caught

        assert (await world.finish(agent))["status"] == "completed"
        assert [data["n"] for data in await world.told("unlooked")] == [*range(unlooked)]

    @pytest.mark.parametrize("way", ["thread", "shield"])
    async def test_an_agent_whose_waits_hear_of_no_cancellation_ends_by_it(
        self, world: World, way: str
    ) -> None:
        going = trio.Event()

        async def agent(run: Run) -> None:
            await (trio.to_thread.run_sync(in_thread, run) if way == "thread" else shielded(run))

        def in_thread(run: Run) -> None:
            while True:
                trio.from_thread.run(emit, run)

        async def shielded(run: Run) -> None:
            while True:
                with trio.CancelScope(shield=True):
                    await run.flush()
                await emit(run)

        async def emit(run: Run) -> None:
            going.set()
            await run.emit("x", {})

        execution = await world.launch(agent)
        await going.wait()
        execution.cancel()
        with trio.fail_after(10):
            assert await execution.wait_ended() == "cancelled"
        assert (await world.terminal())["status"] == "cancelled"

    async def test_one_that_is_cancelled_begins_nothing(self, world: World) -> None:
        async def agent(run: Run) -> None:
            await run.emit("x", {})
            for begin in (run.tool("pay", {}), run.message()):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    async with begin:
                        raise AssertionError("it began")
                assert scope.cancelled_caught

        await world.finish(agent)
        assert await world.types() == ["agent_started", "x", "agent_completed"]

    async def test_a_loop_that_only_emits_can_be_cancelled(self, world: World) -> None:
        async def agent(run: Run) -> None:
            while True:
                await run.emit("x", {})

        execution = await world.launch(agent)
        execution.cancel()
        assert await execution.wait_ended() == "cancelled"
        assert len(await world.told("x")) < 100
