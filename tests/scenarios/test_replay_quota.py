"""R7: who replays without end is paced, over all its connections, and nobody else waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import attrs
import pytest
import trio
from figures import Figure
from memory_world import MemoryWorld, memory_world
from serving import START
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.config import Limits, Tier, Timeouts
from wsrecover.errors import ConnectionClosed
from wsrecover.session import quota as quota_module
from wsrecover.session.quota import Quota
from wsrecover.streams.store import Entry, StreamKey
from wsrecover.testing import Peer

LIVE: Final = {"from": "live"}
KEY: Final = StreamKey("user", "acme", "ada")
PER_SECOND: Final = 1024
QUOTA: Final = 60 * PER_SECOND
PAGE: Final = 8 * 1024

CHANGE: Final = QUOTA // quota_module.CHANGE
"""Bytes of which the bucket is told together: the last of the quota, for who has less to ask."""

MOMENT: Final = 0.001_001
"""A millisecond, and the noise of a float of seconds."""

SMALL: Final = Limits(
    page_bytes=PAGE, page_events=50, tail_events=4, tail_bytes=4096, part_bytes=4096, event_bytes=8192
)
"""Of most logs here nothing but the end is in memory."""


@asynccontextmanager
async def world(limits: Limits = SMALL, **tiers: Tier) -> AsyncIterator[MemoryWorld]:
    async with memory_world(
        limits=limits,
        tier=Tier(replay_bytes_per_minute=QUOTA),
        tiers=tiers,
        timeouts=Timeouts(heartbeat=3600),  # Here nobody answers a ping, and the clock jumps.
    ) as made:
        yield made


@attrs.define
class Reader:
    """A client that reads whatever comes."""

    peer: Peer
    frames: list[dict[str, Any]] = attrs.field(factory=list)

    async def read(self) -> None:
        try:
            while True:
                self.frames.append(await self.peer.frame())
        except ConnectionClosed:
            return

    @property
    def seqs(self) -> list[int]:
        return [frame["seq"] for frame in self.frames if frame["op"] == "event"]

    def count(self, op: str) -> int:
        return sum(frame["op"] == op for frame in self.frames)


@asynccontextmanager
async def reader(there: MemoryWorld, user: str = "ada", **hello: Any) -> AsyncIterator[Reader]:
    async with (
        there.local.peer(user, dial=there.network.dial, **hello) as peer,
        trio.open_nursery() as nursery,
    ):
        made = Reader(peer)
        nursery.start_soon(made.read)
        await wait_all_tasks_blocked()
        yield made
        nursery.cancel_scope.cancel()


async def publish(there: MemoryWorld, count: int, *, size: int = 400, user: str = "ada") -> None:
    for number in range(count):
        await there.local.server.publish("acme", user, "noted", {"n": number, "pad": "x" * size})


async def sizes(there: MemoryWorld, key: StreamKey = KEY) -> dict[int, int]:
    """The bytes of each event's body, by seq."""
    head = (await there.services.store.load(key)).head
    store = there.services.store
    found: dict[int, int] = {}
    while len(found) < head:
        entries = await store.read(key, len(found), upto=head, max_events=500, max_bytes=1 << 20)
        found |= {entry.seq: len(entry.body) for entry in entries}
    return found


def quota_of(there: MemoryWorld, user: str = "ada") -> Quota:
    return there.registry.sessions["acme", user].quota


@pytest.mark.parametrize("limits", [SMALL, attrs.evolve(SMALL, tail_events=256, tail_bytes=1 << 20)])
async def test_r7_a_loop_of_replays_gets_its_quota_to_the_byte_and_no_more(
    limits: Limits, mock_clock: MockClock, figure: Figure
) -> None:
    """From the store and from memory; each reconnect asks for everything again, and drops wherever it is."""
    admitted = over = 0
    async with world(limits) as there, reader(there, client="onlooker", **LIVE):
        await publish(there, 100)
        size, quota = await sizes(there), quota_of(there)
        began = trio.current_time()
        for round_number in range(40):
            async with reader(there, client="greedy", **START) as one:
                await wait_all_tasks_blocked()
                admitted += sum(size[seq] for seq in one.seqs)
            allowed = QUOTA + PER_SECOND * (trio.current_time() - began)
            over += admitted > allowed
            if round_number == 0:
                assert one.seqs == list(range(1, 101))
                left = QUOTA - CHANGE - admitted
                assert quota.take_replay(left + 1) > 0
                assert quota.take_replay(left) == 0
                quota.settle_replay(-left)
            mock_clock.jump(1.7)
        # What a page may take is reserved while it is read: no more than that may lie idle.
        assert admitted > allowed - 2 * PAGE
        assert there.services.counts["replay.paced"] > 0
    where = "memory" if limits.tail_events > 100 else "the store"
    figure("R7", f"replays from {where} admitted beyond the quota, in a loop of reconnects", over)
    assert over == 0


async def test_r7_a_page_waits_to_the_millisecond_and_nothing_is_refused(mock_clock: MockClock) -> None:
    async with world() as there:
        await publish(there, 300)
        async with reader(there, **START) as one:
            waits = 0
            while one.count("live") < 3:
                before = list(one.seqs)
                wait = quota_of(there).take_replay(PAGE)
                assert wait > 0, "it would have gone on"
                mock_clock.jump(wait - 0.001)
                await wait_all_tasks_blocked()
                assert one.seqs == before, "early"
                mock_clock.jump(MOMENT)
                await wait_all_tasks_blocked()
                waits += 1
                assert one.seqs != before, "late"
            assert one.seqs == list(range(1, 301))
            assert waits > 5
            assert one.count("gap") == one.count("error") == 0


async def test_r7_dropping_and_coming_back_is_no_way_around(mock_clock: MockClock) -> None:
    async with world() as there:
        await publish(there, 300)
        async with reader(there, client="one", **START) as one:
            got = len(one.seqs)
        assert 0 < got < 300
        for number in range(20):
            async with reader(there, client=f"{number}", **START) as one:
                assert one.seqs == []
                assert one.count("welcome") == 1
        mock_clock.jump(PAGE / PER_SECOND + 1)
        async with reader(there, client="last", **START) as one:
            assert 0 < len(one.seqs) * 400 <= PAGE + PER_SECOND


async def test_r7_small_change_is_counted_too(mock_clock: MockClock, figure: Figure) -> None:
    """A client that comes back for its last event, again and again, and sometimes for all of them."""
    admitted = over = 0
    async with world() as there, reader(there, client="onlooker", **LIVE) as onlooker:
        epoch = onlooker.frames[0]["streams"]["user"]["epoch"]
        await publish(there, 30)
        size = await sizes(there)
        began = trio.current_time()
        for round_number in range(400):
            position = {"user": [epoch, 0 if round_number % 50 == 49 else 29]}
            async with reader(there, client="greedy", resume=position) as one:
                admitted += sum(size[seq] for seq in one.seqs)
            over += admitted > QUOTA + PER_SECOND * (trio.current_time() - began)
            mock_clock.jump(0.1)
        assert admitted > 0.9 * QUOTA + PER_SECOND * 30
    figure("R7", "small replays admitted beyond the quota, in a loop of reconnects", over)
    assert over == 0


async def test_r7_what_is_live_goes_on_for_others_and_for_the_user_itself(mock_clock: MockClock) -> None:
    async with world() as there, AsyncExitStack() as stack:
        await publish(there, 300)
        paced = await stack.enter_async_context(reader(there, client="paced", **START))
        behind = len(paced.seqs)
        assert behind < 300
        tab = await stack.enter_async_context(reader(there, client="tab", **LIVE))
        other = await stack.enter_async_context(reader(there, "grace", **LIVE))
        await publish(there, 1)
        await publish(there, 1, user="grace")
        await there.local.server.broadcast("tenant", "notice", {}, tenant="acme")
        await paced.peer.send([{"op": "ping"}, {"op": "send", "id": "c1", "type": "chat", "data": {}}])
        await wait_all_tasks_blocked()
        assert tab.seqs == [301, 1, 302]
        assert other.seqs == [1, 1]
        assert [frame["stream"] for frame in paced.frames if frame["op"] == "event"][behind:] == ["tenant"]
        assert paced.count("pong") == paced.count("reply") == 1


async def test_r7_at_the_head_it_costs_nothing_and_what_was_missed_its_size(mock_clock: MockClock) -> None:
    async with world() as there:
        await publish(there, 100)
        async with reader(there, **LIVE) as one:
            epoch = one.frames[0]["streams"]["user"]["epoch"]
            await publish(there, 3)
            await wait_all_tasks_blocked()
            assert one.seqs == [101, 102, 103]
        for _ in range(100):
            async with reader(there, resume={"user": [epoch, 103]}) as one:
                assert one.count("live") == 3
        assert quota_of(there)._replay is None
        await publish(there, 3)
        size = await sizes(there)
        async with reader(there, resume={"user": [epoch, 103]}) as one:
            assert one.seqs == [104, 105, 106]
            left = QUOTA - CHANGE - sum(size[seq] for seq in one.seqs)
            assert quota_of(there).take_replay(left + 1) > 0
            assert quota_of(there).take_replay(left) == 0


async def test_r7_each_tier_has_its_own_and_a_new_one_counts_at_once(mock_clock: MockClock) -> None:
    small, large = Tier(replay_bytes_per_minute=QUOTA // 4), Tier(replay_bytes_per_minute=QUOTA * 4)
    async with world(small=small, large=large) as there:
        await publish(there, 300)
        async with reader(there, tier="small", **START) as one:
            few = len(one.seqs)
            token = there.local.token(tier="large")
            await one.peer.send({"op": "auth", "id": "a", "token": token})
            mock_clock.jump(1)
            await wait_all_tasks_blocked()
            assert (few, len(one.seqs)) == (few, 300)
        assert 0 < few * 400 <= QUOTA // 4


async def test_r7_a_snapshot_is_paid_for_and_what_it_overdraws_is_waited_for(mock_clock: MockClock) -> None:
    async with world() as there:
        for number in range(20):
            text = {"text": f"{number}" * 4000}
            await there.local.server.publish("acme", "ada", "user_message", text, thread=f"t{number}")
        async with reader(there, client="first") as one:
            assert one.count("snapshot") + one.count("part") > 0
            assert one.count("live") == 3
        wait = quota_of(there).take_replay(0)
        assert wait > 0
        async with reader(there, client="second") as one:
            assert one.count("welcome") == 1
            assert one.count("snapshot") == one.count("part") == 0
            mock_clock.jump(wait - 0.001)
            await wait_all_tasks_blocked()
            assert one.count("snapshot") == one.count("part") == 0
            mock_clock.jump(MOMENT)
            await wait_all_tasks_blocked()
            assert one.count("live") == 3


async def test_r7_pages_are_read_in_turns_and_never_more_than_so_many_at_once(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    users = [f"user{number}" for number in range(20)]
    limits = attrs.evolve(SMALL, page_events=10)
    async with memory_world(limits=limits) as there, AsyncExitStack() as stack:
        for user in users:
            await publish(there, 60, user=user)
        read = there.services.store.read
        order: list[str] = []
        at_once = most = 0

        async def noted(key: StreamKey, *args: Any, **more: Any) -> list[Entry]:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            order.append(key.name)
            try:
                await trio.sleep(0.01)
                return await read(key, *args, **more)
            finally:
                at_once -= 1

        monkeypatch.setattr(there.services.store, "read", noted)
        readers = [await stack.enter_async_context(reader(there, user, **START)) for user in users]
        for _ in range(len(users) * 6):
            mock_clock.jump(0.01)
            await wait_all_tasks_blocked()
        assert [one.seqs for one in readers] == [list(range(1, 61))] * len(users)
        rounds = [order[at : at + len(users)] for at in range(0, len(order), len(users))]
        unfair = sum(len(set(each)) != len(each) for each in rounds)
        figure("R7", f"most pages read at once, of {len(users)} who replay", most)
        figure("R7", f"rounds in which one had two turns, of {len(rounds)}", unfair)
        assert (most, unfair, len(rounds)) == (2, 0, 6)
        assert not there.services.quotas.pages


async def test_r7_who_leaves_the_line_holds_up_nobody(mock_clock: MockClock) -> None:
    async with world() as there:
        await publish(there, 100)
        pages = there.services.quotas.pages
        held = [pages.ask(lambda: None) for _ in range(2)]
        async with reader(there, client="gone", **START):
            assert len(pages) == 1
        await wait_all_tasks_blocked()
        assert not pages
        async with reader(there, client="stays", **START) as one:
            assert (len(pages), one.seqs) == (1, [])
            await one.peer.send({"op": "ping"})
            await wait_all_tasks_blocked()
            assert one.count("pong") == 1
            pages.leave(held.pop())
            await wait_all_tasks_blocked()
            assert one.seqs == list(range(1, 101))
        pages.leave(held.pop())
