"""S06, S08, E14: each command reaches its handler, which runs once, and whose trouble stays its own."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio
from memory_world import memory_world
from process import server_process
from serving import PATIENCE, Frame, Stop, frames_until_closed, log_of, serve_until, until_none
from stage import Stage, types
from structlog.testing import capture_logs
from trio.testing import MockClock

from wsrecover import connect
from wsrecover.agents import App, Command, Run
from wsrecover.config import Limits, Timeouts
from wsrecover.errors import (
    CommandError,
    InvalidArgument,
    InvalidEvent,
    ScopeEnded,
    StoreError,
    StoreFailed,
    StoreUnavailable,
)
from wsrecover.protocol.events import OF_RUNS
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.store import AnswerKey
from wsrecover.testing import LocalServer, local_server

SECRET: Final = "/etc/secret of the server"


@attrs.frozen
class Item:
    name: str
    price: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))


@attrs.frozen
class Order:
    items: list[Item]
    at: str | None = None


@attrs.frozen
class Nothing:
    pass


class TestS06EachReachesItsHandler:
    async def test_s06_of_all_types(self, local: LocalServer, stage: Stage) -> None:
        async with local.peer(roles=["service"]) as peer, local.peer() as other:
            started = await peer.command("start_agent", {"agent": "worker", "input": {"n": 1}}, thread="t1")
            said = await peer.command("user_message", {"text": "hello", "more": [1]}, thread="t1")
            chat = await peer.command("chat", {"anything": {"at": "all"}})
            note = await peer.command("note", {"text": "milk", "stars": [1, 2]}, thread="t2")
            event = {"type": "invoice", "data": {"n": 7}, "thread": "t3"}
            published = await peer.command("publish", {"user": "ada", "events": [event]})
            cancelled = await peer.command("cancel_run", {"run": started["result"]["run"]})
            seen = (await other.until("event", type="agent_completed"))[-6:]
        replies = (started, said, chat, note, published, cancelled)
        assert {reply["status"] for reply in replies} == {"ok"}
        assert (said["result"], chat["result"], note["result"]) == ({"seq": 2}, {"seq": 3}, {"length": 4})
        assert [(frame["type"], frame.get("thread")) for frame in seen] == [
            ("agent_started", "t1"),
            ("user_message", "t1"),
            ("chat", None),
            ("note_taken", "t2"),
            ("invoice", "t3"),
            ("agent_completed", "t1"),
        ]
        assert [frame["data"] for frame in seen[1:5]] == [
            {"text": "hello", "more": [1]},
            {"anything": {"at": "all"}},
            {"text": "milk", "stars": [1, 2]},
            {"n": 7},
        ]

    async def test_s06_an_unknown_one_is_refused_as_such(self, local: LocalServer) -> None:
        async with local.peer() as peer:
            for unknown in ("notes", "Note", "note ", "worker"):
                error = (await peer.command(unknown, {"text": "x"}))["error"]
                assert (error["code"], error["field"]) == ("unknown_type", "type")

    @pytest.mark.parametrize(
        ("data", "field"),
        [
            ({}, "data.items"),
            ({"items": {}}, "data.items"),
            ({"items": [{"name": "a"}, {"name": "b"}, {"name": "c", "price": "1"}]}, "data.items[2].price"),
            ({"items": [{"name": "a", "price": -1}]}, "data.items[0].price"),
            ({"items": [], "at": 7}, "data.at"),
        ],
    )
    async def test_s06_data_that_does_not_fit_is_named_by_its_path(self, data: Frame, field: str) -> None:
        app, ran = App(), []

        @app.command("order")
        async def order(command: Command, data: Order) -> None:
            ran.append(data)

        async with local_server(app) as local, local.peer() as peer:
            reply = await peer.command("order", data, id="once")
            assert (reply["status"], reply["error"]["code"]) == ("error", "invalid")
            assert reply["error"]["field"] == field
            assert ran == []
            good = {"items": [{"name": "a", "price": 2}], "a field of a later version": 1}
            assert (await peer.command("order", good, id="once"))["status"] == "ok"
        assert ran == [Order([Item("a", 2.0)])]

    async def test_s06_a_handler_knows_who_asks_and_may_start_agents(self, stage: Stage) -> None:
        told: list[Any] = []

        @stage.app.command("begin")
        async def begin(command: Command, data: Nothing) -> Mapping[str, Any]:
            told.append((command.principal.tenant, command.principal.user, command.id, command.thread))
            command.emit("begun", {})
            command.emit("begun", {}, thread="elsewhere")
            return {"run": await command.start_agent("worker", {"n": 1})}

        async with local_server(stage.app) as local, local.peer("bob", tenant="other") as peer:
            reply = await peer.command("begin", {}, id="once", thread="t1")
            events = (await peer.until("event", type="begun", thread="elsewhere"))[-3:]
        assert told == [("other", "bob", "once", "t1")]
        assert [(event["type"], event["thread"]) for event in events] == [
            ("agent_started", "t1"),
            ("begun", "t1"),
            ("begun", "elsewhere"),
        ]
        assert reply["result"] == {"run": events[0]["run"]}

    async def test_s06_a_result_may_be_an_instance_or_nothing(self) -> None:
        app = App()

        @app.command("item")
        async def item(command: Command, data: Nothing) -> Item:
            return Item("a", 2.5)

        @app.command("none")
        async def none(command: Command, data: Nothing) -> None:
            pass

        async with local_server(app) as local, local.peer() as peer:
            assert (await peer.command("item", {}))["result"] == {"name": "a", "price": 2.5}
            assert (await peer.command("none", {}))["result"] == {}

    async def test_what_it_starts_an_agent_with_may_be_an_instance_of_an_attrs_class(self) -> None:
        app = App()

        @app.agent("helper")
        async def helper(run: Run) -> dict[str, Any]:
            return run.input

        @app.command("help")
        async def help_(command: Command, data: Nothing) -> None:
            wrong: Any = [1]
            with pytest.raises(InvalidArgument, match="input: must be a mapping, not list"):
                await command.start_agent("helper", wrong)
            await command.start_agent("helper", Item("a", 2.5))

        async with local_server(app) as local, local.peer() as peer:
            assert (await peer.command("help", {}))["status"] == "ok"
            await local.server.start_agent("acme", "ada", "helper", Item("b", 1.0))
            ends = [(await peer.until("event", type="agent_completed"))[-1] for _ in range(2)]
        results = [end["data"]["result"] for end in ends]
        assert results == [{"name": "a", "price": 2.5}, {"name": "b", "price": 1.0}]

    @pytest.mark.parametrize("type_", sorted(OF_RUNS))
    async def test_what_only_a_run_can_make_true_is_refused(self, type_: str) -> None:
        app = App()

        @app.command("forge")
        async def forge(command: Command, data: Nothing) -> None:
            with pytest.raises(InvalidEvent) as refused:
                command.emit(type_, {"request_id": "q", "prompt": "sure?"})
            assert refused.value.field == "type"

        async with local_server(app) as local:
            async with local.peer() as peer:
                assert (await peer.command("forge", {}))["status"] == "ok"
            assert (await log_of(local))[1] == []

    async def test_s06_what_was_emitted_comes_before_the_next_command_and_is_bounded(self) -> None:
        app, kept = App(), []

        @app.command("many")
        async def many(command: Command, data: Nothing) -> None:
            kept.append(command)
            with pytest.raises(InvalidEvent, match=r"data\.x"):
                command.emit("one", {"x": object()})
            for n in range(100):
                command.emit("one", {"n": n})
            with pytest.raises(InvalidEvent, match="the limit"):
                command.emit("one", {})

        async with local_server(app) as local:
            async with local.peer() as peer:
                assert (await peer.command("many", {}))["status"] == "ok"
                assert (await peer.command("chat", {}))["result"] == {"seq": 101}
            with pytest.raises(ScopeEnded):
                kept[0].emit("late", {})
            assert [event["data"].get("n") for event in (await log_of(local))[1]] == [*range(100), None]


class Shop:
    """An app whose command `order` runs as the test says, and counts how often it ran."""

    def __init__(self) -> None:
        self.app = App()
        self.app.command("order")(self._order)
        self.ran = 0
        self.entered, self.go_on = trio.Event(), trio.Event()

    async def _order(self, command: Command, data: Nothing) -> Frame:
        self.ran += 1
        command.emit("ordered", {"n": self.ran})
        self.entered.set()
        await self.go_on.wait()
        return {"n": self.ran}


ORDER: Final = {"op": "send", "id": "once", "type": "order", "data": {}}


class TestS08AHandlerRunsOnce:
    async def test_s08_a_repeat_joins_it_over_a_drop(self) -> None:
        shop = Shop()
        async with local_server(shop.app) as local, local.peer() as second:
            async with local.peer() as first:
                await first.send(ORDER)
                await shop.entered.wait()
                first.socket.kill()
            await second.send([ORDER, {**ORDER, "id": "other"}])
            shop.go_on.set()
            replies = {(await second.until("reply"))[-1]["id"] for _ in range(2)}
            assert replies == {"once", "other"}
            again = await second.command("order", {}, id="once")
            assert (again["status"], again["result"]) == ("duplicate", {"n": 1})
            assert types((await log_of(local))[1]) == ["ordered"] * 2
        assert shop.ran == 2

    async def test_s08_one_that_the_server_stopped_in_is_answered_outcome_unknown(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        shop, stop, store = Shop(), Stop(), f"sqlite:{tmp_path / 'log.db'}"
        local = await nursery.start(serve_until, stop, shop.app, store)
        async with local.peer() as peer:
            await peer.send(ORDER)
            await shop.entered.wait()
            await stop()
        shop.go_on.set()
        async with local_server(shop.app, store=store) as local, local.peer() as peer:
            for _ in range(2):
                reply = await peer.command("order", {}, id="once", age=3.0)
                assert (reply["status"], reply["error"]["code"]) == ("error", "outcome_unknown")
            changed = await peer.command("order", {"x": 1}, id="once", age=3.0)
            assert changed["error"]["code"] == "id_conflict"
            assert (await peer.command("order", {}, id="another"))["result"] == {"n": 2}
            assert types((await log_of(local))[1]) == ["ordered"]
        assert shop.ran == 2

    async def test_s08_one_whose_process_was_killed_in_it_is_answered_outcome_unknown(
        self, tmp_path: Path, nursery: trio.Nursery
    ) -> None:
        trace, answers = tmp_path / "trace", list[str]()
        with trio.fail_after(PATIENCE):
            async with server_process(tmp_path) as server:
                await server.start()
                async with connect(server.url, token=server.token()) as session:

                    async def leave_a_trace() -> None:
                        with pytest.raises(CommandError) as refused:
                            await session.send("leave_trace", {"path": str(trace)})
                        answers.append(refused.value.code)
                        nursery.cancel_scope.cancel()

                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(leave_a_trace)
                        await server.until_said("trace_left")
                        await server.kill()
                        await server.start()
                        await trio.sleep_forever()
        assert answers == ["outcome_unknown"]
        assert trace.read_text() == "ran\n"

    async def test_s08_a_server_that_drains_waits_for_it(self, autojump_clock: MockClock) -> None:
        shop = Shop()
        async with memory_world(shop.app) as world, world.local.peer(dial=world.network.dial) as peer:
            await peer.send(ORDER)
            await shop.entered.wait()
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(frames_until_closed, peer)
                nursery.start_soon(world.local.server.drain)
                await trio.sleep(5)
                shop.go_on.set()
            assert 5 <= trio.current_time() - began < 6
            answer = await world.services.store.answer(AnswerKey("acme", "ada", "once"))
            assert answer is not None
            assert (answer[0].status, answer[0].result) == ("ok", b'{"n":1}')

    @pytest.mark.parametrize("failure", [StoreUnavailable, StoreFailed])
    async def test_s08_what_it_emits_and_its_answer_are_kept_together_or_not_at_all(
        self, failure: type[StoreError], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop, commit, down = Shop(), MemoryStore.commit, True

        async def unavailable(store: MemoryStore, units: Any) -> Any:
            if down and any(answer.status == "ok" for unit in units for answer in unit.answers):
                await trio.lowlevel.checkpoint()
                raise failure("full")
            return await commit(store, units)

        monkeypatch.setattr(MemoryStore, "commit", unavailable)
        shop.go_on.set()
        async with local_server(shop.app, timeouts=Timeouts(store=0.3)) as local, local.peer() as peer:
            reply = await peer.command("order", {}, id="once")
            assert reply["error"]["code"] == "outcome_unknown"
            down = False
            again = await peer.command("order", {}, id="once")
            assert again["error"]["code"] == "outcome_unknown"
            assert (await log_of(local))[1] == []
        assert shop.ran == 1

    async def test_s08_one_that_could_not_be_accepted_did_not_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop, commit, down = Shop(), MemoryStore.commit, True
        shop.go_on.set()

        async def unavailable(store: MemoryStore, units: Any) -> Any:
            if down:
                await trio.lowlevel.checkpoint()
                raise StoreUnavailable("full")
            return await commit(store, units)

        monkeypatch.setattr(MemoryStore, "commit", unavailable)
        async with local_server(shop.app) as local, local.peer() as peer:
            assert (await peer.command("order", {}, id="once"))["error"]["code"] == "store_unavailable"
            assert shop.ran == 0
            down = False
            assert (await peer.command("order", {}, id="once"))["result"] == {"n": 1}

    async def test_s08_a_refusal_of_the_handlers_is_kept_across_restarts_and_leaves_nothing(
        self, tmp_path: Path
    ) -> None:
        app, ran, store = App(), [], f"sqlite:{tmp_path / 'log.db'}"

        @app.command("order")
        async def order(command: Command, data: Nothing) -> None:
            ran.append(command.id)
            command.emit("ordered", {})
            raise CommandError("sold_out", "none left \ud800", field="data.items[0]", retry_after=1.5)

        said = {"code": "sold_out", "message": "none left ?", "field": "data.items[0]", "retry_after": 1.5}
        for _ in range(2):
            async with local_server(app, store=store) as local, local.peer() as peer:
                for _ in range(2):
                    reply = await peer.command("order", {}, id="once")
                    assert (reply["status"], reply["error"]) == ("error", said)
                assert (await log_of(local))[1] == []
        assert ran == ["once"]

    @pytest.mark.parametrize(
        ("given", "told"),
        [(-0.25, None), ("soon", None), (math.inf, None), (True, None), (2, 2.0), (10**40, 1e40)],
    )
    async def test_s08_a_time_to_wait_that_is_none_is_left_out(self, given: Any, told: float | None) -> None:
        app, ran = App(), []

        @app.command("order")
        async def order(command: Command, data: Nothing) -> None:
            ran.append(command.id)
            raise CommandError("busy", "later", retry_after=given)

        async with local_server(app) as local, connect(local.url, token=local.token()) as session:
            with pytest.raises(CommandError, match="busy: later") as refused:
                await session.send("order", {}, timeout=20)
            assert refused.value.retry_after == told
        assert len(ran) == 1

    @pytest.mark.parametrize("code", ["none left", "", "x" * 65, "1st", 404])
    async def test_s08_a_code_that_is_none_is_the_servers_fault_and_logged(self, code: Any) -> None:
        app = App()

        @app.command("order")
        async def order(command: Command, data: Nothing) -> None:
            raise CommandError(code, "sold_out")

        with capture_logs() as logs:
            async with local_server(app) as local, local.peer() as peer:
                errors = [(await peer.command("order", {}, id="once"))["error"] for _ in range(2)]
        assert errors == [{"code": "internal", "message": "the command failed in the server"}] * 2
        (raised,) = [entry for entry in logs if entry["event"] == "command_raised"]
        assert raised["bad_code"] == code
        assert str(raised["exc_info"]) == f"{code}: sold_out"

    @pytest.mark.parametrize("code", ["x" * 64, "SOLD-OUT", "shop.sold_out2"])
    async def test_s08_a_code_may_be_the_apps_own(self, code: str) -> None:
        app = App()

        @app.command("order")
        async def order(command: Command, data: Nothing) -> None:
            raise CommandError(code, "none left")

        async with local_server(app) as local, local.peer() as peer:
            assert (await peer.command("order", {}))["error"] == {"code": code, "message": "none left"}

    async def test_s08_one_that_takes_too_long_is_cut_off_and_its_outcome_unknown(
        self, autojump_clock: MockClock
    ) -> None:
        app, ends = App(), []

        async def wait(command: Command, data: Nothing) -> None:
            command.emit("begun", {})
            try:
                await trio.sleep_forever()
            finally:
                ends.append(trio.current_time() - began)

        app.command("short", timeout=5)(wait)
        app.command("usual")(wait)
        async with memory_world(app) as world, world.local.peer(dial=world.network.dial) as peer:
            for name in ("short", "usual"):
                began = trio.current_time()
                for _ in range(2):
                    reply = await peer.command(name, {}, id=name)
                    assert (reply["status"], reply["error"]["code"]) == ("error", "outcome_unknown")
            assert (await peer.command("chat", {}))["result"] == {"seq": 1}
        assert ends == [5.0, 30.0]


async def raises(command: Command, data: Nothing) -> None:
    command.emit("lost", {})
    raise FileNotFoundError(SECRET)


async def raises_in_a_task_of_its_own(command: Command, data: Nothing) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises, command, data)
        await trio.sleep_forever()


async def gives_up(command: Command, data: Nothing) -> None:
    raise SystemExit(SECRET)


async def closes(command: Command, data: Nothing) -> None:
    raise GeneratorExit(SECRET)


async def returns_a_list(command: Command, data: Nothing) -> list[str]:
    return [SECRET]


async def returns_an_empty_list(command: Command, data: Nothing) -> list[str]:
    return []


async def returns_too_much(command: Command, data: Nothing) -> Frame:
    return {"text": "x" * 2**16}


async def returns_what_is_no_json(command: Command, data: Nothing) -> Frame:
    return {"x": {"y": object()}}


async def emits_nonsense(command: Command, data: Nothing) -> None:
    command.emit("No Type", {})


FAILING: Final = (
    raises,
    raises_in_a_task_of_its_own,
    gives_up,
    closes,
    returns_a_list,
    returns_an_empty_list,
    returns_too_much,
    returns_what_is_no_json,
    emits_nonsense,
)


@asynccontextmanager
async def logging(app: App, **settings: Any) -> AsyncIterator[tuple[LocalServer, list[Any]]]:
    """A server, and what it logs."""
    with capture_logs() as logs:
        async with local_server(app, **settings) as local:
            yield local, logs


class TestE14AnErrorStaysWhereItIs:
    @pytest.mark.parametrize("handler", FAILING, ids=lambda handler: handler.__name__)
    async def test_e14_of_a_handler_the_client_reads_internal_and_the_log_says_why_once(
        self, handler: Callable[[Command, Nothing], Any], stage: Stage
    ) -> None:
        stage.app.command("failing")(handler)
        async with (
            logging(stage.app) as (local, logs),
            local.peer("ada") as ada,
            local.peer("ada") as tab,
            local.peer("bob") as bob,
        ):
            started = await tab.command("start_agent", {"agent": "worker", "input": {}})
            for _ in range(2):
                reply = await ada.command("failing", {}, id="once")
                assert reply == {
                    "op": "reply",
                    "id": "once",
                    "status": "error",
                    "error": {"code": "internal", "message": "the command failed in the server"},
                }
            assert (await ada.command("note", {"text": "on"}))["status"] == "ok"
            assert (await tab.command("note", {"text": "on"}))["status"] == "ok"
            assert (await bob.command("note", {"text": "on"}))["status"] == "ok"
            stage.tell("finish")
            await tab.until("event", type="agent_completed", run=started["result"]["run"])
            expected = ["agent_started", "note_taken", "note_taken", "agent_completed"]
            assert types((await log_of(local))[1]) == expected
        raised = [entry for entry in logs if entry["log_level"] == "error"]
        assert [(entry["event"], entry["command"], entry["user"]) for entry in raised] == [
            ("command_raised", "failing", "ada")
        ]
        assert raised[0]["exc_info"]

    async def test_e14_an_error_beside_the_stop_of_the_server_ends_nothing_else(self) -> None:
        app, inside = App(), trio.Event()

        @app.command("stubborn")
        async def stubborn(command: Command, data: Nothing) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails_when_cancelled)
                nursery.start_soon(trio.sleep_forever)

        async def fails_when_cancelled() -> None:
            try:
                inside.set()
                await trio.sleep_forever()
            finally:
                raise RuntimeError(SECRET)

        async with logging(app) as (local, logs), local.peer() as peer:
            await peer.send({"op": "send", "id": "once", "type": "stubborn", "data": {}})
            await inside.wait()
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["command_raised"]

    async def test_e14_handlers_that_hang_take_their_own_users_room_only(self) -> None:
        shop = Shop()
        async with (
            local_server(shop.app, limits=Limits(commands_in_flight=3)) as local,
            local.peer("ada") as ada,
            local.peer("bob") as bob,
        ):
            await ada.send([{**ORDER, "id": f"o{n}"} for n in range(4)])
            refused = (await ada.until("reply"))[-1]
            assert (refused["error"]["code"], refused["error"]["retry_after"]) == ("overloaded", 1.0)
            assert (await bob.command("chat", {}))["status"] == "ok"
            shop.go_on.set()
            replies = [(await ada.until("reply"))[-1] for _ in range(3)]
        assert {reply["status"] for reply in replies} == {"ok"}
        assert shop.ran == 3

    @pytest.mark.parametrize("name", ["exiting", "closing", "endless"])
    async def test_e14_of_an_agent_other_runs_and_users_notice_nothing(self, stage: Stage, name: str) -> None:
        @stage.app.agent("exiting")
        async def exiting(run: Run) -> None:
            raise SystemExit(SECRET)

        @stage.app.agent("closing")
        async def closing(run: Run) -> None:
            raise GeneratorExit(SECRET)

        @stage.app.agent("endless", timeout=0.05)
        async def endless(run: Run) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)

        async with local_server(stage.app) as local, local.peer("ada") as ada, local.peer("bob") as bob:
            for peer in (ada, bob):
                await peer.command("start_agent", {"agent": "worker", "input": {}})
            broken = (await ada.command("start_agent", {"agent": name, "input": {}}))["result"]["run"]
            ended = (await ada.until("event", type="agent_completed"))[-1]
            assert (ended["run"], ended["data"]["status"]) == (broken, "failed")
            assert SECRET not in str(ended)
            stage.tell("finish", "finish")
            for peer in (ada, bob):
                ended = (await peer.until("event", type="agent_completed"))[-1]
                assert ended["data"]["status"] == "completed"
            await until_none(local, "runs")

    async def test_e14_of_a_connection_the_users_other_tab_notices_nothing(self, local: LocalServer) -> None:
        async with local.peer() as tab, local.peer() as broken:
            await broken.until("live")
            broken.socket.outbox.put(b"\x8f\xff not WebSocket at all" * 100)
            _, code = await frames_until_closed(broken)
            assert code in (1002, 1006)
            assert (await tab.command("note", {"text": "on"}))["status"] == "ok"
