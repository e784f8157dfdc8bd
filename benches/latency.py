"""Latency: from `run.emit` to the client's callback, at 5,000 events a second over 100 users, fsynced.

Both processes read the same monotonic clock. The client is a raw one that handles an event when its bytes
are there; `--client` uses wsrecover's own Python client for every tenth user instead, which adds its tasks.
"""

from __future__ import annotations

import re
import statistics
import time
from typing import Final

import trio
from _harness import Figure, Host, event_data, options, running_server, show, start_runs, token
from _load import EVENT, LIVE, Fleet, upgrade

EVENT_BYTES: Final = 300
TICK: Final = 0.001
"""Seconds between two looks at what is due."""

_EMITTED: Final = re.compile(rb'"at":(\d+),')


async def emit_steadily(host: Host, total: int, rate: int) -> None:
    """`total` events, `rate` a second, each of the next user, with the time of its emit in it."""
    data = event_data(EVENT_BYTES - 24)
    begin = time.monotonic()
    sent = 0
    while sent < total:
        due = min(total, int((time.monotonic() - begin) * rate))
        for number in range(sent, due):
            await host.runs[number % len(host.runs)].emit("note", {"at": time.monotonic_ns(), **data})
        sent = max(sent, due)
        await trio.sleep(TICK)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    given = options(__doc__ or "", rate=5000, users=100, repeat=8)
    users = [f"user{number}" for number in range(given.users)]
    half, most, worst = Figure("p50"), Figure("p99"), Figure("worst")
    with running_server(given) as remote:
        clients = Fleet()
        clients.connect(remote.address, [upgrade(token(user), "client") for user in users])
        clients.read(LIVE, len(users))
        remote.start(start_runs, "passive", users, {})
        clients.read(EVENT, len(users))
        remote.finish()
        for _ in range(given.repeat):
            waits: list[float] = []
            rest = dict.fromkeys(clients.sockets, b"")

            def look(fd: int, data: bytes, rest: dict[int, bytes] = rest, waits: list[float] = waits) -> int:
                now = time.monotonic_ns()
                data, end, count = rest[fd] + data, 0, 0
                for found in _EMITTED.finditer(data):
                    waits.append((now - int(found[1])) / 1e6)
                    end, count = found.end(), count + 1
                rest[fd] = data[end:]
                return count

            remote.start(emit_steadily, given.rate, given.rate)
            clients.read_each(look, given.rate)
            remote.finish()
            half.values.append(statistics.median(waits))
            most.values.append(percentile(waits, 0.99))
            worst.values.append(max(waits))
    show(
        f"latency, {given.rate} events/s over {given.users} users, {given.store}",
        "ms",
        [half, most, worst],
        ["a round is one second; the disk's slowest fsync of it is its p99, whoever else uses the disk"],
    )


if __name__ == "__main__":
    main()
