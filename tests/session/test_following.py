"""Which streams a connection follows, from where, and what a fresh token changes about that."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover import Credentials, Grant, Principal
from wsrecover.config import Limits, Timeouts
from wsrecover.protocol.codec import encode_event
from wsrecover.session.session import STREAM_SETS
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.store import Entry, StreamKey, StreamState, Unit
from wsrecover.testing import LocalServer, Peer, local_server

ALL = StreamKey("all")
TENANT = StreamKey("tenant", "acme")
OPS = StreamKey("role", "acme", "ops")


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server


async def say(local: LocalServer, key: StreamKey, *texts: str) -> None:
    for text in texts:
        body = encode_event(ts=1.0, type="notice", data={"text": text}, max_bytes=1000)
        await local.server._services.journal.commit(Unit((Entry(key, body, 1.0),)))


async def welcomed(peer: Peer) -> dict[str, Any]:
    streams: dict[str, Any] = (await peer.until("welcome"))[-1]["streams"]
    return streams


def texts(frames: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(frame["stream"], frame["data"]["text"]) for frame in frames if frame["op"] == "event"]


async def test_welcome_names_every_stream_that_the_principal_is_entitled_to(local: LocalServer) -> None:
    async with local.peer(roles=["ops", "dev"], tier="mid") as peer:
        assert list(await welcomed(peer)) == ["user", "all", "tenant", "tier", "role:dev", "role:ops"]
    async with local.peer() as peer:
        assert list(await welcomed(peer)) == ["user", "all", "tenant"]


async def test_each_gets_what_is_said_to_it_and_nothing_else(local: LocalServer) -> None:
    async with (
        local.peer("ada", roles=["ops"], tier="mid") as ada,
        local.peer("ada", tenant="other", roles=["ops"], tier="mid") as stranger,
        local.peer("bob", tier="free") as bob,
    ):
        for peer in (ada, stranger, bob):
            await peer.until("live")
        await say(local, StreamKey("tier", "acme", "mid"), "to mid")
        await say(local, OPS, "to ops")
        await say(local, TENANT, "to acme")
        await say(local, ALL, "to all")
        ends = {"stream": "all"}
        assert texts(await ada.until("event", **ends)) == [
            ("tier", "to mid"),
            ("role:ops", "to ops"),
            ("tenant", "to acme"),
            ("all", "to all"),
        ]
        assert texts(await stranger.until("event", **ends)) == [("all", "to all")]
        assert texts(await bob.until("event", **ends)) == [("tenant", "to acme"), ("all", "to all")]


async def test_without_a_position_broadcasts_begin_at_the_oldest_unless_asked_for_live(
    local: LocalServer,
) -> None:
    await say(local, ALL, "one", "two")
    async with local.peer() as peer:
        assert texts(await peer.until("live")) == [("all", "one"), ("all", "two")]
    async with local.peer(**{"from": "live"}) as peer:
        assert (await welcomed(peer))["all"]["from"] == 3
        assert texts(await peer.until("live")) == []


async def test_each_stream_resumes_at_its_own_position(local: LocalServer) -> None:
    await say(local, ALL, "one", "two")
    await say(local, TENANT, "uno", "due", "tre")
    async with local.peer() as peer:
        streams = await welcomed(peer)
    resume = {"all": [streams["all"]["epoch"], 1], "tenant": [streams["tenant"]["epoch"], 2]}
    async with local.peer(resume=resume) as peer:
        frames = await peer.until("live")
        found = frames[0]["streams"]
        assert {name: found[name]["resumed"] for name in found} == {
            "user": False,
            "all": True,
            "tenant": True,
        }
        assert sorted(texts(frames)) == [("all", "two"), ("tenant", "tre")]


async def test_a_position_of_one_stream_is_none_of_another(local: LocalServer) -> None:
    await say(local, ALL, "one")
    await say(local, TENANT, "uno")
    async with local.peer() as peer:
        epoch = (await welcomed(peer))["all"]["epoch"]
    async with local.peer(resume={"tenant": [epoch, 1]}) as peer:
        found = (await welcomed(peer))["tenant"]
        assert (found["resumed"], found["reason"], found["from"]) == (False, "epoch_changed", 1)


async def test_a_filter_of_threads_is_of_the_user_stream_alone(local: LocalServer) -> None:
    async with local.peer(threads=["t1"]) as peer:
        await peer.until("live")
        await say(local, ALL, "to all")
        assert texts(await peer.until("event")) == [("all", "to all")]


class Held:
    """The stream of `OPS`, which is not opened before `go_on`."""

    def __init__(self) -> None:
        self.opening, self.go_on = trio.Event(), trio.Event()


@pytest.fixture
async def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    one, load = Held(), MemoryStore.load

    async def hold(store: MemoryStore, key: StreamKey) -> StreamState:
        if key == OPS:
            one.opening.set()
            await one.go_on.wait()
        return await load(store, key)

    monkeypatch.setattr(MemoryStore, "load", hold)
    return one


class TestAFreshToken:
    async def refresh(self, local: LocalServer, peer: Peer, **claims: Any) -> None:
        await peer.send({"op": "auth", "id": "a1", "token": local.token(**claims)})
        (reply,) = [frame for frame in await peer.until("reply") if frame["op"] == "reply"]
        assert reply["status"] == "ok"

    async def test_that_lacks_a_role_ends_its_stream_at_once(self, local: LocalServer) -> None:
        async with local.peer(roles=["ops"]) as peer:
            await peer.until("live")
            await self.refresh(local, peer)
            assert await peer.frame() == {"op": "streams", "added": {}, "removed": ["role:ops"]}
            await say(local, OPS, "secret")
            await say(local, ALL, "to all")
            assert texts([await peer.frame()]) == [("all", "to all")]

    async def test_that_has_another_role_begins_its_stream_at_the_oldest(self, local: LocalServer) -> None:
        await say(local, OPS, "before")
        async with local.peer() as peer:
            await peer.until("live")
            await self.refresh(local, peer, roles=["ops"])
            frames = await peer.until("live", stream="role:ops")
            assert list(frames[0]["added"]) == ["role:ops"]
            assert texts(frames) == [("role:ops", "before")]
            await say(local, OPS, "after")
            assert texts([await peer.frame()]) == [("role:ops", "after")]

    async def test_of_who_asked_for_live_begins_its_stream_at_its_head(self, local: LocalServer) -> None:
        await say(local, OPS, "before")
        async with local.peer(**{"from": "live"}) as peer:
            await peer.until("live")
            for time in ("first", "second"):
                await self.refresh(local, peer, roles=["ops"])
                assert texts(await peer.until("live", stream="role:ops")) == []
                await say(local, OPS, time)
                assert texts([await peer.frame()]) == [("role:ops", time)]
                await self.refresh(local, peer)
                assert (await peer.frame())["removed"] == ["role:ops"]

    async def test_of_another_tier_exchanges_its_stream(self, local: LocalServer) -> None:
        free, mid = (StreamKey("tier", "acme", name) for name in ("free", "mid"))
        await say(local, mid, "welcome to mid")
        async with local.peer(tier="free") as peer:
            await peer.until("live")
            await self.refresh(local, peer, tier="mid")
            frames = await peer.until("live", stream="tier")
            assert [frame.get("removed") for frame in frames[:2]] == [["tier"], []]
            assert texts(frames) == [("tier", "welcome to mid")]
            await say(local, free, "to free")
            await say(local, mid, "to mid")
            assert texts([await peer.frame()]) == [("tier", "to mid")]

    async def test_that_comes_twice_while_its_streams_are_opened_is_followed_like_any(
        self, local: LocalServer, held: Held
    ) -> None:
        async with local.peer() as peer:
            await peer.until("live")
            await self.refresh(local, peer, roles=["ops"])
            await held.opening.wait()
            await self.refresh(local, peer, roles=["ops"])
            held.go_on.set()
            await peer.until("live", stream="role:ops")
            await say(local, OPS, "to ops")
            assert texts([await peer.frame()]) == [("role:ops", "to ops")]

    async def test_whose_role_is_taken_back_while_its_stream_is_opened_is_not_followed(
        self, local: LocalServer, held: Held
    ) -> None:
        async with local.peer() as peer:
            await peer.until("live")
            await self.refresh(local, peer, roles=["ops"])
            await held.opening.wait()
            await self.refresh(local, peer)
            held.go_on.set()
            await wait_all_tasks_blocked(0.01)
            await say(local, OPS, "secret")
            await say(local, ALL, "to all")
            assert texts([await peer.frame()]) == [("all", "to all")]

    async def test_that_changes_nothing_says_nothing(self, local: LocalServer) -> None:
        async with local.peer(roles=["ops"]) as peer:
            await peer.until("live")
            await self.refresh(local, peer, roles=["ops"])
            await say(local, OPS, "on")
            assert texts([await peer.frame()]) == [("role:ops", "on")]


class Hanging:
    """An authenticator of the embedding program's that stops answering."""

    def __init__(self) -> None:
        self.asked = 0

    async def authenticate(self, credentials: Credentials) -> Grant:
        self.asked += 1
        if self.asked > 1:
            await trio.sleep_forever()
        return Grant(Principal("acme", "ada"), 4e9)


class Slow:
    """One that takes its time over a second token, which is of another tier."""

    def __init__(self) -> None:
        self.asked, self.go_on = trio.Event(), trio.Event()
        self.first = True

    async def authenticate(self, credentials: Credentials) -> Grant:
        if self.first:
            self.first = False
            return Grant(Principal("acme", "ada"), 4e9)
        self.asked.set()
        await self.go_on.wait()
        return Grant(Principal("acme", "ada", tier="enterprise"), 4e9)


async def test_commands_that_are_under_way_leave_room_for_a_change_of_the_filter() -> None:
    async with local_server(limits=Limits(commands_in_flight=4)) as local, local.peer(tier="mid") as peer:
        await peer.until("live")
        chats = [{"op": "send", "id": f"c{n}", "type": "chat", "data": {}} for n in range(4)]
        await peer.send([*chats, {"op": "follow", "id": "f", "threads": ["a"]}])
        replies = {}
        while len(replies) < 5:
            reply = (await peer.until("reply"))[-1]
            replies[reply["id"]] = reply["status"]
        assert replies == dict.fromkeys(("c0", "c1", "c2", "c3", "f"), "ok")
        for number in range(10):
            await peer.send({"op": "follow", "id": f"f{number}", "threads": None})
            assert (await peer.until("reply"))[-1]["status"] == "ok"


async def test_tokens_that_wait_for_the_one_before_are_bounded_and_end_with_the_connection(
    mock_clock: MockClock,
) -> None:
    hanging = Hanging()
    async with local_server(authenticator=hanging, limits=Limits(commands_in_flight=4)) as local:
        async with local.peer(token="x") as peer:
            await peer.until("live")
            for _ in range(10):
                await peer.command("chat", {})
            await peer.send([{"op": "auth", "id": f"a{number}", "token": "t"} for number in range(7)])
            refused = [(await peer.until("reply"))[-1] for _ in range(2)]
            assert {(one["error"]["code"], one["error"]["retry_after"]) for one in refused} == {
                ("overloaded", 1.0)
            }
            assert "4" in refused[0]["error"]["message"]
        (session,) = local.server.registry.sessions.values()
        while session.connections:
            await wait_all_tasks_blocked(0.001)
        mock_clock.jump(Timeouts().handshake)
        while session.members:
            await wait_all_tasks_blocked(0.001)
        assert hanging.asked == 2, "what a connection asked that is gone is not looked into"


async def test_a_token_that_is_proved_when_its_connection_is_gone_changes_nothing() -> None:
    slow = Slow()
    async with local_server(authenticator=slow) as local:
        async with local.peer(token="x") as peer:
            await peer.until("live")
            (connection,) = local.server.connections()
            await peer.send({"op": "auth", "id": "a1", "token": "t"})
            await slow.asked.wait()
        (session,) = local.server.registry.sessions.values()
        while session.connections:
            await wait_all_tasks_blocked(0.001)
        slow.go_on.set()
        while session.members:
            await wait_all_tasks_blocked(0.001)
        assert (connection.tier, session.quota.tier) == (None, local.config.tier)


async def test_streams_stay_open_while_a_session_does_and_no_longer() -> None:
    async with local_server(timeouts=Timeouts(linger=0.0)) as local:
        streams = local.server._services.streams
        async with local.peer(roles=["ops"]) as peer, local.peer(client="other") as other:
            await peer.until("live")
            await other.until("live")
            assert streams.statistics().streams == 4
        with trio.fail_after(300):
            # One that nobody finds any more has yet to leave its nursery, and then lets go of its streams.
            while local.server.registry.sessions or streams.statistics().streams:
                await wait_all_tasks_blocked(0.001)


class TestManyEntitlements:
    """What nobody follows any more does not stay open for as long as the session does."""

    async def refresh(self, local: LocalServer, peer: Peer, *roles: str) -> None:
        await peer.send({"op": "auth", "id": "a1", "token": local.token(roles=roles)})
        await peer.until("reply")

    async def rotate(self, local: LocalServer, peer: Peer, count: int) -> None:
        """Give `peer` so many fresh tokens, each with another role."""
        for number in range(count):
            await self.refresh(local, peer, f"r{number}")
            await peer.until("live", stream=f"role:r{number}")

    async def test_of_one_connection_leave_a_few_open(self, local: LocalServer) -> None:
        streams = local.server._services.streams
        async with local.peer() as peer:
            await peer.until("live")
            await self.rotate(local, peer, 3 * STREAM_SETS)
            assert streams.statistics().streams == 3 + STREAM_SETS
            await self.rotate(local, peer, 3 * STREAM_SETS)
            assert streams.statistics().streams == 3 + STREAM_SETS
            last = StreamKey("role", "acme", f"r{3 * STREAM_SETS - 1}")
            for key in (last, ALL, TENANT):
                await say(local, key, "on")
            got = [texts([await peer.frame()])[0][0] for _ in range(3)]
            assert got == [f"role:{last.name}", "all", "tenant"]

    async def test_leave_open_what_another_connection_follows(self, local: LocalServer) -> None:
        async with local.peer(client="a", roles=["ops"]) as staying, local.peer(client="b") as peer:
            await staying.until("live", stream="role:ops")
            await peer.until("live")
            await self.rotate(local, peer, 3 * STREAM_SETS)
            ops = local.server._services.streams.get(OPS)
            assert ops is not None
            await say(local, OPS, "on")
            assert texts([await staying.frame()]) == [("role:ops", "on")]

    async def test_leave_open_what_one_keeps_while_it_waits_for_what_is_new(
        self, local: LocalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = local.server._services.store
        load, asked, gate = store.load, trio.Event(), trio.Event()

        async def slow(key: StreamKey) -> StreamState:
            if key.name == "slow":
                asked.set()
                await gate.wait()
            return await load(key)

        monkeypatch.setattr(store, "load", slow)
        async with local.peer(client="a", roles=["ops", "left"]) as peer, local.peer(client="b") as other:
            await peer.until("live", stream="role:ops")
            await other.until("live")
            await self.rotate(local, other, STREAM_SETS - 2)
            await self.refresh(local, other, "slow")
            await asked.wait()
            await self.refresh(local, peer, "ops", "new")  # It keeps role:ops, and waits behind the other.
            gate.set()
            await peer.until("live", stream="role:new")
            await say(local, OPS, "on")
            with trio.fail_after(5):
                assert texts([await peer.frame()]) == [("role:ops", "on")]
