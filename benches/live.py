"""Live delivery: 1,000 users with a connection each, one event of 300 bytes per user and round, fsynced.

What is told is the server's CPU per event, from `run.emit` to the socket, beside its floor: a bare loop of
`send()` of the same frame on as many loopback sockets, in the same process and the same second. A second
server with a long log is measured by turns with the first, in either order, each beside a floor of its own
process: who comes after the other process finds the processor's caches cold.

Both go through the users in the order of connecting. What lies side by side in memory is cheaper to go
through, so the same is told "in random order", of the server and of its floor.

"one author" emits for all runs from one task, as a program does that embeds the server and reads its events
from one place; "a task per agent" adds the wake-up of each agent's own task, which is the agent's cost.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Final

import attrs
from _harness import (
    Action,
    Figure,
    Remote,
    cpu,
    emit_rounds,
    event_data,
    floor_accept,
    floor_in_order,
    floor_open,
    floor_rounds,
    open_gate,
    options,
    running_server,
    show,
    shuffle,
    start_runs,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

EVENT_BYTES: Final = 300
ROUNDS: Final = 20
SEED: Final = 7
TARGET: Final = 2.5
WARM_UP: Final = 20
"""Measurements that do not count: snapshots of what was filled are being made yet, and tails fill up."""


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

    def start_over(self, events: int) -> None:
        """All users, each with a run, and so many events in the log from when nobody was connected."""
        self.connect()
        self.start_runs("passive")
        if events:
            self.clients.close()
            self.plain.close()
            self.remote.wait_connections(0)
            self.remote.call(emit_rounds, events // 20, {}, 20)
            self.connect()


def main() -> None:
    given = options(__doc__ or "", sessions=1000, repeat=20, history=1000)
    with running_server(given) as remote, running_server(given) as seasoned:
        bench, full = Bench(remote, given.sessions), Bench(seasoned, given.sessions)
        full.start_over(given.history)
        bench.start_over(0)
        author = [
            (Beside("one author"), bench),
            (Beside(f"one author, after {given.history} events per stream"), full),
        ]
        thrice, tasks = Beside("one author, three events per user and round"), Beside("a task per agent")
        shuffled = Beside("one author, in random order")
        for one in (bench, full):
            for _ in range(WARM_UP):
                one.measure(emit_rounds, one.data)
        for number in range(given.repeat):
            for figure, one in author[:: 1 if number % 2 else -1]:
                figure.add(one.measure(emit_rounds, one.data), one.floor())
        for _ in range(given.repeat):
            thrice.add(bench.measure(emit_rounds, bench.data, 3, per_user=3), bench.floor())
        remote.call(shuffle, SEED)
        for _ in range(given.repeat):
            shuffled.add(bench.measure(emit_rounds, bench.data), bench.floor())
        remote.call(floor_in_order)
        bench.start_runs("active")
        bench.measure(open_gate)
        for _ in range(given.repeat):
            tasks.add(bench.measure(open_gate), bench.floor())
    report(given, bench, [*(figure for figure, _ in author), thrice, shuffled, tasks])


@attrs.define
class Beside(Figure):
    """A figure, and the floor beside each of its rounds: the machine may be another one a second later."""

    floors: list[float] = attrs.field(factory=list)

    def add(self, value: float, floor: float) -> None:
        """A round, and the floor right after it."""
        self.values.append(value)
        self.floors.append(floor)

    @property
    def ratios(self) -> list[float]:
        """Each round in floors."""
        return [value / floor for value, floor in zip(self.values, self.floors, strict=True)]


def _paired(before: list[float], after: list[float]) -> float:
    """How many times as much, in the usual round."""
    return statistics.median(late / early for early, late in zip(before, after, strict=True))


def report(given: argparse.Namespace, bench: Bench, figures: list[Beside]) -> None:
    """The table, and what each figure is in floors."""
    floor = Figure(
        "floor: bare send(), beside any of them", [one for figure in figures for one in figure.floors]
    )
    ratios = [
        f"{figure.what}: {statistics.median(figure.ratios):.2f} times the floor beside it (median), "
        f"{figure.least / min(figure.floors):.2f} by the least of both"
        for figure in figures
    ]
    fresh, full = figures[:2]
    slower = (
        f"after {given.history} events per stream, paired: "
        f"{_paired(fresh.values, full.values):.2f} times what it costs without, "
        f"{_paired(fresh.ratios, full.ratios):.2f} times in floors"
    )
    show(
        f"live, {given.sessions} sessions, frames of {len(bench.frame)} bytes, {given.store}",
        "µs CPU per event",
        [floor, *figures],
        [
            *ratios,
            slower,
            f"target: one author ≤ {TARGET} times the floor, and no more with a long log",
        ],
    )


if __name__ == "__main__":
    main()
