"""Live delivery: 1,000 users with a connection each, one event of 300 bytes per user and round, fsynced.

What is told is the server's CPU per event, from `run.emit` to the socket, beside its floor: a bare loop of
`send()` of the same frame on as many loopback sockets, in the same process and the same second.

What a long log costs is told by three servers, measured by turns: one has it, and two have none, so that it
can be seen how much two processes differ that should not. They do, by some percent; so this is done with
several sets of processes, each connecting the three in another order.

All go through the users in the order of connecting. What lies side by side in memory is cheaper to go
through, so the same is told "in random order", of the server and of its floor.

"one author" emits for all runs from one task, as a program does that embeds the server and reads its events
from one place; "a task per agent" adds the wake-up of each agent's own task, which is the agent's cost.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final, TypeAlias, TypeVar

import attrs
from _floor import Floor
from _harness import (
    Action,
    Figure,
    Remote,
    cpu,
    emit_rounds,
    event_data,
    open_gate,
    options,
    progress,
    running_server,
    show,
    shuffle,
    start_runs,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

EVENT_BYTES: Final = 300
ROUNDS: Final = 10
SEED: Final = 7
TARGET: Final = 2.5
WARM_UP: Final = 40
"""Measurements that do not count."""

Advance: TypeAlias = Callable[[], None]
T = TypeVar("T")


@attrs.define
class Beside(Figure):
    """A figure, and the floor beside each of its rounds."""

    floors: list[float] = attrs.field(factory=list)

    @property
    def ratio(self) -> float:
        """In floors, in the usual round."""
        return statistics.median(value / floor for value, floor in zip(self.values, self.floors, strict=True))


class Bench:
    """A server with its users, and the plain sockets of its floor."""

    def __init__(self, remote: Remote, sessions: int, history: int) -> None:
        """All users connected, each with a run, and so many events in the log from when nobody was."""
        self.remote = remote
        self.users = [f"user{number}" for number in range(sessions)]
        self.data = event_data(EVENT_BYTES)
        self.frame = b""
        self._connect()
        self.start_runs("passive")
        if history:
            self.clients.close()
            self.plain.close()
            self.remote.wait_connections(0)
            self.remote.call(emit_rounds, history // 20, {}, 20)
            self._connect()

    def _connect(self) -> None:
        self.clients = Fleet()
        self.clients.connect(
            self.remote.address, (upgrade(token(user), f"client-{user}") for user in self.users)
        )
        self.clients.read(LIVE, len(self.users))
        self.plain = Floor(self.remote, len(self.users))

    def start_runs(self, agent: str) -> None:
        """A run for each user."""
        self.remote.start(start_runs, agent, self.users, self.data)
        self.clients.read(EVENT, len(self.users))
        self.remote.finish()

    def warm_up(self) -> None:
        """Fill the tails, while snapshots of what was filled before are made yet."""
        for _ in range(WARM_UP):
            self.measure(emit_rounds, self.data)

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

    def tell(self, figure: Beside, action: Action, *args: object, per_user: int = 1) -> None:
        """A round of the figure, and the floor right after it."""
        figure.values.append(self.measure(action, *args, per_user=per_user))
        figure.floors.append(self.plain.measure(self.frame))


def compare(given: argparse.Namespace, kinds: Sequence[tuple[Beside, int]], advance: Advance) -> None:
    """A round of servers, one for each figure and history, measured by turns."""
    with ExitStack() as running:
        # All before the first of them is connected to: a process that is forked later inherits its sockets.
        servers = [running.enter_context(running_server(given)) for _ in kinds]
        benches = [
            (figure, Bench(server, given.sessions, history))
            for server, (figure, history) in zip(servers, kinds, strict=True)
        ]
        for _, bench in benches:
            bench.warm_up()
        for number in range(given.repeat):
            for figure, bench in _turned(benches, number):
                bench.tell(figure, emit_rounds, bench.data)
            advance()


def other_ways(given: argparse.Namespace, advance: Advance) -> list[Beside]:
    """More events at once, users in no order, and agents that have a task each."""
    thrice, tasks = Beside("one author, three events per user and round"), Beside("a task per agent")
    shuffled = Beside("one author, in random order")
    with running_server(given) as remote:
        bench = Bench(remote, given.sessions, 0)
        bench.warm_up()
        for _ in range(given.repeat):
            bench.tell(thrice, emit_rounds, bench.data, 3, per_user=3)
            advance()
        remote.call(shuffle, SEED)
        bench.plain.shuffle(SEED)
        for _ in range(given.repeat):
            bench.tell(shuffled, emit_rounds, bench.data)
            advance()
        bench.plain.in_order()
        bench.start_runs("active")
        bench.measure(open_gate)
        for _ in range(given.repeat):
            bench.tell(tasks, open_gate)
            advance()
    return [thrice, shuffled, tasks]


def main() -> None:
    given = options(__doc__ or "", sessions=1000, repeat=20, history=1000, sets=3)
    author, other = Beside("one author"), Beside("one author, another server")
    late = Beside(f"one author, after {given.history} events per stream")
    kinds = [(author, 0), (other, 0), (late, given.history)]
    with progress("live", (given.sets + 3) * given.repeat) as advance:
        for number in range(given.sets):
            compare(given, _turned(kinds, number), advance)
        ways = other_ways(given, advance)
    figures = [author, other, late, *ways]
    floor = Figure("floor: bare send(), beside any of them", [one for each in figures for one in each.floors])
    without = [statistics.mean(pair) for pair in zip(author.values, other.values, strict=True)]
    show(
        f"live, {given.sessions} sessions, events of {EVENT_BYTES} bytes, {given.store}",
        "µs CPU per event",
        [floor, *figures],
        [
            *(f"{each.what}: {each.ratio:.2f} times the floor beside it (median)" for each in figures),
            f"after {given.history} events per stream, beside the two without, by sets: "
            + _by_sets(given, late.values, without),
            f"one without beside the other, by sets: {_by_sets(given, other.values, author.values)}",
            f"target: one author ≤ {TARGET} times the floor, and no more with a long log",
        ],
    )


def _turned(given: Sequence[T], by: int) -> list[T]:
    """The same in another order: each comes first in its turn."""
    by %= len(given)
    return [*given[by:], *given[:by]]


def _by_sets(given: argparse.Namespace, of: list[float], beside: list[float]) -> str:
    """How many times as much, in each set's usual round."""
    ratios = [one / two for one, two in zip(of, beside, strict=True)]
    sets = [ratios[begin : begin + given.repeat] for begin in range(0, len(ratios), given.repeat)]
    return " ".join(f"{statistics.median(each):.2f}" for each in sets)


if __name__ == "__main__":
    main()
