"""What an event costs from `Writer.write_nowait` to `Follower.deliver`, and what a read costs.

1,000 streams with one live follower each get one event of 300 bytes per round, over memory and SQLite. CPU is
that of the whole process, so the writer's thread is in it; wall includes the fsyncs.
Run as `python benches/streams.py`.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import trio
from _harness import Figure, show

from wsrecover.streams.journal import Journal, Writer
from wsrecover.streams.memory import open_memory
from wsrecover.streams.registry import Streams
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import Entry, Retention, Store, StreamKey, Unit
from wsrecover.streams.stream import Stream

STREAMS = 1000
ROUNDS = 100
READS = 5
MISSED = 20
"""Events of a read: the newest."""

BODY = b'{"ts":1.0,"type":"message_delta","data":{"text":"' + b"x" * 250 + b'"}}'
KEYS = [StreamKey("user", "tenant", f"user-{number}") for number in range(STREAMS)]


class Follower:
    """Takes whatever comes."""

    def __init__(self) -> None:
        self.taken = 0

    def deliver(self, stream: Stream, entries: list[Entry]) -> bool:  # noqa: ARG002  # The protocol's signature.
        self.taken += len(entries)
        return True

    def flush(self) -> None:
        """Nothing is sent."""

    def lag(self, stream: Stream, after: int) -> None:
        raise AssertionError(f"{stream.name} lags after {after}")


async def fill(store: Store, per_stream: int) -> None:
    """Put `per_stream` events into each stream, growing in step."""
    for _ in range(per_stream // 5):
        await store.commit([Unit(tuple([Entry(key, BODY, time.time()) for _ in range(5)])) for key in KEYS])


async def rounds(writers: Sequence[Writer], cpu: Figure, wall: Figure) -> None:
    """Write `ROUNDS` times an event each; microseconds per event."""
    for _ in range(ROUNDS):
        units = [Unit((Entry(key, BODY, time.time()),)) for key in KEYS]
        cpu_before, wall_before = time.process_time(), time.perf_counter()
        for writer, unit in zip(writers, units, strict=True):
            writer.write_nowait(unit)
        await writers[-1].flush()
        cpu.values.append((time.process_time() - cpu_before) / STREAMS * 1e6)
        wall.values.append((time.perf_counter() - wall_before) / STREAMS * 1e6)


async def through_journal(store: Store, cpu: Figure, wall: Figure) -> None:
    """From the writers to a follower of each stream."""
    streams = Streams(store)
    journal = Journal(
        store,
        streams,
        max_units=4 * STREAMS,
        max_bytes=16 << 20,
        retention=lambda _: Retention(),
        clock=time.time,
    )
    followers = [Follower() for _ in KEYS]
    async with trio.open_nursery() as nursery:
        await nursery.start(journal.run)
        for key, follower in zip(KEYS, followers, strict=True):
            stream = await streams.open(key)
            assert stream.join(follower, stream.head)
        writers = [journal.writer() for _ in KEYS]
        gc.freeze()
        await rounds(writers, cpu, wall)
        await journal.aclose()
    assert all(follower.taken == ROUNDS for follower in followers)


async def read(store: Store, wall: Figure) -> None:
    """Read the newest events of each stream; microseconds per read, with the way to the thread and back."""
    heads = [(await store.load(key)).head for key in KEYS]
    for _ in range(READS):
        start = time.perf_counter()
        for key, head in zip(KEYS, heads, strict=True):
            page = await store.read(key, head - MISSED, upto=head, max_events=MISSED, max_bytes=1 << 20)
            assert len(page) == MISSED
        wall.values.append((time.perf_counter() - start) / STREAMS * 1e6)


async def main() -> None:
    figures = []
    for per_stream in (0, 1000):
        for name in ("memory", "sqlite FULL"):
            where = f"{name}, {per_stream} in the log"
            cpu, wall = Figure(f"an event, CPU: {where}"), Figure(f"an event, wall: {where}")
            reading = Figure(f"a read of {MISSED}, wall: {where}")
            figures += [cpu, wall, reading]
            with tempfile.TemporaryDirectory() as folder:
                store: Store = (
                    await open_memory() if name == "memory" else await open_sqlite(Path(folder) / "bench.db")
                )
                await fill(store, per_stream)
                await through_journal(store, cpu, wall)
                await read(store, reading)
                await store.aclose()
    show(f"{STREAMS} streams, an event each per round", "µs", figures)


if __name__ == "__main__":
    trio.run(main)
