"""What SQLite remembers of commands and event ids that were seen before, and of runs under way."""

from __future__ import annotations

from typing import Final

import apsw
import orjson

from wsrecover.protocol.cursor import Position

from .store import (
    ANSWER_WINDOW,
    Answer,
    AnswerKey,
    Conflict,
    Duplicate,
    Entry,
    Revocation,
    RunRecord,
    TokenRevocation,
    Unit,
    UserRevocation,
)

__all__ = ["Known", "find_answer", "find_revocations", "find_runs"]

FORGET: Final = 1000
"""Rows of each kind that are forgotten at once where nothing new is kept."""

_FORGET: Final = (
    "DELETE FROM answer WHERE rowid IN (SELECT rowid FROM answer WHERE at <= ? LIMIT ?)",
    "DELETE FROM event_id WHERE rowid IN (SELECT rowid FROM event_id WHERE at <= ? LIMIT ?)",
)


def find_answer(
    db: apsw.Connection, key: AnswerKey, *, now: float
) -> tuple[Answer, tuple[Position, ...]] | None:
    """See `Store.answer`."""
    found = db.execute(
        "SELECT digest, at, result, positions, status FROM answer"
        " WHERE tenant = ? AND user = ? AND id = ? AND at > ?",
        (key.tenant, key.user, key.id, now - ANSWER_WINDOW),
    ).fetchone()
    if found is None:
        return None
    digest, at, result, positions, status = found
    given = tuple(Position(epoch, seq) for epoch, seq in orjson.loads(positions))
    return Answer(key, digest, at, result, status), given


def find_runs(db: apsw.Connection) -> list[RunRecord]:
    """See `Store.runs`."""
    found = db.execute("SELECT run, tenant, user, agent, started, thread FROM run ORDER BY rowid")
    return [RunRecord(*row) for row in found]


def find_revocations(db: apsw.Connection) -> list[Revocation]:
    """See `Store.revocations`."""
    return [
        TokenRevocation(tenant, token_id, at) if token_id else UserRevocation(tenant, user, at)
        for tenant, user, token_id, at in db.execute("SELECT tenant, user, token_id, at FROM revocation")
    ]


def _revocation_row(one: Revocation) -> tuple[str, str, str, float]:
    """A column is empty where it is the other that names what is revoked."""
    match one:
        case UserRevocation(tenant, user, at):
            return tenant, user, "", at
        case TokenRevocation(tenant, token_id, at):
            return tenant, "", token_id, at


class Known:
    """The tables of what is known, as the writer sees them, its own transaction included.

    `kept` counts the answers and ids since something was last forgotten.
    """

    def __init__(self, db: apsw.Connection) -> None:
        self.kept = 0
        self._db = db

    def answered(self, answer: Answer, *, now: float) -> Duplicate | Conflict | None:
        """What to say instead of applying a unit that carries `answer`, if it was applied before."""
        known = find_answer(self._db, answer.key, now=now)
        if known is None:
            return None
        first, positions = known
        if first.digest != answer.digest:
            return Conflict(answer.key.id)
        return None if answer.finishes(first) else Duplicate(first.result, positions, first.status)

    def keep(self, unit: Unit) -> None:
        """The answers, runs and revocations of a unit that is applied."""
        if unit.answers:
            self.kept += len(unit.answers)
            encoded = orjson.dumps([(entry.epoch, entry.seq) for entry in unit.entries])
            self._db.executemany(
                "INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (to.key.tenant, to.key.user, to.key.id, to.digest, to.at, to.result, encoded, to.status)
                    for to in unit.answers
                ],
            )
        if unit.runs_started:
            self._db.executemany(
                "INSERT OR REPLACE INTO run VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (run.run, run.tenant, run.user, run.agent, run.started, run.thread)
                    for run in unit.runs_started
                ],
            )
        if unit.runs_ended:
            self._db.executemany("DELETE FROM run WHERE run = ?", [(run,) for run in unit.runs_ended])
        if unit.revocations:
            self._db.executemany(
                "INSERT OR REPLACE INTO revocation VALUES (?, ?, ?, ?)",
                map(_revocation_row, unit.revocations),
            )

    def newest(self) -> float | None:
        """The time of the newest answer or id, None where there is none."""
        newest: float | None = self._db.execute(
            "SELECT max(at) FROM (SELECT max(at) AS at FROM answer UNION ALL SELECT max(at) FROM event_id)"
        ).get
        return newest

    def forget_revocations(self, before: float) -> None:
        """See `Store.forget_revocations`."""
        self._db.execute("DELETE FROM revocation WHERE at < ?", (before,))

    def position(self, stream: int, name: str, *, now: float) -> tuple[bytes, Position] | None:
        """The digest and position of the event that was appended to `stream` with the id `name`."""
        found = self._db.execute(
            "SELECT digest, epoch, seq FROM event_id WHERE stream = ? AND id = ? AND at > ?",
            (stream, name, now - ANSWER_WINDOW),
        ).fetchone()
        return None if found is None else (found[0], Position(found[1], found[2]))

    def keep_entry(self, stream: int, entry: Entry, *, now: float) -> None:
        """That `entry`, which has an id, is where it says."""
        self.kept += 1
        self._db.execute(
            "INSERT OR REPLACE INTO event_id VALUES (?, ?, ?, ?, ?, ?)",
            (stream, entry.id, entry.digest, entry.epoch, entry.seq, now),
        )

    def forget(self, *, now: float) -> None:
        """Delete some of what lies beyond the window: more than was kept since, so that it cannot pile up."""
        most = 2 * self.kept or FORGET
        self.kept = 0
        for statement in _FORGET:
            self._db.execute(statement, (now - ANSWER_WINDOW, most))
