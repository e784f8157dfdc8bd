"""What the program that embeds the server gives wrong is named to it, by one class of errors."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import pytest

from wsrecover import (
    App,
    InvalidArgument,
    InvalidEvent,
    InvalidFilter,
    Run,
    Server,
    TokenError,
    WsrecoverError,
)
from wsrecover.testing import LocalServer, local_server

app = App()


@app.agent("echo")
async def echo(run: Run) -> Any:
    return run.input


@attrs.frozen
class Note:
    text: str


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    async with local_server(app) as server:
        yield server


Misuse = Callable[[Any], Awaitable[object]]

MISUSES: list[tuple[str, Misuse]] = [
    ("tenant", lambda server: server.publish("", "ada", "noted", {})),
    ("user", lambda server: server.publish("acme", "a\nda", "noted", {})),
    ("user", lambda server: server.publish("acme", 5, "noted", {})),
    ("tenant", lambda server: server.start_agent("x" * 129, "ada", "echo", {})),
    ("input", lambda server: server.start_agent("acme", "ada", "echo", 5)),
    ("input", lambda server: server.start_agent("acme", "ada", "echo", "text")),
    ("user", lambda server: server.wait_connected("acme", "", 0.1)),
    ("timeout", lambda server: server.wait_connected("acme", "ada", -1)),
    ("timeout", lambda server: server.wait_connected("acme", "ada", math.nan)),
    ("timeout", lambda server: server.broadcast("all", "notice", {}, timeout=math.nan)),
    ("timeout", lambda server: server.broadcast("all", "notice", {}, timeout=-5)),
    ("timeout", lambda server: server.broadcast("all", "notice", {}, timeout="5")),
    ("to", lambda server: server.broadcast(5, "notice", {})),
    ("to", lambda server: server.broadcast("role:two words", "notice", {}, tenant="acme")),
    ("tenant", lambda server: server.broadcast("tenant", "notice", {}, tenant="")),
]


@pytest.mark.parametrize(("field", "misuse"), MISUSES)
async def test_it_names_the_argument_and_is_no_error_of_a_token(
    local: LocalServer, field: str, misuse: Misuse
) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: must ") as raised:
        await misuse(local.server)
    assert raised.value.field == field
    assert not isinstance(raised.value, TokenError)
    assert local.server.sessions() == ()


async def test_what_is_shown_to_nobody_likewise(local: LocalServer) -> None:
    with pytest.raises(InvalidArgument, match=r"^user: "):
        local.server.ephemeral("acme", "", "noted", {})


@pytest.mark.parametrize("error", [InvalidEvent("type", "no"), InvalidFilter("state", "no", "yes")])
def test_events_and_filters_are_arguments_too(error: WsrecoverError) -> None:
    assert isinstance(error, InvalidArgument)
    assert (error.field, error.problem) in {("type", "no"), ("state", "no")}


async def test_a_wait_may_be_without_end(local: LocalServer) -> None:
    receipt = await local.server.broadcast("all", "notice", {}, timeout=math.inf)
    assert (await receipt.wait()).entitled == 0
    async with local.peer("ada"):
        await local.server.wait_connected("acme", "ada", math.inf)


async def test_whatever_is_sent_may_be_an_instance_of_an_attrs_class(local: LocalServer) -> None:
    server: Server = local.server
    async with local.peer("ada") as ada:
        await ada.until("live")
        await server.publish("acme", "ada", "noted", Note("a"))
        await server.broadcast("all", "notice", Note("b"))
        assert [event["data"] for event in await ada.events(2)] == [{"text": "a"}, {"text": "b"}]
        assert server.ephemeral("acme", "ada", "noted", Note("c")) == 1
        assert (await ada.until("ephemeral"))[-1]["data"] == {"text": "c"}


@pytest.mark.parametrize(("given", "expected"), [((), {}), ((None,), {}), (({"text": "x"},), {"text": "x"})])
async def test_an_agent_may_be_started_without_input(
    local: LocalServer, given: tuple[Any, ...], expected: dict[str, Any]
) -> None:
    async with local.peer("ada") as ada:
        await ada.until("live")
        await local.server.start_agent("acme", "ada", "echo", *given)
        assert (await ada.until("event", type="agent_completed"))[-1]["data"]["result"] == expected
