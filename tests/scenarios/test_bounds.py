"""S12: how much of a user's log is kept, by count, by bytes and by age, each as its tier says."""

from __future__ import annotations

from typing import Any, Final

import pytest
import trio
from memory_world import MemoryWorld, memory_world
from trio.testing import MockClock

from wsrecover.config import Limits, Tier

TIERS: Final = {
    "count": Tier(log_events=20),
    "bytes": Tier(log_bytes=32 * 1024),
    "age": Tier(log_age=100.0),
    "all": Tier(),
}
EVENTS: Final = 60
PAD: Final = "x" * 1000


async def publish(world: MemoryWorld, tier: str, first: int, last: int) -> None:
    for n in range(first, last + 1):
        await world.local.server.publish("acme", tier, "noted", {"n": n, "pad": PAD})


async def told_after(world: MemoryWorld, tier: str) -> tuple[list[dict[str, Any]], list[int]]:
    """The gaps, and the seqs of the events, that a user of a tier is told who had the first event only.

    Half of the events come a while before it is back, the other half right then.
    """
    dial = world.network.dial
    async with world.local.peer(tier, tier=tier, dial=dial, client="tab", **{"from": "start"}) as peer:
        epoch = (await peer.until("live"))[0]["streams"]["user"]["epoch"]
    await publish(world, tier, 1, EVENTS // 2)
    await trio.sleep(150)
    await publish(world, tier, EVENTS // 2 + 1, EVENTS)
    await trio.sleep(65)  # What goes by age is looked for each minute.
    hello: dict[str, Any] = {"from": "start", "resume": {"user": [epoch, 1]}}
    async with world.local.peer(tier, tier=tier, dial=dial, client="tab", **hello) as peer:
        frames = await peer.until("live", stream="user")
    events = [frame for frame in frames if frame["op"] == "event"]
    assert [event["data"]["n"] for event in events] == [event["seq"] for event in events]
    return [frame for frame in frames if frame["op"] == "gap"], [event["seq"] for event in events]


@pytest.mark.parametrize(
    ("tier", "least", "most"), [("count", 20, 22), ("bytes", 28, 33), ("age", 30, 30), ("all", 59, 59)]
)
async def test_s12_the_oldest_go_first_and_a_gap_says_which(
    tier: str, least: int, most: int, autojump_clock: MockClock
) -> None:
    async with memory_world(tiers=TIERS, limits=Limits(event_bytes=32 * 1024)) as world:
        gaps, seqs = await told_after(world, tier)
    assert seqs == list(range(seqs[0], EVENTS + 1))
    assert least <= len(seqs) <= most
    if tier == "all":
        assert gaps == []
    else:
        assert [(gap["reason"], gap["from"], gap["to"]) for gap in gaps] == [("trimmed", 2, seqs[0] - 1)]
