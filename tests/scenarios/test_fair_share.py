"""I4: one tenant at ten times its quota takes nothing from another."""

from __future__ import annotations

import os
import time
from typing import Final

import trio
from figures import Figure

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


async def flood(local: LocalServer, user: str, refused: list[int]) -> None:
    """A fifth of the flood, for ever; its answers are counted."""
    async with local.peer(user, tenant="greedy") as peer:
        for number in range(10**6):
            await peer.send({"op": "send", "id": f"{user}-{number}", "type": "chat", "data": {}})
            reply = (await peer.until("reply"))[-1]
            refused[reply["status"] == "ok"] += 1
            await trio.sleep(5 / FLOOD)


async def test_i4_a_tenant_above_its_quota_is_refused_and_another_is_not(figure: Figure) -> None:
    refused = [0, 0]
    async with (
        local_server(limits=Limits(tenant_commands_per_second=QUOTA)) as local,
        local.peer(tenant="modest") as peer,
    ):
        await peer.until("live")
        started = trio.current_time()
        alone = await p99(peer)
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(flood, local, f"user{number}", refused)
            beside = await p99(peer)
            nursery.cancel_scope.cancel()
        seconds = trio.current_time() - started
    figure(
        "I4",
        f"p99 beside a tenant at ten times its quota ({alone:.1f} ms alone), ratio",
        f"{beside / alone:.1f}",
    )
    assert refused[1] <= 2 * QUOTA + seconds * QUOTA
