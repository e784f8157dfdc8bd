"""Latency: from `run.emit` to the client's callback, at 5,000 events a second over 100 users, fsynced.

Both processes read the same monotonic clock. A raw client handles an event when its bytes are there; the
Python client, all 100 of them in one process, hands it to an `async for`. The floor beside them is a bare
`send()` of as many bytes, as often, from the same kind of task to plain sockets: no journal, no disk, no
WebSocket.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import attrs
import trio
from _floor import Floor
from _harness import (
    ENVELOPE_BYTES,
    Action,
    Figure,
    Host,
    Remote,
    event_data,
    options,
    running_server,
    show,
    start_runs,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

from wsrecover import Event, connect

EVENT_BYTES: Final = 300
TICK: Final = 0.001
"""Seconds between two looks at what is due."""

PATIENCE: Final = 60.0

Reader: TypeAlias = Callable[[Callable[[int, bytes], int], int], None]

_EMITTED: Final = re.compile(rb'"at":(\d+),')


async def emit_steadily(host: Host, total: int, rate: int) -> None:
    """`total` events, `rate` a second, each of the next user, with the time of its emit in it."""
    data = event_data(EVENT_BYTES - 24)
    async for number in _steadily(total, rate):
        await host.runs[number % len(host.runs)].emit("note", {"at": time.monotonic_ns(), **data})


async def send_steadily(host: Host, total: int, rate: int) -> None:
    """The same with bare `send()`s on the plain sockets of the floor."""
    async for number in _steadily(total, rate):
        frame = b'{"at":%d,' % time.monotonic_ns()
        host.sockets[number % len(host.sockets)].send(frame.ljust(EVENT_BYTES + ENVELOPE_BYTES))


async def _steadily(total: int, rate: int) -> AsyncIterator[int]:
    begin = time.monotonic()
    sent = 0
    while sent < total:
        due = min(total, int((time.monotonic() - begin) * rate))
        for number in range(sent, due):
            yield number
        sent = max(sent, due)
        await trio.sleep(TICK)


@attrs.define
class Waits:
    """The milliseconds of one round's events, and what they come to over the rounds."""

    who: str
    now: list[float] = attrs.field(factory=list)
    half: Figure = attrs.field(init=False)
    most: Figure = attrs.field(init=False)
    worst: Figure = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.half, self.most = Figure(f"{self.who}, p50"), Figure(f"{self.who}, p99")
        self.worst = Figure(f"{self.who}, worst")

    def add(self, emitted: int) -> None:
        """An event was handled just now; `emitted` is the clock at its emit."""
        self.now.append((time.monotonic_ns() - emitted) / 1e6)

    def end_round(self) -> None:
        """Sum up."""
        self.now.sort()
        self.half.values.append(statistics.median(self.now))
        self.most.values.append(self.now[int(len(self.now) * 0.99)])
        self.worst.values.append(self.now[-1])
        self.now.clear()


def raw(remote: Remote, users: Sequence[str], rate: int, repeat: int, waits: Waits) -> None:
    """Rounds of a second with a raw client for each user, whose runs are started too."""
    clients = Fleet()
    clients.connect(remote.address, [upgrade(token(user), "client") for user in users])
    clients.read(LIVE, len(users))
    remote.start(start_runs, "passive", users, {})
    clients.read(EVENT, len(users))
    remote.finish()
    for _ in range(repeat):
        a_round(remote, emit_steadily, clients.read_each, rate, waits)
    clients.close()


def floor(remote: Remote, count: int, rate: int, repeat: int, waits: Waits) -> None:
    """Rounds of a second with plain sockets."""
    plain = Floor(remote, count)
    for _ in range(repeat):
        a_round(remote, send_steadily, plain.read, rate, waits)
    plain.close()


def a_round(remote: Remote, action: Action, read: Reader, rate: int, waits: Waits) -> None:
    """One second of `action`; `waits` hears of each event in the bytes that come."""
    rest: dict[int, bytes] = defaultdict(bytes)

    def look(fd: int, data: bytes) -> int:
        data, end, count = rest[fd] + data, 0, 0
        for found in _EMITTED.finditer(data):
            waits.add(int(found[1]))
            end, count = found.end(), count + 1
        rest[fd] = data[end:]
        return count

    remote.start(action, rate, rate)
    read(look, rate)
    remote.finish()
    waits.end_round()


async def python(remote: Remote, users: Sequence[str], rate: int, repeat: int, waits: Waits) -> None:
    """Rounds of a second with wsrecover's client for each user, whose runs are under way."""
    host, port = remote.address
    complete = trio.Event()

    async def follow(user: str, *, task_status: trio.TaskStatus[None]) -> None:
        nonlocal complete
        async with connect(f"ws://{host}:{port}", token=token(user), from_="live") as session:
            task_status.started()
            async for item in session:
                if isinstance(item, Event) and "at" in item.data:
                    waits.add(item.data["at"])
                    if len(waits.now) == rate:
                        complete.set()

    async with trio.open_nursery() as nursery:
        for user in users:
            await nursery.start(follow, user)
        for _ in range(repeat):
            remote.start(emit_steadily, rate, rate)
            with trio.fail_after(PATIENCE):
                await complete.wait()
            complete = trio.Event()
            remote.finish()
            waits.end_round()
        nursery.cancel_scope.cancel()


def main() -> None:
    given = options(__doc__ or "", rate=5000, users=100, repeat=6)
    users = [f"user{number}" for number in range(given.users)]
    each = [Waits("floor: bare send()"), Waits("raw client"), Waits("Python client")]
    with running_server(given) as remote:
        floor(remote, given.users, given.rate, given.repeat, each[0])
        raw(remote, users, given.rate, given.repeat, each[1])
        trio.run(partial(python, remote, users, given.rate, given.repeat, each[2]))
    show(
        f"latency, {given.rate} events/s over {given.users} users, {given.store}",
        "ms",
        [figure for waits in each for figure in (waits.half, waits.most, waits.worst)],
        ["a round is one second; what else uses these cores and this disk shows in its p99"],
    )


if __name__ == "__main__":
    main()
