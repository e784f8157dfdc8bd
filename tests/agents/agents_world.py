"""A place for runs to happen in: a real journal over a store whose commits a test can hold up or let fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import trio

from wsrecover.agents.alarms import Alarms
from wsrecover.agents.app import Agent, AgentFunction
from wsrecover.agents.lifecycle import Execution
from wsrecover.agents.place import RunPlace
from wsrecover.agents.requests import Requests
from wsrecover.errors import StoreError
from wsrecover.streams.journal import Journal
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import Outcome, Retention, Store, StreamKey, Unit

KEY = StreamKey("user", "acme", "ann")
NOW = 1_800_000_000.0


class Gated(MemoryStore):
    """A memory store that commits while `open`, and fails with `failure` if that is set."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: NOW)
        self.open = trio.Event()
        self.open.set()
        self.reached = trio.Event()
        self.failure: StoreError | None = None

    def hold(self) -> None:
        """Hold up the next commits until `open.set()`; `reached` tells that one has come."""
        self.open, self.reached = trio.Event(), trio.Event()

    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        self.reached.set()
        await self.open.wait()
        if self.failure is not None:
            await trio.lowlevel.checkpoint()
            raise self.failure
        return await super().commit(units)


@attrs.define
class World:
    """Where a test's runs live, and what they left in the log."""

    nursery: trio.Nursery
    store: Store
    place: RunPlace

    def execution(
        self, function: AgentFunction, *, timeout: float | None = None, run: str = "r1", given: Any = None
    ) -> Execution:
        agent = Agent("helper", function, timeout)
        return Execution(self.place, agent, run=run, input=given or {}, thread="t1")

    async def launch(self, function: AgentFunction, **more: Any) -> Execution:
        """Start a run and leave it to itself."""
        execution = self.execution(function, **more)
        await execution.start()
        self.nursery.start_soon(execution.execute)
        return execution

    async def finish(self, function: AgentFunction, **more: Any) -> dict[str, Any]:
        """Run an agent to its end: the data of the terminal event."""
        execution = await self.launch(function, **more)
        await execution.wait_ended()
        return await self.terminal()

    async def events(self) -> list[dict[str, Any]]:
        """The whole log."""
        entries = await self.store.read(KEY, 0, upto=10**9, max_events=10**9, max_bytes=10**9)
        return [json.loads(entry.body) for entry in entries]

    async def told(self, *types: str) -> list[dict[str, Any]]:
        """The data of the log's events of these types."""
        return [event["data"] for event in await self.events() if event["type"] in types]

    async def types(self) -> list[str]:
        return [event["type"] for event in await self.events()]

    async def terminal(self) -> dict[str, Any]:
        """The data of the one terminal event, after checking what every run must hold."""
        events = await self.events()
        ends = [event["data"] for event in events if event["type"] == "agent_completed"]
        assert len(ends) == 1
        assert [event["type"] for event in (events[0], events[-1])] == ["agent_started", "agent_completed"]
        assert await self.store.runs() == []
        return ends[0]


def make_place(nursery: trio.Nursery, journal: Journal, **more: Any) -> RunPlace:
    alarms = Alarms()
    nursery.start_soon(alarms.run)
    given: dict[str, Any] = {
        "key": KEY,
        "journal": journal,
        "requests": Requests(),
        "threads": None,
        "schemas": {},
        "show": None,
        "clock": lambda: NOW,
        "alarms": alarms,
        "event_bytes": 64 * 1024,
        "events_per_second": None,
        "delta_interval": 0.025,
        "timeout": None,
    }
    return RunPlace(**(given | more))


def make_journal(store: Store, *, max_units: int = 1000) -> Journal:
    return Journal(
        store,
        Streams(store),
        max_units=max_units,
        max_bytes=1024 * 1024,
        retention=lambda _: Retention(),
        clock=lambda: NOW,
    )


@pytest.fixture
def gated() -> Gated:
    return Gated()


@pytest.fixture
async def world(gated: Gated, nursery: trio.Nursery) -> World:
    journal = make_journal(gated)
    await nursery.start(journal.run)
    return World(nursery, gated, make_place(nursery, journal))


@pytest.fixture
def small_world(gated: Gated, nursery: trio.Nursery) -> Callable[..., Any]:
    """As `world`, with a journal of so many units and changes to the place."""

    async def make(*, max_units: int = 1000, **more: Any) -> World:
        journal = make_journal(gated, max_units=max_units)
        await nursery.start(journal.run)
        return World(nursery, gated, make_place(nursery, journal, **more))

    return make
