"""S09: a registered type of event is held to its class, wherever it comes from; a misfit is not logged."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

import attrs
import pytest
import trio
from serving import Frame, log_of
from stage import types

from wsrecover import connect
from wsrecover.agents import App, Command, Run
from wsrecover.errors import CommandError, InvalidEvent
from wsrecover.testing import Peer, local_server


@attrs.frozen
class Item:
    name: str
    price: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))


@attrs.frozen
class OrderPlaced:
    items: list[Item]
    at: dt.datetime | None = None


@attrs.frozen
class Said:
    text: str


@attrs.frozen
class Given:
    """The data of the app's command: whatever the test puts."""

    data: dict[str, Any]


GOOD: Final[Frame] = {"items": [{"name": "lamp", "price": 2.5}], "at": "2026-01-31T12:00:00+00:00"}

MISFITS: Final[list[tuple[Frame, str]]] = [
    ({}, "data.items"),
    ({"items": "lamp"}, "data.items"),
    ({"items": [{"name": "a"}, {"name": "b"}, {"name": "c", "price": "2"}]}, "data.items[2].price"),
    ({"items": [{"name": "a", "price": -1}]}, "data.items[0].price"),
    ({"items": [{"nam": "a", "name": "a"}]}, "data.items[0].nam"),
    ({"items": [], "at": "yesterday"}, "data.at"),
    ({"items": [], "more": 1}, "data.more"),
]

each_misfit = pytest.mark.parametrize(("data", "field"), MISFITS)


class Shop:
    """An app whose agent emits what the test says, and whose command does."""

    def __init__(self) -> None:
        self.app = App()
        self.app.event("order_placed", OrderPlaced)
        self.app.event("chat", Said)
        self.app.agent("emitter")(self._work)
        self.app.command("place")(self._place)
        self.refused: list[str] = []

    async def _work(self, run: Run) -> None:
        await run.emit("before", {})
        for data in run.input["emit"]:
            try:
                await run.emit("order_placed", data)
            except InvalidEvent as error:
                self.refused.append(error.field)
        await run.emit("after", {})

    async def _place(self, command: Command, given: Given) -> Frame:
        await trio.lowlevel.checkpoint()
        command.emit("before", {})
        try:
            command.emit("order_placed", given.data)
        except InvalidEvent as error:
            return {"field": error.field}
        return {}


async def until_done(peer: Peer) -> list[Frame]:
    frames = await peer.until("event", type="agent_completed")
    return [frame for frame in frames if frame["op"] == "event"]


@each_misfit
async def test_s09_the_agent_is_told_the_path_and_nothing_is_logged(data: Frame, field: str) -> None:
    shop = Shop()
    async with local_server(shop.app) as local, local.peer() as peer:
        await peer.command("start_agent", {"agent": "emitter", "input": {"emit": [data, GOOD, data]}})
        events = await until_done(peer)
    assert shop.refused == [field, field]
    assert types(events) == ["agent_started", "before", "order_placed", "after", "agent_completed"]
    assert events[2]["data"] == GOOD
    assert events[-1]["data"]["status"] == "completed"


async def test_s09_an_agent_that_does_not_expect_it_fails_and_its_log_says_so() -> None:
    app = App()
    app.event("order_placed", OrderPlaced)

    @app.agent("careless")
    async def careless(run: Run) -> None:
        await run.emit("order_placed", {"items": None})

    async with local_server(app) as local, local.peer() as peer:
        await peer.command("start_agent", {"agent": "careless"})
        events = await until_done(peer)
    assert types(events) == ["agent_started", "agent_completed"]
    assert events[-1]["data"]["error"] == {
        "code": "exception",
        "message": "InvalidEvent",
        "retryable": False,
    }


@each_misfit
async def test_s09_a_service_that_publishes_is_told_the_path_and_all_of_it_is_refused(
    data: Frame, field: str
) -> None:
    async with local_server(Shop().app) as local, local.peer(roles=["service"]) as peer:
        good, bad = ({"type": "order_placed", "data": each} for each in (GOOD, data))
        reply = await peer.command("publish", {"user": "ada", "events": [good, bad, good]}, id="once")
        assert (reply["status"], reply["error"]["code"]) == ("error", "invalid")
        assert reply["error"]["field"] == f"data.events[1].{field}"
        assert (await log_of(local))[1] == []
        reply = await peer.command("publish", {"user": "ada", "events": [good, good]}, id="once")
        assert reply["status"] == "ok"
        assert [event["data"] for event in (await log_of(local))[1]] == [GOOD, GOOD]


@each_misfit
async def test_s09_so_is_the_embedding_program_and_a_handler(data: Frame, field: str) -> None:
    async with local_server(Shop().app) as local, local.peer() as peer:
        with pytest.raises(InvalidEvent) as caught:
            await local.server.publish("acme", "ada", "order_placed", data)
        assert caught.value.field == field
        assert (await peer.command("place", {"data": data}))["result"] == {"field": field}
        assert (await peer.command("place", {"data": GOOD}))["result"] == {}
        assert types((await log_of(local))[1]) == ["before", "before", "order_placed"]


async def test_s09_what_users_say_may_be_held_to_a_class_too() -> None:
    async with local_server(Shop().app) as local, connect(local.url, token=local.token) as session:
        with pytest.raises(CommandError) as caught:
            await session.chat({"text": 7})
        assert (caught.value.code, caught.value.field) == ("invalid", "data.text")
        assert await session.chat(Said("hello")) == 1
        assert await session.user_message("free as before") == 2


async def test_s09_so_may_be_what_is_broadcast() -> None:
    app = App()
    app.event("notice", Said)
    async with local_server(app) as local, local.peer(roles=["service"]) as peer:
        with pytest.raises(InvalidEvent, match=r"data\.text"):
            await local.server.broadcast("tenant", "notice", {"text": 7}, tenant="acme")
        notice = {"to": "tenant", "type": "notice", "data": {"txt": "hello"}}
        error = (await peer.command("broadcast", notice))["error"]
        assert (error["code"], error["field"]) == ("invalid", "data.data.text")


async def test_s09_types_that_are_not_registered_are_free() -> None:
    async with local_server(Shop().app) as local:
        await local.server.publish("acme", "ada", "order_placed.later", {"items": None})
        assert len((await log_of(local))[1]) == 1


async def test_s09_an_instance_is_held_to_its_class_like_anything_else() -> None:
    async with local_server(Shop().app) as local:
        for wrong, field in (
            (OrderPlaced(items=[Item("a"), "b"]), "data.items[1]"),  # type: ignore[list-item]  # attrs does not look
            (OrderPlaced([], at=dt.datetime(2026, 1, 31)), "data.at"),  # noqa: DTZ001  # That is the test.
            (Said("of another class"), "data"),
        ):
            with pytest.raises(InvalidEvent) as caught:
                await local.server.publish("acme", "ada", "order_placed", wrong)
            assert caught.value.field.startswith(field)
        moment = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
        await local.server.publish("acme", "ada", "order_placed", OrderPlaced([Item("lamp", 2.5)], moment))
        assert [event["data"] for event in (await log_of(local))[1]] == [GOOD]
