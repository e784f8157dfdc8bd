"""S07: however a run ends, its log ends with exactly one terminal event, whether anybody looks on or not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
from memory_world import memory_world
from process import server_process
from serving import PATIENCE, Frame, Stop, frames_until_closed, log_of, serve_until, until_none
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover import connect
from wsrecover.agents import App, Run
from wsrecover.client import Event
from wsrecover.config import Limits, Timeouts
from wsrecover.errors import AgentError
from wsrecover.streams.memory import MemoryStore
from wsrecover.testing import Peer, local_server

SECRET: Final = "/etc/secret of the server"


async def test_s07_when_the_server_stops_all_scopes_of_a_run_have_the_grace_together(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, commit, held, left = App(), MemoryStore.commit, trio.Event(), list[float]()
    held.set()

    async def hold(store: MemoryStore, units: Any) -> Any:
        await held.wait()
        return await commit(store, units)

    @app.agent("nested")
    async def nested(run: Run) -> None:
        nonlocal held
        try:
            async with run.message(), run.tool("a", {}), run.tool("b", {}):
                await run.flush()
                held = trio.Event()
                await run.emit("fills_the_journal", {})
                await trio.sleep_forever()
        finally:
            left.append(trio.current_time())

    monkeypatch.setattr(MemoryStore, "commit", hold)
    async with memory_world(app, limits=Limits(journal_units=1)) as world:
        await world.local.server.start_agent("acme", "ada", "nested", {})
        await wait_all_tasks_blocked()
        stopped = trio.current_time()
    assert [at - stopped for at in left] == [5.0]


async def returns(run: Run) -> dict[str, Any]:
    await run.think("easy")
    return {"answer": 42}


async def returns_nothing(run: Run) -> None:
    run.usage = {"tokens": 7}


async def raises(run: Run) -> None:
    await run.think("hard")
    raise FileNotFoundError(SECRET)


async def raises_before_it_begins(_: Run) -> None:
    raise ZeroDivisionError(SECRET)


async def raises_in_words_for_its_user(_: Run) -> None:
    raise AgentError("the quota is used up", code="quota", retryable=True)


async def raises_in_a_task_of_its_own(_: Run) -> None:
    async def child() -> None:
        raise LookupError(SECRET)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await trio.sleep_forever()


async def raises_in_a_tool_call(run: Run) -> None:
    async with run.tool("search", {"q": 1}), run.message() as message:
        await message.text("half a sen")
        raise LookupError(SECRET)


async def returns_a_list(_: Run) -> Any:
    return [1, 2]


async def returns_what_is_no_json(_: Run) -> dict[str, Any]:
    return {"handle": object()}


async def returns_too_much(_: Run) -> dict[str, Any]:
    return {"text": "x" * 2**21}


async def takes_too_long(run: Run) -> None:
    await run.think("for ever")
    await trio.sleep_forever()


async def takes_too_long_and_returns(_: Run) -> dict[str, Any]:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.1):
        await trio.sleep_forever()
    return {"answer": 42}


async def takes_too_long_and_raises(_: Run) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise RuntimeError(SECRET)


@attrs.frozen
class Ends:
    """How an agent ends, and what its terminal event must say beside the duration."""

    agent: Callable[[Run], Any]
    data: Frame

    def __str__(self) -> str:
        return self.agent.__name__


def failed(code: str, message: str, *, retryable: bool = False) -> Frame:
    return {"status": "failed", "error": {"code": code, "message": message, "retryable": retryable}}


TIMEOUT: Final = failed("timeout", "the run took longer than 0.05 s")

ENDINGS: Final = (
    Ends(returns, {"status": "completed", "result": {"answer": 42}}),
    Ends(returns_nothing, {"status": "completed", "usage": {"tokens": 7}}),
    Ends(raises, failed("exception", "FileNotFoundError")),
    Ends(raises_before_it_begins, failed("exception", "ZeroDivisionError")),
    Ends(raises_in_words_for_its_user, failed("quota", "the quota is used up", retryable=True)),
    Ends(raises_in_a_task_of_its_own, failed("exception", "LookupError")),
    Ends(raises_in_a_tool_call, failed("exception", "LookupError")),
    Ends(returns_a_list, failed("exception", "the agent returned a list, not a JSON object")),
    Ends(returns_what_is_no_json, {"status": "failed"}),
    Ends(returns_too_much, {"status": "failed"}),
    Ends(takes_too_long, TIMEOUT),
    Ends(takes_too_long_and_returns, TIMEOUT),
    Ends(takes_too_long_and_raises, TIMEOUT),
)

APP: Final = App()
for ending in ENDINGS:
    slow = ending.agent.__name__.startswith("takes_too_long")
    APP.agent(str(ending), timeout=0.05 if slow else None)(ending.agent)


def terminal(events: list[Frame], run: str) -> Frame:
    """What the one terminal event of the run says; it is the run's last event."""
    first, *between, last = (event for event in events if event.get("run") == run)
    assert first["type"] == "agent_started"
    assert last["type"] == "agent_completed"
    assert "agent_completed" not in [event["type"] for event in between]
    assert SECRET not in str(last)
    data: Frame = last["data"]
    return data


def holds(data: Frame, expected: Frame) -> bool:
    return data["duration"] >= 0 and expected.items() <= data.items()


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
async def test_s07_who_looks_on_is_told_how_the_run_ends(ending: Ends) -> None:
    async with local_server(APP) as local:
        async with local.peer() as peer:
            reply = await peer.command("start_agent", {"agent": str(ending), "input": {}}, thread="t1")
            run = reply["result"]["run"]
            told = (await peer.until("event", type="agent_completed"))[-1]
            assert (told["run"], told["thread"]) == (run, "t1")
        assert holds(terminal((await log_of(local))[1], run), ending.data)
        assert told in (await log_of(local))[1]


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
async def test_s07_a_run_that_nobody_looks_at_ends_in_the_log(ending: Ends) -> None:
    async with local_server(APP) as local:
        run = await local.server.start_agent("acme", "ada", str(ending), {})
        await until_none(local, "runs")
        assert holds(terminal((await log_of(local))[1], run), ending.data)


async def test_s07_what_an_agent_leaves_open_is_closed_before_the_run_ends() -> None:
    async with local_server(APP) as local:
        await local.server.start_agent("acme", "ada", str(raises_in_a_tool_call.__name__), {})
        await until_none(local, "runs")
        _, events = await log_of(local)
    assert [event["type"] for event in events] == [
        "agent_started",
        "tool_executing",
        "message_started",
        "message_completed",  # It stands for its delta, too.
        "tool_failed",
        "agent_completed",
    ]


async def test_s07_a_run_is_executed_also_where_its_session_would_end_before_its_start_is_kept(
    tmp_path: Path,
) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(APP, store=store, timeouts=Timeouts(linger=0)) as local:
        run = await local.server.start_agent("acme", "ada", "returns", {})
        await until_none(local, "runs")
        assert terminal((await log_of(local))[1], run)["status"] == "completed"


class Stubborn:
    """An agent that takes its time to stop, until it is let go."""

    def __init__(self) -> None:
        self.app = App()
        self.app.agent("stubborn")(self._work)
        self.working, self.asked_to_stop, self.let_go = trio.Event(), trio.Event(), trio.Event()

    async def _work(self, run: Run) -> dict[str, Any]:
        await run.think("for ever")
        self.working.set()
        try:
            await trio.sleep_forever()
        finally:
            self.asked_to_stop.set()
            with trio.CancelScope(shield=True):
                await self.let_go.wait()

    async def started(self, peer: Peer) -> str:
        reply = await peer.command("start_agent", {"agent": "stubborn", "input": {}})
        await self.working.wait()
        run: str = reply["result"]["run"]
        return run


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
async def test_s07_a_cancelled_run_ends_as_cancelled(watched: bool) -> None:
    stubborn = Stubborn()
    async with local_server(stubborn.app) as local:
        async with local.peer() as peer:
            run = await stubborn.started(peer)
            await peer.send({"op": "send", "id": "stop", "type": "cancel_run", "data": {"run": run}})
            await stubborn.asked_to_stop.wait()
            if not watched:
                peer.socket.kill()
                await until_none(local, "connections")
            stubborn.let_go.set()
            if watched:
                reply = (await peer.until("reply", id="stop"))[-1]
                assert reply["result"] == {"run": run, "status": "cancelled"}
        await until_none(local, "runs")
        assert holds(terminal((await log_of(local))[1], run), {"status": "cancelled"})
        async with local.peer() as peer:
            again = await peer.command("cancel_run", {"run": run})
        assert again["error"]["code"] == "not_found"


async def test_s07_a_run_that_nobody_cancelled_goes_on_over_a_drop() -> None:
    stubborn = Stubborn()
    async with local_server(stubborn.app) as local:
        async with local.peer() as peer:
            run = await stubborn.started(peer)
            peer.socket.kill()
        await until_none(local, "connections")
        cancelled = stubborn.asked_to_stop.is_set()
        async with local.peer() as peer:
            runs = [one["run"] for one in (await peer.frame())["runs"]]
        stubborn.let_go.set()
    assert not cancelled
    assert runs == [run]


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
async def test_s07_a_run_whose_server_stops_ends_as_stopped(
    tmp_path: Path, nursery: trio.Nursery, watched: bool
) -> None:
    stubborn, stop = Stubborn(), Stop()
    stubborn.let_go.set()
    store = f"sqlite:{tmp_path / 'log.db'}"
    local = await nursery.start(serve_until, stop, stubborn.app, store)
    told: list[Frame] = []
    if watched:
        async with local.peer() as peer:
            run = await stubborn.started(peer)
            nursery.start_soon(stop)
            told, code = await frames_until_closed(peer)
        assert code == 4000
    else:
        run = await local.server.start_agent("acme", "ada", "stubborn", {})
        await stubborn.working.wait()
    await stop()
    for _ in range(2):  # The second start must not end it again.
        async with local_server(App(), store=store) as local:
            _, events = await log_of(local)
        data = terminal(events, run)
        assert data["status"] == "failed"
        assert data["error"]["code"] == "server_stopped"
        assert data["error"]["retryable"] is True
        told = [frame for frame in told if frame["op"] == "event"]
        assert told == events[: len(told)]


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
async def test_s07_a_run_whose_process_is_killed_ends_as_lost(tmp_path: Path, watched: bool) -> None:
    with trio.fail_after(PATIENCE):
        async with server_process(tmp_path) as server:
            await server.start()
            async with connect(server.url, token=server.token()) as session:
                run = await session.start_agent("talker", {"tag": "one", "count": 3})
                before = [await anext(session) for _ in range(4)]
                if watched:
                    await server.kill()
            if not watched:
                await server.kill()
            for _ in range(2):  # The second start must not end it again.
                await server.start()
                await server.kill()
            await server.start()
            async with connect(server.url, token=server.token(), from_="start") as session:
                assert session.runs == ()
                await session.wait_status("live")
                assert session.received["user"].seq == 5
                after = [await anext(session) for _ in range(5)]
    assert after[:4] == before
    last = after[4]
    assert isinstance(last, Event)
    assert (last.type, last.run) == ("agent_completed", run)
    assert (last.data["status"], last.data["error"]["code"]) == ("failed", "producer_lost")


async def test_s07_a_run_whose_thread_is_given_up_ends_in_time() -> None:
    """As the README has it: no thread can be cancelled, so the agent that waits for one lets go of it."""
    app, returned = App(), threading.Event()

    @app.agent("blocking", timeout=0.05)
    async def blocking(_: Run) -> None:
        await trio.to_thread.run_sync(returned.wait, abandon_on_cancel=True)

    try:
        async with local_server(app) as local, local.peer() as peer:
            await peer.command("start_agent", {"agent": "blocking"})
            end = (await peer.until("event", type="agent_completed"))[-1]["data"]
            assert (end["status"], end["error"]["code"]) == ("failed", "timeout")
            assert not returned.is_set()
    finally:
        returned.set()
