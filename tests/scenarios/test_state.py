"""R01, R03, C01, C02, C05, E03, E09: the state that a client finds, and the threads that it follows."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import orjson
import pytest
import trio
from memory_world import MemoryWorld, memory_world
from serving import Frame
from stage import Stage
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.agents import App, Run
from wsrecover.client import Changed, ClientSession, Event, Gap, Item, OpenSocket, Snapshot, connect
from wsrecover.config import Contexts, Limits, Retention, Tier, Timeouts
from wsrecover.protocol.context import Context
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import From
from wsrecover.session.contexts import UserContexts
from wsrecover.streams.store import StreamKey
from wsrecover.testing import LocalServer, MemoryNetwork, local_server
from wsrecover.transport import open_socket

T = TypeVar("T")

ADA = StreamKey("user", "acme", "ada")


async def contexts_of(local: LocalServer, user: str = "ada") -> dict[str, Context]:
    """What the server would tell somebody new."""
    contexts = UserContexts(local.server._services, StreamKey("user", "acme", user))
    return dict((await contexts.snapshot()).contexts)


async def say(local: LocalServer, text: str, thread: str | None = "t1", user: str = "ada") -> int:
    data = {"text": text}
    return (await local.server.publish("acme", user, "user_message", data, thread=thread)).seq


def texts(frames: list[Frame]) -> list[str]:
    return [frame["data"]["text"] for frame in frames if frame["op"] == "event"]


def told(frames: list[Frame]) -> dict[str, list[str]]:
    """The texts of each thread in the snapshots among `frames`."""
    return {
        thread: [message["text"] for message in context["messages"]]
        for frame in frames
        if frame["op"] == "snapshot"
        for thread, context in frame["threads"].items()
    }


def ops(frames: list[Frame]) -> list[str]:
    return [frame["op"] for frame in frames]


async def until(session: ClientSession, seq: int) -> list[Item]:
    """All items up to the event, or the end of the snapshot, with this seq."""
    items: list[Item] = []
    with trio.fail_after(30):
        async for item in session:
            items.append(item)
            if isinstance(item, Event) and item.stream == "user" and item.seq >= seq:
                break
            if isinstance(item, Snapshot) and not item.more and item.seq >= seq:
                break
    return items


async def work(stage: Stage) -> None:
    """One run with all that makes a context."""
    stage.tell("think", "tool", "app.own", "finish")


@pytest.fixture
def slow_snapshots(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Contexts are not to be had until this is set."""
    snapshot, go = UserContexts.snapshot, trio.Event()

    async def slow(contexts: UserContexts) -> object:
        await go.wait()
        return await snapshot(contexts)

    monkeypatch.setattr(UserContexts, "snapshot", slow)
    return go


class TestAFreshPage:
    async def test_c01_finds_the_conversation_as_a_snapshot_and_what_follows_as_events(
        self, local: LocalServer
    ) -> None:
        await say(local, "one")
        await say(local, "two", "t2")
        await say(local, "nowhere", None)
        async with local.peer() as peer:
            frames = await peer.until("live", stream="user")
            state = frames[0]["streams"]["user"]
            assert (state["from"], state["resumed"], state["reason"]) == (4, False, "new")
            assert [frame["seq"] for frame in frames if frame["op"] == "snapshot"] == [3]
            assert told(frames) == {"t1": ["one"], "t2": ["two"], "": ["nowhere"]}
            assert texts(frames) == []
            await say(local, "three")
            assert texts(await peer.events(1)) == ["three"]

    async def test_what_its_own_commands_cause_comes_as_events_behind_the_snapshot(
        self, slow_snapshots: trio.Event
    ) -> None:
        """Who waits for such an event would wait for ever if a snapshot, taken late, had it in it already."""
        async with memory_world() as there:
            await say(there.local, "before")
            async with there.local.peer(dial=there.network.dial) as peer:
                for number, text in enumerate(("one", "two")):
                    await peer.send(
                        {
                            "op": "send",
                            "id": f"c{number}",
                            "type": "chat",
                            "data": {"text": text},
                            "thread": "t1",
                        }
                    )
                await wait_all_tasks_blocked()
                assert (await there.services.store.load(StreamKey("user", "acme", "ada"))).head == 1
                slow_snapshots.set()
                frames = await peer.until("event", seq=3)
                assert told(frames) == {"t1": ["before"]}
                assert texts(frames) == ["one", "two"]

    async def test_its_commands_wait_for_that_no_longer_than_the_store_may_take(
        self, slow_snapshots: trio.Event, mock_clock: MockClock
    ) -> None:
        async with memory_world(timeouts=Timeouts(heartbeat=600, store=30)) as there:
            await say(there.local, "before")
            async with there.local.peer(dial=there.network.dial) as peer:
                for number in range(3):  # They wait together, not one after the other.
                    send = {"op": "send", "id": f"c{number}", "type": "chat", "data": {"text": "hi"}}
                    await peer.send(send)
                await wait_all_tasks_blocked()
                key = StreamKey("user", "acme", "ada")
                mock_clock.jump(29)
                await wait_all_tasks_blocked()
                assert (await there.services.store.load(key)).head == 1
                mock_clock.jump(2)
                await wait_all_tasks_blocked()
                assert (await there.services.store.load(key)).head == 4

    async def test_nothing_was_logged_and_there_is_no_snapshot(self, local: LocalServer) -> None:
        async with local.peer() as peer:
            assert "snapshot" not in ops(await peer.until("live", stream="user"))

    @pytest.mark.parametrize(("begin", "seen"), [("start", ["one", "two"]), ("live", [])])
    async def test_asks_for_something_else(self, local: LocalServer, begin: str, seen: list[str]) -> None:
        await say(local, "one")
        await say(local, "two")
        async with local.peer(**{"from": begin}) as peer:
            frames = await peer.until("live", stream="user")
            assert (texts(frames), told(frames)) == (seen, {})

    async def test_with_a_filter_is_told_those_threads(self, local: LocalServer) -> None:
        for thread in ("t1", "t2", None):
            await say(local, "hi", thread)
        async with local.peer(threads=["t1", "t3"]) as peer:
            assert told(await peer.until("live", stream="user")) == {"t1": ["hi"], "": ["hi"]}

    async def test_many_threads_come_in_pages_and_a_large_one_in_parts(self) -> None:
        limits = Limits(part_bytes=4096)
        async with local_server(limits=limits) as local:
            for number in range(40):
                await say(local, "x" * 300, f"t{number}")
            await say(local, "é" * 30_000, "large")
            async with local.peer() as peer:
                frames = await peer.until("live", stream="user")
        whole = [frame for frame in assembled(frames) if frame["op"] == "snapshot"]
        assert len(told(whole)) == 41
        assert told(whole)["large"] == ["é" * 30_000]
        assert [frame.get("more", False) for frame in whole] == [True] * (len(whole) - 1) + [False]
        assert {frame["seq"] for frame in whole} == {41}
        assert len(whole) > 4
        assert all(len(orjson.dumps(frame)) < 8192 for frame in frames)
        assert "part" in ops(frames)
        async with local_server(limits=limits) as local:
            await say(local, "é" * 30_000, "large")
            async with connect(local.url, token=local.token()) as session:
                await until(session, 1)
                assert session.contexts == await contexts_of(local)


def assembled(frames: list[Frame]) -> list[Frame]:
    """`frames` with those that came in parts put together."""
    out: list[Frame] = []
    held = b""
    for frame in frames:
        if frame["op"] != "part":
            out.append(frame)
            continue
        assert frame["offset"] == len(held)
        assert frame["of"] == "snapshot"
        held += base64.b64decode(frame["bytes"])
        if len(held) == frame["total"]:
            out.append(orjson.loads(held))
            held = b""
    assert held == b""
    return out


class TestR01StateSurvivesADrop:
    async def test_r01_a_clients_context_is_the_servers_before_and_after_the_drop(
        self, stage: Stage, local: LocalServer
    ) -> None:
        async with connect(local.url, token=local.token(), client_id="tab", rng=lambda: 0.0) as session:
            run = await session.start_agent("worker", thread="t1")
            stage.tell("think", "tool")
            await until(session, 4)
            before = await contexts_of(local)
            assert session.contexts == before
            async with local.peer(client="tab") as other:  # It takes the connection over.
                await other.until("live", stream="user")
            stage.tell("finish")
            await until(session, 5)
            assert session.runs == () or session.runs[0].run == run
            after = await contexts_of(local)
        assert session.contexts == after
        assert after["t1"].json()["runs"][run]["status"] == "completed"
        assert [tool["output"] for tool in after["t1"].json()["tools"]] == [{"hits": 1}]


class TestC05AwayForLong:
    @pytest.mark.parametrize("away", [10.0, 200.0])
    async def test_c05_within_retention_everything_comes_as_events(
        self, away: float, autojump_clock: MockClock
    ) -> None:
        async with memory_world(retention=Retention(age=300.0)) as world:
            items = await away_for(world, away)
        assert [item.data["text"] for item in items if isinstance(item, Event)] == ["2", "3", "4"]
        assert len(items) == 3

    async def test_c05_beyond_retention_there_is_a_gap_and_a_snapshot_with_an_equal_context(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_world(retention=Retention(age=300.0)) as world:
            changed, gap, snapshot = await away_for(world, 600.0)
        assert isinstance(changed, Changed)
        assert changed.reason == "trimmed"
        assert isinstance(gap, Gap)
        assert (gap.from_, gap.to) == (2, 4)
        assert isinstance(snapshot, Snapshot)
        assert list(told([{"op": "snapshot", "threads": snapshot.threads}])["t1"]) == ["1", "2", "3", "4"]

    async def test_c05_where_even_the_context_expired_it_is_a_clean_start(
        self, autojump_clock: MockClock
    ) -> None:
        settings: dict[str, Any] = {"retention": Retention(age=300.0), "contexts": Contexts(age=400.0)}
        async with memory_world(**settings) as world:
            changed, gap, snapshot = await away_for(world, 3600.0)
        assert isinstance(gap, Gap)
        assert isinstance(changed, Changed)
        assert isinstance(snapshot, Snapshot)
        assert snapshot.threads == {}


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory" if request.param == "memory" else f"sqlite:{tmp_path / 'log.db'}"


class TestC05ByTier:
    """Contexts are kept for as long as the tier of their user says; the log is gone after five minutes."""

    SETTINGS: ClassVar[dict[str, Any]] = {
        "retention": Retention(age=300.0),
        "contexts": Contexts(age=3600.0),
        "tiers": {"free": Tier(context_age=400.0), "rich": Tier(context_age=9000.0), "mid": Tier()},
    }

    async def visit(
        self, world: MemoryWorld, tier: str, position: Mapping[str, Position] | None = None
    ) -> tuple[list[Item], Mapping[str, Position]]:
        """Come as the user whose name is its tier; what it is told, and where it is then."""
        local = world.local
        token = local.token(tier, tier=tier)
        options: dict[str, Any] = {"client_id": "tab", "dial": through(world.network)}
        if position is None:
            async with connect(local.url, token=token, from_="start", **options) as session:
                await say(local, "1", user=tier)
                return await until(session, 1), session.position
        async with connect(local.url, token=token, positions=position, **options) as session:
            items = await until(session, 3)
            assert session.contexts == await contexts_of(local, tier)
            return items, session.position

    async def populate(self, world: MemoryWorld) -> dict[str, Mapping[str, Position]]:
        """Each comes, is told the first event, and misses two more."""
        positions = {}
        for tier in ("free", "mid", "rich"):
            _, positions[tier] = await self.visit(world, tier)
            for text in ("2", "3"):
                await say(world.local, text, user=tier)
        await self.rest(world)
        return positions

    async def outcome(self, world: MemoryWorld, positions: dict[str, Mapping[str, Position]]) -> list[str]:
        """What each of them comes back to, which is never silence."""
        found = []
        for tier, position in positions.items():
            (changed, gap, snapshot), _ = await self.visit(world, tier, position)
            assert isinstance(changed, Changed)
            assert isinstance(gap, Gap)
            assert isinstance(snapshot, Snapshot)
            assert (changed.reason, gap.from_, gap.to) == ("trimmed", 2, 3)
            if snapshot.threads:
                assert told([{"op": "snapshot", "threads": snapshot.threads}]) == {"t1": ["1", "2", "3"]}
            found.append("snapshot" if snapshot.threads else "clean")
        return found

    async def stored(self, world: MemoryWorld) -> list[str]:
        """Whose contexts the store has."""
        keys = [StreamKey("user", "acme", tier) for tier in ("free", "mid", "rich")]
        return [key.name for key in await world.services.store.oldest_contexts(keys)]

    async def trimmed(self, world: MemoryWorld) -> list[int]:
        """Where the log of each begins."""
        keys = [StreamKey("user", "acme", tier) for tier in ("free", "mid", "rich")]
        return [(await world.services.store.load(key)).oldest for key in keys]

    async def settled(self, ask: Callable[[MemoryWorld], Awaitable[T]], world: MemoryWorld, at: T) -> T:
        """What `ask` says, once that is `at` or will not be: threads work while the clock stands."""
        for _ in range(1000):
            found = await ask(world)
            if found == at:
                break
            await trio.testing.wait_all_tasks_blocked(0.002)
        await self.rest(world)
        return found

    async def rest(self, world: MemoryWorld) -> None:
        """Let a sweep come to its end: it asks the store less than ten times, each time behind who asked
        before, and the clock must not jump meanwhile."""
        store = world.services.store
        for _ in range(10):
            await store.retain({}, now=0.0)
            await store.keys(after=None, limit=1)
            await trio.testing.wait_all_tasks_blocked()

    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [
            (400, ["snapshot", "snapshot", "snapshot"]),
            (600, ["clean", "snapshot", "snapshot"]),
            (5000, ["clean", "clean", "snapshot"]),
            (12000, ["clean", "clean", "clean"]),
        ],
    )
    async def test_c05_a_context_is_there_for_as_long_as_the_tier_says(
        self, store: str, mock_clock: MockClock, seconds: float, expected: list[str]
    ) -> None:
        async with memory_world(store=store, **self.SETTINGS) as world:
            positions = await self.populate(world)
            mock_clock.jump(seconds)
            assert await self.settled(self.trimmed, world, [4, 4, 4]) == [4, 4, 4]
            assert await self.outcome(world, positions) == expected

    async def test_c05_what_expired_leaves_the_store_though_its_user_stays_away(
        self, store: str, mock_clock: MockClock
    ) -> None:
        async with memory_world(store=store, **self.SETTINGS) as world:
            await self.populate(world)
            for seconds, left in (
                (400, ["free", "mid", "rich"]),
                (200, ["mid", "rich"]),
                (4000, ["rich"]),
                (6000, []),
            ):
                mock_clock.jump(seconds)
                assert await self.settled(self.stored, world, left) == left

    async def test_c05_after_a_restart_it_is_the_tier_of_who_comes_back(
        self, tmp_path: Path, mock_clock: MockClock
    ) -> None:
        settings = {"store": f"sqlite:{tmp_path / 'log.db'}", **self.SETTINGS}
        everybody = ["free", "mid", "rich"]
        async with memory_world(**settings) as world:
            positions = await self.populate(world)
            mock_clock.jump(350)
            assert await self.settled(self.stored, world, everybody) == everybody
        async with memory_world(**settings) as world:
            mock_clock.jump(5000)
            await self.rest(world)
            assert await self.stored(world) == everybody, "nobody told their tiers yet"
            assert await self.outcome(world, positions) == ["clean", "clean", "snapshot"]
            await self.rest(world)
            mock_clock.jump(100)
            assert await self.settled(self.stored, world, ["rich"]) == ["rich"]


def through(network: MemoryNetwork) -> OpenSocket:
    """Connects by way of `network`."""

    def dial(url: str, **options: Any) -> Any:
        return open_socket(url, dial=network.dial, **options)

    return dial


async def away_for(world: MemoryWorld, seconds: float) -> list[Item]:
    """What one who had the first event is told when it comes back so much later."""
    local = world.local
    options: dict[str, Any] = {
        "token": lambda: local.token(),
        "client_id": "tab",
        "dial": through(world.network),
    }
    async with connect(local.url, **options, from_="start") as session:
        await say(local, "1")
        await until(session, 1)
        position = session.position
    for text in ("2", "3", "4"):
        await say(local, text)
    await trio.sleep(seconds)
    async with connect(local.url, **options, positions=position) as session:
        items = await until(session, 4)
        found = await contexts_of(local)
        if not isinstance(items[0], Event):  # Else it has no state that belongs to its position.
            assert session.contexts == found
    return items


class TestE03Context:
    async def test_e03_one_who_is_away_while_the_log_overflows_has_an_equal_context(self) -> None:
        settings: dict[str, Any] = {"retention": Retention(events=100), "contexts": Contexts(every=50)}
        async with (
            memory_world(**settings) as world,
            connect(
                world.local.url, token=world.local.token(), dial=through(world.network), rng=lambda: 0.01
            ) as session,
        ):
            local = world.local
            await say(local, "first")
            await until(session, 1)
            world.network.refusing = True
            world.network.cut()
            for number in range(1000):
                await say(local, str(number), f"t{number % 3}")
            world.network.refusing = False
            items = await until(session, 1001)
            gap = next(item for item in items if isinstance(item, Gap))
            assert (gap.from_, gap.to is not None and gap.to > 800) == (2, True)
            assert isinstance(items[-1], Snapshot)
            assert session.contexts == await contexts_of(local)
            assert len(session.context("t1").messages) == 334
            await say(local, "after", "t1")
            await until(session, 1002)
            assert session.contexts == await contexts_of(local)


class TestR03AndE09Following:
    async def test_r03_a_newly_followed_thread_comes_as_a_snapshot_at_the_switch(
        self, local: LocalServer
    ) -> None:
        async with local.peer(threads=["t1"]) as peer:
            await peer.until("live", stream="user")
            for text, thread in (("a", "t1"), ("b", "t2"), ("c", None), ("d", "t2")):
                await say(local, text, thread)
            await peer.send({"op": "follow", "id": "f1", "threads": ["t2", "t3"]})
            frames = await peer.until("reply", id="f1")
            assert texts(frames) == ["a", "c"]
            assert told(frames) == {"t2": ["b", "d"], "t3": []}
            assert (frames[-1]["status"], frames[-1]["result"]) == ("ok", {"seq": 4})
            assert ops(frames).index("snapshot") == len(frames) - 2
            for text, thread in (("e", "t1"), ("f", "t2"), ("g", "t3")):
                await say(local, text, thread)
            frames = await peer.until("event", seq=7)
            assert texts(frames) == ["f", "g"]
            assert_contiguous(frames, after=4)

    async def test_e09_a_narrower_filter_needs_no_snapshot_and_all_threads_bring_the_others(
        self, local: LocalServer
    ) -> None:
        async with local.peer(threads=["t1", "t2"]) as peer:
            await peer.until("live", stream="user")
            for thread in ("t1", "t2", "t3"):
                await say(local, thread, thread)
            await peer.send({"op": "follow", "id": "f1", "threads": ["t1"]})
            frames = await peer.until("reply", id="f1")
            assert (texts(frames), told(frames)) == (["t1", "t2"], {})
            assert frames[-1]["result"]["seq"] in (2, 3), "what neither filter wants may lie on either side"
            await peer.send({"op": "follow", "id": "f2", "threads": None})
            frames = await peer.until("reply", id="f2")
            assert told(frames) == {"t2": ["t2"], "t3": ["t3"]}
            await say(local, "new", "t9")
            assert texts(await peer.until("event")) == ["new"]
            await peer.send([{"op": "follow", "id": f"g{n}", "threads": [f"t{n}"]} for n in range(4)])
            frames = await peer.until("reply", id="g3")
            assert [frame["id"] for frame in frames if frame["op"] == "reply"] == ["g0", "g1", "g2", "g3"]

    async def test_r03_a_filter_that_changes_under_load_loses_and_repeats_nothing(
        self, local: LocalServer, nursery: trio.Nursery
    ) -> None:
        """Every event of a thread that is followed comes once: in a snapshot, or after it as an event."""

        async def publish() -> None:
            for number in range(600):
                await say(local, str(number), f"t{number % 3}")
            await say(local, "end", None)

        async with local.peer(threads=["t0"]) as peer:
            await peer.until("live", stream="user")
            nursery.start_soon(publish)
            have: dict[str, list[str]] = {"t0": []}
            chosen = {"t0"}
            last = 0
            for turn in range(40):
                wanted = {f"t{turn % 3}", f"t{turn % 2}"}
                ref = f"f{turn}"
                await peer.send({"op": "follow", "id": ref, "threads": sorted(wanted)})
                for frame in await peer.until("reply", id=ref):
                    last = take(frame, have, chosen, last)
                chosen = wanted
            with trio.fail_after(20):
                while last < 601:
                    last = take(await peer.frame(), have, chosen, last)
        for thread in chosen:
            assert have[thread] == [str(n) for n in range(600) if f"t{n % 3}" == thread]

    async def test_r03_a_client_that_follows_keeps_its_contexts_over_drops(self, local: LocalServer) -> None:
        for number in range(6):
            await say(local, str(number), f"t{number % 3}")
        async with connect(
            local.url, token=local.token(), client_id="tab", threads=["t0"], rng=lambda: 0.0
        ) as session:
            await until(session, 6)
            assert sorted(session.contexts) == ["t0"]
            async with local.peer(client="tab") as other:  # Now the session has no connection, or a new one.
                await other.until("live", stream="user")
                await session.follow(["t0", "t1"], timeout=10)
            await say(local, "on", "t1")
            await until(session, 7)
            found = await contexts_of(local)
            assert {thread: session.context(thread) for thread in ("t0", "t1")} == {
                thread: found[thread] for thread in ("t0", "t1")
            }
            await session.follow(None, timeout=10)
            await say(local, "end", None)
            await until(session, 8)
            assert session.contexts == await contexts_of(local)

    @pytest.mark.parametrize("from_", ["snapshot", "start", "live"])
    async def test_r02_threads_that_are_added_while_away_cost_no_event_of_the_others(
        self, local: LocalServer, from_: From
    ) -> None:
        seen: list[Item] = []
        statuses: list[str] = []

        async def read(session: ClientSession) -> None:
            async for item in session:
                seen.append(item)

        async def cut() -> None:
            before = statuses.count("waiting")
            for connection in (*local.server.registry.sessions["acme", "ada"].connections.values(),):
                connection.kill()
            # It waits for a tenth of a second only: who asks for its status may come too late to see that.
            while statuses.count("waiting") == before:
                await wait_all_tasks_blocked()

        await say(local, "0", "a")
        async with (
            connect(
                local.url,
                token=local.token(),
                threads=["a"],
                from_=from_,
                rng=lambda: 0.2,
                on_status=statuses.append,
            ) as session,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(read, session)
            await session.wait_status("live")
            await cut()
            await session.follow(None, timeout=10)
            for turn in range(2):
                await cut()
                await say(local, f"{turn}", "a")
                await say(local, f"{turn}", "b")
                await session.wait_status("live")
                await wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert [type(item) for item in seen].count(Changed) == 0
        assert [item.seq for item in seen if isinstance(item, Event)][-4:] == [2, 3, 4, 5]
        assert isinstance(seen[-5], Snapshot)

    async def test_fresh_threads_of_a_resume_come_as_a_snapshot(self, local: LocalServer) -> None:
        for number in range(4):
            await say(local, str(number), f"t{number % 2}")
        async with local.peer(threads=["t0"], **{"from": "start"}) as peer:
            frames = await peer.until("live", stream="user")
            epoch = frames[0]["streams"]["user"]["epoch"]
        await say(local, "4", "t0")
        async with local.peer(threads=["t0", "t1"], fresh=["t1"], resume={"user": [epoch, 4]}) as peer:
            frames = await peer.until("live", stream="user")
            assert (texts(frames), told(frames)) == (["4"], {"t1": ["1", "3"]})


def take(frame: Frame, have: dict[str, list[str]], chosen: set[str], last: int) -> int:
    """Keep what `frame` brings, as a client that follows `chosen` does; how far it is now."""
    match frame["op"]:
        case "event":
            assert frame["seq"] == last + 1, "a hole or a repeat"
            if "thread" in frame:
                assert frame["thread"] in chosen
                have.setdefault(frame["thread"], []).append(frame["data"]["text"])
            return int(frame["seq"])
        case "skip":
            assert frame["to"] > last
            return int(frame["to"])
        case "snapshot":
            assert frame["seq"] >= last
            for thread, context in frame["threads"].items():
                have[thread] = [message["text"] for message in context["messages"]]
            return int(frame["seq"])
    return last


def assert_contiguous(frames: list[Frame], *, after: int) -> None:
    for frame in frames:
        if frame["op"] == "event":
            assert frame["seq"] == after + 1
            after = frame["seq"]
        elif frame["op"] == "skip":
            after = frame["to"]


class TestABreakInTheMiddle:
    async def test_a_client_cut_off_within_its_snapshot_asks_for_it_again(self) -> None:
        async with local_server(limits=Limits(part_bytes=2048)) as local:
            for number in range(200):
                await say(local, "x" * 200, f"t{number % 50}")
            cuts = 0

            async with connect(
                local.url, token=local.token(), client_id="tab", buffer_items=1, rng=lambda: 0.0
            ) as session:
                with trio.fail_after(30):
                    async for item in session:
                        if isinstance(item, Snapshot) and not item.more:
                            break
                        if isinstance(item, Snapshot) and cuts < 3:
                            cuts += 1
                            async with local.peer(client="tab") as other:
                                await other.until("welcome")
                assert cuts == 3
                assert session.contexts == await contexts_of(local)
                await say(local, "after", "t1")
                await until(session, 201)
                assert session.contexts == await contexts_of(local)


class TestC02WhatTheAgentKeeps:
    async def test_c02_memory_workflow_and_tools_are_there_after_a_reconnect_and_a_restart(
        self, tmp_path: Path
    ) -> None:
        app = App()

        @app.agent("keeper")
        async def keeper(run: Run) -> None:
            async with run.tool("look", {"at": "it"}) as tool:
                await tool.complete({"seen": True})
            await run.memory.set("name", "Ada")
            await run.workflow.patch([{"op": "add", "path": "/step", "value": 2}])

        store = f"sqlite:{tmp_path / 'log.db'}"
        async with local_server(app, store=store) as local:
            async with connect(local.url, token=local.token()) as session:
                run = await session.start_agent("keeper", thread="t1")
                while session.context("t1").json()["runs"].get(run, {}).get("status") != "completed":
                    await anext(session)
                live = session.contexts
            assert live == await contexts_of(local)
        async with (
            local_server(app, store=store) as local,
            connect(local.url, token=local.token()) as session,
        ):
            await until(session, 1)
            found = session.contexts
        assert found == live
        kept = found["t1"].json()
        assert (kept["memory"], kept["workflow"]) == ({"name": "Ada"}, {"step": 2})
        assert [tool["output"] for tool in kept["tools"]] == [{"seen": True}]

    async def test_a_replay_of_many_tokens_makes_the_context_that_the_live_events_made(self) -> None:
        app = App()

        @app.agent("talker")
        async def talker(run: Run) -> None:
            async with run.message() as message:
                for number in range(2_000):
                    await message.text(f"{number} é𝄞 ")
                    if number % 10 == 0:
                        await run.flush()

        async with (
            local_server(app) as local,
            connect(local.url, token=local.token(), from_="start") as live,
        ):
            await live.start_agent("talker", thread="t1")
            async for item in live:
                if isinstance(item, Event) and item.type == "agent_completed":
                    break
            async with connect(local.url, token=local.token(), from_="start") as late:
                seen = await until(late, item.seq)
                assert len(seen) < 20, "merged"
                assert late.contexts == live.contexts == await contexts_of(local)
