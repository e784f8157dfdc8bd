"""Live delivery: 1,000 users with a connection each, one event of 300 bytes per user and round, fsynced.

What is told is the server's CPU per event, from `run.emit` to the socket, beside its floor: a bare loop of
`send()` of the same frame on as many loopback sockets, in the same process and the same minute.

"one author" emits for all runs from one task, as a program does that embeds the server and reads its events
from one place; "a task per agent" adds the wake-up of each agent's own task, which is the agent's cost.
"""

from __future__ import annotations

import argparse
from typing import Final

from _harness import (
    Action,
    Figure,
    Remote,
    cpu,
    emit_rounds,
    event_data,
    floor_accept,
    floor_open,
    floor_rounds,
    open_gate,
    options,
    running_server,
    show,
    start_runs,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

EVENT_BYTES: Final = 300
ROUNDS: Final = 20
TARGET: Final = 2.5
WARM_UP: Final = 20
"""Measurements after the log was filled that do not count: snapshots of all that are being made yet."""


class Bench:
    """A server with its users, and the plain sockets of the floor."""

    def __init__(self, remote: Remote, sessions: int) -> None:
        self.remote = remote
        self.users = [f"user{number}" for number in range(sessions)]
        self.data = event_data(EVENT_BYTES)
        self.clients = Fleet()
        self.plain = Fleet()
        self.frame = b""

    def connect(self) -> None:
        """All users and as many plain sockets."""
        count = len(self.users)
        self.clients.connect(
            self.remote.address, (upgrade(token(user), f"client-{user}") for user in self.users)
        )
        self.clients.read(LIVE, count)
        address = self.remote.call(floor_open, count)
        self.plain.connect(address, [None] * count)
        self.remote.call(floor_accept, count)

    def start_runs(self, agent: str) -> None:
        """A run for each user."""
        self.remote.start(start_runs, agent, self.users, self.data)
        self.clients.read(EVENT, len(self.users))
        self.remote.finish()

    def measure(self, action: Action, *args: object, per_user: int = 1) -> float:
        """Microseconds of CPU per event of `ROUNDS` rounds, all received."""
        events = len(self.users) * ROUNDS * per_user
        before = self.remote.call(cpu)
        self.remote.start(action, ROUNDS, *args)
        self.clients.read(EVENT, events)
        self.remote.finish()
        if per_user == 1:
            self.frame = next(iter(self.clients.received.values()))
        return float(self.remote.call(cpu) - before) / events / 1000

    def floor(self) -> float:
        """Microseconds of CPU per bare `send()` of the last frame."""
        size = len(self.users) * ROUNDS * len(self.frame)
        self.remote.start(floor_rounds, ROUNDS, self.frame)
        self.plain.read_each(lambda _, data: len(data), size)
        return float(self.remote.finish()) / (len(self.users) * ROUNDS) / 1000

    def fill(self, events: int) -> None:
        """Log as many events for each user, nobody connected."""
        self.remote.call(emit_rounds, events // 20, {}, 20)


def main() -> None:
    given = options(__doc__ or "", sessions=1000, repeat=5, history=1000)
    floor, fresh, full = Figure("floor: bare send()"), Figure("one author"), Figure("one author")
    tasks, thrice = Figure("a task per agent"), Figure("one author, three events per user and round")
    full.what = f"one author, after {given.history} events per stream"
    with running_server(given) as remote:
        bench = Bench(remote, given.sessions)
        bench.connect()
        bench.start_runs("passive")
        bench.measure(emit_rounds, bench.data)
        for _ in range(given.repeat):
            fresh.values.append(bench.measure(emit_rounds, bench.data))
            thrice.values.append(bench.measure(emit_rounds, bench.data, 3, per_user=3))
            floor.values.append(bench.floor())
        bench.start_runs("active")
        bench.measure(open_gate)
        for _ in range(given.repeat):
            tasks.values.append(bench.measure(open_gate))
            floor.values.append(bench.floor())
        if given.history:
            with_history(bench, given, full, floor)
    report(given, bench, floor, [fresh, thrice, tasks, *([full] if full.values else [])])


def with_history(bench: Bench, given: argparse.Namespace, full: Figure, floor: Figure) -> None:
    """The same with a long log, written while nobody is connected."""
    bench.start_runs("passive")
    bench.clients.close()
    bench.plain.close()
    bench.remote.wait_connections(0)
    bench.fill(given.history)
    bench.connect()
    for _ in range(WARM_UP):
        bench.measure(emit_rounds, bench.data)
    for _ in range(given.repeat):
        full.values.append(bench.measure(emit_rounds, bench.data))
        floor.values.append(bench.floor())


def report(given: argparse.Namespace, bench: Bench, floor: Figure, figures: list[Figure]) -> None:
    """The table, and what each figure is in floors."""
    ratios = [
        f"{figure.what}: {figure.least / floor.least:.2f} times the floor by the least, "
        f"{figure.median / floor.median:.2f} by the median"
        for figure in figures
    ]
    title = f"live, {given.sessions} sessions, frames of {len(bench.frame)} bytes, {given.store}"
    show(
        title,
        "µs CPU per event",
        [floor, *figures],
        [*ratios, f"target: one author ≤ {TARGET} times the floor"],
    )


if __name__ == "__main__":
    main()
