"""M08: a revoked user is erased on demand: nothing is shown, replayed, answered or left in the files."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from figures import Figure
from serving import START, Clock, Frame, frames_until_closed, log_of, until_none

import wsrecover
from wsrecover.access import sign
from wsrecover.config import Retention
from wsrecover.errors import RunError, StoreUnavailable
from wsrecover.streams.store import UserRevocation
from wsrecover.testing import LocalServer, local_server

CANARY = "canary-of-ada"
LATER = 60.0
"""Seconds in which a fresh token counts again."""


@attrs.frozen
class Question:
    """What the app's own command is asked."""

    text: str


class Agents:
    """An app with an agent that leaves its mark wherever it can, and two that never end by themselves."""

    def __init__(self) -> None:
        self.app = wsrecover.App()
        self.began = trio.Event()
        self.let_go = trio.Event()
        self.refused: list[str] = []
        self.app.agent("scribe")(self.scribe)
        self.app.agent("busy")(self.busy)
        self.app.agent("stubborn")(self.stubborn)
        self.app.command("ask")(self.ask)
        self.app.command("ponder")(self.ponder)

    async def scribe(self, run: wsrecover.Run) -> dict[str, str]:
        await run.memory.set("said", run.input["text"])
        async with run.message() as message:
            await message.text(run.input["text"])
        return {"result": run.input["text"]}

    async def busy(self, run: wsrecover.Run) -> None:
        while True:
            await run.emit("noted", {"text": CANARY})
            await run.flush()
            self.began.set()

    async def stubborn(self, run: wsrecover.Run) -> None:
        """Does not heed its cancellation."""
        await run.emit("noted", {"text": CANARY})
        await run.flush()
        self.began.set()
        with trio.CancelScope(shield=True):
            await self.let_go.wait()
            for kind in ("late", "later"):
                try:
                    await run.emit(kind, {"text": CANARY})
                    await run.flush()
                except RunError as error:
                    self.refused.append(type(error).__name__)

    async def ask(self, _: wsrecover.Command, question: Question) -> dict[str, str]:
        return {"answer": question.text}

    async def ponder(self, command: wsrecover.Command, question: Question) -> None:
        self.began.set()
        await self.let_go.wait()
        command.emit("pondered", {"text": question.text})


@pytest.fixture
def agents() -> Agents:
    return Agents()


def found(folder: Path, text: str) -> int:
    """How often the text is in the store's files."""
    return sum(file.read_bytes().count(text.encode()) for file in folder.iterdir() if file.is_file())


def assert_kept(before: list[Frame], now: list[Frame], *, at_least: int) -> None:
    """All is there, but for what retention, which comes behind the events, let go of meanwhile."""
    assert now[-1]["seq"] - now[0]["seq"] + 1 >= at_least
    assert now == before[-len(now) :]


async def fill(local: LocalServer, user: str, canary: str) -> None:
    """All that can be kept of a user; some of it is trimmed at once."""
    for number in range(60):
        await local.server.publish(
            "acme", user, "noted", {"text": f"{canary} {number}"}, id=f"{canary}-{number}"
        )
    await local.server.publish("acme", user, "noted", {"text": canary * 5_000}, thread=canary)
    async with local.peer(user, client=canary) as peer:
        await peer.until("live")
        await peer.command("user_message", {"text": canary}, id=f"{canary}-c1", thread=canary)
        await peer.command("ask", {"text": canary}, id=f"{canary}-c2")
        reply = await peer.command(
            "start_agent", {"agent": "scribe", "input": {"text": canary}}, thread=canary
        )
        assert reply["status"] == "ok"
        await until_none(local, "runs")
    await local.server.registry.session("acme", user).contexts.store()


async def test_m08_an_erased_user_is_in_no_file_and_nobody_else_is_touched(
    tmp_path: Path, clock: Clock, agents: Agents, figure: Figure
) -> None:
    store, small = f"sqlite:{tmp_path / 'log.db'}", Retention(events=40)
    async with local_server(agents.app, store=store, wall_clock=clock, retention=small) as local:
        await fill(local, "ada", CANARY)
        await fill(local, "grace", "canary-of-grace")
        epoch, grace = await log_of(local, "grace")
        assert found(tmp_path, CANARY) > 40
        await local.server.erase("acme", "ada")
        left = found(tmp_path, CANARY)
        figure("M08", "traces of an erased user in the store's files", left)
        assert left == 0
        now_epoch, now = await log_of(local, "grace")
        assert now_epoch == epoch
        assert_kept(grace, now, at_least=small.events)
        assert found(tmp_path, "canary-of-grace") > 40
    assert found(tmp_path, CANARY) == 0
    async with local_server(agents.app, store=store, wall_clock=clock, retention=small) as local:
        clock.now += LATER
        assert (await log_of(local, "ada"))[1] == []
        assert_kept(grace, (await log_of(local, "grace"))[1], at_least=small.events)
        async with local.peer("ada") as peer:
            await peer.until("live")
            reply = await peer.command("ask", {"text": "another"}, id=f"{CANARY}-c2")
            assert (reply["status"], reply["result"]) == ("ok", {"answer": "another"})


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
async def test_m08_who_comes_back_after_being_erased_begins_anew(
    tmp_path: Path, clock: Clock, backend: str
) -> None:
    store = "memory" if backend == "memory" else f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(store=store, wall_clock=clock) as local:
        for n in range(3):
            await local.server.publish("acme", "ada", "noted", {"text": CANARY, "n": n})
        old, _ = await log_of(local)
        async with local.peer() as peer:
            await peer.until("live")
            assert await local.server.erase("acme", "ada") == 1
            frames, code = await frames_until_closed(peer)
            assert ([frame["op"] for frame in frames], code) == ([], 4503)
        clock.now += LATER
        async with local.peer(resume={"user": [old, 2]}) as peer:
            welcome, *frames = await peer.until("live")
            info = welcome["streams"]["user"]
            assert (info["resumed"], info["reason"], info["head"]) == (False, "epoch_changed", 0)
            assert info["epoch"] != old
            assert [frame for frame in frames if frame["op"] != "live"] == []
            await local.server.publish("acme", "ada", "noted", {"text": "new"})
            assert [(event["seq"], event["data"]) for event in await peer.events(1)] == [(1, {"text": "new"})]


async def test_m08_runs_of_an_erased_user_end_and_leave_nothing(clock: Clock, agents: Agents) -> None:
    async with local_server(agents.app, wall_clock=clock) as local:
        await local.server.start_agent("acme", "ada", "busy", {})
        await agents.began.wait()
        await local.server.erase("acme", "ada")
        await until_none(local, "runs")
        clock.now += LATER
        assert (await log_of(local))[1] == []


async def test_m08_an_agent_that_does_not_heed_it_can_log_nothing_more(clock: Clock, agents: Agents) -> None:
    async with local_server(agents.app, wall_clock=clock) as local:
        await log_of(local)  # Its session holds on to the stream from here.
        await local.server.start_agent("acme", "ada", "stubborn", {})
        await agents.began.wait()
        await local.server.erase("acme", "ada")
        assert agents.refused == []
        await local.server.publish("acme", "ada", "noted", {"text": "new"})
        clock.now += LATER
        assert [event["seq"] for event in (await log_of(local))[1]] == [1]
        agents.let_go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert agents.refused == ["RunBroken", "RunBroken"]
        assert [event["data"]["text"] for event in (await log_of(local))[1]] == ["new"]


async def test_m08_a_command_of_an_erased_user_comes_to_nothing(clock: Clock, agents: Agents) -> None:
    async with local_server(agents.app, wall_clock=clock) as local:
        async with local.peer() as peer:
            await peer.until("live")
            data = {"text": CANARY}
            await peer.send({"op": "send", "id": "c1", "type": "ponder", "data": data})
            await agents.began.wait()
            await local.server.erase("acme", "ada")
            agents.let_go.set()
            await frames_until_closed(peer)
        await trio.testing.wait_all_tasks_blocked()
        clock.now += LATER
        assert (await log_of(local))[1] == []
        async with local.peer() as peer:
            await peer.until("live")
            reply = await peer.command("ask", {"text": "another"}, id="c1")
            assert reply["status"] == "ok"


async def test_m08_a_run_of_an_erased_user_is_no_lost_run_of_the_next_process(
    tmp_path: Path, clock: Clock, agents: Agents
) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(agents.app, store=store, wall_clock=clock) as local:
        await local.server.start_agent("acme", "ada", "stubborn", {})
        await agents.began.wait()
        await local.server.erase("acme", "ada")
        agents.let_go.set()
    async with local_server(agents.app, store=store, wall_clock=clock) as local:
        clock.now += LATER
        assert (await log_of(local))[1] == []


class Held:
    """Holds the store's erasing until it is let go."""

    def __init__(self, local: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.let_go = trio.Event(), trio.Event()
        store = local.server._services.store
        self._erase = store.erase
        monkeypatch.setattr(store, "erase", self.erase)

    async def erase(self, one: UserRevocation) -> None:
        self.began.set()
        await self.let_go.wait()
        await self._erase(one)


async def test_m08_nobody_begins_as_a_user_who_is_being_erased(
    clock: Clock, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local_server(agents.app, wall_clock=clock) as local, trio.open_nursery() as nursery:
        await local.server.publish("acme", "ada", "noted", {"text": CANARY})
        held = Held(local, monkeypatch)
        nursery.start_soon(_erase_ada, local)
        await held.began.wait()
        clock.now += LATER
        async with local.peer() as peer:
            assert (await frames_until_closed(peer))[1] == 1013
        with pytest.raises(StoreUnavailable):
            await local.server.start_agent("acme", "ada", "busy", {})
        nursery.start_soon(local.server.publish, "acme", "ada", "noted", {"text": "afterwards"})
        await trio.testing.wait_all_tasks_blocked()
        held.let_go.set()
        async with local.peer("grace") as peer:
            await peer.until("live")
        await trio.testing.wait_all_tasks_blocked()
        assert [event["data"]["text"] for event in (await log_of(local))[1]] == ["afterwards"]


async def _erase_ada(local: LocalServer) -> None:
    await local.server.erase("acme", "ada")


async def test_m08_who_has_a_token_of_later_is_told_to_come_again(clock: Clock) -> None:
    async with local_server(wall_clock=clock) as local:
        await local.server.publish("acme", "ada", "noted", {"text": CANARY})
        later = sign(
            local.secret, tenant="acme", user="ada", lifetime=3600, clock=lambda: clock.now + LATER + 10
        )
        clock.now += LATER
        async with local.peer(token=later, **START) as peer:
            await peer.events(1)
            clock.now -= LATER
            assert await local.server.erase("acme", "ada") == 0
            assert (await frames_until_closed(peer))[1] == 4007
        clock.now += LATER
        async with local.peer(token=later, **START) as peer:
            _, *frames = await peer.until("live")
            assert [frame["op"] for frame in frames if frame["op"] == "event"] == []


async def test_m08_contexts_that_are_in_memory_are_not_those_of_the_new_stream(
    clock: Clock, agents: Agents
) -> None:
    async with local_server(agents.app, wall_clock=clock) as local:
        await fill(local, "ada", CANARY)
        old = local.server.registry.session("acme", "ada").contexts
        assert CANARY in (await old.snapshot()).contexts
        await local.server.erase("acme", "ada")
        assert (await old.snapshot()).contexts == {}
        await old.store()
        assert local.server.registry.session("acme", "ada").contexts is not old
        assert (await local.server.registry.session("acme", "ada").contexts.snapshot()).contexts == {}


@pytest.mark.parametrize("steps", range(8))
async def test_m08_an_erasing_that_is_cancelled_is_whole_or_absent(clock: Clock, steps: int) -> None:
    async with local_server(wall_clock=clock) as local:
        await local.server.publish("acme", "ada", "noted", {"text": CANARY})
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_erase_ada, local)
                for _ in range(steps):
                    await trio.lowlevel.cancel_shielded_checkpoint()
                scope.cancel()
        clock.now += LATER
        epoch, events = await log_of(local)
        assert len(events) in (0, 1)
        if not events:  # And a later one has nothing to wait for.
            assert (await log_of(local))[0] == epoch
        await local.server.erase("acme", "ada")
        clock.now += LATER
        assert (await log_of(local))[1] == []
