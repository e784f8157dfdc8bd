"""The registry: good names and async functions once each, everything else refused where it is written."""

from __future__ import annotations

from typing import Any

import pytest

from wsrecover.agents.app import App
from wsrecover.agents.run import Run
from wsrecover.errors import ConfigError


async def helper(run: Run) -> dict[str, Any]:
    return {}


def test_a_registered_agent_is_found_by_its_name() -> None:
    app = App()
    assert app.agent("helper", timeout=5)(helper) is helper
    agent = app.find("helper")
    assert agent is not None
    assert (agent.name, agent.function, agent.timeout) == ("helper", helper, 5)
    assert dict(app.agents) == {"helper": agent}
    assert app.find("other") is None


def test_a_name_is_given_once() -> None:
    app = App()
    app.agent("helper")(helper)
    with pytest.raises(ConfigError, match="'helper': is registered already"):
        app.agent("helper")(helper)


@pytest.mark.parametrize("name", ["", "1st", "a b", "a" * 65, "é", "a\n", None])
def test_a_bad_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"agent\.name"):
        App().agent(name)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5"])
def test_a_bad_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigError, match=r"agent\.timeout"):
        App().agent("helper", timeout=timeout)


def test_a_function_that_is_not_async_is_refused() -> None:
    def sync(run: Run) -> dict[str, Any]:
        return {}

    with pytest.raises(ConfigError, match="an async function"):
        App().agent("helper")(sync)


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
