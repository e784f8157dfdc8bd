"""How near the process is to its memory budget, and what is shed for that.

::

    share of the budget    80 %          85 %               90 %                100 %
          nothing ──────▶ ephemeral ──▶ tails ──────────▶ connects ──────────▶ resumes
                          not sent      of idle sessions  new ones are told   so are those
                                        are forgotten     503                 that come back

Each stage includes those before it, and lasts until the share has stayed a tenth below for `HOLD` seconds.
What is acknowledged, and every event that is logged, is never shed.

What is held is weighed now and then. In between, what is let in and the pages that are read for slow readers
are added up as if none of it were given back, and held to what is left: connects wait, pages shrink down to
one event, and much of it brings the next look forward. Of what is weighed 1.1 times as much is resident, and
some 30 MiB that do not depend on it: SQLite's pages, what a commit takes, and what is free but in between.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final

import attrs
import trio

from wsrecover.logger import get_logger

__all__ = [
    "CALM",
    "CONNECTION_BYTES",
    "HOLD",
    "INTERVAL",
    "MUCH",
    "RUN_BYTES",
    "SESSION_BYTES",
    "MemoryStatistics",
    "Pressure",
    "Stage",
    "Weights",
]

log = get_logger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two looks at what is held."""

CALM: Final = 0.5
"""Share of the budget below which looks are rarer: one costs some microseconds for each connection."""

CALM_INTERVAL: Final = 5.0
"""Seconds between two of those."""

MUCH: Final = 0.1
"""Share of the budget that, taken since the last look, is reason for another one: less than a hundredth of
the time that it takes to send so much."""

PORTION: Final = 16
"""A page takes at most this fraction of the room that is left: so many stalled readers as there may be, it is
never used up."""

HOLD: Final = 5.0
"""Seconds that a stage lasts at least: what flaps helps nobody, and a client that waited has a chance."""

SLACK: Final = 0.1
"""Share of the budget below its beginning at which a stage may end."""

CONNECTION_BYTES: Final = 24 * 1024
"""A connection with nothing to send: 12 KiB by benches/memory.py, and over TLS 16 more."""

SESSION_BYTES: Final = 12 * 1024
"""A session without its connections, by the same."""

RUN_BYTES: Final = 12 * 1024
"""A run under way: tasks and scopes, without what its agent keeps."""


class Stage(IntEnum):
    """What is shed, and all before it."""

    NOTHING = 0
    EPHEMERAL = 1
    TAILS = 2
    CONNECTS = 3
    RESUMES = 4


_FROM: Final = {Stage.EPHEMERAL: 0.80, Stage.TAILS: 0.85, Stage.CONNECTS: 0.90, Stage.RESUMES: 1.0}
"""Shares of the budget. All come before its end: it is a bound, and what is under way still grows."""


@attrs.frozen(kw_only=True)
class Weights:
    """Bytes that are held for users, by what for.

    `log` is what a store in memory keeps, of which `tails` are then a part; `journal` waits for its commit,
    `backlog` for slow sockets; `contexts` are those that were reduced; `sessions` with their connections and
    runs are estimated.
    """

    log: int = 0
    tails: int = 0
    journal: int = 0
    backlog: int = 0
    contexts: int = 0
    sessions: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return max(self.log, self.tails) + self.journal + self.backlog + self.contexts + self.sessions


@attrs.frozen
class MemoryStatistics:
    """Bytes: the `budget` and what is held, as of the last look; `stage` names what is shed."""

    budget: int
    weights: Weights
    stage: str


class Pressure:
    """The stage that a budget (bytes) and what is held lead to. Time, in seconds, comes with each call.

    `held` are the bytes of the last look, and all that was taken since.
    """

    def __init__(self, budget: int) -> None:
        self.stage = Stage.NOTHING
        self._budget = budget
        self._weights = Weights()
        self.held = 0
        self._enough = CALM * budget
        self._hurry = trio.Event()
        self._looked_at = -math.inf
        self._until = dict.fromkeys(_FROM, -math.inf)

    def note(self, weights: Weights, now: float, *, upto: Stage = Stage.RESUMES) -> None:
        """So much is held: begin, prolong or end the stages up to `upto`."""
        self._weights, self._looked_at, self.held = weights, now, weights.total
        self._enough = max(CALM * self._budget, self.held + MUCH * self._budget)
        for stage, share in _FROM.items():
            bound = (share - SLACK if self.stage >= stage else share) * self._budget
            if stage <= upto and weights.total >= bound:
                self._until[stage] = now + HOLD
        before = self.stage
        self.stage = max(
            (stage for stage, until in self._until.items() if now < until), default=Stage.NOTHING
        )
        if self.stage != before:
            self._say(before)

    def _say(self, before: Stage) -> None:
        told = {"held": self._weights.total, "budget": self._budget, "sheds": self.stage.name.lower()}
        if self.stage > before:
            log.warning("memory_short", **told, **attrs.asdict(self._weights))
        elif self.stage:
            log.info("memory_eased", **told)
        else:
            log.info("memory_recovered", **told)

    def is_due(self, now: float) -> bool:
        """Whether it is time for a look: with much room left it is taken less often."""
        calm = not self.stage and self.held < CALM * self._budget
        return now - self._looked_at >= (CALM_INTERVAL if calm else 0)

    async def wait_due(self) -> None:
        """Wait for `INTERVAL` seconds, or until much was taken since the last look. May be cancelled."""
        with trio.move_on_after(INTERVAL):
            await self._hurry.wait()
        self._hurry = trio.Event()

    def reaches(self, stage: Stage) -> bool:
        """Whether by the last look so much is held that the stage would begin."""
        return self._weights.total >= _FROM[stage] * self._budget

    def wait(self, now: float, *, resumes: bool) -> float:
        """The seconds until a connect may be let in, 0.0 where it is now: if memory has fallen by then."""
        stage = Stage.RESUMES if resumes else Stage.CONNECTS
        wait = self._until[stage] - now
        if wait > 0:
            return max(round(wait, 3), 0.001)
        if self.held < _FROM[stage] * self._budget:
            return 0.0
        # A storm between two looks: the next one may find something else to shed.
        return min(max(self._looked_at + INTERVAL - now, 0.1), INTERVAL)

    def enter(self) -> None:
        """Note that a connect was let in."""
        self.take(SESSION_BYTES + CONNECTION_BYTES)

    def take(self, size: int) -> None:
        """Note that so many bytes more are held, until the next look finds what became of them."""
        self.held += size
        if self.held > self._enough:
            self._hurry.set()

    def portion(self, most: int) -> int:
        """The bytes of a page that could have `most`: less where little is left, and at least 1."""
        portion = (self._budget - self.held) // PORTION
        return most if portion >= most else max(portion, 1)

    def statistics(self) -> MemoryStatistics:
        """As of the last look."""
        return MemoryStatistics(self._budget, self._weights, self.stage.name.lower())
