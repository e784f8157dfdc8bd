"""Servers that are killed in the middle of their work, and started again on the same file."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Final

import trio
from process import TENANT, ServerProcess, server_process
from serving import PATIENCE

from wsrecover import connect
from wsrecover.client import ClientSession, Event
from wsrecover.testing import History, check

KILLS: Final = 20
SEED: Final = 3
VALUES: Final = 1000
"""What one run emits before it falls silent: more than any round waits for."""

STREAM: Final = f"{TENANT}/ada"
ROOM: Final = "[retention]\nevents = 100_000\n"


class Story:
    """What was done to ada's stream over all its servers, and what her client saw of it."""

    def __init__(self) -> None:
        self.history = History()
        self.started: dict[str, str] = {}
        self.endings: defaultdict[str, list[tuple[str, str | None]]] = defaultdict(list)
        self.live = 0
        self.seen = 0
        self.last = 0
        self.publishing = True
        self._arrival = trio.lowlevel.ParkingLot()

    def saw_status(self, status: str) -> None:
        self.live += status == "live"
        self._arrival.unpark_all()

    async def until_live(self, times: int) -> None:
        while self.live < times:
            await self._arrival.park()

    async def until_seen(self, count: int) -> None:
        while self.seen < count:
            await self._arrival.park()

    async def until_seq(self, seq: int) -> None:
        while self.last < seq:
            await self._arrival.park()

    async def follow(self, session: ClientSession) -> None:
        """Note what the client is given: events and nothing else, for its positions are all good."""
        self.history.connect("reader")
        async for item in session:
            assert isinstance(item, Event), item
            epoch = session.received["user"].epoch
            self.history.deliver("reader", STREAM, STREAM, epoch, item.seq, self.value(item))
            if item.type == "agent_completed":
                error = item.data.get("error", {})
                self.endings[self.started[item.run or ""]].append((item.data["status"], error.get("code")))
            self.seen += 1
            self.last = item.seq
            self._arrival.unpark_all()

    def value(self, event: Event) -> str:
        """The value that stands for the event and that no other has."""
        match event.type:
            case "agent_started":
                tag = self.started[event.run or ""] = event.data["input"]["tag"]
                return f"{tag} started"
            case "agent_completed":
                return f"{self.started[event.run or '']} ended"
        value: str = event.data["value"]
        return value

    async def run(self, session: ClientSession, tag: str) -> None:
        """Start a run: over a kill too, and once."""
        for value in (f"{tag} started", *(f"{tag}-{n}" for n in range(VALUES)), f"{tag} ended"):
            self.history.invoke(value, STREAM)
        run = await session.start_agent("talker", {"tag": tag, "count": VALUES})
        self.history.counts["runs acknowledged"] += 1
        assert self.started.setdefault(run, tag) == tag

    async def publish(self, service: ClientSession) -> None:
        """Publish one event after the other, each until it is acknowledged."""
        count = 0
        while self.publishing:
            value = f"published {count}"
            self.history.invoke(value, STREAM)
            event = {"type": "app.published", "data": {"value": value}}
            result = await service.send("publish", {"user": "ada", "events": [event]})
            ((epoch, seq),) = result["positions"]
            self.history.ok(value, epoch, seq)
            count += 1

    async def chat(self, session: ClientSession) -> None:
        """The user says one thing after the other."""
        count = 0
        while self.publishing:
            value = f"said {count}"
            self.history.invoke(value, STREAM)
            result = await session.send("chat", {"value": value})
            self.history.ok(value, session.received["user"].epoch, result["seq"])
            count += 1


def joined(server: ServerProcess, user: str = "ada", *roles: str, **more: Any) -> Any:
    return connect(server.url, token=server.token(user, roles), rng=lambda: 0.02, **more)


async def drain(server: ServerProcess) -> tuple[str, list[Event]]:
    """Ada's stream as a fresh reader finds it: its epoch and all its events."""
    async with joined(server, from_="start", buffer_items=10**6, buffer_bytes=10**9) as session:
        await session.wait_status("live")
        epoch, head = session.received["user"].epoch, session.received["user"].seq
        events: list[Event] = []
        while not events or events[-1].seq < head:
            events.append(await anext(session))
    return epoch, events


async def test_fault_s1_twenty_kills_in_mid_run_lose_nothing_acknowledged_and_end_each_run_once(
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}")  # noqa: T201  # pytest shows it beside a failure.
    rng = random.Random(SEED)
    story = Story()
    with trio.fail_after(PATIENCE):
        async with server_process(tmp_path, settings=ROOM) as server:
            await server.start()
            async with (
                joined(server, on_status=story.saw_status) as session,
                joined(server, "backend", "service") as service,
                trio.open_nursery() as reading,
            ):
                reading.start_soon(story.follow, session)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(story.publish, service)
                    nursery.start_soon(story.chat, session)
                    for kill in range(KILLS):
                        nursery.start_soon(story.run, session, f"run {kill}")
                        await story.until_seen(story.seen + rng.randrange(200))
                        await server.kill()
                        story.history.fault("kill")
                        await server.start()
                        await story.until_live(kill + 2)
                    story.publishing = False
                # What the last kill ended is in the log. It is read before it is asked which runs go on: a
                # start that no killed server had committed has taken effect in the last one.
                _, events = await drain(server)
                await story.until_seq(events[-1].seq)
                for run, tag in story.started.items():
                    if tag not in story.endings:
                        await session.cancel(run)
                epoch, events = await drain(server)
                await story.until_seq(events[-1].seq)
                story.history.settled("reader", STREAM)
                reading.cancel_scope.cancel()
    drained = [(epoch, event.seq, story.value(event)) for event in events]
    report = check(story.history, {STREAM: drained})
    report.assert_clean(acknowledged=2 * KILLS, deliveries=50 * KILLS, faults=KILLS)
    assert report.counts["runs acknowledged"] == len(story.started) == KILLS
    assert story.live > KILLS, "the client came back by itself after every kill"
    ended = Counter(ending for endings in story.endings.values() for ending in endings)
    assert set(story.endings) == set(story.started.values())
    assert set(ended) <= {("failed", "producer_lost"), ("cancelled", None)}
    assert ended["failed", "producer_lost"] >= KILLS // 2
    assert ended.total() == KILLS
    assert_runs_are_whole(events)


def assert_runs_are_whole(events: list[Event]) -> None:
    """Each run's events are its start, the values without a hole, and its end."""
    runs: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.run is not None:
            runs[event.run].append(event)
    for first, *between, last in runs.values():
        assert (first.type, last.type) == ("agent_started", "agent_completed")
        tag = first.data["input"]["tag"]
        assert [event.data["value"] for event in between] == [f"{tag}-{n}" for n in range(len(between))]
