"""The files of a SQLite store: taken by one process, and watched while it writes."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from wsrecover.errors import StoreLocked, StoreUnavailable

from .sqlite_schema import translate

__all__ = ["Files"]


class Files:
    """The database, its write-ahead log and its lock, as this process has them.

    The lock lies beside the database (SQLite's own locks come and go with its transactions) and ends with the
    process, however that ends. `path` is that of the database itself, whatever symlinks lead to it: all
    who open it meet at one lock. Raises `StoreLocked`, `StoreUnavailable`.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.resolve()
        except (OSError, RuntimeError) as error:  # Links in a circle, until Python 3.12.
            raise StoreUnavailable(f"{path}: {error}") from error
        self._watched: dict[Path, tuple[int, int]] = {}
        self._lock = _take(self.path)

    def watch(self) -> None:
        """Remember the files, all of which are there by now. Raises OSError."""
        wal = self.path.with_name(f"{self.path.name}-wal")
        self._watched = {file: _identity(file) for file in (self.path, wal)}
        self._watched[_lock_of(self.path)] = _identity(self._lock)

    def check(self) -> None:
        """Raise `StoreUnavailable` where one of them was moved away, removed or replaced.

        SQLite goes on writing to such a file, and what it writes there is lost; and who removes the lock lets
        a second process in.
        """
        for file, identity in self._watched.items():
            try:
                same = _identity(file) == identity
            except OSError as error:
                raise StoreUnavailable(f"{file}: {error.strerror}") from error
            if not same:
                raise StoreUnavailable(f"{file}: is another file than the one that was opened")

    def are_ours(self) -> bool:
        """Whether nobody else can have opened the store since: the database and the lock are still there.

        Then closing it saves what is in a write-ahead log that was removed; else it would overwrite theirs.
        """
        kept = (self.path, _lock_of(self.path))
        try:
            return all(_identity(file) == self._watched[file] for file in kept)
        except OSError:
            return False

    def release(self) -> None:
        """Give the lock back. To be called once."""
        os.close(self._lock)


def _take(path: Path) -> int:
    name = _lock_of(path)
    if not path.parent.is_dir():
        raise StoreUnavailable(f"{path}: the folder {path.parent} does not exist")
    try:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise translate(error, path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreLocked(f"{path}: another server has it open (it holds {name})") from None
    except OSError as error:
        os.close(descriptor)
        raise translate(error, path) from error
    return descriptor


def _lock_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-lock")


def _identity(file: Path | int) -> tuple[int, int]:
    found = os.stat(file)  # noqa: PTH116  It takes descriptors as well.
    return found.st_dev, found.st_ino
