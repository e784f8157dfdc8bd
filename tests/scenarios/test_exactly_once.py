"""S08: each command takes effect once, over drops, repeats and restarts, and a refused one not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
from serving import Frame, log_of
from stage import Stage
from trio.testing import MockClock

from wsrecover.agents import App, Command, Run
from wsrecover.config import Limits, Tier, Timeouts
from wsrecover.errors import CommandError, InvalidEvent
from wsrecover.streams.journal import Journal
from wsrecover.streams.store import Outcome, Unit
from wsrecover.testing import LocalServer, LossyLink, Peer, local_server
from wsrecover.transport.dial import dial_tcp
from wsrecover.transport.pipe import Pipe

WINDOW: Final = 600.0
SERVICE: Final = ("service",)


class Case:
    """A command with all that it takes: what it needs first, and what it leaves in the log.

    `prepare` returns the command's data; `effect` is the type of the event that shows that it took effect.
    """

    def __init__(
        self, type_: str, prepare: Callable[[Peer], Awaitable[Frame]], other: Frame, effect: str
    ) -> None:
        self.type = type_
        self.prepare = prepare
        self.other = other
        self.effect = effect

    def __repr__(self) -> str:
        return self.type

    def result(self, event: Frame, epoch: str) -> Frame:
        """The answer, as the event that the command led to tells it."""
        match self.type:
            case "start_agent":
                return {"run": event["run"]}
            case "cancel_run":
                return {"run": event["run"], "status": "cancelled"}
            case "publish":
                return {"positions": [[epoch, event["seq"]]]}
            case "respond":
                return {}
            case "note":
                return {"length": len(event["data"]["text"])}
        return {"seq": event["seq"]}


async def a_start(_: Peer) -> Frame:
    return {"agent": "worker", "input": {"n": 1}}


async def a_cancel(peer: Peer) -> Frame:
    reply = await peer.command("start_agent", {"agent": "worker", "input": {}})
    return {"run": reply["result"]["run"]}


async def a_text(_: Peer) -> Frame:
    return {"text": "hello"}


async def an_answer(peer: Peer) -> Frame:
    started = await peer.command("start_agent", {"agent": "asker", "input": {}})
    asked = (await peer.until("event", type="input_requested", run=started["result"]["run"]))[-1]
    return {"request": asked["data"]["request_id"], "answer": "go on"}


async def a_publish(_: Peer) -> Frame:
    return {"user": "ada", "events": [{"type": "noted", "data": {"n": 1}}]}


CASES: Final = (
    Case("start_agent", a_start, {"agent": "worker", "input": {"n": 2}}, "agent_started"),
    Case("cancel_run", a_cancel, {"run": "another"}, "agent_completed"),
    Case("user_message", a_text, {"text": "something else"}, "user_message"),
    Case("chat", a_text, {"text": "something else"}, "chat"),
    Case("respond", an_answer, {"request": "another", "answer": "go on"}, "input_resolved"),
    Case("note", a_text, {"text": "something else"}, "note_taken"),
    Case("publish", a_publish, {"user": "ada", "events": [{"type": "noted", "data": {}}]}, "noted"),
)

each_command = pytest.mark.parametrize("case", CASES, ids=repr)


async def effect_of(local: LocalServer, case: Case) -> Frame:
    """The answer that the one effect of the command in the log stands for."""
    epoch, events = await log_of(local)
    (event,) = (event for event in events if event["type"] == case.effect)
    return case.result(event, epoch)


@asynccontextmanager
async def through_a_link(
    local: LocalServer,
) -> AsyncIterator[tuple[LossyLink, Callable[..., Awaitable[Pipe]]]]:
    """A link to the server, and how a peer dials through it."""
    link = LossyLink(*local.server.addresses[0])
    async with trio.open_nursery() as nursery:
        port = await nursery.start(link.run)
        yield link, lambda host, _: dial_tcp(host, port)
        nursery.cancel_scope.cancel()


@each_command
async def test_s08_a_command_whose_reply_was_lost_is_answered_with_what_it_did(
    local: LocalServer, case: Case
) -> None:
    async with through_a_link(local) as (link, dial), local.peer() as watcher:
        async with local.peer(roles=SERVICE, dial=dial) as peer:
            data = await case.prepare(peer)
            link.stall("down")
            await peer.send({"op": "send", "id": "once", "type": case.type, "data": data})
            await watcher.until("event", type=case.effect)
            link.cut()
            link.resume()
        async with local.peer(roles=SERVICE, dial=dial) as peer:
            replies = [await peer.command(case.type, data, id="once", age=age) for age in (0.5, 3.0)]
    did = await effect_of(local, case)
    assert [(reply["status"], reply["result"]) for reply in replies] == [("duplicate", did)] * 2


@each_command
async def test_s08_a_command_sent_just_before_each_of_twenty_drops_takes_effect_once_each(
    local: LocalServer, case: Case
) -> None:
    answers = []
    for n in range(20):
        async with local.peer(roles=SERVICE) as peer:
            data = await case.prepare(peer)
            await peer.send({"op": "send", "id": f"once {n}", "type": case.type, "data": data})
            peer.socket.kill()
        async with local.peer(roles=SERVICE) as peer:
            answers.append(await peer.command(case.type, data, id=f"once {n}", age=0.1))
    epoch, events = await log_of(local)
    effects = [case.result(event, epoch) for event in events if event["type"] == case.effect]
    results = [answer["result"] for answer in answers]
    if case.type == "start_agent":  # No answer of its own tells where it is: a run's id names its start.
        assert sorted(effect["run"] for effect in effects) == sorted(result["run"] for result in results)
    else:
        assert effects == results
    assert {answer["status"] for answer in answers} <= {"ok", "duplicate"}


@each_command
async def test_s08_repeats_at_the_same_time_join_the_first(local: LocalServer, case: Case) -> None:
    async with local.peer(roles=SERVICE) as one, local.peer(roles=SERVICE) as other:
        data = await case.prepare(one)
        command = {"op": "send", "id": "once", "type": case.type, "data": data}
        await one.send([command, command, {**command, "age": 0.0}])
        await other.send(command)
        mine = [(await one.until("reply"))[-1] for _ in range(3)]
        theirs = (await other.until("reply"))[-1]
    assert sorted(reply["status"] for reply in (*mine, theirs)) == ["duplicate"] * 3 + ["ok"]
    did = await effect_of(local, case)
    assert [reply["result"] for reply in (*mine, theirs)] == [did] * 4


async def test_s08_a_repeat_joins_a_command_that_takes_its_time() -> None:
    asked_to_stop, may_stop = trio.Event(), trio.Event()
    app = App()

    @app.agent("tidy")
    async def tidy(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            asked_to_stop.set()
            with trio.CancelScope(shield=True):
                await may_stop.wait()

    async with local_server(app) as local, local.peer() as first, local.peer() as second:
        started = await first.command("start_agent", {"agent": "tidy", "input": {}})
        command = {"op": "send", "id": "once", "type": "cancel_run", "data": started["result"]}
        await first.send(command)
        await asked_to_stop.wait()
        first.socket.kill()
        await second.send(command)
        with trio.move_on_after(10) as scope:
            changed = await second.command("cancel_run", {"run": "another"}, id="once")
        may_stop.set()
        assert not scope.cancelled_caught, "what is refused waits for nothing"
        assert (changed["status"], changed["error"]["code"]) == ("error", "id_conflict")
        reply = (await second.until("reply"))[-1]
    assert (reply["status"], reply["result"]) == ("duplicate", {**started["result"], "status": "cancelled"})


@each_command
async def test_s08_another_body_under_the_same_id_is_refused(local: LocalServer, case: Case) -> None:
    async with local.peer(roles=SERVICE) as peer:
        data = await case.prepare(peer)
        await peer.send(
            [
                {"op": "send", "id": "once", "type": case.type, "data": data},
                {"op": "send", "id": "once", "type": case.type, "data": case.other},
            ]
        )
        replies = [(await peer.until("reply"))[-1] for _ in range(2)]
        under_way = next(reply for reply in replies if reply["status"] == "error")
        settled = await peer.command(case.type, case.other, id="once")
        elsewhere = await peer.command(case.type, data, id="once", thread="another")
        again = await peer.command(case.type, data, id="once")
    for refusal in (under_way, settled, elsewhere):
        assert refusal["status"] == "error"
        assert refusal["error"]["code"] == "id_conflict"
        assert refusal["error"]["field"] == "id"
    assert (again["status"], again["result"]) == ("duplicate", await effect_of(local, case))


@each_command
async def test_s08_an_answer_survives_a_restart(tmp_path: Path, stage: Stage, case: Case) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(stage.app, store=store) as local, local.peer(roles=SERVICE) as peer:
        data = await case.prepare(peer)
        first = await peer.command(case.type, data, id="once")
        assert first["status"] == "ok"
    async with local_server(stage.app, store=store) as local:
        async with local.peer(roles=SERVICE) as peer:
            again = await peer.command(case.type, data, id="once", age=5.0)
            changed = await peer.command(case.type, case.other, id="once", age=5.0)
        assert (again["status"], again["result"]) == ("duplicate", first["result"])
        assert changed["error"]["code"] == "id_conflict"
        _, events = await log_of(local)
        assert len([event for event in events if event["type"] == case.effect]) == 1


class Wall:
    """The wall clock, under the test's hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


ON_ITS_WAY = 60.0
"""Seconds for which an answer is kept beyond the window: a repeat's age is its age as of sending."""


@each_command
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_s08_past_the_window_a_repeat_is_told_that_nobody_knows(
    tmp_path: Path, stage: Stage, case: Case, kind: str, mock_clock: MockClock
) -> None:
    store = "memory" if kind == "memory" else f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(stage.app, store=store, timeouts=Timeouts(heartbeat=1e6)) as local:
        async with local.peer(roles=SERVICE) as peer:
            data = await case.prepare(peer)
            first = await peer.command(case.type, data, id="once")
            mock_clock.jump(WINDOW - 1)
            kept = await peer.command(case.type, data, id="once", age=WINDOW - 1)
            assert (kept["status"], kept["result"]) == ("duplicate", first["result"])
            mock_clock.jump(2)
            late = await peer.command(case.type, data, id="once", age=WINDOW + 1)
            assert (late["status"], late["result"]) == ("duplicate", first["result"])
            mock_clock.jump(ON_ITS_WAY)
            gone = await peer.command(case.type, data, id="once", age=WINDOW + 1)
            never = await peer.command(case.type, data, id="never came", age=WINDOW + 1)
        for refusal in (gone, never):
            assert refusal["error"]["code"] == "expired"
            assert refusal["error"]["field"] == "age"
        assert await effect_of(local, case) == first["result"]


@pytest.mark.parametrize("by", ["command", "publish"])
@pytest.mark.parametrize("step", [3600.0, -7200.0])
async def test_s08_nor_does_a_restart_make_an_answer_older_than_it_is(
    tmp_path: Path, stage: Stage, step: float, by: str
) -> None:
    """As after a night in which the machine slept, or where its clock was set meanwhile."""
    wall, store, seqs = Wall(), f"sqlite:{tmp_path / 'log.db'}", []
    for _ in range(3):
        async with local_server(stage.app, store=store, wall_clock=wall) as local, local.peer() as peer:
            wall.now += step
            if by == "command":
                seqs.append(
                    (await peer.command("chat", {"text": "once"}, id="once", age=1.0))["result"]["seq"]
                )
            else:
                seqs.append((await local.server.publish("acme", "ada", "noted", {}, id="mine")).seq)
    assert seqs == [1, 1, 1]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_s08_the_window_is_of_time_that_passed_whatever_the_wall_clock_is_set_to(
    tmp_path: Path, stage: Stage, kind: str
) -> None:
    wall = Wall()
    store = "memory" if kind == "memory" else f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(stage.app, store=store, wall_clock=wall) as local, local.peer() as peer:
        first = await peer.command("chat", {"text": "once"}, id="once")
        at = await local.server.publish("acme", "ada", "noted", {}, id="mine")
        for step in (3600.0, -7200.0):
            wall.now += step
            again = await peer.command("chat", {"text": "once"}, id="once", age=1.0)
            assert (again["status"], again["result"]) == ("duplicate", first["result"])
            assert await local.server.publish("acme", "ada", "noted", {}, id="mine") == at


async def test_s08_commands_sent_together_take_effect_in_the_order_in_which_they_were_sent(
    local: LocalServer,
) -> None:
    async with local.peer() as peer:
        said = []
        for burst in range(20):
            texts = [f"{burst}.{n}" for n in range(10)]
            chats = [{"op": "send", "id": text, "type": "chat", "data": {"text": text}} for text in texts]
            await (peer.send(chats) if burst % 2 else send_each(peer, chats))
            said += texts
            for _ in texts:
                await peer.until("reply", status="ok")
    assert [event["data"]["text"] for event in (await log_of(local))[1]] == said


async def send_each(peer: Peer, frames: list[Frame]) -> None:
    for frame in frames:
        await peer.send(frame)


async def test_s08_the_same_id_of_somebody_else_is_another_command(local: LocalServer) -> None:
    async with local.peer("ada") as ada, local.peer("bob") as bob, local.peer("ada", tenant="other") as twin:
        for peer in (ada, bob, twin):
            reply = await peer.command("chat", {"text": "hello"}, id="once")
            assert (reply["status"], reply["result"]) == ("ok", {"seq": 1})


async def test_s08_a_refused_command_leaves_nothing_and_its_id_is_free(local: LocalServer) -> None:
    async with local.peer() as peer:
        refused = await peer.command("publish", await a_publish(peer), id="once")
        assert refused["error"]["code"] == "forbidden"
        refused = await peer.command("start_agent", {"agent": "nobody"}, id="once")
        assert refused["error"]["code"] == "not_found"
        reply = await peer.command("chat", {"text": "hello"}, id="once")
        assert (reply["status"], reply["result"]) == ("ok", {"seq": 1})


LONG: Final = "x" * 129
EVENT: Final = {"type": "noted", "data": {}}


def one_event(**fields: Any) -> Frame:
    return {"user": "ada", "events": [EVENT, {**EVENT, **fields}]}


@pytest.mark.parametrize(
    ("type_", "data", "field"),
    [
        ("start_agent", {}, "data.agent"),
        ("start_agent", {"agent": 7}, "data.agent"),
        ("start_agent", {"agent": ""}, "data.agent"),
        ("start_agent", {"agent": "worker", "input": []}, "data.input"),
        ("start_agent", {"agent": "worker", "input": None}, "data.input"),
        ("cancel_run", {}, "data.run"),
        ("cancel_run", {"run": ["x"]}, "data.run"),
        ("user_message", {}, "data.text"),
        ("user_message", {"text": {"a": 1}}, "data.text"),
        ("publish", {}, "data.user"),
        ("publish", {"user": 7, "events": [EVENT]}, "data.user"),
        ("publish", {"user": LONG * 8, "events": [EVENT]}, "data.user"),
        ("publish", {"user": "ada", "tenant": LONG * 8, "events": [EVENT]}, "data.tenant"),
        ("publish", {"user": "ada"}, "data.events"),
        ("publish", {"user": "ada", "events": []}, "data.events"),
        ("publish", {"user": "ada", "events": EVENT}, "data.events"),
        ("publish", {"user": "ada", "events": [EVENT] * 101}, "data.events"),
        ("publish", {"user": "ada", "events": [EVENT, "noted"]}, "data.events[1]"),
        ("publish", one_event(type=None), "data.events[1].type"),
        ("publish", one_event(type="No Such Type!"), "data.events[1].type"),
        ("publish", one_event(data=[]), "data.events[1].data"),
        ("publish", {"user": "ada", "events": [EVENT, {"type": "noted", "dat": {}}]}, "data.events[1].data"),
        ("publish", one_event(thread=LONG), "data.events[1].thread"),
        ("publish", one_event(thread=7), "data.events[1].thread"),
        ("publish", one_event(run=LONG), "data.events[1].run"),
        ("publish", one_event(id=LONG), "data.events[1].id"),
    ],
)
async def test_s08_a_wrong_field_is_named_and_nothing_is_logged(
    local: LocalServer, type_: str, data: Frame, field: str
) -> None:
    async with local.peer(roles=SERVICE) as peer:
        reply = await peer.command(type_, data)
        assert (reply["status"], reply["error"]["code"]) == ("error", "invalid")
        assert reply["error"]["field"] == field
    assert (await log_of(local))[1] == []


async def test_s08_an_unknown_command_is_refused_as_such(local: LocalServer) -> None:
    async with local.peer() as peer:
        for unknown in ("broadcast_all", "Chat", "publish "):
            reply = await peer.command(unknown, {})
            assert (reply["error"]["code"], reply["error"]["field"]) == ("unknown_type", "type")


@pytest.mark.parametrize("roles", [(), ("operator",), ("Service",), ("services", "servic", "e")])
async def test_s08_publishing_needs_the_role_service(local: LocalServer, roles: tuple[str, ...]) -> None:
    async with local.peer(roles=roles) as peer:
        reply = await peer.command("publish", await a_publish(peer))
        assert (reply["status"], reply["error"]["code"]) == ("error", "forbidden")
    assert (await log_of(local))[1] == []


async def test_s08_a_publish_is_applied_whole_or_not_at_all(local: LocalServer) -> None:
    async with local.peer(roles=SERVICE) as peer:
        first = [{**EVENT, "id": "a"}, {**EVENT, "id": "b"}]
        reply = await peer.command("publish", {"user": "ada", "events": first})
        clash = [EVENT, {"type": "noted", "data": {"other": 1}, "id": "b"}]
        refused = await peer.command("publish", {"user": "ada", "events": clash})
        assert refused["error"]["code"] == "id_conflict"
        again = await peer.command("publish", {"user": "ada", "events": [*first, EVENT]})
    epoch, events = await log_of(local)
    assert reply["result"] == {"positions": [[epoch, 1], [epoch, 2]]}
    assert again["result"] == {"positions": [[epoch, 1], [epoch, 2], [epoch, 3]]}
    assert [event["seq"] for event in events] == [1, 2, 3]


async def test_s08_a_repeated_start_is_answered_also_where_another_run_would_be_refused(stage: Stage) -> None:
    async with local_server(stage.app, tier=Tier(runs=1)) as local, local.peer() as peer:
        data = {"agent": "worker", "input": {}}
        first = await peer.command("start_agent", data, id="once")
        refused = await peer.command("start_agent", data, id="another")
        assert refused["error"]["code"] == "overloaded"
        again = await peer.command("start_agent", data, id="once")
        assert (again["status"], again["result"]) == ("duplicate", first["result"])


async def test_s08_all_that_was_outstanding_may_be_repeated_at_once_and_time_and_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, commit = trio.Event(), Journal.commit

    async def hold(journal: Journal, unit: Unit) -> Outcome:
        await held.wait()
        return await commit(journal, unit)

    monkeypatch.setattr(Journal, "commit", hold)
    limit = 4
    chats = [{"op": "send", "id": f"c{n}", "type": "chat", "data": {"text": str(n)}} for n in range(limit)]
    async with local_server(stage.app, limits=Limits(commands_in_flight=limit)) as local:
        for _ in range(6):
            async with local.peer(client="tab") as peer:
                await peer.until("live")
                await peer.send([*chats, {"op": "ping"}])
                frames = await peer.until("pong")
                assert [frame for frame in frames if frame["op"] == "reply"] == []
                peer.socket.kill()
        async with local.peer(client="tab") as peer:
            await peer.until("live")
            await peer.send([*chats, {"op": "ping"}])
            await peer.until("pong")
            held.set()
            replies = [(await peer.until("reply"))[-1] for _ in chats]
            told = local.server.statistics()
    assert {reply["status"] for reply in replies} == {"duplicate"}
    assert not [kind for kind in told.errors if kind.startswith("command.")], "nobody was refused"


@attrs.frozen
class Numbered:
    n: int


async def test_s08_all_may_be_repeated_behind_the_hello_that_takes_the_connection_over() -> None:
    app, go_on, limit = App(), trio.Event(), 8

    @app.command("wait")
    async def wait(_: Command, __: Numbered) -> None:
        await go_on.wait()

    waits = [{"op": "send", "id": f"w{n}", "type": "wait", "data": {"n": n}} for n in range(limit)]
    async with local_server(app, limits=Limits(commands_in_flight=limit)) as local, AsyncExitStack() as stack:
        headers = {"Authorization": f"Bearer {local.token()}"}
        for _ in range(12):
            peer = await stack.enter_async_context(local.stranger(headers=headers))
            await peer.send([{"op": "hello", "client": "tab"}, *waits, {"op": "ping"}])
            frames = await peer.until("pong")
            assert [frame for frame in frames if frame["op"] == "reply"] == []
        go_on.set()
        replies = [(await peer.until("reply"))[-1] for _ in waits]
    assert {reply["status"] for reply in replies} == {"duplicate"}


async def test_s08_who_repeats_all_that_was_outstanding_has_room_for_another_at_the_first_answer() -> None:
    app, go_on = App(), [trio.Event() for _ in range(3)]

    @app.command("wait")
    async def wait(command: Command, data: Numbered) -> None:
        await go_on[data.n].wait()

    first, second, third = (
        {"op": "send", "id": f"w{n}", "type": "wait", "data": {"n": n}} for n in range(len(go_on))
    )
    async with local_server(app, limits=Limits(commands_in_flight=2)) as local:
        async with local.peer() as peer:
            await peer.until("live")
            await peer.send([first, second, {"op": "ping"}])
            await peer.until("pong")
            peer.socket.kill()
        async with local.peer() as peer:
            await peer.until("live")
            await peer.send([first, second])
            go_on[0].set()
            assert (await peer.until("reply"))[-1]["id"] == "w0"
            await peer.send(third)
            go_on[1].set()
            go_on[2].set()
            replies = [(await peer.until("reply"))[-1] for _ in range(2)]
    assert {reply["id"]: reply["status"] for reply in replies} == {"w1": "duplicate", "w2": "ok"}


@pytest.mark.parametrize(
    ("field", "value"), [("data", {"n": 2}), ("thread", "t2"), ("run", "r2"), ("type", "said")]
)
async def test_s08_an_event_that_differs_under_the_same_id_is_refused(
    local: LocalServer, field: str, value: object
) -> None:
    event = {"type": "noted", "id": "e1", "data": {"n": 1}, "thread": "t1", "run": "r1"}
    async with local.peer(roles=SERVICE) as peer:
        first = await peer.command("publish", {"user": "ada", "events": [event]})
        again = await peer.command("publish", {"user": "ada", "events": [event]})
        other = await peer.command("publish", {"user": "ada", "events": [event | {field: value}]})
    assert again["result"] == first["result"]
    assert other["error"]["code"] == "id_conflict"
    _, events = await log_of(local)
    assert len(events) == 1


async def test_s08_what_the_program_publishes_under_an_id_is_logged_once_over_restarts(
    tmp_path: Path,
) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(store=store) as local:
        publish = partial(local.server.publish, "acme", "ada", "noted", id="once")
        first = await publish({"n": 1})
        assert await publish({"n": 1}) == first
    async with local_server(store=store) as local:
        publish = partial(local.server.publish, "acme", "ada", "noted", id="once")
        assert await publish({"n": 1}) == first
        with pytest.raises(CommandError, match="once") as refused:
            await publish({"n": 2})
        assert (refused.value.code, refused.value.field) == ("id_conflict", "id")
        with pytest.raises(CommandError):
            await publish({"n": 1}, thread="another")
        second = await local.server.publish("acme", "ada", "noted", {"n": 1}, id="twice")
        assert second.seq == first.seq + 1
        _, events = await log_of(local)
        assert [event["data"] for event in events] == [{"n": 1}, {"n": 1}]


@pytest.mark.parametrize("field", ["id", "thread", "run"])
@pytest.mark.parametrize("value", ["run\tx", "é", "x" * 129, 7])
async def test_s08_the_ids_of_published_events_are_held_to_what_ids_are(
    local: LocalServer, field: str, value: object
) -> None:
    event = {"type": "noted", "data": {}, field: value}
    async with local.peer(roles=SERVICE) as peer:
        reply = await peer.command("publish", {"user": "ada", "events": [event]})
        assert (reply["error"]["code"], reply["error"]["field"]) == ("invalid", f"data.events[0].{field}")
    if field == "id" and isinstance(value, str):
        with pytest.raises(InvalidEvent, match="id"):
            await local.server.publish("acme", "ada", "noted", {}, id=value)


@pytest.mark.parametrize("thread", ["run\tx", "x" * 129, 7, b"t", ["t"]])
async def test_s08_so_is_the_thread_of_a_run(local: LocalServer, thread: Any) -> None:
    with pytest.raises(InvalidEvent, match="thread"):
        await local.server.start_agent("acme", "ada", "worker", {}, thread=thread)
