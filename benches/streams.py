"""What an event costs from `Writer.write_nowait` to `Follower.deliver`, and what a read costs.

1,000 streams with one live follower each get one event of 300 bytes per round, over memory and SQLite. CPU is
that of the whole process, so the writer's thread is in it; wall includes the fsyncs.
Run as `python benches/streams.py`.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from wsrecover.streams.journal import Journal, Writer
from wsrecover.streams.memory import open_memory
from wsrecover.streams.registry import Streams
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import Entry, Retention, Store, StreamKey, Unit
from wsrecover.streams.stream import Stream

STREAMS = 1000
ROUNDS = 100
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


async def rounds(writers: Sequence[Writer], count: int) -> tuple[float, float]:
    """CPU and wall µs per event of the best of `count` rounds, and of their median."""
    costs = []
    for _ in range(count):
        units = [Unit((Entry(key, BODY, time.time()),)) for key in KEYS]
        cpu, wall = time.process_time(), time.perf_counter()
        for writer, unit in zip(writers, units, strict=True):
            writer.write_nowait(unit)
        await writers[-1].flush()
        costs.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpus, walls = zip(*costs, strict=True)
    return sorted(cpus)[count // 2] / STREAMS * 1e6, sorted(walls)[count // 2] / STREAMS * 1e6


async def through_journal(store: Store) -> tuple[float, float]:
    """CPU and wall µs per event (median of the rounds)."""
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
        figures = await rounds(writers, ROUNDS)
        await journal.aclose()
    assert all(follower.taken == ROUNDS for follower in followers)
    return figures


async def read_cost(store: Store) -> float:
    """Wall µs of a read of the 20 newest events, thread hop included."""
    heads = [(await store.load(key)).head for key in KEYS]
    start = time.perf_counter()
    for key, head in zip(KEYS, heads, strict=True):
        assert len(await store.read(key, head - 20, upto=head, max_events=20, max_bytes=1 << 20)) == 20
    return (time.perf_counter() - start) / STREAMS * 1e6


async def main() -> None:
    print(f"{'store':<14}{'in the log':>12}{'CPU µs/event':>14}{'wall µs/event':>15}{'20-row read µs':>16}")
    for per_stream in (0, 1000):
        for name in ("memory", "sqlite FULL"):
            with tempfile.TemporaryDirectory() as folder:
                store: Store = (
                    await open_memory() if name == "memory" else await open_sqlite(Path(folder) / "bench.db")
                )
                await fill(store, per_stream)
                cpu, wall = await through_journal(store)
                read = await read_cost(store)
                print(f"{name:<14}{per_stream:>12}{cpu:>14.2f}{wall:>15.2f}{read:>16.1f}")
                await store.aclose()


if __name__ == "__main__":
    trio.run(main)
