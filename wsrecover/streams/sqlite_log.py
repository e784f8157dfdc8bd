"""The writing side of the SQLite store. All of it runs in the writer's thread.

Jobs that wait together share one transaction, and so one fsync. What they change in memory is staged: it
becomes visible in `Head` after the COMMIT only, and is dropped after a rollback, so memory is as the file is.

Heads are not written with each event. Every `HEADS_EVERY` rows those that changed are, with the row that they
stand for (`as_of`); the next opening reads the rows after that one.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import apsw

from wsrecover.errors import StoreClosed, StoreCorrupt, StoreError, StoreFailed, StoreUnavailable
from wsrecover.logger import get_logger
from wsrecover.protocol.cursor import Position

from .sqlite_contexts import keep_snapshot
from .sqlite_erase import Purge, erase_stream, erase_user, forget_purged
from .sqlite_files import Files
from .sqlite_heads import Head, create_head, find_head, replay, write_heads
from .sqlite_insert import Value, insert_events
from .sqlite_known import Known
from .sqlite_schema import keep_off, translate
from .sqlite_trim import Trim, hold_back, plan, sweep_step, unsynced
from .store import (
    APPLIED,
    Applied,
    Conflict,
    Entry,
    Outcome,
    Retained,
    Retention,
    StreamKey,
    Unit,
    UserRevocation,
)
from .worker import Job

__all__ = ["SQLiteLog"]

log = get_logger(__name__)

HEADS_EVERY: Final = 16_384
_MAX_HEADS: Final = 65_536
_MIN_DEAD: Final = 1024

_crc32: Final = zlib.crc32
"""Of each event: an attribute of a module is looked up by name, compiled or not."""


class SQLiteLog:
    """What is in the file, and what of it is held in memory. `failed` is set once nobody knows what is on
    disk."""

    def __init__(self, writer: apsw.Connection, files: Files, clock: Callable[[], float]) -> None:
        self.generation = secrets.token_hex(8)
        self.lineage: tuple[str, ...] = ()
        self.heads: dict[StreamKey, Head] = {}
        self.failed: StoreError | None = None
        self.commits = 0
        self.events = 0
        self.failures = 0
        self.healthy = True
        self.purge = Purge()
        self._db = writer
        self._files = files
        self._path = files.path
        self._clock = clock
        self.known = Known(writer)
        self._dirty: list[Head] = []  # Each once: its `dirty` is set.
        self._row = 0  # The newest row, with those that are staged.
        self._committed_row = 0
        self._as_of = 0
        self._physical = 0  # Rows in the table up to `as_of`.
        self._alive = 0  # Events that are kept.
        self._swept = 0
        self._clear_stage()
        self._generation_number = 0
        self._ahead = 0.0  # Of the clock that was given.

    def _clear_stage(self) -> None:
        self._grown: list[Head] = []  # Once for each event.
        self._trims: dict[Head, Trim] = {}
        self._snapshots: dict[Head, int] = {}
        self._created: dict[StreamKey, Head] = {}
        self._erased: dict[StreamKey, Head | None] = {}
        self._marks: dict[Head, int] = {}
        self._values: list[Value] = []  # Of the rows to insert, one after the other.
        self._units = 0

    def open(self) -> None:
        """Begin a generation, and learn where the streams end. Raises SQLite's errors and `StoreCorrupt`."""
        with self._db:
            self._db.execute(
                "INSERT INTO generation(id, opened) VALUES (?, ?)", (self.generation, self._clock())
            )
            self._generation_number = self._db.last_insert_rowid()
            self.lineage = tuple(name for (name,) in self._db.execute("SELECT id FROM generation ORDER BY n"))
            self._row, self._physical, self._alive = replay(self._db)
            newest = self.known.newest()
            self._ahead = 0.0 if newest is None else newest - self._clock()
            self.purge.left = self.purge.due = forget_purged(self._db)
        self._as_of = self._committed_row = self._row
        self._files.watch()

    def now(self) -> float:
        """See `Store.now`."""
        return self._clock() + self._ahead

    def run(self, jobs: Sequence[Job]) -> None:
        """Do `jobs` in one transaction, all or nothing."""
        try:
            self._check_usable()
            self._transact(jobs)
        except (apsw.Error, OSError) as error:
            self._refuse(jobs, translate(error, self._path))
        except StoreError as error:
            self._refuse(jobs, error)
        except Exception as error:  # One author's odd value must not end the journal of all.
            log.exception("commit_rolled_back", path=str(self._path))
            self._refuse(jobs, StoreUnavailable(f"{self._path}: {error!r}"))
        else:
            self.healthy = True

    def _refuse(self, jobs: Sequence[Job], error: StoreError) -> None:
        error = self._undo(error)
        self.failures += 1
        self.healthy = False
        for job in jobs:  # One instance each: raised in many tasks it would gather all their tracebacks.
            job.error = type(error)(*error.args)

    def _transact(self, jobs: Sequence[Job]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for job in jobs:
            job.result = job.work()
        self._flush()
        # What is erased is swept, and the sweep goes no further than the heads are written.
        checkpoint = self._row - self._as_of >= HEADS_EVERY or bool(self._erased)
        if checkpoint:
            self._checkpoint_heads()
        self._db.execute("COMMIT")
        self._publish()
        if checkpoint:
            self._checkpointed()

    def _flush(self) -> None:
        insert_events(self._db, self._values)
        self._values.clear()

    def _checkpoint_heads(self) -> None:
        tips = {head.id: head.newest for head in (*self._dirty, *self._grown)}
        write_heads(self._db, tips.items(), as_of=self._row, added=self._row - self._as_of)

    def _checkpointed(self) -> None:
        self._physical += self._row - self._as_of
        self._as_of = self._row
        while self._dirty:
            self._dirty.pop().dirty = False
        if len(self.heads) > _MAX_HEADS:
            self.heads.clear()

    def _publish(self) -> None:
        # Marks before tips: whoever loads between the two must not know an event and not who wrote it.
        for head, first in self._marks.items():
            head.marks = (*head.marks, (self.generation, first))
            head.marked = True
        for head in self._grown:
            head.tip = head.newest
            if not head.dirty:
                head.dirty = True
                self._dirty.append(head)
        for head, (oldest, base, since) in self._trims.items():
            self._alive -= oldest - head.oldest
            head.oldest, head.base, head.since = oldest, base, since
        for head, seq in self._snapshots.items():
            head.snapshot = seq
        self.heads.update(self._created)
        if self._erased:
            self._swept, self.purge.left, self.purge.due = 0, True, True
        added = self._row - self._committed_row
        self._committed_row = self._row
        self._alive += added
        self.events += added
        self.commits += self._units > 0
        self._clear_stage()

    def _undo(self, error: StoreError) -> StoreError:
        """Roll back because of `error`: what to say of it."""
        self._row = self._committed_row
        self.heads.update((key, head) for key, head in self._erased.items() if head is not None)
        for head in self._grown:
            head.newest = head.tip
        self._clear_stage()
        try:
            if not self._db.getautocommit():
                self._db.execute("ROLLBACK")
        except apsw.Error as worse:
            error = StoreFailed(f"{self._path}: {worse}")
        if isinstance(error, StoreFailed | StoreCorrupt) and not isinstance(error, StoreClosed):
            self.failed = error
            self.purge.fail(error)  # Nothing is swept any more.
        return error

    def _check_usable(self) -> None:
        if self.failed is not None:
            raise StoreClosed(str(self.failed)) from self.failed
        self._files.check()

    def head(self, key: StreamKey) -> Head:
        """The stream's head; a stream that nobody wrote yet gets its incarnation."""
        return self._existing(key) or self._create(key)

    def _existing(self, key: StreamKey) -> Head | None:
        head = self.heads.get(key) or self._created.get(key)
        if head is None:
            head = find_head(self._db, key, self.generation)
            if head is not None:
                self.heads[key] = head
        return head

    def _create(self, key: StreamKey) -> Head:
        head = self._created[key] = create_head(self._db, key, self.generation)
        return head

    def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        """See `Store.commit`."""
        self._units += 1
        outcomes: list[Outcome] = []
        plain: list[Entry] = []
        for unit in units:
            if unit.is_plain():
                plain += unit.entries
                outcomes.append(APPLIED)
            else:
                self._append(plain)
                plain.clear()
                outcomes.append(self._apply(unit))
        self._append(plain)
        if self.known.kept:
            self.known.forget(now=self.now())
        return outcomes

    def _apply(self, unit: Unit) -> Outcome:
        if unit.answers:
            known = self.known.answered(unit.answers[0], now=self.now())
            if known is not None:
                return known
        outcome = self._append_with_ids(unit.entries)
        if isinstance(outcome, Applied):
            self.known.keep(unit)
            for snapshot in unit.snapshots:
                head = self.head(snapshot.key)
                if snapshot.epoch not in (None, head.epoch):
                    continue
                if snapshot.seq >= self._snapshots.get(head, head.snapshot):
                    keep_snapshot(self._db, head.id, snapshot)
                    self._snapshots[head] = snapshot.seq
        return outcome

    def _append(self, entries: list[Entry]) -> None:
        heads, values, grown = self.heads, self._values, self._grown
        row = self._row
        for entry in entries:
            head = heads.get(entry.key) or self.head(entry.key)
            if not head.marked:
                self._mark(head)
            grown.append(head)
            seq, prev, total = head.newest
            seq += 1
            row += 1
            body = entry.body
            total += len(body)
            check = _crc32(body, seq)
            values += (row, head.id, seq, prev, total, entry.ts, check, entry.thread, body)
            head.newest = (seq, row, total)
            entry.seq = seq
            entry.epoch = head.epoch
        self._row = row

    def _mark(self, head: Head) -> None:
        """This generation writes to it, for the first time unless that was in this very transaction."""
        if head in self._marks:
            return
        first = head.tip[0] + 1
        self._db.execute("INSERT INTO mark VALUES (?, ?, ?)", (head.id, self._generation_number, first))
        self._marks[head] = first

    def _append_with_ids(self, entries: Sequence[Entry]) -> Applied | Conflict:
        now = self.now()
        first: dict[tuple[Head, str], tuple[bytes, Position | None]] = {}
        for entry in entries:
            if entry.id is not None:
                head = self.head(entry.key)
                name = (head, entry.id)
                known = first.get(name) or self.known.position(head.id, entry.id, now=now)
                first[name] = known = known or (entry.digest, None)
                if known[0] != entry.digest:
                    return Conflict(entry.id)
        repeats = []
        for place, entry in enumerate(entries):
            if entry.id is None:
                self._append([entry])
                continue
            head = self.head(entry.key)
            position = first[head, entry.id][1]
            if position is None:
                self._append([entry])
                first[head, entry.id] = (entry.digest, entry.position)
                self.known.keep_entry(head.id, entry, now=now)
            else:
                entry.epoch, entry.seq = position.epoch, position.seq
                repeats.append(place)
        return Applied(tuple(repeats)) if repeats else APPLIED

    def retain(self, limits: Mapping[StreamKey, Retention], now: float) -> Retained:
        """See `Store.retain`."""
        self._flush()
        trimmed = {}
        held = []
        for key, limit in limits.items():
            head = self._existing(key)
            if head is None:
                continue
            old = self._trims.get(head) or Trim(head.oldest, head.base, head.since)
            wanted = new = plan(self._db, head.id, head.newest, old, limit, now=now)
            if key.scope == "user":
                new = hold_back(old, wanted, self._snapshots.get(head, head.snapshot))
            if new.oldest < wanted.oldest:
                held.append(key)
            if new == old:
                continue
            self._begin_at(head, new)
            if new.oldest > old.oldest:
                trimmed[key] = new.oldest
        self.known.forget(now=self.now())
        return Retained(trimmed, tuple(held))

    def _begin_at(self, head: Head, trim: Trim) -> None:
        self._db.execute("UPDATE stream SET oldest = ?, base = ?, since = ? WHERE id = ?", (*trim, head.id))
        self._trims[head] = trim

    def erase(self, one: UserRevocation) -> None:
        """See `Store.erase`."""
        key = StreamKey("user", one.tenant, one.user)
        head = self._existing(key)
        if head is not None:
            self._begin_at(head, erase_stream(self._db, head, head.newest))
        self._created.pop(key, None)
        self._erased.setdefault(key, self.heads.pop(key, None))
        erase_user(self._db, one.tenant, one.user)
        self.known.keep(Unit(revocations=(one,)))

    def sweep(self) -> bool:
        """Delete some of the rows that were trimmed, in a transaction of its own; whether there is more to
        do.

        Not synced: which rows are gone from the disk already does not matter. Only while what is trimmed
        takes a part of the file that is worth it, or where something was erased.
        """
        dead = self._physical + self._row - self._as_of - self._alive
        worth_it = self._swept or self.purge.due or dead >= max(_MIN_DEAD, self._physical // 8)
        if self.failed is not None or not worth_it:
            return False
        try:
            self._files.check()
            with unsynced(self._db), self._db:
                upto, deleted = sweep_step(self._db, self._swept, self._as_of)
                self._db.execute("UPDATE meta SET value = value - ? WHERE name = 'rows'", (deleted,))
            self._physical -= deleted
            self._swept = upto if upto < self._as_of else 0
            if self.purge.due and not self._swept:
                self.purge.finish(self._db)
        except (apsw.Error, StoreError) as error:
            problem = error if isinstance(error, StoreError) else translate(error, self._path)
            self.purge.fail(self._undo(problem))
            return False
        return True

    def keep_off(self) -> None:
        """See to it that `close` writes nothing: the file may be another process's."""
        keep_off(self._db)

    def close(self) -> None:
        """Write the heads, so that the next opening has nothing to read, and close the file."""
        try:
            if self.failed is None and self._row > self._as_of:
                self._files.check()
                with self._db:
                    self._checkpoint_heads()
        except (apsw.Error, StoreError):
            self.healthy = False  # The next opening reads the rows instead.
        finally:
            self.purge.fail(StoreFailed(f"{self._path}: the store is closed"))
            self._db.close()
