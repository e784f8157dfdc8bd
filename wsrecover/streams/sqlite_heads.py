"""Where streams end and begin: in memory, in the table `stream`, and after a crash in the newest rows."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import apsw

from wsrecover.errors import StoreCorrupt
from wsrecover.protocol.resume import make_epoch

from .store import StreamKey, StreamState

__all__ = ["Extent", "Head", "Tip", "create_head", "find_head", "replay", "write_heads"]

Tip: TypeAlias = tuple[int, int, int]
"""(seq, row, total) of a stream's newest event; total is the bytes of its bodies so far."""


class Head:
    """Where a stream ends and begins, as committed: the writer's thread sets it, any thread reads it.

    `tip` is (seq, row, total) of the newest event, in one attribute so that nobody sees half of it; `newest`
    is what it will be once the transaction under way is committed, and for the writer's thread alone. `base`
    and `since` are at most the total before `oldest` and its ts; `snapshot` is the seq of the newest one;
    `marked` tells whether this generation wrote to it, `dirty` whether the table has an older tip.
    """

    __slots__ = (
        "base",
        "dirty",
        "epoch",
        "id",
        "incarnation",
        "key",
        "marked",
        "marks",
        "newest",
        "oldest",
        "since",
        "snapshot",
        "tip",
    )

    def __init__(
        self,
        key: StreamKey,
        id: int,
        *,
        incarnation: str,
        epoch: str,
        tip: Tip = (0, 0, 0),
        oldest: int = 1,
        base: int = 0,
        since: float = 0.0,
        snapshot: int = 0,
        marks: tuple[tuple[str, int], ...] = (),
        marked: bool = False,
    ) -> None:
        # What each event asks for comes first, as in `Stream`.
        self.marked = marked
        self.newest = tip
        self.id = id
        self.epoch = epoch
        self.tip = tip
        self.dirty = False
        self.key = key
        self.incarnation = incarnation
        self.oldest = oldest
        self.base = base
        self.since = since
        self.snapshot = snapshot
        self.marks = marks

    def state(self) -> StreamState:
        """The stream's state."""
        return StreamState(self.incarnation, self.tip[0], self.oldest, self.marks)


def find_head(db: apsw.Connection, key: StreamKey, generation: str) -> Head | None:
    """The stream as the table has it: right where nothing was appended since the heads were written."""
    found = db.execute(
        "SELECT id, incarnation, head, last_row, total, oldest, base, since, snapshot FROM stream"
        " WHERE scope = ? AND tenant = ? AND name = ?",
        key.parts,
    ).fetchone()
    if found is None:
        return None
    stream, incarnation, seq, row, total, oldest, base, since, snapshot = found
    marks = tuple(
        db.execute(
            "SELECT generation.id, mark.first FROM mark JOIN generation ON generation.n = mark.generation"
            " WHERE mark.stream = ? ORDER BY generation.n",
            (stream,),
        )
    )
    return Head(
        key,
        stream,
        incarnation=incarnation,
        epoch=make_epoch(incarnation, generation),
        tip=(seq, row, total),
        oldest=oldest,
        base=base,
        since=since,
        snapshot=snapshot,
        marks=marks,
        marked=any(writer == generation for writer, _ in marks),
    )


def create_head(db: apsw.Connection, key: StreamKey, generation: str) -> Head:
    """A stream that nobody wrote yet."""
    incarnation = secrets.token_hex(8)
    db.execute(
        "INSERT INTO stream(scope, tenant, name, incarnation, head, oldest, last_row, total, base, since)"
        " VALUES (?, ?, ?, ?, 0, 1, 0, 0, 0, 0)",
        (*key.parts, incarnation),
    )
    epoch = make_epoch(incarnation, generation)
    return Head(key, db.last_insert_rowid(), incarnation=incarnation, epoch=epoch)


def write_heads(db: apsw.Connection, tips: Iterable[tuple[int, Tip]], *, as_of: int, added: int) -> None:
    """Set the heads in the table to those of row `as_of`, `added` rows after the last time."""
    db.executemany(
        "UPDATE stream SET head = ?, last_row = ?, total = ? WHERE id = ?",
        [(*tip, stream) for stream, tip in tips],
    )
    db.execute("UPDATE meta SET value = ? WHERE name = 'as_of'", (as_of,))
    db.execute("UPDATE meta SET value = value + ? WHERE name = 'rows'", (added,))


class Extent(NamedTuple):
    """The newest row, how many there are, and how many of them are events that are kept."""

    row: int
    rows: int
    alive: int


def replay(db: apsw.Connection) -> Extent:
    """Bring the heads in the table up to the newest row. `StoreCorrupt`: the rows are no chain."""
    meta = dict(db.execute("SELECT name, value FROM meta"))
    newest = meta["as_of"]
    tips: dict[int, Tip] = {}
    added = 0
    for row, stream, seq, prev, total in db.execute(
        "SELECT row, stream, seq, prev, total FROM event WHERE row > ? ORDER BY row", (newest,)
    ):
        known = (
            tips.get(stream)
            or db.execute("SELECT head, last_row, total FROM stream WHERE id = ?", (stream,)).fetchone()
        )
        if known is None or known[:2] != (seq - 1, prev):
            raise StoreCorrupt(f"row {row}: seq {seq} of stream {stream} does not follow {known}")
        tips[stream] = (seq, row, total)
        newest = row
        added += 1
    if added:
        write_heads(db, tips.items(), as_of=newest, added=added)
    alive = db.execute("SELECT coalesce(sum(head + 1 - oldest), 0) FROM stream").get
    return Extent(newest, meta["rows"] + added, alive)
