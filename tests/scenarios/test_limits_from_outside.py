"""S02 and S05: what each may take up, by tier, tenant and address. Time is the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from random import Random
from typing import Any

import pytest
import trio
from figures import Figure
from serving import Frame, frames_until_closed
from stage import Stage
from trio.testing import MockClock

from wsrecover.config import Limits, Tier, default_tiers
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport.engine import Engine

TIERS = sorted(default_tiers())


@pytest.fixture
async def local(mock_clock: MockClock) -> AsyncIterator[LocalServer]:
    async with local_server(wall_clock=trio.current_time) as server:
        yield server


async def say(peer: Peer, **more: Any) -> Frame:
    return await peer.command("chat", {}, **more)


def refusal(reply: Frame) -> tuple[str, float]:
    return reply["error"]["code"], reply["error"].get("retry_after", 0.0)


@pytest.mark.parametrize("name", TIERS)
async def test_s05_commands_have_their_burst_and_then_their_rate_to_the_millisecond(
    local: LocalServer, mock_clock: MockClock, figure: Figure, name: str
) -> None:
    tier = default_tiers()[name]
    async with local.peer(tier=name) as peer:
        limits = (await peer.until("live"))[0]["limits"]
        assert (limits["commands_per_second"], limits["commands_burst"], limits["connections"]) == (
            tier.commands_per_second,
            tier.commands_burst,
            tier.connections,
        )
        since, admitted = trio.current_time(), 0
        for _ in range(tier.commands_burst):
            assert (await say(peer))["status"] == "ok"
        admitted += tier.commands_burst
        rng, untrue = Random(7), 0
        for _ in range(40):
            code, retry_after = refusal(await say(peer))
            assert code == "rate_limited"
            mock_clock.jump(retry_after - 0.001)
            untrue += (await say(peer))["status"] == "ok"
            mock_clock.jump(0.001)
            untrue += (await say(peer))["status"] != "ok"
            admitted += 1
            if rng.random() < 0.3:
                mock_clock.jump(rng.randrange(1, 2000) / 1000)
                while (await say(peer))["status"] == "ok":
                    admitted += 1
        allowed = tier.commands_burst + (trio.current_time() - since) * tier.commands_per_second
        figure("S05", f"{name}: commands admitted above the rate", max(0, admitted - int(allowed + 1e-6)))
        figure("S05", f"{name}: untrue retry_after of 80", untrue)
        assert admitted <= allowed + 1e-6
        assert untrue == 0


async def test_s05_all_connections_of_a_user_share_one_rate_and_no_other_user_does(
    local: LocalServer, mock_clock: MockClock
) -> None:
    async with local.peer(tier="free") as one, local.peer(tier="free") as two:
        for number in range(10):
            assert (await say((one, two)[number % 2]))["status"] == "ok"
        for peer in (one, two):
            assert refusal(await say(peer)) == ("rate_limited", 0.2)
        async with local.peer("grace", tier="free") as grace:
            assert (await say(grace))["status"] == "ok"
        async with local.peer(tier="free", tenant="other") as namesake:
            assert (await say(namesake))["status"] == "ok"


async def test_s05_a_command_right_behind_its_hello_is_counted_as_of_now(
    local: LocalServer, mock_clock: MockClock
) -> None:
    mock_clock.jump(1000)
    async with local.peer(tier="free") as peer:
        for _ in range(9):
            assert (await say(peer))["status"] == "ok"
        async with local.stranger() as other:
            hello = {"op": "hello", "client": "other", "token": local.token(tier="free"), "from": "live"}
            sends = [{"op": "send", "id": f"c{n}", "type": "chat", "data": {}} for n in range(2)]
            await other.send([hello, *sends])
            replies = {frame["id"]: frame for _ in sends for frame in (await other.until("reply"))[-1:]}
    assert replies["c0"]["status"] == "ok"
    assert refusal(replies["c1"]) == ("rate_limited", 0.2)


async def test_s05_a_command_behind_a_ping_whose_pong_had_to_wait_is_counted_as_of_now(
    local: LocalServer, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, taken = trio.Event(), trio.Event()

    async def pong(*_: object) -> None:
        asked.set()
        await taken.wait()

    monkeypatch.setattr(Engine, "_handle_ping_event", pong)
    async with local.peer(tier="free") as slow, local.peer(tier="free") as quick:
        await slow.until("live")
        command = b'{"op":"send","id":"c","type":"chat","data":{}}'
        slow.socket.outbox.put(
            b"\x89\x80" + bytes(4) + bytes((0x81, 0x80 | len(command))) + bytes(4) + command
        )
        await asked.wait()
        mock_clock.jump(10)
        assert (await say(quick))["status"] == "ok"
        taken.set()
        assert (await slow.until("reply", id="c"))[-1]["status"] == "ok"


async def test_s05_reconnecting_gives_no_fresh_burst_but_repeats_are_answered(
    local: LocalServer, mock_clock: MockClock
) -> None:
    async with local.peer(tier="free") as peer:
        for number in range(10):
            assert (await say(peer, id=f"c{number}"))["status"] == "ok"
    async with local.peer(tier="free") as peer:
        for number in range(10):
            assert (await say(peer, id=f"c{number}", age=1.0))["status"] == "duplicate"
        assert refusal(await say(peer)) == ("rate_limited", 2.2)


async def test_s05_a_repeat_that_a_limit_refuses_leaves_no_doubt_that_there_is_doubt(
    local: LocalServer, mock_clock: MockClock
) -> None:
    async with local.peer(tier="free") as peer:
        assert (await say(peer, id="c0"))["status"] == "ok"
        statuses: list[str] = []
        while statuses[-1:] != ["error"]:
            again = await say(peer, id="c0", age=1.0)
            statuses.append(again["status"])
        code, retry_after = refusal(again)
        assert (code, set(statuses)) == ("outcome_unknown", {"duplicate", "error"})
        mock_clock.jump(retry_after)
        assert (await say(peer, id="c0", age=1.0))["status"] == "duplicate"


async def test_s05_a_refresh_to_another_tier_counts_at_once_and_gives_nothing_back(
    local: LocalServer, mock_clock: MockClock
) -> None:
    async with local.peer(tier="free") as peer:
        for _ in range(9):
            await say(peer)
        await peer.send({"op": "auth", "id": "a1", "token": local.token(tier="early")})
        await peer.until("reply", id="a1")
        # 10 of the free burst were taken: at 20 a second that leaves 30 of 40.
        replies = [await say(peer) for _ in range(31)]
        assert [reply["status"] for reply in replies] == ["ok"] * 30 + ["error"]
        assert refusal(replies[-1]) == ("rate_limited", 0.05)


async def test_s05_a_tenant_has_a_cap_of_its_own(mock_clock: MockClock) -> None:
    limits = Limits(tenant_commands_per_second=10, tenant_connections=3)
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(local_server(limits=limits, wall_clock=trio.current_time))
        peers = [await stack.enter_async_context(local.peer(f"user{n}")) for n in range(3)]
        replies = [await say(peers[number % 3]) for number in range(21)]
        assert [reply["status"] for reply in replies] == ["ok"] * 20 + ["error"]
        assert refusal(replies[-1]) == ("rate_limited", 0.1)
        fourth = await stack.enter_async_context(local.peer("user3"))
        frames, code = await frames_until_closed(fourth)
        assert (frames[0]["code"], code) == ("overloaded", 4006)
        assert frames[0]["retry_after"] > 0
        await peers[0].send({"op": "bye"})
        assert (await frames_until_closed(peers[0]))[1] == 1000
        async with local.peer("user3") as instead:
            await instead.until("live")
        stranger = await stack.enter_async_context(local.peer("user0", tenant="other"))
        assert (await say(stranger))["status"] == "ok"


@pytest.mark.parametrize("name", ["free", "early", "mid"])
async def test_s02_a_tier_has_so_many_connections_and_a_takeover_is_none_too_many(
    local: LocalServer, mock_clock: MockClock, name: str
) -> None:
    most = default_tiers()[name].connections
    async with AsyncExitStack() as stack:
        join = partial(local.peer, tier=name)
        peers = [await stack.enter_async_context(join(client=f"c{n}")) for n in range(most)]
        for peer in peers:
            await peer.until("welcome")
        more = await stack.enter_async_context(join(client="one more"))
        assert (await frames_until_closed(more))[1] == 4006
        again = await stack.enter_async_context(join(client="c0"))
        await again.until("welcome")
        assert (await frames_until_closed(peers[0]))[1] == 4500
    async with join(client="when they are gone") as peer:
        await peer.until("live")


async def test_s05_runs_are_counted_by_user_and_by_tenant(mock_clock: MockClock, stage: Stage) -> None:
    limits = Limits(tenant_runs=3)
    async with (
        local_server(stage.app, limits=limits, wall_clock=trio.current_time) as local,
        local.peer("ada", tier="free") as ada,
        local.peer("grace", tier="free") as grace,
    ):
        start = {"agent": "worker", "input": {}}
        assert [(await ada.command("start_agent", start))["status"] for _ in range(2)] == ["ok", "ok"]
        assert refusal(await ada.command("start_agent", start))[0] == "overloaded"
        assert (await grace.command("start_agent", start))["status"] == "ok"
        assert refusal(await grace.command("start_agent", start))[0] == "overloaded"
        stage.tell("finish")
        for peer in (ada, grace):
            await peer.send({"op": "ping"})
        while True:
            reply = await grace.command("start_agent", start)
            if reply["status"] == "ok":
                break
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_s05_bytes_above_the_rate_are_not_acted_on(local: LocalServer, mock_clock: MockClock) -> None:
    text = "x" * 60_000
    async with local.peer(tier="free") as peer:
        replies = [await peer.command("chat", {"text": text}) for _ in range(5)]
        assert [reply["status"] for reply in replies] == ["ok"] * 4 + ["error"]
        code, retry_after = refusal(replies[-1])
        assert code == "rate_limited"
        mock_clock.jump(retry_after)
        assert (await peer.command("chat", {"text": text}))["status"] == "ok"
        await peer.send({"op": "ping"})
        await peer.until("pong")


async def test_s05_a_flood_of_frames_ends_with_4004_and_says_why(mock_clock: MockClock) -> None:
    limits = Limits(frames_per_second=10, frames_burst=256)
    async with local_server(limits=limits) as local, local.peer() as peer, local.peer() as other:
        await other.until("live")
        for _ in range(17):
            await peer.send([{"op": "pong"}] * 16)
        frames, code = await frames_until_closed(peer)
        assert code == 4004
        assert (frames[-1]["op"], frames[-1]["code"]) == ("error", "rate_limited")
        assert frames[-1]["retry_after"] == 1.6
        await other.send({"op": "ping"})
        await other.until("pong")


async def test_p5_a_flood_of_pings_ends_with_4004_and_says_why() -> None:
    async with local_server() as local, local.peer() as peer, local.peer("grace") as other:
        for each in (peer, other):
            await each.until("live")
        ping = bytes.fromhex("898000000000")
        for _ in range(20):
            peer.socket.outbox.put(ping * 50)
        frames, code = await frames_until_closed(peer)
        assert code == 4004
        assert [(frame["op"], frame["code"], frame["retry_after"]) for frame in frames] == [
            ("error", "rate_limited", 1.0)
        ]
        await other.send({"op": "ping"})
        await other.until("pong")


async def test_s05_a_run_above_its_rate_waits_and_loses_nothing(mock_clock: MockClock, stage: Stage) -> None:
    tiers = {"slow": Tier(events_per_second=8)}
    early = 1 / 128  # Of the eighth of a second that an event takes: these add up exactly.
    async with (
        local_server(stage.app, tiers=tiers, wall_clock=trio.current_time) as local,
        local.peer(tier="slow") as peer,
        local.peer("grace") as other,
    ):
        for each in (peer, other):
            await each.until("live")
        await peer.command("start_agent", {"agent": "worker", "input": {}})
        stage.tell(*["noted"] * 20, "finish")
        assert [event["data"].get("n") for event in await peer.events(9)] == [None, *range(8)]
        for n in range(8, 20):
            mock_clock.jump(0.125 - early)
            await silent(peer)
            mock_clock.jump(early)
            assert (await peer.events(1))[0]["data"]["n"] == n
        assert (await peer.events(1))[0]["type"] == "agent_completed"
        await other.command("start_agent", {"agent": "worker", "input": {}})
        stage.tell(*["noted"] * 20)
        assert len(await other.events(21)) == 21


async def silent(peer: Peer) -> None:
    """Nothing comes but the answer to a ping, once the server has done all that it can."""
    await trio.testing.wait_all_tasks_blocked(0.001)
    await peer.send({"op": "ping"})
    assert (await peer.frame())["op"] == "pong"
