"""I3: wherever a call or its connection is cut off, nobody is given another's reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import attrs
import orjson
import pytest
import trio
from figures import Figure
from memory_world import MemoryWorld, memory_world
from steps import SEED, interrupted
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.agents import App, Command, Run
from wsrecover.client import ClientSession, connect
from wsrecover.client.following import Following
from wsrecover.client.outbox import Outbox
from wsrecover.errors import CommandError, ConnectionClosed
from wsrecover.protocol.frames import ErrorBody, Reply
from wsrecover.streams.store import StreamKey
from wsrecover.testing import Peer
from wsrecover.transport import open_socket

pytestmark = pytest.mark.usefixtures("same_order_each_time")


@attrs.frozen
class Words:
    value: str


def talkative() -> App:
    """What is said to it is in all that it says."""
    app = App()

    @app.command("echo")
    async def echo(command: Command, words: Words) -> dict[str, str]:
        await trio.lowlevel.checkpoint()
        command.emit("echoed", {"value": words.value})
        return {"value": words.value}

    @app.agent("worker")
    async def worker(run: Run) -> None:
        await trio.sleep_forever()

    @app.agent("asker")
    async def asker(run: Run) -> dict[str, Any]:
        return {"value": await run.ask("And?")}

    return app


@attrs.define
class Log:
    """The log of a user, to hold a reply against."""

    events: list[dict[str, Any]]

    @classmethod
    async def of(cls, world: MemoryWorld, user: str) -> Log:
        key, store = StreamKey("user", "acme", user), world.services.store
        head = (await store.load(key)).head
        entries = await store.read(key, 0, upto=head, max_events=1000, max_bytes=1 << 20)
        return cls([orjson.loads(entry.body) for entry in entries])

    def said_at(self, seq: int) -> Any:
        return self.events[seq - 1]["data"].get("value", self.events[seq - 1]["data"].get("text"))

    def of_run(self, kind: str, run: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["type"] == kind and event["run"] == run]


Check = Callable[[Log], bool]
"""Whether a reply was the caller's own, as the log tells."""


class Caller:
    """Calls over one session. Each says something that no other says; `replies` are what came of it."""

    def __init__(self, world: MemoryWorld, session: ClientSession, user: str, name: str) -> None:
        self.world = world
        self.session = session
        self.user = user
        self.name = name
        self.replies: list[tuple[str, Check]] = []
        self.runs: list[str] = []
        self.requests: list[tuple[str, str]] = []

    def value(self, what: str) -> str:
        return f"{self.name}: {what}"

    def note(self, what: str, check: Check) -> None:
        self.replies.append((what, check))

    async def prepare(self, kind: str, count: int) -> None:
        """Runs to cancel, and requests to answer."""
        for _ in range(count if kind == "cancel" else 0):
            self.runs.append(await self.session.start_agent("worker"))
        for _ in range(count if kind == "respond" else 0):
            run = await self.session.start_agent("asker")
            await wait_all_tasks_blocked()
            (asked,) = (await Log.of(self.world, self.user)).of_run("input_requested", run)
            self.requests.append((run, asked["request_id"]))

    async def echo(self, what: str) -> None:
        value = self.value(what)
        result = await self.session.send("echo", {"value": value})
        self.note(what, lambda _: result == {"value": value})

    async def chat(self, what: str) -> None:
        seq = await self.session.chat({"value": self.value(what)})
        self.note(what, lambda log: log.said_at(seq) == self.value(what))

    async def user_message(self, what: str) -> None:
        seq = await self.session.user_message(self.value(what))
        self.note(what, lambda log: log.said_at(seq) == self.value(what))

    async def start_agent(self, what: str) -> None:
        given = {"value": self.value(what)}
        run = await self.session.start_agent("worker", given)
        self.note(what, lambda log: [one["input"] for one in log.of_run("agent_started", run)] == [given])

    async def refused(self, what: str) -> None:
        """An error that quotes what it refuses."""
        kind = f"no_such.{self.name}.{what}"
        with pytest.raises(CommandError) as caught:
            await self.session.send(kind, {})
        self.note(what, lambda _: caught.value.code == "unknown_type" and repr(kind) in str(caught.value))

    async def cancel(self, what: str) -> None:
        run = self.runs.pop()
        result = await self.session.cancel(run)
        self.note(what, lambda _: result == {"run": run, "status": "cancelled"})

    async def respond(self, what: str) -> None:
        run, request = self.requests.pop()
        value = self.value(what)
        await self.session.respond(request, value)
        heard = [{"value": value}]
        self.note(what, lambda log: [one["result"] for one in log.of_run("agent_completed", run)] == heard)

    async def follow(self, what: str) -> None:
        """`again` must not be told by the reply to the one before: what it asks for holds when it returns."""
        thread = what.replace(" ", "-")
        await self.session.follow([thread])
        (session,) = [one for one in self.world.registry.sessions.values() if one.user == self.user]
        wanted = [connection.delivery.wanted for connection in session.connections.values()]
        self.note(what, lambda _: frozenset({thread}) in wanted)


@attrs.define
class Tally:
    """What made up the figure, over all steps."""

    counts: Counter[str] = attrs.field(factory=Counter)

    async def judge(self, world: MemoryWorld, callers: list[Caller]) -> None:
        for caller in callers:
            log = await Log.of(world, caller.user)
            for what, check in caller.replies:
                self.counts["replies"] += 1
                if not check(log):
                    self.counts["cross"] += 1
                    self.counts[f"cross {caller.name} {what}"] += 1


@asynccontextmanager
async def callers(world: MemoryWorld) -> AsyncIterator[list[Caller]]:
    """One tab of a user, another one, and somebody else."""
    async with AsyncExitStack() as stack:
        made = []
        for user, name in (("ada", "tab"), ("ada", "other tab"), ("grace", "stranger")):
            session = await stack.enter_async_context(
                connect(
                    world.local.url,
                    token=world.local.token(user),
                    dial=partial(open_socket, dial=world.network.dial),
                )
            )
            made.append(Caller(world, session, user, name))
        yield made


BESIDE = ("echo", "refused")
KINDS = ("echo", "chat", "user_message", "start_agent", "refused", "cancel", "respond", "follow")


async def cancelled_at(step: int, kind: str, tally: Tally) -> bool:
    """Cancel a call at this step, with others under way, and call again. False: it was done before."""
    async with memory_world(talkative()) as world, callers(world) as three:
        mine = three[0]
        await mine.prepare(kind, 2)
        call: Callable[[str], Awaitable[None]] = getattr(mine, kind)
        own = trio.CancelScope()
        async with interrupted(step, own.cancel) as instrument, trio.open_nursery() as nursery:
            for caller in three:
                for other in BESIDE:
                    nursery.start_soon(getattr(caller, other), f"beside by {other}")
            with own:
                await call("first")
            in_time = not instrument.reached
            await call("again")
        tally.counts["cancelled"] += own.cancelled_caught
        await wait_all_tasks_blocked()
        await tally.judge(world, three)
    return not in_time


@pytest.mark.parametrize("kind", KINDS)
async def test_i3_a_call_that_is_cancelled_at_any_step_leaves_its_reply_to_nobody(
    kind: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    tally = Tally()
    reply, answer = Outbox.reply, Following.answer

    def noted(following: Following, ref: str | None, error: ErrorBody | None) -> bool:
        change = following._change
        taken = answer(following, ref, error)
        tally.counts["for nobody"] += taken and (change is None or change.ref != ref)
        return taken

    def counted(outbox: Outbox, frame: Reply) -> None:
        tally.counts["for nobody"] += frame.id not in outbox._commands
        reply(outbox, frame)

    monkeypatch.setattr(Outbox, "reply", counted)
    monkeypatch.setattr(Following, "answer", noted)
    steps = 0
    while await cancelled_at(steps, kind, tally):
        steps += 1
    counts = tally.counts
    what = f"cross replies, {kind} cancelled at each of {steps} steps ({counts['replies']} replies, "
    figure("I3", f"{what}{counts['for nobody']} came for a call that was gone)", counts["cross"])
    assert counts["cross"] == 0, f"seed {SEED}: {counts}"
    assert steps > 5
    # Every call that was not cancelled was answered: those beside, the one that came again, and the first.
    assert counts["replies"] == (3 * len(BESIDE) + 2) * (steps + 1) - counts["cancelled"]
    assert counts["cancelled"] > steps // 2
    assert counts["for nobody"] > 0


@attrs.define
class Talk:
    """A raw connection that asks, by ids that others use too. `asked` is the answer that each id must get."""

    peer: Peer
    asked: dict[str, str]
    answered: dict[str, list[dict[str, Any]]] = attrs.field(factory=dict)

    async def ask(self, **more: Any) -> None:
        """Ask for all that has no answer yet, and read until there is one, or the connection ends."""
        left = {ref: value for ref, value in self.asked.items() if ref not in self.answered}
        try:
            for ref, value in left.items():
                data = {"value": value}
                await self.peer.send({"op": "send", "id": ref, "type": "echo", "data": data, **more})
            while left:
                frame = (await self.peer.until("reply"))[-1]
                self.answered.setdefault(frame["id"], []).append(frame)
                left.pop(frame["id"], None)
        except (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            return

    def cross(self) -> int:
        """Replies that are another's, by their id or by what they say; or that came twice."""
        wrong = 0
        for ref, frames in self.answered.items():
            said = [frame.get("result") for frame in frames]
            wrong += said != [{"value": self.asked.get(ref)}]
        return wrong


def close_it(world: MemoryWorld) -> None:
    """The server ends the first connection."""
    for connection in world.registry.sessions["acme", "ada"].connections.values():
        if connection.member.client == "one":
            connection.close(4003, "nothing was heard")
            return


def cut_it(world: MemoryWorld) -> None:
    """The network ends it."""
    world.network.connections[0].cut()


@pytest.mark.parametrize("end", [close_it, cut_it])
async def test_i3_a_connection_that_ends_at_any_step_leaves_its_replies_to_nobody(
    end: Callable[[MemoryWorld], None], autojump_clock: MockClock, figure: Figure
) -> None:
    """Another tab asks by ids of its own, a stranger by the same; then the first comes back and repeats."""
    counts: Counter[str] = Counter()
    step, reached = 0, True
    while reached:
        async with memory_world(talkative()) as world, AsyncExitStack() as stack:
            connected = partial(world.local.peer, dial=world.network.dial)
            talks = []
            for user, client, refs in (
                ("ada", "one", "abc"),
                ("ada", "two", "xyz"),
                ("eve", "one", "abc"),
            ):
                peer = await stack.enter_async_context(connected(user, client=client))
                await peer.until("live")
                talks.append(Talk(peer, {ref: f"{user} {client} {ref}" for ref in refs}))
            first = talks[0]
            async with interrupted(step, partial(end, world)) as instrument, trio.open_nursery() as nursery:
                for talk in talks:
                    nursery.start_soon(talk.ask)
            reached = instrument.reached
            counts["lost"] += len(first.asked) - len(first.answered)
            back = Talk(await stack.enter_async_context(connected("ada", client="one")), first.asked)
            back.answered = first.answered
            await back.ask(age=1.0)
            for talk in talks:
                counts["cross"] += talk.cross()
                counts["replies"] += sum(map(len, talk.answered.values()))
        step += 1
    what = f"cross replies, {end.__name__} at each of {step} steps ({counts['replies']} replies, "
    figure("I3", f"{what}{counts['lost']} of them by a later connection)", counts["cross"])
    assert counts["cross"] == 0, f"seed {SEED}: {counts}"
    assert counts["replies"] == 9 * step
    assert counts["lost"] > step // 2
