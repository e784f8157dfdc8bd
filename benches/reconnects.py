"""Reconnecting again and again: clients that drop and come back, missing an event, 100 times in a row.

What is told is the server's CPU per reconnect, from accept to close, of the first and of the last ten of each
hundred, and how much its resident memory grew over a hundred: the hundredth must cost what the first did.
"""

from __future__ import annotations

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
from _load import LIVE, Fleet, upgrade

EVENT_BYTES: Final = 300
IN_A_ROW: Final = 100
EDGE: Final = 10
"""Reconnects at either end of a row that are compared."""

USERS: Final = 20
"""Who reconnect at the same time, so that one reconnect's CPU is more than the clock's noise."""


class Bench:
    """A few users with a run each."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.requests = [upgrade(token(f"user{number}"), "client") for number in range(USERS)]
        remote.call(start_runs, "passive", [f"user{number}" for number in range(USERS)], {})

    def reconnect(self) -> float:
        """All drop, miss an event and are back; microseconds of CPU each, from the accept to the close."""
        self.remote.call(emit_rounds, 1, event_data(EVENT_BYTES))
        before = self.remote.call(cpu)
        clients = Fleet()
        clients.connect(self.remote.address, self.requests)
        clients.read(LIVE, USERS)
        clients.close()
        self.remote.wait_connections(0)
        return float(self.remote.call(cpu) - before) / USERS / 1000


def main() -> None:
    given = options(__doc__ or "", repeat=6)
    first, last = Figure(f"the first {EDGE} of {IN_A_ROW}"), Figure(f"the last {EDGE} of {IN_A_ROW}")
    growth = []
    with running_server(given) as remote:
        bench = Bench(remote)
        for _ in range(IN_A_ROW):
            bench.reconnect()
        for _ in range(given.repeat):
            resident = remote.call(rss)
            row = [bench.reconnect() for _ in range(IN_A_ROW)]
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
