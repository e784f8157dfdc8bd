"""Reconnecting again and again: clients that drop and come back, missing an event, 100 times in a row.

What is told is the server's CPU per reconnect, from accept to close, of the first and of the last ten of each
hundred, and how much its resident memory grew over a hundred that missed nothing: the hundredth must cost
what the first did.
"""

from __future__ import annotations

import re
import statistics
from typing import Final

from _harness import (
    Figure,
    Remote,
    cpu,
    emit_rounds,
    event_data,
    options,
    rss,
    running_server,
    show,
    start_runs,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

EVENT_BYTES: Final = 300
IN_A_ROW: Final = 100
EDGE: Final = 10
"""Reconnects at either end of a row that are compared."""

USERS: Final = 20
"""Who reconnect at the same time, so that one reconnect's CPU is more than the clock's noise."""


_POSITION: Final = re.compile(rb'"epoch":"([^"]+)","head":(\d+)')


class Bench:
    """A few users with a run each, and where their clients are."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.tokens = {user: token(user) for user in (f"user{number}" for number in range(USERS))}
        self.at: dict[str, tuple[str, int]] = {}
        remote.call(start_runs, "passive", list(self.tokens), {})
        self.connect()

    def connect(self) -> int:
        """All connect where they were, and drop; how many events they were sent."""
        requests = [
            upgrade(value, "client", {"user": self.at[user]} if user in self.at else None)
            for user, value in self.tokens.items()
        ]
        clients = Fleet()
        clients.connect(self.remote.address, requests)
        clients.read_whole(LIVE)
        received = list(clients.received.values())
        clients.close()
        self.remote.wait_connections(0)
        for user, text in zip(self.tokens, received, strict=True):
            match = _POSITION.search(text)
            if match is None:
                raise RuntimeError(f"no welcome in {text!r}")
            self.at[user] = (match[1].decode(), int(match[2]))
        return sum(text.count(EVENT) for text in received)

    def reconnect(self) -> float:
        """All miss an event and are back for it; microseconds of CPU each, from the accept to the close."""
        self.remote.call(emit_rounds, 1, event_data(EVENT_BYTES))
        before = self.remote.call(cpu)
        events = self.connect()
        used = float(self.remote.call(cpu) - before) / USERS / 1000
        if events != USERS:
            raise RuntimeError(f"{events} events came, not one for each of {USERS} clients")
        return used


def main() -> None:
    given = options(__doc__ or "", repeat=6)
    first, last = Figure(f"the first {EDGE} of {IN_A_ROW}"), Figure(f"the last {EDGE} of {IN_A_ROW}")
    growth = []
    with running_server(given) as remote:
        bench = Bench(remote)
        for _ in range(IN_A_ROW):
            bench.reconnect()
        for _ in range(given.repeat):
            row = [bench.reconnect() for _ in range(IN_A_ROW)]
            resident = remote.call(rss)
            for _ in range(IN_A_ROW):  # Without events: SQLite's cache grows with the log, to 16 MiB.
                bench.connect()
            growth.append(100 * (remote.call(rss) / resident - 1))
            first.values.append(statistics.median(row[:EDGE]))
            last.values.append(statistics.median(row[-EDGE:]))
    show(
        f"reconnects in a row, {USERS} users, {given.store}",
        "µs CPU",
        [first, last],
        [
            f"slowdown over a row: {last.median / first.median:.3f} by the median (target ≤ 1.02)",
            f"memory: {statistics.median(growth):+.2f} % a row by the median (target < 1 %)",
        ],
    )


if __name__ == "__main__":
    main()
