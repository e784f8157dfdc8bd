"""What every bench shares: a server in a process and on a core of its own, its CPU clock, tables.

::

    this process, core 0                     server process, core 1
    load clients (_load.py)  ── WebSockets ──▶ wsrecover.serve
    Remote.call(action)      ── pipe ────────▶ action(host): emits through the public API

CPU is the server process's user and system time, all threads. Every figure is told as the least and the
median of its rounds: other work on the machine makes a round dearer, never cheaper.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import inspect
import logging
import multiprocessing
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import attrs
import structlog
import trio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wsrecover import App, Config, Limits, Run, Server, Tier, Timeouts, serve
from wsrecover.access.tokens import sign
from wsrecover.compiled import COMPILED

__all__ = [
    "ENVELOPE_BYTES",
    "SECRET",
    "TENANT",
    "Action",
    "Figure",
    "Host",
    "Remote",
    "cpu",
    "emit_rounds",
    "event_data",
    "open_gate",
    "options",
    "progress",
    "rss",
    "running_server",
    "show",
    "shuffle",
    "start_runs",
    "token",
]

SECRET: Final = b"a secret of the benches, 32 bytes"
TENANT: Final = "bench"
LOAD_CORE: Final = 0
SERVER_CORE: Final = 1
WIDTH: Final = 110
"""Columns of what is printed, on any terminal and in a log."""

ENVELOPE_BYTES: Final = 42
"""About how many bytes more a logged event takes on the wire."""

Action = Callable[..., Any]
"""A function of a `Host` and what else it needs, async or not."""


def event_data(encoded_bytes: int) -> dict[str, Any]:
    """The data of an event that takes about `encoded_bytes` as it is logged (with type, run and time)."""
    return {"step": 17, "text": "x" * (encoded_bytes - 122)}


@attrs.define(eq=False)
class Host:
    """The server's side of a bench: what its actions work with."""

    server: Server | None = None
    runs: list[Run] = attrs.field(factory=list)
    gate: trio.Event = attrs.field(factory=trio.Event)
    over: trio.Event = attrs.field(factory=trio.Event)
    emitted: int = 0
    sockets: list[socket.socket] = attrs.field(factory=list)

    def app(self) -> App:
        """`passive` lends its run to the bench's own task; `active` emits each time the gate opens."""
        app = App()

        @app.agent("passive")
        async def passive(run: Run) -> None:
            self.runs.append(run)
            await self.over.wait()

        @app.agent("active")
        async def active(run: Run) -> None:
            data = run.input
            self.runs.append(run)
            while True:
                await self.gate.wait()
                if self.over.is_set():
                    return
                await run.emit("note", data)
                self.emitted += 1

        return app


async def start_runs(host: Host, agent: str, users: Sequence[str], given: dict[str, Any]) -> None:
    """A run of `agent` for each user; they take the place of the runs before, in the order of `users`."""
    assert host.server is not None
    host.runs.clear()
    async with trio.open_nursery() as nursery:
        for user in users:
            nursery.start_soon(host.server.start_agent, TENANT, user, agent, given)
    while len(host.runs) < len(users):
        await trio.lowlevel.checkpoint()
    place = {user: number for number, user in enumerate(users)}
    host.runs.sort(key=lambda run: place[run.user])


def shuffle(host: Host, seed: int) -> None:
    """Put the runs, in the order of connecting until now, into a random one."""
    random.Random(seed).shuffle(host.runs)


async def emit_rounds(host: Host, rounds: int, data: dict[str, Any], per_run: int = 1) -> None:
    """`rounds` times: `per_run` events of each run, then wait until all are on stable storage."""
    turns = [run for run in host.runs for _ in range(per_run)]
    for _ in range(rounds):
        for run in turns:
            await run.emit("note", data)
        await host.runs[-1].flush()


async def open_gate(host: Host, rounds: int) -> None:
    """`rounds` times: let each `active` run emit one event, and wait until all are on stable storage."""
    for _ in range(rounds):
        host.emitted = 0
        gate, host.gate = host.gate, trio.Event()
        gate.set()
        while host.emitted < len(host.runs):
            await trio.lowlevel.checkpoint()
        await host.runs[-1].flush()


def cpu(_: Host) -> int:
    """Nanoseconds of CPU that the server process has used."""
    return time.process_time_ns()


def rss(_: Host) -> int:
    """Bytes of the server process's memory that are resident, after a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def connections(host: Host) -> int:
    """How many connections the server has."""
    assert host.server is not None
    return host.server.statistics().sessions.connections


@attrs.define(eq=False)
class Remote:
    """The server process, as the load process sees it."""

    address: tuple[str, int]
    pid: int
    _control: Connection

    def start(self, action: Action, *args: object) -> None:
        """Begin an action in the server process; `finish` waits for it."""
        self._control.send((action, args))

    def finish(self) -> Any:
        """The result of the action that was started."""
        return self._control.recv()

    def call(self, action: Action, *args: object) -> Any:
        """Do an action in the server process."""
        self.start(action, *args)
        return self.finish()

    def wait_connections(self, count: int) -> None:
        """Wait until the server has `count` connections."""
        while self.call(connections) != count:
            time.sleep(0.01)


def _serve(control: Connection, config: Config, profile: str | None) -> None:
    os.sched_setaffinity(0, {SERVER_CORE})
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.KeyValueRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,  # As `serve` has it.
    )
    if profile is None:
        trio.run(_host, control, config)
    else:
        with cProfile.Profile() as profiler:
            trio.run(_host, control, config)
        profiler.dump_stats(profile)


async def _host(control: Connection, config: Config) -> None:
    host = Host()
    async with trio.open_nursery() as nursery:
        host.server = await nursery.start(partial(serve, host.app(), config))
        control.send(host.server.addresses[0])
        while True:
            await trio.lowlevel.wait_readable(control.fileno())
            order = control.recv()
            if order is None:
                break
            action, args = order
            result = action(host, *args)
            control.send(await result if inspect.isawaitable(result) else result)
        host.over.set()
        host.gate.set()
        while host.server.statistics().sessions.runs:  # noqa: ASYNC110  The server tells counts, not events.
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


def options(description: str, **defaults: int) -> argparse.Namespace:
    """The command line: `--store`, `--profile`, and an option for each of `defaults`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--store", choices=("sqlite", "memory"), default="sqlite")
    parser.add_argument("--profile", metavar="FILE", help="write the server's cProfile there")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


@contextmanager
def running_server(given: argparse.Namespace, tier: Tier | None = None) -> Iterator[Remote]:
    """A server with an empty store (SQLite: synchronous=FULL) in a process on its own core."""
    os.sched_setaffinity(0, {LOAD_CORE})
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="wsrecover-bench-") as folder:
        store = "memory" if given.store == "memory" else f"sqlite:{folder}/bench.db"
        # The load's clients answer no pings, and a bench on a busy machine outlives a heartbeat.
        patient = Timeouts(heartbeat=600.0)
        # All of them come from one address, and as fast as they can.
        limits = Limits(
            handshakes=100_000,
            fresh_connects_per_second=1_000_000,
            resumes_per_second=1_000_000,
            address_handshakes=100_000,
            address_connects_per_second=1_000_000,
            address_connects_burst=1_000_000,
        )
        config = Config(
            port=0, store=store, secret=SECRET, limits=limits, tier=tier or Tier(), timeouts=patient
        )
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, config, given.profile), daemon=True)
        process.start()
        theirs.close()
        try:
            yield Remote(ours.recv(), process.pid or 0, ours)
            ours.send(None)
            process.join(30)
        finally:
            process.kill()
            process.join()


def token(user: str, token_id: str | None = None) -> str:
    """A token for an hour."""
    return sign(SECRET, tenant=TENANT, user=user, token_id=token_id, lifetime=3600, clock=time.time)


@contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar where a terminal shows it, without a thread of its own: call what this yields after each step."""
    bar = Progress(console=Console(stderr=True), transient=True, auto_refresh=False)
    with bar:
        task = bar.add_task(what, total=steps)

        def advance() -> None:
            bar.advance(task)
            bar.refresh()

        bar.refresh()
        yield advance


@attrs.define
class Figure:
    """One line of a table: what was measured, and the value of each round."""

    what: str
    values: list[float] = attrs.field(factory=list)

    @property
    def least(self) -> float:
        """The round that was disturbed least."""
        return min(self.values)

    @property
    def median(self) -> float:
        """The usual round."""
        return statistics.median(self.values)


def show(title: str, unit: str, figures: Sequence[Figure], notes: Sequence[str] = ()) -> None:
    """Print the figures as a table, and what must be known to read it."""
    how = "compiled" if COMPILED else "interpreted"
    table = Table(title=f"{title}, {how}", title_justify="left")
    table.add_column("what")
    table.add_column(f"least, {unit}", justify="right")
    table.add_column(f"median, {unit}", justify="right")
    table.add_column("rounds", justify="right")
    for figure in figures:
        table.add_row(figure.what, f"{figure.least:.2f}", f"{figure.median:.2f}", str(len(figure.values)))
    console = Console(width=WIDTH)
    console.print(table)
    for note in notes:
        console.print(note, highlight=False)
