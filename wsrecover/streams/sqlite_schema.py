"""The SQLite file: its tables, and how it is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal, TypeAlias

import apsw

from wsrecover.errors import (
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreMismatch,
    StoreUnavailable,
)

__all__ = ["Synchronous", "connect", "keep_off", "translate"]

Synchronous: TypeAlias = Literal["FULL", "NORMAL", "OFF"]

_APPLICATION: Final = 0x77735276
_VERSION: Final = 4

_PAGE_BYTES: Final = 8192
"""Of a file that is made: half as many writes as SQLite's 4096. One that exists keeps what it has."""

_CHECKPOINT_BYTES: Final = 16 * 1024 * 1024
"""What the write-ahead log holds when it is copied into the file."""

_CONTEXT: Final = """
CREATE TABLE context(
    stream INTEGER NOT NULL, thread TEXT NOT NULL, at REAL NOT NULL, crc INTEGER NOT NULL, body BLOB NOT NULL,
    UNIQUE (stream, thread)
) STRICT;
"""

_REVOCATION: Final = """
CREATE TABLE revocation(
    tenant TEXT NOT NULL, user TEXT NOT NULL, token_id TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (tenant, user, token_id)
) STRICT, WITHOUT ROWID;
"""

_TABLES: Final = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('as_of', 0), ('rows', 0);
CREATE TABLE generation(n INTEGER PRIMARY KEY, id TEXT NOT NULL, opened REAL NOT NULL) STRICT;
CREATE TABLE stream(
    id INTEGER PRIMARY KEY, scope TEXT NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL,
    incarnation TEXT NOT NULL, head INTEGER NOT NULL, oldest INTEGER NOT NULL,
    last_row INTEGER NOT NULL, total INTEGER NOT NULL, base INTEGER NOT NULL, since REAL NOT NULL,
    snapshot INTEGER NOT NULL DEFAULT 0,
    UNIQUE (scope, tenant, name)
) STRICT;
CREATE TABLE mark(
    stream INTEGER NOT NULL, generation INTEGER NOT NULL, first INTEGER NOT NULL,
    PRIMARY KEY (stream, generation)
) STRICT, WITHOUT ROWID;
CREATE TABLE event(
    row INTEGER PRIMARY KEY, stream INTEGER NOT NULL, seq INTEGER NOT NULL, prev INTEGER NOT NULL,
    total INTEGER NOT NULL, ts REAL NOT NULL, crc INTEGER NOT NULL, thread TEXT, body BLOB NOT NULL
) STRICT;
CREATE INDEX landmark ON event(stream, seq) WHERE (seq + stream) % 64 = 0;
CREATE TABLE event_id(
    stream INTEGER NOT NULL, id TEXT NOT NULL, digest BLOB NOT NULL, epoch TEXT NOT NULL,
    seq INTEGER NOT NULL, at REAL NOT NULL, UNIQUE (stream, id)
) STRICT;
CREATE INDEX event_id_age ON event_id(at);
CREATE TABLE answer(
    tenant TEXT NOT NULL, user TEXT NOT NULL, id TEXT NOT NULL, digest BLOB NOT NULL, at REAL NOT NULL,
    result BLOB, positions BLOB NOT NULL, status TEXT NOT NULL DEFAULT 'ok', UNIQUE (tenant, user, id)
) STRICT;
CREATE INDEX answer_age ON answer(at);
CREATE TABLE run(
    run TEXT PRIMARY KEY, tenant TEXT NOT NULL, user TEXT NOT NULL, agent TEXT NOT NULL,
    started REAL NOT NULL, thread TEXT
) STRICT;
"""
# stream.head, last_row and total are those of the last checkpoint (meta.as_of); what came later is in event.
# Every 64th event of a stream is in the index; the others are reached by walking back from it.
# event.prev is the row of the stream's previous event, event.total the bytes of its bodies up to this one.
# stream.snapshot is the seq that all of its rows in context stand for.
# stream.base is the total before `oldest`, stream.since the ts of `oldest`; both may be lower than that.

_UPGRADES: Final = {
    1: "ALTER TABLE answer ADD COLUMN status TEXT NOT NULL DEFAULT 'ok'",
    2: f"ALTER TABLE stream ADD COLUMN snapshot INTEGER NOT NULL DEFAULT 0; {_CONTEXT}",
    3: _REVOCATION,
}
"""What makes the next schema of an older one, by the older one's version."""

_UNKNOWN: Final = (apsw.IOError, apsw.InternalError, apsw.MisuseError)
_CORRUPT: Final = (apsw.CorruptError, apsw.NotADBError)


def translate(error: apsw.Error | OSError, path: Path) -> StoreError:
    """The error of this project for one of SQLite's: here and nowhere else.

    All but those that leave open what is on disk were rolled back, so that nothing took effect.
    """
    message = f"{path}: {error}"
    if isinstance(error, _CORRUPT):
        return StoreCorrupt(message)
    if isinstance(error, _UNKNOWN):
        return StoreFailed(message)
    return StoreUnavailable(message)


def connect(path: Path, *, synchronous: Synchronous) -> tuple[apsw.Connection, apsw.Connection]:
    """The connection that writes and one that reads; the file is made, readable by its owner only, if it is
    absent.

    Raises `StoreMismatch`, and SQLite's errors.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # Each is used by one thread at a time, so SQLite need not lock it for each value that is bound.
    alone = apsw.SQLITE_OPEN_NOMUTEX
    writer = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | alone)
    try:
        _prepare(writer, path, synchronous)
        reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY | alone)
    except BaseException:
        writer.close()
        raise
    reader.execute("PRAGMA cache_size = -16384; PRAGMA cell_size_check = ON; PRAGMA query_only = ON")
    reader.set_busy_timeout(1000)
    return writer, reader


def keep_off(db: apsw.Connection) -> None:
    """Have the closing of this connection leave the file as it is, which somebody else may be writing."""
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


def _prepare(writer: apsw.Connection, path: Path, synchronous: Synchronous) -> None:
    writer.set_busy_timeout(1000)
    application, version = writer.pragma("application_id"), writer.pragma("user_version")
    empty = not writer.execute("SELECT count(*) FROM sqlite_schema").get
    known = application == _APPLICATION and version in (*_UPGRADES, _VERSION)
    if not empty and not known:
        raise StoreMismatch(
            f"{path}: found application {application:#x} with schema {version}; "
            f"this version knows {_APPLICATION:#x} with schema {_VERSION}"
        )
    # A statement that gives a row holds up those behind it until the row is taken.
    writer.execute(
        f"PRAGMA page_size = {_PAGE_BYTES}; PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous};"
        "PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -16384; PRAGMA temp_store = MEMORY;"
        "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON"
    ).fetchall()
    writer.wal_autocheckpoint(_CHECKPOINT_BYTES // writer.pragma("page_size"))
    with writer:
        if empty:
            writer.execute(_TABLES + _CONTEXT + _REVOCATION)
            writer.pragma("application_id", _APPLICATION)
        for older in range(_VERSION if empty else version, _VERSION):
            writer.execute(_UPGRADES[older])
        writer.pragma("user_version", _VERSION)
