"""The Store contract in one SQLite file, in WAL mode."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import apsw
import trio

from wsrecover.errors import StoreClosed, StoreError, StoreFailed
from wsrecover.protocol.cursor import Position

from .sqlite_contexts import find_oldest, find_snapshot
from .sqlite_files import Files
from .sqlite_heads import Head
from .sqlite_known import find_answer, find_revocations, find_runs
from .sqlite_log import SQLiteLog
from .sqlite_read import read_keys, read_page
from .sqlite_schema import Synchronous, connect, keep_off, translate
from .store import (
    Answer,
    AnswerKey,
    Entry,
    Outcome,
    Retained,
    Retention,
    Revocation,
    RunRecord,
    Store,
    StoredSnapshot,
    StoreStatistics,
    StreamKey,
    StreamState,
    Unit,
    UserRevocation,
)
from .worker import Job, Worker

__all__ = ["SQLiteStore", "open_sqlite"]

T = TypeVar("T")
Args = TypeVarTuple("Args")

_TIMEOUT: Final = 30.0


async def open_sqlite(
    path: str | Path,
    *,
    synchronous: Synchronous = "FULL",
    clock: Callable[[], float] = time.time,
    timeout: float = _TIMEOUT,
) -> SQLiteStore:
    """Open the store in the file `path`, which is made if it is absent; its folder must exist.

    `synchronous` is SQLite's: with anything but FULL a power cut takes acknowledged events. `clock` gives
    seconds that pass; where it jumps while the store is open, answers are forgotten early. `timeout`
    (seconds) is how long a write may take before the store counts as failed.

    Raises `StoreLocked` where another process (or this one) has it open, `StoreMismatch`, `StoreCorrupt`, and
    `StoreUnavailable` where it cannot be made or read; each names the file. Cancelled before it begins:
    nothing happens; later: it opens nevertheless.
    """
    opened = await _in_thread(_open, Path(path), synchronous, clock)
    return SQLiteStore(*opened, clock=clock, timeout=timeout)


async def _in_thread(work: Callable[[*Args], T], *args: *Args) -> T:
    """Work in a thread that does not wait for those of the program, which may never return."""
    return await trio.to_thread.run_sync(work, *args, limiter=trio.CapacityLimiter(1))


def _open(
    path: Path, synchronous: Synchronous, clock: Callable[[], float]
) -> tuple[Files, SQLiteLog, apsw.Connection]:
    files = Files(path)
    try:
        writer, reader = connect(files.path, synchronous=synchronous)
        try:
            log = SQLiteLog(writer, files, clock)
            log.open()
        except BaseException:
            reader.close()
            writer.close()
            raise
    except (apsw.Error, OSError) as error:
        files.release()
        raise translate(error, files.path) from error
    except BaseException:
        files.release()
        raise
    return files, log, reader


class SQLiteStore(Store):
    """A store in one SQLite file. Made by `open_sqlite`.

    One thread writes, and commits together what came while it was busy; another one reads, so that no read
    waits for an fsync. Retention is exact to the event.

    Where the disk is full or the file was moved away, calls raise `StoreUnavailable` and the store heals by
    itself. After a write or fsync that failed nobody knows what is on disk: from then on writes raise what it
    was.
    """

    def __init__(
        self,
        files: Files,
        log: SQLiteLog,
        reader: apsw.Connection,
        *,
        clock: Callable[[], float],
        timeout: float,
    ) -> None:
        self.generation = log.generation
        self.lineage = log.lineage
        self._files = files
        self._path = files.path
        self._log = log
        self._reader = reader
        self._clock = clock
        self._timeout = timeout
        self._closed = False
        self._writes = Worker(f"{files.path.name}-writer", log.run, log.sweep)
        self._reads = Worker(f"{files.path.name}-reader", self._run_reads)

    async def load(self, key: StreamKey) -> StreamState:
        """See `Store.load`."""
        return (await self._head(key)).state()

    async def _head(self, key: StreamKey) -> Head:
        self._check_open()
        head = self._log.heads.get(key)
        if head is None:
            return await self._writes.call(partial(self._log.head, key))
        await trio.lowlevel.checkpoint()
        return head

    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        """See `Store.commit`."""
        return await self._write(partial(self._log.commit, units))

    def now(self) -> float:
        """See `Store.now`."""
        return self._log.now()

    async def retain(self, limits: Mapping[StreamKey, Retention], *, now: float) -> Retained:
        """See `Store.retain`."""
        return await self._write(partial(self._log.retain, limits, now))

    async def _write(self, work: Callable[[], T]) -> T:
        self._check_open()
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._timeout):
            return await self._writes.call(work)
        self._log.failed = StoreFailed(f"{self._path}: a write took longer than {self._timeout} s")
        raise self._log.failed

    async def read(
        self, key: StreamKey, after: int, *, upto: int, max_events: int, max_bytes: int
    ) -> list[Entry]:
        """See `Store.read`. Raises `StoreCorrupt` where a row is missing or is not what was written."""
        head = await self._head(key)
        return await self._reads.call(
            partial(
                read_page,
                self._reader,
                head,
                after,
                upto=upto,
                max_events=max_events,
                max_bytes=max_bytes,
            )
        )

    async def snapshot(self, key: StreamKey) -> StoredSnapshot:
        """See `Store.snapshot`. Raises `StoreCorrupt` where a context is not what was written."""
        head = await self._head(key)
        return await self._reads.call(partial(find_snapshot, self._reader, head.id, key))

    async def oldest_contexts(self, keys: Sequence[StreamKey]) -> dict[StreamKey, float]:
        """See `Store.oldest_contexts`."""
        self._check_open()
        return await self._reads.call(partial(find_oldest, self._reader, keys))

    async def keys(self, *, after: StreamKey | None = None, limit: int = 1000) -> list[StreamKey]:
        """See `Store.keys`."""
        self._check_open()
        return await self._reads.call(partial(read_keys, self._reader, after, limit))

    async def answer(self, key: AnswerKey) -> tuple[Answer, tuple[Position, ...]] | None:
        """See `Store.answer`."""
        self._check_open()
        return await self._reads.call(partial(find_answer, self._reader, key, now=self.now()))

    async def runs(self) -> list[RunRecord]:
        """See `Store.runs`."""
        self._check_open()
        return await self._reads.call(partial(find_runs, self._reader))

    async def revocations(self) -> list[Revocation]:
        """See `Store.revocations`."""
        self._check_open()
        return await self._reads.call(partial(find_revocations, self._reader))

    async def forget_revocations(self, *, before: float) -> None:
        """See `Store.forget_revocations`."""
        await self._write(partial(self._log.known.forget_revocations, before))

    async def erase(self, one: UserRevocation) -> None:
        """See `Store.erase`."""
        await self._write(partial(self._log.erase, one))

    async def purge(self) -> None:
        """See `Store.purge`. It ends with a VACUUM, for which commits wait: about 1 s for each 100 MB.

        Raises `StoreUnavailable` also while another process reads the file, and where the file is too large
        to be written anew in 10 s: stop the server, then, and do it with `sqlite3 FILE VACUUM`.
        """
        done, told = trio.Event(), list[StoreError | None]()
        token = trio.lowlevel.current_trio_token()

        def hear(error: StoreError | None) -> None:
            told.append(error)
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(done.set)

        self._check_open()
        await self._writes.call(partial(self._log.purge.listen, hear))
        await done.wait()
        if told[0] is not None:
            raise told[0]

    def _run_reads(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.task is None:  # Nobody waits for it any more, and others wait behind it.
                continue
            try:
                job.result = job.work()
            except (apsw.Error, OSError) as error:
                job.error = translate(error, self._path)
            except Exception as error:  # noqa: BLE001  # Raised to whoever asked; the thread serves the others.
                job.error = error

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"{self._path}: the store is closed")

    def statistics(self) -> StoreStatistics:
        """See `Store.statistics`."""
        log = self._log
        return StoreStatistics(log.commits, log.events, log.failures, log.healthy and log.failed is None)

    async def aclose(self) -> None:
        """See `Store.aclose`. What a thread cannot end within the time-out is left behind."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._timeout):
            await self._writes.stop()
            await self._reads.stop()
            await _in_thread(self._close)
            return
        raise StoreFailed(f"{self._path}: closing took longer than {self._timeout} s")

    def _close(self) -> None:
        try:
            if not self._files.are_ours():
                self._log.keep_off()
                keep_off(self._reader)
            self._reader.close()
            self._log.close()
        finally:
            self._files.release()
