"""I4: one tenant at ten times its quota takes nothing from another."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Final

import trio
from figures import Figure
from trio.testing import MockClock

from wsrecover.config import Limits
from wsrecover.testing import LocalServer, Peer, local_server

SAMPLES: Final = 400 if os.environ.get("WSRECOVER_FAULTS") == "1" else 40
QUOTA: Final = 100
FLOOD: Final = 10 * QUOTA


async def p99(peer: Peer) -> float:
    """The 99th percentile of the time that a command takes, in milliseconds, fewer than its quota."""
    taken = []
    for number in range(SAMPLES):
        started = time.perf_counter()
        reply = await peer.command("chat", {"n": number})
        taken.append((time.perf_counter() - started) * 1000)
        assert reply["status"] == "ok"
        await trio.sleep(0.02)
    return sorted(taken)[int(len(taken) * 0.99)]


async def flood(local: LocalServer, user: str) -> None:
    """A fifth of the flood, for ever."""
    async with local.peer(user, tenant="greedy") as peer:
        for number in range(10**6):
            await peer.command("chat", {"n": number})
            await trio.sleep(5 / FLOOD)


async def test_i4_a_tenant_above_its_quota_is_refused_and_another_is_not(mock_clock: MockClock) -> None:
    """Time stands still but for the jump: what is let through is the burst, and then what has come back."""
    limits = Limits(tenant_commands_per_second=QUOTA)
    told: dict[str, list[str]] = {"greedy": [], "modest": []}
    async with local_server(limits=limits, wall_clock=trio.current_time) as local:

        async def send(user: str, tenant: str, count: int) -> None:
            async with local.peer(user, tenant=tenant) as peer:
                for number in range(count):
                    told[tenant].append((await peer.command("chat", {"n": number}))["status"])

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(send, f"user{number}", "greedy", 50)
                nursery.start_soon(send, f"user{number}", "modest", 4)
        assert Counter(told["greedy"]) == {"ok": 2 * QUOTA, "error": FLOOD - 2 * QUOTA}
        assert Counter(told["modest"]) == {"ok": 80}
        mock_clock.jump(0.1)
        told["greedy"].clear()
        await send("user0", "greedy", 20)
        assert told["greedy"] == ["ok"] * 10 + ["error"] * 10


async def test_i4_what_it_takes_from_another(figure: Figure) -> None:
    """No time is asserted."""
    async with (
        local_server(limits=Limits(tenant_commands_per_second=QUOTA)) as local,
        local.peer(tenant="modest") as peer,
    ):
        await peer.until("live")
        alone = await p99(peer)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(flood, local, f"user{number}")
            beside = await p99(peer)
            nursery.cancel_scope.cancel()
    figure(
        "I4",
        f"p99 beside a tenant at ten times its quota ({alone:.1f} ms alone), ratio",
        f"{beside / alone:.1f}",
    )
