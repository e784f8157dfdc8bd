"""A session with the real server over real sockets, through a link that fails on command."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from wsrecover.agents import App, Run
from wsrecover.client import ClientSession, Event, connect
from wsrecover.config import Limits
from wsrecover.errors import CommandError, ConnectionClosed, TokenError
from wsrecover.testing import Cut, LocalServer, LossyLink, local_server

app = App()


@app.agent("count")
async def count(run: Run) -> dict[str, Any]:
    """Emits the numbers that it is asked for, pausing so that a link has time to fail."""
    for number in range(run.input["to"]):
        await run.emit("app.number", {"n": number})
        await trio.sleep(run.input.get("pause", 0))
    return {"counted": run.input["to"]}


@app.agent("wait")
async def wait(run: Run) -> None:
    await trio.Event().wait()


@asynccontextmanager
async def through(link: LossyLink) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        yield f"ws://127.0.0.1:{link.port}"
        nursery.cancel_scope.cancel()


def joined(url: str, server: LocalServer, **changes: Any) -> Any:
    return connect(url, **{"token": server.token, "rng": lambda: 0.02, "give_up_after": 30, **changes})


async def until(session: ClientSession, kind: str) -> list[Event]:
    """The events up to and including the first of this type."""
    events: list[Event] = []
    with trio.fail_after(300):
        async for item in session:
            if isinstance(item, Event):
                events.append(item)
                if item.type == kind:
                    break
    return events


async def test_a_run_is_started_and_followed_to_its_end() -> None:
    async with local_server(app) as server, joined(server.url, server) as session:
        assert session.principal.user == "ada"
        run = await session.start_agent("count", {"to": 3}, thread="t1")
        events = await until(session, "agent_completed")
    assert [event.type for event in events] == ["agent_started", *["app.number"] * 3, "agent_completed"]
    assert {(event.run, event.thread) for event in events} == {(run, "t1")}
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]


async def test_every_event_comes_once_and_in_order_through_a_link_that_is_cut_at_random() -> None:
    seed = 20
    async with local_server(app) as server:
        host, port = server.server.addresses[0]
        rng = random.Random(seed)
        link = LossyLink(host, port, plan=[Cut(rng.randrange(400, 4000)) for _ in range(12)])
        async with through(link) as url, joined(url, server, rng=lambda: 0.0) as session:
            await session.start_agent("count", {"to": 400, "pause": 0.001})
            events = await until(session, "agent_completed")
    numbers = [event.data["n"] for event in events if event.type == "app.number"]
    assert numbers == list(range(400)), f"seed {seed}"
    assert [event.seq for event in events] == list(range(1, 403)), f"seed {seed}"
    assert link.cuts >= 12


async def test_a_restart_from_the_processed_position_gets_what_was_not_handled() -> None:
    async with local_server(app) as server:
        async with joined(server.url, server) as session:
            await session.start_agent("count", {"to": 5})
            assert len([await anext(session) for _ in range(4)]) == 4
        kept = session.processed
        assert kept["user"].seq == 3
        async with joined(server.url, server, positions=kept) as session:
            events = await until(session, "agent_completed")
    assert [event.seq for event in events] == [4, 5, 6, 7]


async def test_a_command_whose_answer_is_lost_takes_effect_once() -> None:
    async with local_server(app) as server:
        host, port = server.server.addresses[0]
        link = LossyLink(host, port)
        async with through(link) as url, joined(url, server) as session, trio.open_nursery() as nursery:
            link.stall("down")
            runs: list[str] = []

            async def start() -> None:
                runs.append(await session.start_agent("count", {"to": 1}))

            nursery.start_soon(start)
            async with joined(server.url, server, from_="start") as other:  # The run may be over by then.
                await until(other, "agent_completed")
            link.cut()
            link.resume()
            events = await until(session, "agent_completed")
    assert [event.run for event in events if event.type == "agent_started"] == runs


async def test_the_largest_event_in_the_largest_parts_that_a_server_may_be_set_to_arrives() -> None:
    limits = Limits(event_bytes=8_000_000, part_bytes=2**20)
    async with (
        local_server(limits=limits) as server,
        joined(server.url, server, from_="start") as session,
    ):
        await server.server.publish("acme", "ada", "large", {"text": "x" * 7_999_900})
        (event,) = await until(session, "large")
        assert len(event.data["text"]) == 7_999_900


async def test_a_refused_command_raises_its_code() -> None:
    async with local_server(app) as server, joined(server.url, server) as session:
        with pytest.raises(CommandError) as caught:
            await session.start_agent("nobody")
    assert caught.value.code == "not_found"


async def test_a_run_under_way_is_told_and_can_be_cancelled() -> None:
    async with local_server(app) as server:
        async with joined(server.url, server) as session:
            run = await session.start_agent("wait")
        async with joined(server.url, server) as session:
            assert [info.run for info in session.runs] == [run]
            assert (await session.cancel(run))["run"] == run
            events = await until(session, "agent_completed")
    assert events[-1].data["status"] == "cancelled"


async def test_a_newer_connection_with_the_same_client_id_takes_over() -> None:
    async with (
        local_server(app) as server,
        joined(server.url, server, client_id="tab") as older,
        joined(server.url, server, client_id="tab") as newer,
    ):
        while older.client_id == "tab":
            await older.wait_status("waiting", "connecting")
            await older.wait_status("live")
        await newer.start_agent("count", {"to": 1})
        assert [event.seq for event in await until(older, "agent_completed")] == [1, 2, 3]
        assert newer.client_id == "tab"


async def test_a_server_that_was_restarted_is_resumed(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(app, store=store) as server, joined(server.url, server) as session:
        await session.start_agent("wait")
        before = await until(session, "agent_started")
        kept = session.received
    async with (
        local_server(app, store=store) as server,
        joined(server.url, server, positions=kept) as session,
    ):
        events = await until(session, "agent_completed")
        await session.start_agent("count", {"to": 1})
        events += await until(session, "agent_completed")
        assert session.received["user"].epoch != kept["user"].epoch
    assert [event.seq for event in before] == [1]
    assert [event.seq for event in events] == [2, 3, 4, 5]


async def test_a_token_of_another_secret_is_refused() -> None:
    async with local_server(app) as server, local_server(app, secret=b"another" * 6) as other:
        with pytest.raises(TokenError, match="does not accept the token: HTTP 401: "):
            async with joined(server.url, server, token=other.token()):
                pass


async def test_a_server_that_went_away_is_given_up_on(mock_clock: MockClock) -> None:
    async with local_server(app) as server:
        host, port = server.server.addresses[0]
        link = LossyLink(host, port)
        async with through(link) as url, joined(url, server, give_up_after=30) as session:
            link.refuse()
            link.cut()
            await session.wait_status("waiting")
            mock_clock.jump(1)
            while isinstance(session.last_error, ConnectionClosed):  # It tries once more, and is refused.
                await trio.lowlevel.checkpoint()
            mock_clock.jump(30)
            with pytest.raises(Exception, match=r"127\.0\.0\.1"):
                await anext(session)
            assert session.status == "closed"
            assert not isinstance(session.last_error, ConnectionClosed)
