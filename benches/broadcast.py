"""One word to many: 5,000 connections of 2,500 users, one broadcast of 300 bytes, fsynced once.

What is told is the server's CPU per delivery, from `server.broadcast` to the last socket, beside its floor: a
bare loop of `send()` of the same frame on as many loopback sockets, in the same process and the same minute.

At the end comes the proof: each connection got each broadcast once, and a receipt ends complete. Then 500 are
cut after a broadcast reached them and before they acknowledge it; it waits for them, and ends complete once
they have returned with the positions that they had.
"""

from __future__ import annotations

import re
import resource
import time
from collections import Counter
from typing import Final

import attrs
import orjson
import trio
from _floor import Floor
from _harness import (
    Figure,
    Host,
    Remote,
    cpu,
    event_data,
    options,
    running_server,
    show,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

from wsrecover import Receipt

EVENT_BYTES: Final = 300
ROUNDS: Final = 5
TARGET: Final = 7.0
WATCHED: Final = 0.3
"""Seconds in which a broadcast reaches all."""

BREATH: Final = 0.0001
"""Seconds between two turns of the task that watches: the store's thread is to get its own."""

PLAIN: Final = 4000
"""Plain sockets of the floor at most: the kernel's queue of those that wait to be accepted ends there."""

_POSITION: Final = re.compile(rb'"all":\{"epoch":"([^"]+)","head":(\d+)')

Counts = tuple[int, int, int, int]

RECEIPTS: Final[list[Receipt]] = []
"""In the server's process: the receipts so far."""


async def say(host: Host, rounds: int) -> None:
    """Broadcast so often."""
    assert host.server is not None
    for _ in range(rounds):
        RECEIPTS.append(await host.server.broadcast("all", "notice", event_data(EVENT_BYTES)))


async def hold_up(host: Host) -> float:
    """Broadcast once; the most ms of CPU between two turns of another task while all are served."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last, end = time.thread_time(), trio.current_time() + WATCHED
        while trio.current_time() < end:
            await trio.sleep(BREATH)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(say, host, 1)
    return longest * 1000


async def last_counts(_: Host, timeout: float) -> Counts:
    """What the newest receipt comes to."""
    counts: Counts = attrs.astuple(await RECEIPTS[-1].wait(timeout))
    return counts


class Bench:
    """A server and its connections."""

    def __init__(self, remote: Remote, connections: int) -> None:
        self.remote = remote
        self.tokens = [token(f"user{number // 2}") for number in range(connections)]
        self.clients = Fleet()
        self.frame = b""
        self.epoch = ""
        self.said = 0

    def connect(self) -> None:
        """All connections."""
        self.clients.connect(
            self.remote.address,
            (upgrade(bearer, f"client-{number}") for number, bearer in enumerate(self.tokens)),
        )
        self.clients.read_whole(LIVE)
        match = _POSITION.search(next(iter(self.clients.received.values())))
        assert match is not None
        self.epoch = match[1].decode()

    def measure(self) -> float:
        """Microseconds of CPU per delivery of `ROUNDS` broadcasts, each received once by all."""
        deliveries = len(self.tokens) * ROUNDS
        before = self.remote.call(cpu)
        self.remote.start(say, ROUNDS)
        self.clients.read(EVENT, deliveries)
        self.remote.finish()
        self.said += ROUNDS
        self.frame = next(iter(self.clients.received.values()))
        return float(self.remote.call(cpu) - before) / deliveries / 1000

    def say_once(self) -> None:
        """Broadcast once more, and see that each connection gets it once."""
        got: Counter[int] = Counter()

        def look(fd: int, data: bytes) -> int:
            events = data.count(EVENT)
            got[fd] += events
            return events

        self.remote.call(say, 1)
        self.said += 1
        self.clients.read_each(look, len(self.tokens))
        if set(got.values()) != {1} or len(got) != len(self.tokens):
            raise RuntimeError("some got it twice, and some not at all")

    def hold_up(self) -> float:
        """The longest that a broadcast holds up another task, in ms of CPU."""
        self.remote.start(hold_up)
        self.clients.read(EVENT, len(self.tokens))
        self.said += 1
        return float(self.remote.finish())

    def acknowledge(self, fleet: Fleet) -> None:
        """All of these say that they have processed everything."""
        payload = orjson.dumps({"op": "ack", "pos": {"all": self.said}})
        frame = b"\x81" + bytes([0x80 | len(payload)]) + bytes(4) + payload
        for sock in fleet.sockets.values():
            sock.sendall(frame)

    def cut(self, count: int) -> None:
        """Break the first connections, which have got the last broadcast and not acknowledged it."""
        for fd in list(self.clients.sockets)[:count]:
            self.clients.drop(fd)

    def come_back(self, count: int) -> Fleet:
        """Those that were cut return, with the positions that they had before the last broadcast."""
        fleet = Fleet()
        resume = {"all": (self.epoch, self.said - 1)}
        fleet.connect(
            self.remote.address,
            (upgrade(self.tokens[number], f"client-{number}", resume) for number in range(count)),
        )
        fleet.read(EVENT, count)
        return fleet


def main() -> None:
    given = options(__doc__ or "", connections=5000, cut=500, repeat=5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    floor, delivery = Figure("floor: bare send()"), Figure("broadcast")
    stalls, notes = Figure("longest hold-up of another task, ms of CPU"), []
    with running_server(given) as remote:
        bench = Bench(remote, given.connections)
        bench.connect()
        plain = Floor(remote, min(given.connections, PLAIN))
        bench.measure()
        for _ in range(given.repeat):
            delivery.values.append(bench.measure())
            floor.values.append(plain.measure(bench.frame))
            stalls.values.append(bench.hold_up())
        notes.append(f"receipt before any ack: {remote.call(last_counts, 0.0)}")
        bench.acknowledge(bench.clients)
        notes.append(f"receipt after all acks: {remote.call(last_counts, 60.0)}")
        bench.say_once()
        bench.cut(given.cut)
        remote.wait_connections(given.connections - given.cut)
        bench.acknowledge(bench.clients)
        while remote.call(last_counts, 0.05)[2]:
            pass
        notes.append(f"receipt while {given.cut} are cut off: {remote.call(last_counts, 0.0)}")
        back = bench.come_back(given.cut)
        bench.acknowledge(back)
        notes.append(f"receipt after they returned: {remote.call(last_counts, 60.0)}")
    title = f"broadcast, {given.connections} connections, frames of {len(bench.frame)} bytes, {given.store}"
    ratio = f"{delivery.least / floor.least:.2f} times the floor by the least"
    order = "receipts are (entitled, acknowledged, pending, gone)"
    show(
        title,
        "µs CPU per delivery",
        [floor, delivery, stalls],
        [f"{ratio}; target: {TARGET:.0f} µs where the floor is 6", order, *notes],
    )


if __name__ == "__main__":
    main()
