"""Erasing a user from SQLite: at once for all who ask, and then row by row from the file.

::

    stream ada ──erase──▶ stream without a name, all of it trimmed ──sweep of its rows──▶ purged ──▶ gone
                          (a new `ada` has another id)               (in the background,      (next opening)
                                                                      then VACUUM)

The row of the old stream stays until the next opening, so that nobody else gets its id meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeAlias

import apsw

from wsrecover.errors import StoreError

from .sqlite_heads import Head, Tip
from .sqlite_trim import Trim

__all__ = ["Listener", "Purge", "erase_stream", "erase_user", "forget_purged"]

Listener: TypeAlias = Callable[[StoreError | None], object]
"""Called once, in the writer's thread: nothing of what was erased is in the files, or why it still is."""

VACUUM_SECONDS: Final = 10.0
"""For so long nobody's commit goes on: a GB or so. It must end well before the store's time-out."""

_ERASED: Final = "erased"
_PURGED: Final = "purged"
"""Scopes of streams that nobody can ask for: with rows yet to be deleted, and without any."""


def erase_stream(writer: apsw.Connection, head: Head, tip: Tip) -> Trim:
    """Take the stream, which ends at `tip`, from its name; where it begins from now on: at its end."""
    writer.execute(
        "UPDATE stream SET scope = ?, tenant = '', name = incarnation WHERE id = ?", (_ERASED, head.id)
    )
    writer.execute("DELETE FROM context WHERE stream = ?", (head.id,))
    writer.execute("DELETE FROM event_id WHERE stream = ?", (head.id,))
    writer.execute("DELETE FROM mark WHERE stream = ?", (head.id,))
    seq, _, total = tip
    return Trim(seq + 1, total, 0.0)


def erase_user(writer: apsw.Connection, tenant: str, user: str) -> None:
    """Forget the user's commands and runs."""
    writer.execute("DELETE FROM answer WHERE tenant = ? AND user = ?", (tenant, user))
    writer.execute("DELETE FROM run WHERE tenant = ? AND user = ?", (tenant, user))


def forget_purged(writer: apsw.Connection) -> bool:
    """At the opening: drop what was purged; whether there is something left to purge."""
    writer.execute("DELETE FROM stream WHERE scope = ?", (_PURGED,))
    return bool(writer.execute("SELECT EXISTS (SELECT 1 FROM stream WHERE scope = ?)", (_ERASED,)).get)


def _vacuum(writer: apsw.Connection) -> None:
    # Not even `secure_delete` would do: where a page took over rows of its neighbour, copies of them lie in
    # the neighbour's unused space, and stay there when the rows go.
    deadline = time.monotonic() + VACUUM_SECONDS
    writer.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
    writer.pragma("temp_store", "FILE")  # It is a copy of all there is.
    try:
        writer.execute("VACUUM")
    finally:
        writer.pragma("temp_store", "MEMORY")
        writer.set_progress_handler(None)


class Purge:
    """What is `left` of what was erased, and whether a sweep over all rows is `due`, or under way.

    Where it fails it rests until somebody asks again: a disk without room needs no more to do.
    """

    def __init__(self) -> None:
        self.left = False
        self.due = False
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call `listener` at the end of it; at once where nothing is left."""
        if self.left:
            self.due = True
            self._listeners.append(listener)
        else:
            listener(None)

    def finish(self, writer: apsw.Connection) -> None:
        """All rows were swept: write the file anew without them, and clear the write-ahead log.

        Raises SQLite's errors, of them `BusyError` where another process reads the file, and `InterruptError`
        where the file is too large for `VACUUM_SECONDS`.
        """
        _vacuum(writer)
        writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        writer.execute("UPDATE stream SET scope = ? WHERE scope = ?", (_PURGED, _ERASED))
        self.left = self.due = False
        self._tell(None)

    def fail(self, error: StoreError) -> None:
        """It cannot go on for now."""
        self.due = False
        self._tell(error)

    def _tell(self, error: StoreError | None) -> None:
        listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener(error)
