"""R rows, by the client that everybody uses: what was missed comes in order and once."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from memory_world import MemoryWorld, memory_world
from serving import PATIENCE
from stage import Stage
from trio.testing import MockClock, wait_all_tasks_blocked
from witness import Client, Witness

from wsrecover.config import Limits
from wsrecover.session.connection import Connection
from wsrecover.session.session import Session
from wsrecover.testing import Cut, LocalServer, LossyLink, Peer, local_server
from wsrecover.transport.framing import masked_frame


@asynccontextmanager
async def linked(local: LocalServer, *plan: Cut | None) -> AsyncIterator[tuple[LossyLink, str]]:
    host, port = local.server.addresses[0]
    link = LossyLink(host, port, plan=plan)
    async with trio.open_nursery() as nursery:
        await nursery.start(link.run)
        yield link, f"ws://127.0.0.1:{link.port}"
        nursery.cancel_scope.cancel()


def connections(local: LocalServer) -> dict[str, Any]:
    """The server's connections by client id."""
    return {
        client: connection
        for session in local.server.registry.sessions.values()
        for client, connection in session.connections.items()
    }


async def until_connected(local: LocalServer, count: int) -> None:
    with trio.fail_after(PATIENCE):
        while len(connections(local)) != count:
            await wait_all_tasks_blocked()


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_r02_what_was_emitted_while_away_comes_all_in_order_and_once(
    store: str, tmp_path: Path
) -> None:
    seed = 2
    rng = random.Random(seed)
    place = "memory" if store == "memory" else f"sqlite:{tmp_path / 'log.db'}"
    # Pages and the tail are small, so that a replay goes through the store, page by page.
    limits = Limits(tail_events=16, page_events=10)
    async with local_server(store=place, limits=limits) as local:
        witness = Witness(local)
        async with witness.client() as client:
            missed = [0, 1, 15, 16, 17, 40, 120]
            rng.shuffle(missed)
            for count in missed:
                await witness.publish(rng.randrange(4))
                await client.drop()
                await witness.publish(count)
                client.come_back()
                await witness.publish(3)
                total = len(witness.history.publishes)
                await client.take(total - len(client.events))
                assert client.seqs == list(range(1, total + 1)), f"seed {seed}"
            client.settled()
        assert client.notices == []
        await witness.check(resumes=len(missed), deliveries=2 * total, drained=total)
        assert local.server.statistics().sessions.counts["replayed"] >= sum(missed)


async def test_r02_a_run_goes_on_while_its_user_is_away(local: LocalServer, stage: Stage) -> None:
    witness = Witness(local)
    async with witness.client() as client, witness.client() as onlooker:
        await client.session.start_agent("worker")
        for _ in range(5):
            stage.tell("think", "tool")
            # Where the other tab saw it, the log has it.
            await onlooker.until("tool_completed")
            await client.drop()
            stage.tell("think", "app.note", "tool")
            await onlooker.until("tool_completed")
            client.come_back()
        stage.tell("finish")
        await onlooker.until("agent_completed")
        await client.until("agent_completed")
        for each in (client, onlooker):
            each.settled()
        assert client.events == onlooker.events
        assert client.seqs == list(range(1, len(client.seqs) + 1))
    await witness.check(resumes=5, drained=len(client.seqs), deliveries=4 * len(client.seqs))


class TestR04AnEventCutInHalf:
    """The connection ends after each number of bytes in turn: no event in part, none twice, none lost."""

    @pytest.fixture
    async def local(self) -> AsyncIterator[LocalServer]:
        # The clock stands still, so that each attempt is the same bytes.
        async with local_server(wall_clock=lambda: 1_000_000.0, limits=Limits(part_bytes=1024)) as local:
            yield local

    async def uncut(self, local: LocalServer, witness: Witness, events: int) -> tuple[int, list[int]]:
        """How many bytes go down for these events, and the sizes of the messages that they come in."""
        async with linked(local) as (link, url), witness.client(url=url) as client:
            await client.take(events)
            await client.session.wait_status("live")
            moved = link.moved["down"]
        return moved, client.messages

    async def cut_at(self, local: LocalServer, witness: Witness, offset: int, events: int) -> Client:
        async with linked(local, Cut(offset)) as (link, url):
            async with witness.client(url=url) as client:
                await client.take(events)
                client.settled()
            assert link.cuts == 1, f"not cut at {offset}"
        assert client.seqs == list(range(1, events + 1)), f"cut at {offset}"
        assert client.notices == [], f"cut at {offset}"
        return client

    async def test_r04_small_events_at_every_byte(self, local: LocalServer) -> None:
        witness = Witness(local)
        await witness.publish(2, pad=10)
        moved, messages = await self.uncut(local, witness, 2)
        assert len(messages) == 2, "welcome, then both events"
        start = moved - messages[-1] - 4
        # Before the events, in the HTTP head and in welcome, every tenth will do.
        offsets = [*range(1, start, 10), *range(start, moved)]
        for offset in offsets:
            await self.cut_at(local, witness, offset, 2)
        assert len(offsets) > 300
        await witness.check(drained=2, deliveries=4 * len(offsets))

    async def test_r04_an_event_in_parts_at_each_kind_of_byte(self, local: LocalServer) -> None:
        witness = Witness(local)
        await witness.publish(1)
        await witness.publish(1, pad=5000)
        await witness.publish(1)
        moved, messages = await self.uncut(local, witness, 3)
        assert len(messages) > 5
        ends = list(itertools.accumulate((size + 4 for size in reversed(messages)), initial=0))
        boundaries = [moved - end for end in ends]
        kinds = {b + step for b in boundaries for step in (-300, -1, 0, 1, 2, 3, 4, 5, 60, 120, 300, 700)}
        offsets = sorted(offset for offset in kinds if boundaries[-1] <= offset < moved)
        for offset in offsets:
            client = await self.cut_at(local, witness, offset, 3)
            assert client.events[1].data["pad"] == "x" * 5000
            assert len(client.welcomes) <= 2, f"cut at {offset}"
            # It goes on with the part that was cut: besides that there is but another welcome.
            assert len(client.messages) <= len(messages) + 2, f"cut at {offset}"
        await witness.check(drained=3, deliveries=4 * len(offsets))


class TestR06ManyRecoverAtOnce:
    async def test_r06_clients_of_one_user_and_of_several_get_their_own_and_no_other(
        self, local: LocalServer
    ) -> None:
        seed = 6
        rng = random.Random(seed)
        witness = Witness(local)
        users = [("acme", "ada"), ("acme", "bob"), ("acme", "Ada"), ("beta", "ada")]
        published = dict.fromkeys(users, 0)

        async def publish(count: int) -> None:
            for tenant, user in rng.choices(users, k=count):
                await witness.publish(1, user, tenant=tenant)
                published[tenant, user] += 1

        async def follow(client: Client, count: int) -> None:
            await client.take(count - len(client.events))

        async with contextmanagers(
            [witness.client(user, tenant=tenant) for tenant, user in users for _ in range(4)]
        ) as clients:
            for _ in range(4):
                for client in clients:
                    await client.drop()
                await publish(150)
                for client in rng.sample(clients, len(clients)):
                    client.come_back()
                await publish(50)
                async with trio.open_nursery() as nursery:
                    for client in clients:
                        tenant, user = client.stream.split("/")
                        nursery.start_soon(follow, client, published[tenant, user])
            for client in clients:
                client.settled()
                assert {event.data["v"].split(" ")[2] for event in client.events} == {f"{client.stream}>"}
                assert client.seqs == list(range(1, published[tuple(client.stream.split("/"))] + 1))  # type: ignore[index]  # a pair
        await witness.check(publishes=800, resumes=4 * 16, drained=800, deliveries=2 * 4 * 800)


@asynccontextmanager
async def contextmanagers(managers: list[Any]) -> AsyncIterator[list[Any]]:
    """All of them entered, one in the other."""
    if not managers:
        yield []
        return
    async with managers[0] as first, contextmanagers(managers[1:]) as rest:
        yield [first, *rest]


SAID = orjson.dumps(
    [
        {"op": "ack", "pos": {"user": 1}},
        {"op": "send", "id": "late", "type": "chat", "data": {"text": "late"}},
        {"op": "follow", "id": "f1", "threads": ["t1"]},
    ]
).decode()


class Handover(trio.abc.Instrument):
    """Lets a client speak on its connection at a step of the scheduler, by its number.

    `said` and `taken` are whether it had, and whether the server had read it, when a newer connection took
    the place of this one.
    """

    def __init__(self, session: Session, old: Connection, peer: Peer, step: int) -> None:
        self.said = self.taken = self.replaced = self.spoke = False
        self._session, self._old, self._peer = session, old, peer
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self.replaced and self._session.connections["tab"] is not self._old:
            self.replaced, self.said, self.taken = True, self.spoke, bool(self._old.processed)
        self._left -= 1
        if self._left < 0 and not self.spoke:
            self.spoke = self._peer.socket.outbox.put(masked_frame(SAID))


class TestR09ResumesThatRace:
    async def test_r09_a_resume_beside_a_connection_that_is_not_known_to_be_dead_replaces_it(
        self, local: LocalServer
    ) -> None:
        witness = Witness(local)
        async with linked(local) as (link, url), witness.client(url=url, client_id="tab") as client:
            await witness.publish(2)
            await client.take(2)
            old = connections(local)["tab"]
            # The way that it used is a black hole from now on: the server sees nothing of its end.
            link.stall()
            client.url = local.url
            client.blink()
            await witness.publish(5)
            await client.take(5)
            assert connections(local)["tab"] is not old
            await until_connected(local, 1)
            await witness.publish(2)
            await client.take(2)
            client.settled()
            assert client.session.client_id == "tab"
            link.resume()
        counts = local.server.statistics().sessions.counts
        assert counts["closed.4500"] == 1
        assert counts["resume.resumed"] == 1
        await witness.check(resumes=1, drained=9)

    async def test_r09_of_clients_that_share_an_id_one_keeps_it_and_all_go_on(
        self, local: LocalServer, nursery: trio.Nursery
    ) -> None:
        witness = Witness(local)
        await witness.publish(30)
        tabs = 12
        async with contextmanagers([witness.client(client_id="tab") for _ in range(tabs)]) as clients:
            for client in clients:
                await client.take(30)
            await until_connected(local, tabs)
            keepers = [client for client in clients if client.session.client_id == "tab"]
            assert keepers == [clients[-1]]
            assert len({client.session.client_id for client in clients}) == tabs
            await witness.publish(3)
            for client in clients:
                await client.take(3)
                client.settled()
                assert client.seqs == list(range(1, 34))
        assert local.server.statistics().sessions.counts["closed.4500"] == tabs - 1
        await witness.check(resumes=tabs - 1, drained=33, deliveries=2 * tabs * 33)

    async def test_r09_a_client_that_comes_back_again_and_again_while_live_is_one_client(
        self, local: LocalServer
    ) -> None:
        witness = Witness(local)
        async with witness.client(client_id="tab") as client:
            for _ in range(50):
                await client.session.wait_status("live")
                client.blink()
                await witness.publish(3)
                await client.take(3)
            await until_connected(local, 1)
            assert list(connections(local)) == ["tab"]
            assert client.seqs == list(range(1, 151))
            client.settled()
        await witness.check(resumes=50, drained=150)

    async def test_r09_what_reaches_a_connection_in_the_tick_of_its_replacement_or_later_has_no_effect(
        self, mock_clock: MockClock, same_order_each_time: None
    ) -> None:
        """The client speaks at each step of its newer connection's way in."""
        told: Counter[str] = Counter()
        async with memory_world() as world:
            for turn in range(5):  # The tasks of a tick run in another order each time.
                for step in itertools.count():
                    handover = await self.replaced(world, f"user{turn}.{step}", step)
                    if not handover.spoke:
                        break
                    when = "in time" if handover.taken else "in its tick" if handover.said else "too late"
                    told[when] += 1
        assert set(told) == {"in time", "in its tick", "too late"}, told

    async def replaced(self, world: MemoryWorld, user: str, step: int) -> Handover:
        """A user's connection is replaced while its client speaks on it: what was read by then counts."""
        local, dial = world.local, world.network.dial
        async with local.peer(user, client="tab", dial=dial) as older:
            await older.until("live")
            await local.server.publish("acme", user, "noted", {})
            await older.events(1)
            await wait_all_tasks_blocked()
            session = world.registry.sessions["acme", user]
            old = session.connections["tab"]
            handover = Handover(session, old, older, step)
            trio.lowlevel.add_instrument(handover)
            try:
                async with local.peer(user, client="tab", dial=dial) as newer:
                    await newer.until("live")
                    await wait_all_tasks_blocked()
            finally:
                trio.lowlevel.remove_instrument(handover)
        assert handover.replaced
        assert old.processed == ({"user": 1} if handover.taken else {}), f"step {step}"
        assert old.delivery.wanted is None or handover.taken, f"step {step}"
        position = await local.server.publish("acme", user, "noted", {})
        assert position.seq == (3 if handover.taken else 2), f"step {step}"
        return handover
