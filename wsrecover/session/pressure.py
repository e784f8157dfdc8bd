"""How near the process is to its memory budget, and what is shed for that.

::

    share of the budget    80 %          85 %               90 %                100 %
          nothing ──────▶ ephemeral ──▶ tails ──────────▶ connects ──────────▶ resumes
                          not sent      of idle sessions  new ones are told   so are those
                                        are forgotten     503                 that come back

Each stage includes those before it, and lasts until the share has stayed a tenth below for `HOLD` seconds.
What is acknowledged, and every event that is logged, is never shed.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final

import attrs
import structlog

__all__ = [
    "CONNECTION_BYTES",
    "HOLD",
    "INTERVAL",
    "RUN_BYTES",
    "SESSION_BYTES",
    "MemoryStatistics",
    "Pressure",
    "Stage",
    "Weights",
]

log = structlog.get_logger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two looks at what is held."""

CALM: Final = 0.5
"""Share of the budget below which looks are rarer: one costs some microseconds for each connection."""

CALM_INTERVAL: Final = 5.0
"""Seconds between two of those."""

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
    """The stage that a budget (bytes) and what is held lead to. Time, in seconds, comes with each call."""

    def __init__(self, budget: int) -> None:
        self.stage = Stage.NOTHING
        self._budget = budget
        self._weights = Weights()
        self._entered = 0
        self._looked_at = -math.inf
        self._until = dict.fromkeys(_FROM, -math.inf)

    def note(self, weights: Weights, now: float, *, upto: Stage = Stage.RESUMES) -> None:
        """So much is held: begin, prolong or end the stages up to `upto`."""
        self._weights, self._entered, self._looked_at = weights, 0, now
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
        calm = not self.stage and self._weights.total + self._entered < CALM * self._budget
        return now - self._looked_at >= (CALM_INTERVAL if calm else 0)

    def reaches(self, stage: Stage) -> bool:
        """Whether by the last look so much is held that the stage would begin."""
        return self._weights.total >= _FROM[stage] * self._budget

    def wait(self, now: float, *, resumes: bool) -> float:
        """The seconds until a connect may be let in, 0.0 where it is now: if memory has fallen by then."""
        stage = Stage.RESUMES if resumes else Stage.CONNECTS
        wait = self._until[stage] - now
        if wait > 0:
            return max(round(wait, 3), 0.001)
        if self._weights.total + self._entered < _FROM[stage] * self._budget:
            return 0.0
        # A storm between two looks: the next one may find something else to shed.
        return min(max(self._looked_at + INTERVAL - now, 0.1), INTERVAL)

    def enter(self) -> None:
        """Note that a connect was let in."""
        self._entered += SESSION_BYTES + CONNECTION_BYTES

    def statistics(self) -> MemoryStatistics:
        """As of the last look."""
        return MemoryStatistics(self._budget, self._weights, self.stage.name.lower())
