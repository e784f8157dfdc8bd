"""The registry: good names and async functions once each, everything else refused where it is written."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import pytest

from wsrecover.agents.app import App
from wsrecover.agents.command import Command
from wsrecover.agents.run import Run
from wsrecover.errors import ConfigError


async def helper(run: Run) -> dict[str, Any]:
    return {}


def test_a_registered_agent_is_found_by_its_name() -> None:
    app = App()
    assert app.agent("helper", timeout=5)(helper) is helper
    agent = app.agents["helper"]
    assert (agent.name, agent.function, agent.timeout) == ("helper", helper, 5)
    assert dict(app.agents) == {"helper": agent}


def test_a_name_is_given_once() -> None:
    app = App()
    app.agent("helper")(helper)
    with pytest.raises(ConfigError, match="'helper': is registered already"):
        app.agent("helper")(helper)


@pytest.mark.parametrize("name", ["", "1st", "a b", "a" * 65, "é", "a\n", None])
def test_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"agent\.name"):
        App().agent(name)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5", 10**400])
def test_a_bad_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match=r"agent\.timeout"):
        App().agent("helper", timeout=timeout)


def test_a_function_that_is_not_async_is_refused() -> None:
    def sync(run: Run) -> dict[str, Any]:
        return {}

    with pytest.raises(ConfigError, match="an async function"):
        App().agent("helper")(sync)


def test_a_function_that_a_run_alone_does_not_satisfy_is_refused() -> None:
    async def none() -> None:
        return None

    async def two(run: Run, more: int) -> None:
        return None

    async def optional(run: Run, more: int = 0) -> None:
        return None

    @functools.wraps(two)
    async def wrapped(run: Run) -> None:
        return await two(run, 7)

    @functools.wraps(optional)
    async def wrapped_badly(run: Run, more: int) -> None:
        return None

    app = App()
    assert app.agent("wrapped")(wrapped) is wrapped
    for function in (none, two, wrapped_badly):
        with pytest.raises(ConfigError, match="an async function of one Run"):
            app.agent("helper")(function)
    assert app.agent("helper")(optional) is optional


def test_an_object_with_an_async_call_is_an_agent() -> None:
    class Helper:
        async def __call__(self, run: Run) -> None:
            return None

    app = App()
    app.agent("helper")(Helper())
    assert "helper" in app.agents


def test_the_registry_is_read_only_from_outside() -> None:
    app = App()
    with pytest.raises(TypeError):
        app.agents["x"] = object()


@attrs.frozen
class Order:
    item: str


@attrs.frozen
class Odd:
    thing: object


async def order(command: Command, data: Order) -> None:
    return None


async def untyped(command, data):  # type: ignore[no-untyped-def]  # That is the test.
    return None


async def of_any_object(command: Command, data: dict[str, Any]) -> None:
    return None


async def of_one(command: Command) -> None:
    return None


async def of_three(command: Command, data: Order, more: int = 0) -> None:
    return None


async def of_what_is_not_there(command: Command, data: NoSuchName) -> None:  # type: ignore[name-defined]  # noqa: F821  # That is the test.
    return None


async def of_odd(command: Command, data: Odd) -> None:
    return None


def sync(command: Command, data: Order) -> None:
    return None


async def of_an_instance(command: Command, data: Order("lamp")) -> None:  # type: ignore[valid-type]  # That is the test.
    return None


async def of_no_attribute(command: Command, data: Order.Line) -> None:  # type: ignore[name-defined]  # That is the test.
    return None


async def by_keyword(command: Command, *, data: Order) -> None:
    return None


class TestACommand:
    def test_that_is_registered_is_found_with_what_its_data_must_be(self) -> None:
        app = App()
        assert app.command("order", timeout=5)(order) is order
        handler = app.commands["order"]
        assert (handler.name, handler.function, handler.timeout) == ("order", order, 5)
        assert handler.schema.structure({"item": "lamp"}, "data") == Order("lamp")

    def test_may_be_handled_by_a_method(self) -> None:
        class Shop:
            async def order(self, command: Command, data: Order) -> None:
                return None

        app = App()
        app.command("order")(Shop().order)
        assert app.commands["order"].schema.kind is Order

    @pytest.mark.parametrize(
        "name", ["start_agent", "cancel_run", "respond", "chat", "user_message", "publish"]
    )
    def test_of_the_protocols_own_is_taken(self, name: str) -> None:
        with pytest.raises(ConfigError, match="is registered already"):
            App().command(name)(order)

    def test_has_one_handler(self) -> None:
        app = App()
        app.command("order")(order)
        with pytest.raises(ConfigError, match="is registered already"):
            app.command("order")(order)

    @pytest.mark.parametrize("name", ["", "1st", "a b", "a" * 65, "é", "a\n", None])
    def test_with_a_bad_name_is_refused(self, name: Any) -> None:
        with pytest.raises(ConfigError, match=r"command\.name"):
            App().command(name)

    @pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5", 10**400])
    def test_with_a_bad_timeout_is_refused(self, timeout: Any) -> None:
        with pytest.raises(ConfigError, match=r"command\.timeout"):
            App().command("order", timeout=timeout)

    @pytest.mark.parametrize(
        "function", [untyped, of_any_object, of_one, of_three, of_what_is_not_there, of_odd, sync]
    )
    def test_whose_handler_is_not_as_said_is_refused(self, function: Any) -> None:
        with pytest.raises(ConfigError, match="command 'order'"):
            App().command("order")(function)

    @pytest.mark.parametrize(
        ("function", "problem"),
        [
            (untyped, "its parameter `data` is of no attrs class"),
            (of_any_object, "its parameter `data: dict[str, typing.Any]` is of no attrs class"),
            (of_an_instance, "is of no attrs class"),
            (of_no_attribute, "AttributeError"),
            (by_keyword, "is not positional"),
            (of_three, "is a function of 3 parameters"),
        ],
    )
    def test_whose_data_is_of_no_attrs_class_is_told_what_is_wanted(
        self, function: Any, problem: str
    ) -> None:
        with pytest.raises(ConfigError) as refused:
            App().command("order")(function)
        assert problem in str(refused.value)
        assert "a Command and of its data, an attrs class" in str(refused.value)


class TestAnEvent:
    def test_that_is_registered_is_found(self) -> None:
        app = App()
        app.event("order_placed", Order)
        assert app.events["order_placed"].kind is Order

    @pytest.mark.parametrize("name", ["chat", "user_message", "notice"])
    def test_that_carries_what_was_sent_may_be_registered(self, name: str) -> None:
        App().event(name, Order)

    @pytest.mark.parametrize("name", ["agent_started", "message_delta", "input_requested", "Order", "", None])
    def test_of_the_protocols_own_or_with_a_bad_name_is_refused(self, name: Any) -> None:
        with pytest.raises(ConfigError, match="cannot be registered"):
            App().event(name, Order)

    def test_has_one_class(self) -> None:
        app = App()
        app.event("order_placed", Order)
        with pytest.raises(ConfigError, match="is registered already"):
            app.event("order_placed", Odd)

    @pytest.mark.parametrize("cls", [dict, int, Odd, None])
    def test_of_what_is_no_class_for_json_is_refused(self, cls: Any) -> None:
        with pytest.raises(ConfigError, match="event 'order_placed'"):
            App().event("order_placed", cls)
