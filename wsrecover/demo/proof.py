"""The demo itself: an agent at work, a client behind a link that fails again and again, and the comparison.

::

    agent ─▶ server ─▶ log (SQLite) ─────────────────────────┐
                │                                            ├─▶ judge
                └─▶ link, cut at random bytes ─▶ client app ─┘
"""

from __future__ import annotations

import random
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from wsrecover.access.tokens import sign
from wsrecover.client import ClientSession, connect
from wsrecover.config import Config, Retention
from wsrecover.errors import ConfigError
from wsrecover.protocol.events import TERMINAL, Event
from wsrecover.server import Server, serve
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import Entry, StreamKey
from wsrecover.testing.link import Cut, LossyLink

from .agents import AGENT, demo_app, readme
from .away import TIME_LIMIT, Absence, stay_away
from .judging import Verdict, judge, recited, unlogged
from .overlap import dial_overlapping

__all__ = ["Plan", "Report", "Sight", "prove"]

TENANT: Final = "demo"

LAST: Final = "demo.last"
"""The type of the event that is published when all is done: behind it nothing can be under way."""

DOWN_BYTES: Final = 12_000
"""A connection is cut after at most so many bytes from the server: in the handshake, or some events later."""

UP_BYTES: Final = 700
"""The same from the client: its handshake, or a few acknowledgements."""

TOKEN_PACE: Final = 0.002
"""Seconds from token to token while there are cuts to come."""

SIGHTS: Final = 0.1
"""Seconds from one look at the progress to the next."""

BACKOFF_FACTOR: Final = 0.0025
"""The part of the usual back-off that this client waits, 50 ms at most: 200 cuts should not take an hour."""

CUT_AGAIN: Final = 0.0025
"""Seconds from one try to cut the client off to the next, where there was no connection to cut."""

READ_EVENTS: Final = 1_000
READ_BYTES: Final = 4 * 1024 * 1024


@attrs.frozen(kw_only=True)
class Plan:
    """What to do. `file` None: the README. `store` None: SQLite in a folder that is gone afterwards.
    `stalled_after`: seconds in which nothing arrives and nothing is cut, after which the rest counts as lost.
    """

    file: Path | None = None
    cuts: int = attrs.field()
    seed: int = 0
    store: str | None = None
    stalled_after: float = 30.0

    @cuts.validator
    def _check_cuts(self, _: object, value: int) -> None:
        if value < 0:
            raise ConfigError("cuts", f"is {value}", "a whole number ≥ 0")


@attrs.frozen
class Sight:
    """How far the demo is."""

    cuts: int
    delivered: int
    status: str


@attrs.frozen(kw_only=True)
class Report:
    """How it ended. `longest_outage` and `seconds` are in seconds.

    `unlogged` are events that the agent says it made, and that the log lacks. Where it `stalled`, what was
    still to come was not waited for.
    """

    file: Path
    seed: int
    verdict: Verdict
    unlogged: int
    stalled: bool
    wanted: int
    cuts: int
    resumes: int
    longest_outage: float
    seconds: float
    text_arrived: bool
    absence: Absence

    @property
    def faults(self) -> list[str]:
        """What speaks against the proof; nothing where it holds."""
        verdict = self.verdict
        return [
            words
            for words, at_fault in (
                (f"{verdict.duplicates} duplicates", verdict.duplicates),
                (f"{verdict.missing} missing", verdict.missing),
                (f"{verdict.reordered} reordered", verdict.reordered),
                (f"{verdict.altered} altered", verdict.altered),
                (f"{self.unlogged} made by the agent and not logged", self.unlogged),
                ("nothing came any more", self.stalled),
                (f"{self.cuts} cuts instead of {self.wanted}", self.cuts != self.wanted),
                ("the text did not arrive as it is in the file", not self.text_arrived),
                (f"one who was away for long had no state after {TIME_LIMIT:g} s", self.absence.late),
                (
                    "one who was away for long found no gap, or another state",
                    not self.absence.late and not self.absence.recovered,
                ),
            )
            if at_fault
        ]

    @property
    def proven(self) -> bool:
        """Whether everything arrived exactly once, in order and unaltered, over all the cuts."""
        return not self.faults


class _Outages:
    """Watches the client's status: how often it came back, and the longest that it was away."""

    def __init__(self) -> None:
        self.connects = 0
        self.longest = 0.0
        self.status = "connecting"
        self._lost_at: float | None = None

    def __call__(self, status: str) -> None:
        was, now = self.status in ("replaying", "live"), status in ("replaying", "live")
        self.status = status
        if was and not now:
            self._lost_at = trio.current_time()
        elif now and not was:
            self.connects += 1
            if self._lost_at is not None:
                self.longest = max(self.longest, trio.current_time() - self._lost_at)


async def prove(plan: Plan, watch: Callable[[Sight], object] = lambda _: None) -> Report:
    """Run the demo; `watch` is called with the progress ten times a second.

    Raises `ConfigError` for a file that is no UTF-8 text, and for a store that nobody can read afterwards.
    """
    file = plan.file or readme()
    text = await _text(file)
    with _store(plan.store) as store:
        return await _Demo(plan, file, text, store, watch).run(await stay_away(file, text))


async def _text(file: Path) -> str:
    try:
        return (await trio.Path(file).read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError("FILE", f"{file} cannot be read: {why}", "a UTF-8 text file") from error


@contextmanager
def _store(given: str | None) -> Iterator[Path]:
    if given is None:
        with tempfile.TemporaryDirectory(prefix="wsrecover-demo-", ignore_cleanup_errors=True) as folder:
            yield Path(folder) / "demo.db"
        return
    path = Config(store=given).store_path
    if path is None:
        raise ConfigError("store", "ends with the server, and the log is read after that", "sqlite:FILE")
    yield path


class _Demo:
    """One run of the demo."""

    def __init__(
        self, plan: Plan, file: Path, text: str, store: Path, watch: Callable[[Sight], object]
    ) -> None:
        self._plan = plan
        self._file = file
        self._text = text
        self._watch = watch
        self._store = store
        self._secret = secrets.token_bytes(32)
        self._config = Config(
            port=0,
            store=f"sqlite:{store}",
            secret=self._secret,
            # A gap is honest, but it proves nothing.
            retention=Retention(events=10**9, bytes=10**12, age=10**9),
        )
        # A user of its own: a store that is given may hold an earlier demo.
        self._user = secrets.token_hex(8)
        self._outages = _Outages()
        self._got: list[Event] = []
        self._made: Counter[str] = Counter()
        self._run = ""

    async def run(self, absence: Absence) -> Report:
        began = time.perf_counter()
        app = demo_app(
            self._file,
            pace=self._pace,
            again=self._cuts_to_come,
            account=self._note,
        )
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve, app, self._config)
            host, port = server.addresses[0]
            self._link = LossyLink(host, port, plan=self._cuts())
            await nursery.start(self._link.run)
            nursery.start_soon(self._keep_looking)
            with trio.CancelScope() as scope:
                nursery.start_soon(self._end_stalled, scope)
                await self._work(server)
            took, cuts = time.perf_counter() - began, self._link.cuts
            self._look()
            nursery.cancel_scope.cancel()
        log = await self._log()
        return Report(
            file=self._file,
            seed=self._plan.seed,
            verdict=judge(log, self._got),
            unlogged=0 if scope.cancelled_caught else unlogged(self._made, log, self._run),
            stalled=scope.cancelled_caught,
            wanted=self._plan.cuts,
            cuts=cuts,
            resumes=self._outages.connects - 1,
            longest_outage=self._outages.longest,
            seconds=took,
            text_arrived=self._text_arrived(),
            absence=absence,
        )

    def _cuts(self) -> Iterator[Cut | None]:
        """For each connection the byte at which it ends; the last cut is made when the work is done."""
        rng = random.Random(self._plan.seed)  # noqa: S311 - to be repeated, not to be secret
        while self._link.cuts < self._plan.cuts - 1:
            up = rng.random() < 1 / 4
            yield Cut(
                after=rng.randrange(1, UP_BYTES if up else DOWN_BYTES),
                way="up" if up else "down",
                how="fin" if rng.random() < 1 / 4 else "rst",
            )

    def _cuts_to_come(self) -> bool:
        return self._link.cuts < self._plan.cuts - 1

    def _note(self, kind: str) -> None:
        self._made[kind] += 1

    async def _pace(self) -> None:
        await trio.sleep(TOKEN_PACE if self._cuts_to_come() else 0)

    async def _work(self, server: Server) -> None:
        rng = random.Random(self._plan.seed)  # noqa: S311 - to be repeated, not to be secret
        link = connect(
            f"ws://127.0.0.1:{self._link.port}",
            token=self._token,
            from_="start",
            on_status=self._outages,
            dial=dial_overlapping,
            rng=lambda: rng.random() * BACKOFF_FACTOR,
        )
        async with link as session, trio.open_nursery() as nursery:
            done = trio.Event()
            nursery.start_soon(self._follow, session, done)
            self._run = await session.start_agent(AGENT, {"term": "wsrecover"})
            await done.wait()
            if self._plan.cuts:
                await self._cut_once_more(session)
            # Whatever the reconnect repeated lies before this one.
            await server.publish(TENANT, self._user, LAST, {})

    async def _follow(self, session: ClientSession, done: trio.Event) -> None:
        """The client's app: it keeps every event that it is given."""
        async for item in session:
            if isinstance(item, Event) and item.stream == "user":
                self._got.append(item)
                if item.type == LAST:
                    return
                if item.type == TERMINAL:
                    done.set()

    async def _cut_once_more(self, session: ClientSession) -> None:
        """When all is delivered: a client that comes back then must not get any of it again."""
        while not self._link.cut():
            await session.wait_status("replaying", "live")
            await trio.sleep(CUT_AGAIN)
        await session.wait_status("waiting", "connecting")
        await session.wait_status("live")

    def _token(self) -> str:
        return sign(self._secret, tenant=TENANT, user=self._user, lifetime=3600.0, clock=time.time)

    async def _end_stalled(self, scope: trio.CancelScope) -> None:
        """Cancel the scope once nothing arrived and nothing was cut for so long."""
        seen = None
        while True:
            now = len(self._got), self._link.cuts
            if now == seen:
                scope.cancel()
                return
            seen = now
            await trio.sleep(self._plan.stalled_after)

    async def _keep_looking(self) -> None:
        while True:
            self._look()
            await trio.sleep(SIGHTS)

    def _look(self) -> None:
        self._watch(Sight(cuts=self._link.cuts, delivered=len(self._got), status=self._outages.status))

    async def _log(self) -> list[Entry]:
        """Everything in the user's stream, read from the store when the server has ended."""
        key = StreamKey("user", TENANT, self._user)
        store = await open_sqlite(self._store, clock=time.time)
        try:
            head, log = (await store.load(key)).head, list[Entry]()
            while (after := log[-1].seq if log else 0) < head:
                log += await store.read(key, after, upto=head, max_events=READ_EVENTS, max_bytes=READ_BYTES)
        finally:
            await store.aclose()
        return log

    def _text_arrived(self) -> bool:
        """Whether the client holds the file's text, as many times as the agent says that it recited it."""
        ends = [event.data for event in self._got if event.type == TERMINAL and event.run == self._run]
        times = [end.get("result", {}).get("times") for end in ends]
        return (
            len(times) == 1
            and isinstance(times[0], int)
            and recited(self._got, self._run) == self._text * times[0]
        )
