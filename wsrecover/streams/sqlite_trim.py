"""Trimming in SQLite: first where a stream begins, at once; then the rows, when there is time for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import apsw

from .sqlite_heads import Tip
from .store import Retention

__all__ = ["SWEEP_ROWS", "Trim", "hold_back", "plan", "sweep_step", "unsynced"]

SWEEP_ROWS: Final = 512
"""Rows that one step of the sweep looks at: about a millisecond, for which a commit may have to wait."""

_LANDMARKS: Final = """
SELECT row, seq, total - length(body), ts FROM event INDEXED BY landmark
WHERE stream = ? AND seq BETWEEN ? AND ? AND (seq + stream) % 64 = 0 ORDER BY seq
"""

_BACK: Final = """
WITH RECURSIVE walk(row, seq, prev, before, ts) AS (
    SELECT row, seq, prev, total - length(body), ts FROM event WHERE row = ?
    UNION ALL
    SELECT event.row, event.seq, event.prev, event.total - length(event.body), event.ts
    FROM walk CROSS JOIN event ON event.row = walk.prev WHERE walk.seq > ? LIMIT 65
)
SELECT seq, before, ts FROM walk ORDER BY seq
"""

_SWEEP: Final = """
DELETE FROM event
WHERE row > ? AND row <= ? AND seq < (SELECT oldest FROM stream WHERE stream.id = event.stream)
"""


class Trim(NamedTuple):
    """Where a stream begins from now on; see `Head`."""

    oldest: int
    base: int
    since: float


def plan(
    writer: apsw.Connection,
    stream: int,
    tip: Tip,
    begin: Trim,
    limit: Retention,
    *,
    now: float,
) -> Trim:
    """Where the stream that begins at `begin` is to begin under `limit`, exact to the event.

    By count that is arithmetic. By bytes and age a landmark is looked for and one landmark's worth of rows
    walked, but only where what is known without looking (`base` and `since`) does not show that all is well.
    """
    seq, row, total = tip
    if begin.oldest > seq:
        return begin
    oldest = max(begin.oldest, min(seq - limit.events + 1, seq))
    least = total - limit.bytes
    young = now - limit.age
    if begin.base >= least and begin.since >= young:
        return Trim(oldest, begin.base, begin.since)
    start = row
    for landmark, at, before, ts in writer.execute(_LANDMARKS, (stream, oldest, seq)):
        if (before >= least or at == seq) and ts >= young:
            start = landmark
            break
    for at, before, ts in writer.execute(_BACK, (start, oldest)):
        if at >= oldest and (before >= least or at == seq) and ts >= young:
            return Trim(at, before, ts)
    return Trim(seq + 1, total, 0.0)


def hold_back(begin: Trim, wanted: Trim, upto: int) -> Trim:
    """`wanted`, or as far towards it from `begin` as nothing after `upto` is trimmed."""
    if wanted.oldest <= upto + 1:
        return wanted
    return begin._replace(oldest=max(begin.oldest, upto + 1))


def sweep_step(writer: apsw.Connection, after: int, as_of: int) -> tuple[int, int]:
    """Delete the trimmed rows among the next `SWEEP_ROWS` after row `after`: the row it got to, and how many.

    Never beyond `as_of`: the rows after it say where their streams end, even where they are trimmed.
    """
    upto = writer.execute(
        "SELECT row FROM event WHERE row > ? AND row <= ? ORDER BY row LIMIT 1 OFFSET ?",
        (after, as_of, SWEEP_ROWS - 1),
    ).get
    upto = as_of if upto is None else upto
    writer.execute(_SWEEP, (after, upto))
    return upto, writer.changes()


@contextlib.contextmanager
def unsynced(writer: apsw.Connection) -> Iterator[None]:
    """Commits in here do not wait for the disk; the next one outside takes them along."""
    before = writer.pragma("synchronous")
    writer.pragma("synchronous", min(before, 1))
    try:
        yield
    finally:
        writer.pragma("synchronous", before)
