"""`run.memory`, `run.workflow` and `run.history`, on a real server."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from agents_world import World

from wsrecover.agents import App, Run
from wsrecover.errors import InvalidEvent, RunError
from wsrecover.protocol.patch import DOCUMENT_BYTES
from wsrecover.session.contexts import UserContexts
from wsrecover.streams.store import StreamKey, Unit
from wsrecover.testing import LocalServer, local_server

ADA = StreamKey("user", "acme", "ada")

Work = Callable[[Run], Awaitable[Any]]


async def runs(*work: Work, thread: str | None = "t", local: LocalServer | None = None) -> list[Any]:
    """What each of these, run one after the other in one thread, returns."""
    if local is None:
        async with local_server(App()) as local:
            return await runs(*work, thread=thread, local=local)
    found: list[Any] = []
    for each in work:
        done = trio.Event()

        async def agent(run: Run, each: Work = each, done: trio.Event = done) -> None:
            try:
                found.append(await each(run))
            finally:
                done.set()

        name = f"agent{len(local.server._services.app.agents)}"
        local.server._services.app.agent(name)(agent)
        await local.server.start_agent("acme", "ada", name, {}, thread=thread)
        with trio.fail_after(10):
            await done.wait()
    return found


async def context_json(local: LocalServer, thread: str = "t") -> dict[str, Any]:
    return (await UserContexts(local.server._services, ADA).thread(thread)).json()


async def test_what_one_run_remembers_the_next_one_finds() -> None:
    async def remember(run: Run) -> Any:
        await run.memory.set("name", "Ada")
        await run.workflow.patch([{"op": "add", "path": "/steps", "value": ["a"]}])
        return await run.workflow.patch([{"op": "add", "path": "/steps/-", "value": "b"}])

    async def recall(run: Run) -> Any:
        return await run.memory.get(), await run.workflow.get()

    async with local_server(App()) as local:
        assert await runs(remember, recall, local=local) == [
            {"steps": ["a", "b"]},
            ({"name": "Ada"}, {"steps": ["a", "b"]}),
        ]
        assert await runs(recall, thread="other", local=local) == [({}, {})]
        assert (await context_json(local))["memory"] == {"name": "Ada"}


async def test_a_key_may_hold_what_means_something_in_a_path() -> None:
    async def remember(run: Run) -> Any:
        await run.memory.set("a/b~c", 1)
        return await run.memory.get()

    assert await runs(remember) == [{"a/b~c": 1}]


async def test_a_patch_that_does_not_apply_is_refused_and_nothing_is_logged() -> None:
    async def attempt(run: Run) -> Any:
        await run.memory.set("n", 1)
        fields = []
        for patch in (
            [{"op": "add", "path": "/m", "value": 2}, {"op": "remove", "path": "/nowhere"}],
            [{"op": "add", "path": "/m", "value": "x" * DOCUMENT_BYTES}],
            [{"op": "test", "path": "/n", "value": 2}],
        ):
            with pytest.raises(InvalidEvent) as refused:
                await run.memory.patch(patch)
            fields.append(refused.value.field)
        await run.memory.set("after", True)
        return fields, await run.memory.get()

    async with local_server(App()) as local:
        ((fields, memory),) = await runs(attempt, local=local)
        assert fields == ["patch[1]", "patch", "patch[0]"]
        assert memory == {"n": 1, "after": True}
        async with local.peer(**{"from": "start"}) as peer:
            frames = await peer.until("event", type="agent_completed")
        assert [frame["type"] for frame in frames if frame["op"] == "event"] == [
            "agent_started",
            "state_patch",
            "state_patch",
            "agent_completed",
        ]


async def test_a_key_that_is_no_string_is_refused() -> None:
    wrong: Any = 1

    async def attempt(run: Run) -> Any:
        with pytest.raises(InvalidEvent, match="key: must be a string, not int"):
            await run.memory.set(wrong, 1)
        return await run.memory.get()

    assert await runs(attempt) == [{}]


@attrs.frozen
class Task:
    name: str
    due: dt.date


async def test_an_instance_of_an_attrs_class_is_kept_as_it_is_told() -> None:
    task = Task("ship", dt.date(2024, 1, 1))
    told = {"name": "ship", "due": "2024-01-01"}

    async def remember(run: Run) -> Any:
        await run.memory.set("task", task)
        return await run.memory.patch([{"op": "add", "path": "/tasks", "value": [task]}])

    assert await runs(remember) == [{"task": told, "tasks": [told]}]


async def test_what_get_gives_is_a_copy() -> None:
    async def change(run: Run) -> Any:
        await run.memory.set("list", [1])
        (await run.memory.get())["list"].append(2)
        return await run.memory.get()

    assert await runs(change) == [{"list": [1]}]


async def test_patches_of_many_tasks_are_checked_against_what_they_apply_to() -> None:
    async def count(run: Run) -> Any:
        await run.memory.set("n", 0)
        refused = 0

        async def raise_to(n: int) -> None:
            nonlocal refused
            test = {"op": "test", "path": "/n", "value": n - 1}
            try:
                await run.memory.patch([test, {"op": "replace", "path": "/n", "value": n}])
            except InvalidEvent:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                for n in range(1, 4):
                    nursery.start_soon(raise_to, n)
        return refused, await run.memory.get()

    async with local_server(App()) as local:
        ((refused, memory),) = await runs(count, local=local)
        # As many took effect as the log has: each was accepted for what it was then applied to.
        async with local.peer(**{"from": "start"}) as peer:
            frames = await peer.until("event", type="agent_completed")
        patches = [frame["data"] for frame in frames if frame.get("type") == "state_patch"]
        assert len(patches) == 1 + 15 - refused
        assert [patch["patch"][-1]["value"] for patch in patches] == list(range(memory["n"] + 1))


async def test_patches_of_runs_that_go_on_at_once_are_checked_against_what_they_apply_to() -> None:
    app = App()
    accepted: list[int] = []
    go = trio.Event()

    @app.agent("counter")
    async def counter(run: Run) -> None:
        await go.wait()
        for n in range(1, 20):
            test = {"op": "test", "path": "/n", "value": n - 1}
            try:
                await run.memory.patch([test, {"op": "replace", "path": "/n", "value": n}])
            except InvalidEvent:
                continue
            accepted.append(n)

    async def begin(run: Run) -> None:
        await run.memory.set("n", 0)

    # With a connection the stream is open, and to look where it ends takes no time in which one could commit.
    async with local_server(app) as local, local.peer():
        await runs(begin, local=local)
        for _ in range(4):
            await local.server.start_agent("acme", "ada", "counter", {}, thread="t")
        go.set()
        with trio.fail_after(10):
            while local.server.statistics().sessions.runs:
                await trio.lowlevel.checkpoint()
        found = (await context_json(local))["memory"]
    assert sorted(accepted) == list(range(1, found["n"] + 1)), "each was accepted once, and took effect"


async def test_history_is_the_conversation_with_what_the_run_has_just_said() -> None:
    async def talk(run: Run) -> Any:
        async with run.message() as message:
            await message.text("Hel")
            await message.text("lo")
        async with run.message() as message:
            await message.text("and")
            return await run.history()

    async with local_server(App()) as local:
        await local.server.publish("acme", "ada", "user_message", {"text": "hi"}, thread="t")
        await local.server.publish("acme", "ada", "user_message", {"text": "elsewhere"}, thread="u")
        (history,) = await runs(talk, local=local)
    assert [(message["role"], message["text"], message["complete"]) for message in history] == [
        ("user", "hi", True),
        ("assistant", "Hello", True),
        ("assistant", "and", False),
    ]


async def test_nobody_else_may_make_a_patch() -> None:
    patch = {"target": "memory", "patch": []}

    async def attempt(run: Run) -> Any:
        with pytest.raises(InvalidEvent, match="by the run's own"):
            await run.emit("state_patch", patch)
        return "refused"

    async with local_server(App()) as local:
        assert await runs(attempt, local=local) == ["refused"]
        with pytest.raises(InvalidEvent, match=r"run\.memory"):
            await local.server.publish("acme", "ada", "state_patch", patch, thread="t")
        async with local.peer(roles=["service"]) as peer:
            events = [{"type": "state_patch", "data": patch}]
            reply = await peer.command("publish", {"user": "ada", "events": events})
        assert reply["error"]["code"] == "invalid"
        assert reply["error"]["field"] == "data.events[0].type"


async def test_a_run_that_nobody_keeps_a_context_for_says_so(world: World) -> None:
    async def attempt(run: Run) -> None:
        for use in (run.memory.get, run.history, lambda: run.workflow.set("a", 1)):
            with pytest.raises(RunError, match="context"):
                await use()

    assert (await world.finish(attempt))["status"] == "completed"


async def test_a_patch_that_was_cancelled_on_its_way_is_known_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scope, queued, told = trio.CancelScope(), trio.Event(), list[Any]()
    app = App()

    @app.agent("first")
    async def first(run: Run) -> None:
        await run.memory.set("x", 1)
        with scope:
            await run.memory.patch([{"op": "remove", "path": "/x"}])

    @app.agent("second")
    async def second(run: Run) -> None:
        await queued.wait()
        with pytest.raises(InvalidEvent):
            await run.memory.patch([{"op": "replace", "path": "/x", "value": 2}])
        told.append(await run.memory.get())

    async with local_server(app) as local:
        store = local.server._services.store
        commit = store.commit

        async def slow(units: Sequence[Unit]) -> Any:
            if any(b'"remove"' in entry.body for unit in units for entry in unit.entries):
                scope.cancel()
                queued.set()
                await trio.testing.wait_all_tasks_blocked(0.01)
            return await commit(units)

        monkeypatch.setattr(store, "commit", slow)
        for agent in ("second", "first"):
            await local.server.start_agent("acme", "ada", agent, {}, thread="t")
        async with local.peer(**{"from": "start"}) as peer:
            for _ in range(2):
                await peer.until("event", type="agent_completed")
    assert scope.cancelled_caught
    assert told == [{}]
