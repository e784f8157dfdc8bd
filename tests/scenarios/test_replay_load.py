"""R7: a thousand users who replay at once, and one who does so without end, take nothing from who is live."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio
from figures import Figure, Progress
from process import TENANT, ServerProcess, server_process

from wsrecover.protocol.codec import encode_event
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import Entry, StreamKey, Unit
from wsrecover.testing import Peer
from wsrecover.transport import open_socket

FULL: Final = os.environ.get("WSRECOVER_FAULTS") == "1"
USERS: Final = 1_000 if FULL else 30
EVENTS: Final = 10_000 if FULL else 500
"""At full size all that the default retention keeps: 10 million events, on disk some 1.2 GB."""

LOOPED: Final = 10_000 if FULL else 2_000
PAD: Final = "x" * 8
SAMPLES: Final = 200 if FULL else 20
PAUSE: Final = 0.02
PER_MINUTE: Final = 1024 * 1024
START_SECONDS: Final = 30.0
STEP_SECONDS: Final = 400.0
"""What takes longer to fill or to replay has not ended by itself."""


@contextmanager
def logs(folder: Path) -> Iterator[Path]:
    """Where a server in `folder` has its log, for the block: too large a file to be left behind."""
    try:
        yield folder / "log.db"
    finally:
        for file in folder.glob("log.db*"):
            file.unlink()


async def fill(path: Path, users: Sequence[str], events: int, progress: Progress) -> int:
    """Log so many events for each user, before the server is there; the bytes of one log."""
    now = time.time()
    bodies = [
        encode_event(ts=now, type="noted", data={"n": n, "pad": PAD}, thread=None, max_bytes=1 << 20)
        for n in range(events)
    ]
    store = await open_sqlite(path, synchronous="OFF")
    with trio.fail_after(STEP_SECONDS):
        for number, user in enumerate(users):
            key = StreamKey("user", TENANT, user)
            await store.commit([Unit(tuple(Entry(key, body, now) for body in bodies))])
            progress(f"logged {events} events for each of {number + 1} of {len(users)} users")
    await store.aclose()
    return sum(map(len, bodies))


@attrs.define
class Replayers:
    """A process of `replayers.py`; what it reads is `enough` bytes at some time."""

    process: trio.Process
    enough: float
    told: dict[str, int] = attrs.field(factory=dict)
    done: trio.Event = attrs.field(factory=trio.Event)
    again: trio.Event = attrs.field(factory=trio.Event)
    """One has all, and has begun anew."""
    told_enough: trio.Event = attrs.field(factory=trio.Event)

    async def listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Starts once all of them are connected."""
        rest = b""
        assert self.process.stdout is not None
        async for piece in self.process.stdout:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                match line:
                    case b"ready":
                        task_status.started()
                    case b"again":
                        self.again.set()
                    case _:
                        self.told = json.loads(line)
                        if self.told["bytes"] >= self.enough:
                            self.told_enough.set()
        self.done.set()
        self.told_enough.set()

    async def stop(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"stop\n")


@asynccontextmanager
async def replayers(
    server: ServerProcess, users: Sequence[str], *, again: bool = False, enough: float = math.inf
) -> AsyncIterator[Replayers]:
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [sys.executable, str(Path(__file__).with_name("replayers.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            tokens = [server.token(user) for user in users]
            given = {"port": server.port, "tokens": tokens, "again": again}
            assert process.stdin is not None
            await process.stdin.send_all(json.dumps(given).encode() + b"\n")
            made = Replayers(process, enough)
            with trio.fail_after(START_SECONDS):
                await nursery.start(made.listen)
            yield made
            nursery.cancel_scope.cancel()
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + START_SECONDS):
                await process.wait()


@asynccontextmanager
async def prober(server: ServerProcess) -> AsyncIterator[Peer]:
    async with open_socket(
        f"{server.url}/v1/connect?client=prober&from=live",
        headers={"Authorization": f"Bearer {server.token('prober')}"},
        subprotocols=["wsrecover.v1"],
        timeout=START_SECONDS,
        max_message_bytes=1 << 20,
    ) as socket:
        yield Peer(socket)


async def p99(
    peer: Peer,
    samples: int,
    until: trio.Event | None = None,
    each: Callable[[], None] = lambda: None,
) -> tuple[float, int]:
    """The 99th percentile, in ms, of the time from a command to its event, and of how many: `samples`, or as
    many as it takes `until` then. `each` is called after each of them."""
    taken: list[float] = []
    with trio.fail_after(STEP_SECONDS):
        while len(taken) < samples or not (until is None or until.is_set()):
            started = time.perf_counter()
            await peer.send({"op": "send", "id": f"{started}", "type": "chat", "data": {}})
            await peer.events(1)
            taken.append((time.perf_counter() - started) * 1000)
            each()
            await trio.sleep(PAUSE)
    return sorted(taken)[int(len(taken) * 0.99)], len(taken)


async def test_r7_a_thousand_replay_and_who_is_live_is_served(
    tmp_path: Path, figure: Figure, progress: Progress
) -> None:
    """With as many turns as there are users, so that nobody waits for one, for comparison: of that a part."""
    users = [f"user{number}" for number in range(USERS)]
    with logs(tmp_path) as path:
        size = USERS * await fill(path, users, EVENTS, progress)
        for turns, enough in ((2, math.inf), (USERS, size / 4)):
            seen = await beside_replays(tmp_path, users, turns, enough, progress)
            what = f"{USERS} users replay {EVENTS} events each, {turns} pages at once"
            figure("R7", f"{what}: live p99, ms ({seen.of})", f"{seen.beside:.1f} ({seen.alone:.1f} alone)")
            figure("R7", f"{what}: server's peak memory, MiB", f"{seen.memory:.0f}")


@attrs.frozen(kw_only=True)
class Seen:
    """Milliseconds, MiB, and `of` how much it was seen."""

    alone: float
    beside: float
    memory: float
    of: str


async def beside_replays(
    folder: Path, users: Sequence[str], turns: int, enough: float, progress: Progress
) -> Seen:
    """The p99 alone and while all users replay, until they have all or `enough` bytes were sent."""
    async with server_process(folder, settings=f"[limits]\nreplay_pages = {turns}\n") as server:
        await server.start()
        async with prober(server) as peer:
            await peer.until("live")
            alone, _ = await p99(peer, SAMPLES)
            began = time.perf_counter()
            async with replayers(server, users, enough=enough) as them:

                def tell() -> None:
                    progress(f"{turns} pages at once, {them.told.get('bytes', 0) / 1e6:.0f} MB were replayed")

                beside, samples = await p99(peer, 1, them.told_enough, tell)
                seconds = time.perf_counter() - began
            memory = peak_memory(server.pid)
        await server.stop()
    if enough == math.inf:
        assert (them.told["replays"], them.told["cut"]) == (len(users), 0)
        assert them.told["events"] == len(users) * EVENTS
    of = f"{samples} samples, {them.told['events']} events in {seconds:.0f} s"
    return Seen(alone=alone, beside=beside, memory=memory, of=of)


def peak_memory(pid: int) -> float:
    """The most MiB that a process ever had resident."""
    status = Path(f"/proc/{pid}/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


async def test_r7_one_replays_in_a_loop_and_gets_its_quota(
    tmp_path: Path, figure: Figure, progress: Progress
) -> None:
    settings = f"[tier]\nreplay_bytes_per_minute = {PER_MINUTE}\n"
    with logs(tmp_path) as path:
        size = await fill(path, ["greedy"], LOOPED, progress)
        async with server_process(tmp_path, settings=settings) as server:
            await server.start()
            async with prober(server) as peer:
                await peer.until("live")
                alone, _ = await p99(peer, SAMPLES)
                began = time.perf_counter()
                async with replayers(server, ["greedy"], again=True) as them:
                    beside, samples = await p99(peer, 5 * SAMPLES, them.again)
                    await them.stop()
                    with trio.fail_after(START_SECONDS):
                        await them.done.wait()
                seconds = time.perf_counter() - began
    allowed = PER_MINUTE * (1 + seconds / 60) * LOOPED / size
    what = f"one replays {LOOPED} events in a loop"
    figure("R7", f"{what}: live p99, ms ({samples} samples)", f"{beside:.1f} ({alone:.1f} alone)")
    figure("R7", f"{what}: events, of {allowed:.0f} allowed", them.told["events"])
    assert LOOPED <= them.told["events"] <= allowed
    assert them.told["cut"] == 0
