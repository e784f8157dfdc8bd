"""I1 and A6: what is foreign takes the same way through the server as what does not exist.

Whoever asks is answered in the same words (`test_isolation`). Here it is held that the server also does the
same for it: the same calls of its functions in the same order, the same calls of the store, and as many steps
of the scheduler. So there is nothing that a clock could tell apart; the medians are printed all the same.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import attrs
import pytest
import trio
from figures import Figure
from memory_world import MemoryWorld, memory_world
from serving import START
from steps import SEED
from trio.testing import MockClock, wait_all_tasks_blocked

import wsrecover
from wsrecover.agents import App, Command, Run
from wsrecover.config import Limits, Tier
from wsrecover.streams.store import Store
from wsrecover.testing import Peer

pytestmark = pytest.mark.usefixtures("same_order_each_time")

PACKAGE: Final = str(Path(wsrecover.__file__).parent)
PAIRS: Final = 3_000 if os.environ.get("WSRECOVER_FAULTS") == "1" else 100


@attrs.frozen
class Anything:
    pass


def app() -> App:
    made = App()

    @made.agent("asker")
    async def asker(run: Run) -> None:
        await run.ask("And?")

    @made.command("refund", roles=["billing"])
    async def refund(_: Command, __: Anything) -> None:
        pass

    return made


@attrs.define(eq=False)
class Trace(trio.abc.Instrument):
    """What the server did: its functions and the store's, in order, and the steps of all tasks."""

    calls: list[str] = attrs.field(factory=list)
    steps: int = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1

    def see(self, frame: FrameType, event: str, _: object) -> None:
        # A coroutine that goes on is a call as well: so this tells the checkpoints, too.
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.calls.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}")

    @property
    def of_store(self) -> list[str]:
        names = {name for name in dir(Store) if not name.startswith("_")}
        return [call for call in self.calls if call.startswith("memory.") and call[7:] in names]


@contextmanager
def traced() -> Any:
    trace = Trace()
    trio._core._run._r.seed(SEED)  # The tasks of a tick in the same order as the last time.
    trio.lowlevel.add_instrument(trace)
    sys.setprofile(trace.see)
    try:
        yield trace
    finally:
        sys.setprofile(None)
        trio.lowlevel.remove_instrument(trace)


OTHER: Final = str.maketrans("123456789abcdf", "234567891bcdfa")


@attrs.define
class Case:
    """One thing to ask for: `ask(id)`, and the ids of what is another's and of what is nobody's.

    They look alike, a digit for a digit: some forms of a text cost a second look, whatever it names.
    """

    ask: Callable[[str], Awaitable[None]]
    foreign: str
    absent: str = attrs.field()

    @absent.default
    def _absent(self) -> str:
        return self.foreign.translate(OTHER)


async def hello(world: MemoryWorld, **fields: Any) -> None:
    async with world.local.peer("mallory", client="m", dial=world.network.dial, **fields, **START) as peer:
        await peer.until("live")


def command(peer: Peer, kind: str, field: str, **more: Any) -> Callable[[str], Awaitable[None]]:
    async def ask(name: str) -> None:
        data = {field: name, **more} if field else {}
        reply = await peer.command(kind if field else name, data, id="the same each time")
        assert reply["error"]["code"] in ("not_found", "unknown_type", "forbidden")

    return ask


def acknowledge(peer: Peer) -> Callable[[str], Awaitable[None]]:
    async def ask(name: str) -> None:
        await peer.send({"op": "ack", "pos": {name: 1}})
        await peer.until("error")

    return ask


@asynccontextmanager
async def cases() -> AsyncIterator[dict[str, Case]]:
    """A victim with one of each, and mallory, a service of another tenant where that is what may ask."""
    tier = Tier(commands_per_second=1_000_000, commands_burst=1_000_000)
    limits = Limits(tenant_commands_per_second=1_000_000, frames_per_second=1_000_000)
    async with memory_world(app(), tier=tier, limits=limits) as world, AsyncExitStack() as stack:

        async def peer(user: str, **more: Any) -> Peer:
            made = await stack.enter_async_context(
                world.local.peer(user, dial=world.network.dial, client=f"of-{user}", **more)
            )
            await made.until("live")
            return made

        victim = await peer("victim", roles=["service", "billing"])
        run = (await victim.command("start_agent", {"agent": "asker"}))["result"]["run"]
        request = (await victim.events(2))[1]["data"]["request_id"]
        notice = {"to": "role:billing", "type": "notice", "data": {}}
        receipt = (await victim.command("broadcast", notice))["result"]["receipt"]
        epoch = world.services.streams._streams[world.registry.sessions["acme", "victim"].key].epoch
        mallory, service = await peer("mallory"), await peer("service", tenant="other", roles=["service"])
        event = {"type": "noted", "data": {}}

        yield {
            "cancel_run": Case(command(mallory, "cancel_run", "run"), run),
            "respond": Case(command(mallory, "respond", "request", answer=1), request),
            "receipt": Case(command(service, "receipt", "receipt"), receipt),
            "publish": Case(
                command(service, "publish", "tenant", user="victim", events=[event]), "acme", "acne"
            ),
            "broadcast": Case(command(service, "broadcast", "tenant", **notice), "acme", "acne"),
            "command": Case(command(mallory, "", ""), "refund", "refudn"),
            "ack": Case(acknowledge(mallory), "role:billing", "role:bilking"),
            "resume": Case(lambda name: hello(world, resume={"user": [name, 1]}), epoch),
            "part": Case(lambda name: hello(world, resume={"user": [name, 1]}, part={"user": [2, 1]}), epoch),
        }


NAMES: Final = (
    "cancel_run",
    "respond",
    "receipt",
    "publish",
    "broadcast",
    "command",
    "ack",
    "resume",
    "part",
)

ROLE_IS_LOOKED_AT: Final = {"command": ["policy.may"]}
"""Of what there is it is asked whether the caller may: a look at a set of roles, and all that differs."""


@pytest.mark.parametrize("name", NAMES)
async def test_i1_what_is_foreign_goes_the_same_way_as_what_is_absent(
    name: str, autojump_clock: MockClock, figure: Figure
) -> None:
    async with cases() as each:
        case = each[name]
        traces: dict[str, Trace] = {}
        await case.ask(case.absent.translate(OTHER))  # What is made once is made.
        for which in ("foreign", "absent"):
            await wait_all_tasks_blocked()
            with traced() as trace:
                await case.ask(getattr(case, which))
                await wait_all_tasks_blocked()
            traces[which] = trace
    foreign, absent = traces["foreign"], traces["absent"]
    extra = ROLE_IS_LOOKED_AT.get(name, [])
    calls = [call for call in foreign.calls if call not in extra]
    differ = (calls, foreign.of_store, foreign.steps) != (absent.calls, absent.of_store, absent.steps)
    what = f"{name}: another way for what is foreign ({len(absent.calls)} calls, {absent.steps} steps)"
    figure("I1 A6", what, int(differ))
    assert calls == absent.calls
    assert foreign.of_store == absent.of_store
    assert foreign.steps == absent.steps
    assert len(foreign.calls) - len(calls) == len(extra)
    assert len(absent.calls) > 20
    assert absent.steps > 2


@pytest.mark.parametrize("name", NAMES)
async def test_i1_the_time_that_it_takes(name: str, figure: Figure) -> None:
    """Interleaved, in one process and without a network, in an order that changes: no time is asserted."""
    taken: dict[str, list[float]] = {"foreign": [], "absent": []}
    async with cases() as each:
        case = each[name]
        for number in range(PAIRS):
            for which in ("foreign", "absent") if number % 2 else ("absent", "foreign"):
                started = time.perf_counter()
                await case.ask(getattr(case, which))
                taken[which].append((time.perf_counter() - started) * 1e6)
    foreign, absent = (statistics.median(taken[which]) for which in ("foreign", "absent"))
    spread = statistics.quantiles(taken["absent"], n=4)
    quartiles = f"quartiles {spread[0]:.0f} to {spread[2]:.0f}"
    what = f"{name}: median µs, foreign and absent ({PAIRS} pairs, {quartiles})"
    figure("I1 A6", what, f"{foreign:.0f} {absent:.0f}")
