"""M03: stopped at every step of any task, publish, attach, replay and close leave everything consistent."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import memory_world as memory_world_module
import pytest
import trio
from memory_world import MemoryWorld, memory_world
from stage import Stage
from steps import SEED, interrupted
from trio.testing import MockClock, wait_all_tasks_blocked
from witness import Client, Witness

from wsrecover.agents import App, Command
from wsrecover.config import Config, Limits
from wsrecover.server import serve
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.store import StreamKey

pytestmark = pytest.mark.usefixtures("same_order_each_time")


@attrs.frozen
class Held:
    """What must be as before once all is quiet."""

    tasks: int
    connections: int
    runs: int
    live: int
    queued: int
    waiting: int

    @classmethod
    async def when_quiet(cls, world: MemoryWorld) -> Held:
        # More than a close may take, less than a session lingers or a heartbeat is silent.
        await trio.sleep(6)
        await wait_all_tasks_blocked()
        known = world.local.server.statistics()
        streams = world.services.streams._streams.values()
        return cls(
            tasks=trio.lowlevel.current_statistics().tasks_living,
            connections=known.sessions.connections,
            runs=known.sessions.runs,
            live=sum(len(stream.live) for stream in streams),
            queued=known.journal.units + known.journal.bytes,
            waiting=known.journal.waiting,
        )


Operation = Callable[[MemoryWorld, Witness, Client], Awaitable[None]]


async def publish(world: MemoryWorld, witness: Witness, onlooker: Client) -> None:
    await witness.publish(3)


async def publish_into_a_full_journal(world: MemoryWorld, witness: Witness, onlooker: Client) -> None:
    """The journal has room for one unit: all but the first wait for it."""
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(witness.publish)


async def attach(world: MemoryWorld, witness: Witness, onlooker: Client) -> None:
    async with witness.client() as client:
        await client.session.wait_status("live")
        await client.drop()


async def replay(world: MemoryWorld, witness: Witness, onlooker: Client) -> None:
    async with witness.client(url=None, from_="start") as client:
        await client.take(len(onlooker.events))
        await client.drop()


async def run_an_agent(world: MemoryWorld, witness: Witness, onlooker: Client) -> None:
    async with witness.client(from_="live") as client:
        await client.session.start_agent("worker")
        await client.until("agent_completed")


async def take_a_note(world: MemoryWorld, witness: Witness, onlooker: Client) -> None:
    """A command of the app's own: a handler that ran twice would log its event twice."""
    async with witness.client(from_="live") as client:
        assert await client.session.send("note", {"text": "milk"}) == {"length": 4}


async def ask_and_answer(world: MemoryWorld, witness: Witness, onlooker: Client) -> None:
    async with witness.client(from_="live") as client:
        await client.session.start_agent("asker")
        asked = (await client.until("input_requested"))[-1]
        await client.session.respond(asked.data["request_id"], "go on")
        ended = (await client.until("agent_completed"))[-1]
        assert ended.data["result"] == {"heard": "go on"}


async def answer_what_is_asked_still(world: MemoryWorld, onlooker: Client) -> None:
    await wait_all_tasks_blocked()
    for session in world.registry.sessions.values():
        for request in list(session.runs.requests._open):
            await onlooker.session.respond(request, "go on")


OPERATIONS: list[Operation] = [
    publish,
    publish_into_a_full_journal,
    attach,
    replay,
    run_an_agent,
    take_a_note,
    ask_and_answer,
]


@pytest.fixture
def limits() -> Limits:
    # A replay goes through the store page by page, and a publish has to wait for its turn.
    return Limits(
        tail_events=4, page_events=5, page_bytes=4096, part_bytes=1024, journal_units=1, journal_bytes=4096
    )


async def at_step(
    step: int, operation: Operation, limits: Limits, stop: Callable[[MemoryWorld, trio.CancelScope], None]
) -> tuple[bool, int]:
    """Do the operation and stop it at this step; everything must hold then.

    Returns whether the step was reached before it was done, and how many events there are in the end.
    """
    stage = Stage()
    async with memory_world(stage.app, limits=limits) as world:
        witness = Witness(world.local, dial=world.network.dial)
        async with witness.client() as onlooker:
            await witness.publish(40)
            await onlooker.take(40)
            before = await Held.when_quiet(world)
            # Enough for a run of this operation, and for another one behind it.
            stage.tell("think", "tool", "finish")
            with trio.CancelScope() as scope:
                async with interrupted(step, lambda: stop(world, scope)) as instrument:
                    await operation(world, witness, onlooker)
            stage.tell("finish")
            await answer_what_is_asked_still(world, onlooker)
            assert await Held.when_quiet(world) == before, f"step {step}, seed {SEED}"
            await witness.publish(2)
            await caught_up(onlooker)
            assert onlooker.notices == [], f"step {step}, seed {SEED}"
            onlooker.settled()
        report = await witness.check(drained=42)
    return instrument.reached, report.counts["drained"]


async def caught_up(client: Client) -> None:
    await wait_all_tasks_blocked()
    while client.session._shared.inbox._entries:
        await client.take(1)


def cancel(world: MemoryWorld, scope: trio.CancelScope) -> None:
    """Whoever asked for it does not want it any more."""
    scope.cancel()


def cut_the_network(world: MemoryWorld, scope: trio.CancelScope) -> None:
    """Every connection breaks; the operation goes on by another one."""
    world.network.cut()


def close_at_the_server(world: MemoryWorld, scope: trio.CancelScope) -> None:
    """The server closes every connection; the operation goes on by another one."""
    for session in list(world.registry.sessions.values()):
        for connection in list(session.connections.values()):
            connection.close(4003, "nothing was heard")


@pytest.mark.parametrize("stop", [cancel, cut_the_network, close_at_the_server])
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_m03_stopped_at_every_step(
    operation: Operation,
    stop: Callable[[MemoryWorld, trio.CancelScope], None],
    limits: Limits,
    autojump_clock: MockClock,
) -> None:
    outcomes: list[int] = []
    reached = True
    while reached:
        reached, events = await at_step(len(outcomes), operation, limits, stop)
        outcomes.append(events)
    assert len(outcomes) > 10
    # Stopped early it left less in the log than it did in the end, where it leaves anything there.
    assert outcomes == sorted(outcomes) or stop is not cancel or operation is publish_into_a_full_journal
    if operation not in (attach, replay):
        assert (min(outcomes) < max(outcomes)) == (stop is cancel)


async def test_m03_close_is_cancelled_at_every_step(limits: Limits, autojump_clock: MockClock) -> None:
    step = 0
    reached = True
    while reached:
        async with memory_world(limits=limits) as world:
            witness = Witness(world.local, dial=world.network.dial)
            await witness.publish(5)
            async with witness.client() as onlooker:
                await onlooker.take(5)
                before = await Held.when_quiet(world)
                async with witness.client() as client:
                    await client.take(5)
                    with trio.CancelScope() as scope:
                        async with interrupted(step, scope.cancel) as instrument:
                            await client.session.aclose()
                    await client.session.wait_status("closed")
                reached = instrument.reached
                assert await Held.when_quiet(world) == before, f"step {step}, seed {SEED}"
                assert onlooker.notices == []
            await witness.check(drained=5)
        step += 1
    assert step > 10


@attrs.frozen
class Nothing:
    pass


class Shop:
    """An app with the command `order`, on a store that outlives its servers; `ran` counts the handler."""

    def __init__(self) -> None:
        self.app = App()
        self.app.command("order")(self._order)
        self.ran = 0
        self.store = MemoryStore(clock=trio.current_time)

    async def _order(self, command: Command, data: Nothing) -> dict[str, int]:
        self.ran += 1
        command.emit("ordered", {})
        await trio.sleep(1)
        return {"n": self.ran}

    @asynccontextmanager
    async def kept(self, *_: object) -> AsyncIterator[MemoryStore]:
        """The store, left open."""
        yield self.store


async def test_s08_a_server_that_stops_at_any_step_of_a_command_runs_its_handler_once_at_most(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Counter[str] = Counter()
    step, reached = 0, True
    while reached:
        shop = Shop()
        monkeypatch.setattr(memory_world_module, "_opened_store", shop.kept)
        with trio.CancelScope() as scope:
            async with (
                memory_world(shop.app) as world,
                world.local.peer(dial=world.network.dial) as peer,
                interrupted(step, scope.cancel) as instrument,
            ):
                await peer.command("order", {}, id="once")
        reached = instrument.reached
        async with memory_world(shop.app) as world, world.local.peer(dial=world.network.dial) as peer:
            reply = await peer.command("order", {}, id="once", age=1.0)
        outcome = reply["error"]["code"] if reply["status"] == "error" else reply["status"]
        where = f"step {step}, seed {SEED}: {reply}"
        assert shop.ran == 1 or (shop.ran == 0 and outcome == "outcome_unknown"), where
        assert reply.get("result") == (None if outcome == "outcome_unknown" else {"n": 1}), where
        state = await shop.store.load(StreamKey("user", "acme", "ada"))
        assert state.head == (outcome != "outcome_unknown"), where
        told[outcome] += 1
        step += 1
    assert set(told) == {"ok", "duplicate", "outcome_unknown"}, told


@pytest.mark.parametrize("step", range(30))
async def test_m03_a_server_that_is_stopped_while_it_starts_ends(step: int) -> None:
    config = Config(port=0, store="memory", secret=b"for this test alone, not a secret")
    async with trio.open_nursery() as nursery, interrupted(step, nursery.cancel_scope.cancel):
        nursery.start_soon(serve, App(), config)
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
