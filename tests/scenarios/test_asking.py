"""`run.ask`: an agent waits for a person over drops and restarts of clients, and one answer counts."""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs
import pytest
import trio
from memory_world import memory_world
from serving import START, Frame, log_of, until_none
from stage import Stage, types
from trio.testing import MockClock

from wsrecover import connect
from wsrecover.agents import App, Run
from wsrecover.client import ClientSession, Event
from wsrecover.config import Timeouts
from wsrecover.errors import CommandError, InvalidEvent, NoAnswer, StoreUnavailable
from wsrecover.streams.journal import Journal
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.store import Outcome, Unit
from wsrecover.testing import LocalServer, Peer, local_server

CALM: Final = Timeouts(heartbeat=1000)
"""A raw peer answers no ping, and time is virtual."""


@attrs.frozen
class Line:
    amount: int = attrs.field(validator=attrs.validators.gt(0))


@attrs.frozen
class Approval:
    approved: bool
    lines: list[Line] = attrs.field(factory=list)


class Asking:
    """An app whose agent `asker` does what the test says, and keeps what it was told."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self.app = App()
        self.app.agent("asker")(self._work)
        self.heard: list[Any] = []
        self.go_on = trio.Event()
        self._arguments, self._more = arguments, more

    async def _work(self, run: Run) -> None:
        try:
            self.heard.append(await run.ask(*self._arguments, **self._more))
        except NoAnswer as error:
            self.heard.append(error)
        await run.emit("went_on", {})
        await self.go_on.wait()


async def asked(peer: Peer) -> Frame:
    """The data of the request of a run that this starts."""
    started = await peer.command("start_agent", {"agent": "asker", "input": {}})
    return (await peer.until("event", type="input_requested", run=started["result"]["run"]))[-1]["data"]


async def answer(peer: Peer, request: str, value: object) -> str:
    """`ok`, or the code with which the answer is refused."""
    reply = await peer.command("respond", {"request": request, "answer": value})
    return reply["error"]["code"] if reply["status"] == "error" else reply["status"]


async def test_s06_the_first_answer_reaches_the_agent_and_every_tab(local: LocalServer) -> None:
    async with local.peer() as peer, local.peer() as other:
        request = await asked(peer)
        assert request["prompt"] == "And now?"
        assert request.keys() == {"request_id", "prompt"}
        assert await answer(other, request["request_id"], {"any": ["json", None]}) == "ok"
        events = (await peer.until("event", type="agent_completed"))[-2:]
        assert [event["data"] for event in events if event["type"] == "input_resolved"] == [
            {"request_id": request["request_id"], "answer": {"any": ["json", None]}}
        ]
        assert events[-1]["data"]["result"] == {"heard": {"any": ["json", None]}}
        assert [await answer(tab, request["request_id"], 1) for tab in (peer, other)] == [
            "already_resolved"
        ] * 2
    assert types((await log_of(local))[1]) == [
        "agent_started",
        "input_requested",
        "input_resolved",
        "agent_completed",
    ]


async def test_s06_of_two_answers_at_once_one_counts() -> None:
    for n in range(20):
        asking = Asking("?")
        async with local_server(asking.app) as local, local.peer() as one, local.peer() as other:
            request = (await asked(one))["request_id"]
            told: list[str] = []

            async def respond(peer: Peer, value: object, request: str = request, told: Any = told) -> None:
                told.append(await answer(peer, request, value))

            async with trio.open_nursery() as nursery:
                for peer, value in ((one, "a"), (other, "b")) if n % 2 else ((other, "b"), (one, "a")):
                    nursery.start_soon(respond, peer, value)
            assert sorted(told) == ["already_resolved", "ok"]
            await one.until("event", type="went_on")
            (resolved,) = [e for e in (await log_of(local))[1] if e["type"] == "input_resolved"]
            assert asking.heard == [resolved["data"]["answer"]]


async def test_s06_the_request_of_another_user_is_as_one_that_is_not_there(local: LocalServer) -> None:
    async with local.peer() as peer, local.peer("bob") as bob, local.peer(tenant="other") as twin:
        request = (await asked(peer))["request_id"]
        told = [await answer(bob, request, 1), await answer(twin, request, 1), await answer(peer, "none", 1)]
        assert told == ["not_found"] * 3
        assert await answer(peer, request, 1) == "ok"


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "data.request"),
        ({"request": 7, "answer": 1}, "data.request"),
        ({"request": "r"}, "data.answer"),
    ],
)
async def test_s06_a_wrong_field_of_respond_is_named(local: LocalServer, data: Frame, field: str) -> None:
    async with local.peer() as peer:
        error = (await peer.command("respond", data))["error"]
        assert (error["code"], error["field"]) == ("invalid", field)


async def test_s06_an_answer_that_does_not_fit_is_refused_by_its_path_and_the_agent_waits_on() -> None:
    asking = Asking("Approve?", Approval)
    async with local_server(asking.app) as local, local.peer() as peer:
        request = await asked(peer)
        assert request["schema"] == {
            "type": "object",
            "properties": {
                "approved": {"type": "boolean"},
                "lines": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"amount": {"type": "integer"}},
                        "required": ["amount"],
                    },
                },
            },
            "required": ["approved"],
        }
        for value, field in (
            ("yes", "data.answer"),
            ({}, "data.answer.approved"),
            ({"approved": 1}, "data.answer.approved"),
            ({"approved": True, "lines": [{"amount": 1}, {"amount": 0}]}, "data.answer.lines[1].amount"),
        ):
            data = {"request": request["request_id"], "answer": value}
            error = (await peer.command("respond", data, id="the same each time"))["error"]
            assert (error["code"], error["field"]) == ("invalid", field)
        data["answer"] = {"approved": True, "lines": [{"amount": 2}]}
        assert (await peer.command("respond", data, id="the same each time"))["status"] == "ok"
        await peer.until("event", type="went_on")
        assert asking.heard == [Approval(approved=True, lines=[Line(2)])]
        assert types((await log_of(local))[1]).count("input_resolved") == 1


async def test_s06_a_schema_may_be_any_type_that_json_has() -> None:
    for kind, value, wrong in ((bool, False, "no"), (Literal["a", "b"], "b", "c"), (list[int], [1], ["1"])):
        asking = Asking("?", kind)
        async with local_server(asking.app) as local, local.peer() as peer:
            request = (await asked(peer))["request_id"]
            assert await answer(peer, request, wrong) == "invalid"
            assert await answer(peer, request, value) == "ok"
            await peer.until("event", type="went_on")
            assert asking.heard == [value]


async def test_s06_a_prompt_that_cannot_be_logged_asks_nobody() -> None:
    app, refused = App(), []

    @app.agent("asker")
    async def asker(run: Run) -> None:
        for prompt in ("\ud800", 7):
            with pytest.raises(InvalidEvent) as caught:
                await run.ask(prompt)  # type: ignore[arg-type]  # That is the test.
            refused.append(caught.value.field)
        for timeout in (-1, float("nan"), 10**400, "5"):
            with pytest.raises(InvalidEvent) as caught:
                await run.ask("?", timeout=timeout)  # type: ignore[arg-type]  # That is the test.
            refused.append(caught.value.field)

    async with local_server(app) as local, local.peer() as peer:
        await peer.command("start_agent", {"agent": "asker"})
        events = await peer.until("event", type="agent_completed")
        assert types(events[-2:]) == ["agent_started", "agent_completed"]
        assert refused == ["data.prompt", "prompt", *["timeout"] * 4]


async def test_r01_a_question_waits_over_drops_and_restarts_of_the_client() -> None:
    asking = Asking("?", Approval)
    async with local_server(asking.app) as local:
        async with connect(local.url, token=local.token) as session:
            await session.start_agent("asker")
            request = (await request_in(session)).data["request_id"]
        await until_none(local, "connections")
        for _ in range(3):
            async with local.peer() as peer:
                peer.socket.kill()
        async with connect(local.url, token=local.token, from_="start") as session:
            again = await request_in(session)
            assert again.data["request_id"] == request
            assert session.runs[0].run == again.run
            with pytest.raises(CommandError, match="true or false") as refused:
                await session.respond(request, {"approved": "yes"})
            assert (refused.value.code, refused.value.field) == ("invalid", "data.answer.approved")
            await session.respond(request, {"approved": True})
            with pytest.raises(CommandError) as refused:
                await session.respond(request, {"approved": False})
            assert refused.value.code == "already_resolved"
            asking.go_on.set()
            async for item in session:
                if isinstance(item, Event) and item.type == "agent_completed":
                    break
    assert asking.heard == [Approval(approved=True)]


async def request_in(session: ClientSession) -> Event:
    async for item in session:
        if isinstance(item, Event) and item.type == "input_requested":
            return item
    raise AssertionError("the session ended")


async def test_s06_one_that_nobody_answers_in_time_is_resolved_for_all(autojump_clock: MockClock) -> None:
    asking = Asking("?", timeout=60)
    async with (
        memory_world(asking.app, timeouts=CALM) as world,
        world.local.peer(dial=world.network.dial) as peer,
    ):
        began = trio.current_time()
        request = await asked(peer)
        assert request["expires_at"] == pytest.approx(began + 60)
        events = (await peer.until("event", type="went_on"))[-2:]
        assert trio.current_time() - began == pytest.approx(60)
        assert events[0]["data"] == {"request_id": request["request_id"], "reason": "timeout"}
        assert await answer(peer, request["request_id"], 1) == "already_resolved"
    assert [type(error) for error in asking.heard] == [NoAnswer]
    assert "60 s" in str(asking.heard[0])


async def test_s06_an_answer_that_is_being_kept_when_the_time_is_up_counts(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, held, commit = Asking("?", timeout=60), trio.Event(), Journal.commit

    async def hold(journal: Journal, unit: Unit) -> Outcome:
        if unit.answers:
            await held.wait()
        return await commit(journal, unit)

    async with (
        memory_world(asking.app, timeouts=CALM) as world,
        world.local.peer(dial=world.network.dial) as peer,
    ):
        request = (await asked(peer))["request_id"]
        monkeypatch.setattr(Journal, "commit", hold)
        data = {"request": request, "answer": "in time"}
        await peer.send({"op": "send", "id": "once", "type": "respond", "data": data})
        await trio.sleep(70)
        held.set()
        events = [frame for frame in await peer.until("event", type="went_on") if frame["op"] == "event"]
        assert [event["data"].get("answer") for event in events] == ["in time", None]
    assert asking.heard == ["in time"]


async def test_s06_one_that_could_not_be_kept_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    asking, commit, down = Asking("?"), MemoryStore.commit, False

    async def unavailable(store: MemoryStore, units: Any) -> Any:
        if down:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("full")
        return await commit(store, units)

    monkeypatch.setattr(MemoryStore, "commit", unavailable)
    async with local_server(asking.app) as local, local.peer() as peer:
        request = (await asked(peer))["request_id"]
        down = True
        assert await answer(peer, request, "lost") == "store_unavailable"
        down = False
        assert await answer(peer, request, "kept") == "ok"
        await peer.until("event", type="went_on")
        resolved = [e["data"] for e in (await log_of(local))[1] if e["type"] == "input_resolved"]
        assert resolved == [{"request_id": request, "answer": "kept"}]
    assert asking.heard == ["kept"]


async def test_s06_one_that_is_given_up_while_an_answer_comes_to_nothing_is_withdrawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App()
    commit, reached, fail, scope = MemoryStore.commit, trio.Event(), trio.Event(), trio.CancelScope()

    async def unavailable(store: MemoryStore, units: Any) -> Any:
        if any(answer.key.id == "lost" for unit in units for answer in unit.answers):
            reached.set()
            await fail.wait()
            raise StoreUnavailable("full")
        return await commit(store, units)

    @app.agent("asker")
    async def asker(run: Run) -> None:
        with scope:
            await run.ask("?")

    monkeypatch.setattr(MemoryStore, "commit", unavailable)
    async with local_server(app) as local, local.peer() as peer:
        request = (await asked(peer))["request_id"]
        data = {"request": request, "answer": 1}
        await peer.send({"op": "send", "id": "lost", "type": "respond", "data": data})
        await reached.wait()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        fail.set()
        await peer.until("event", type="agent_completed")
        events = [(event["type"], event["data"]) for event in (await log_of(local))[1]]
        assert events[2] == ("input_resolved", {"request_id": request, "reason": "withdrawn"})
        assert events[3][1]["status"] == "completed"


async def cancel_the_run(peer: Peer, run: str) -> None:
    await peer.send({"op": "send", "id": "stop", "type": "cancel_run", "data": {"run": run}})


async def test_s06_a_run_that_is_cancelled_withdraws_what_it_asked(local: LocalServer) -> None:
    async with local.peer() as peer:
        request = await asked(peer)
        run = request["request_id"].rpartition(".")[2]
        await cancel_the_run(peer, run)
        events = [f for f in await peer.until("event", type="agent_completed") if f["op"] == "event"]
        assert [(event["type"], event["data"].get("reason")) for event in events] == [
            ("input_resolved", "withdrawn"),
            ("agent_completed", None),
        ]
        assert await answer(peer, request["request_id"], 1) == "already_resolved"


async def test_s06_a_run_may_ask_several_at_once_and_stop_asking(stage: Stage) -> None:
    heard: dict[str, Any] = {}

    @stage.app.agent("several")
    async def several(run: Run) -> None:
        async def put(prompt: str) -> None:
            heard[prompt] = await run.ask(prompt)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for prompt in ("a", "b", "c"):
                nursery.start_soon(put, prompt)

    async with local_server(stage.app) as local, local.peer() as peer:
        await peer.command("start_agent", {"agent": "several"})
        requests = {}
        while len(requests) < 3:
            event = (await peer.until("event", type="input_requested"))[-1]
            requests[event["data"]["prompt"]] = event["data"]["request_id"]
        assert await answer(peer, requests["b"], 2) == "ok"
        await peer.until("event", type="agent_completed")
        resolved = {
            e["data"]["request_id"]: e["data"] for e in (await log_of(local))[1] if "resolved" in e["type"]
        }
        assert {prompt: resolved[name].get("reason") for prompt, name in requests.items()} == {
            "a": "withdrawn",
            "b": None,
            "c": "withdrawn",
        }
    assert heard == {"b": 2}


async def test_s06_what_was_resolved_is_remembered_for_a_while_only(local: LocalServer) -> None:
    async with local.peer(**START) as peer:
        first = (await asked(peer))["request_id"]
        assert await answer(peer, first, 0) == "ok"
        for n in range(256):
            assert await answer(peer, (await asked(peer))["request_id"], n) == "ok"
        await until_none(local, "runs")
        assert await answer(peer, first, 1) == "not_found"
