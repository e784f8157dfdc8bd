"""Snapshots in SQLite: a row for each thread's context, all as of the seq in `stream.snapshot`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import apsw

from wsrecover.errors import StoreCorrupt

from .store import NewSnapshot, StoredContext, StoredSnapshot, StreamKey

__all__ = ["find_oldest", "find_snapshot", "keep_snapshot"]


def keep_snapshot(writer: apsw.Connection, stream: int, snapshot: NewSnapshot) -> None:
    """Take over `snapshot`, which is no older than what is there."""
    writer.execute("UPDATE stream SET snapshot = ? WHERE id = ?", (snapshot.seq, stream))
    for thread, context in snapshot.changed.items():
        if context is None:
            writer.execute("DELETE FROM context WHERE stream = ? AND thread = ?", (stream, thread))
        else:
            writer.execute(
                "INSERT OR REPLACE INTO context VALUES (?, ?, ?, ?, ?)",
                (stream, thread, context.at, zlib.crc32(context.body), context.body),
            )


def find_snapshot(reader: apsw.Connection, stream: int, key: StreamKey) -> StoredSnapshot:
    """See `Store.snapshot`; one query, so that all of it is of one moment. Raises `StoreCorrupt`."""
    seq = 0
    contexts: dict[str, StoredContext] = {}
    for seq, thread, at, crc, body in reader.execute(  # noqa: B007  # The seq is that of every row.
        "SELECT stream.snapshot, context.thread, context.at, context.crc, context.body"
        " FROM stream LEFT JOIN context ON context.stream = stream.id WHERE stream.id = ?",
        (stream,),
    ):
        if thread is None:
            continue
        if zlib.crc32(body) != crc:
            raise StoreCorrupt(f"stream {key.parts}: the context of {thread!r} is not what was written")
        contexts[thread] = StoredContext(body, at)
    return StoredSnapshot(seq, contexts)


def find_oldest(reader: apsw.Connection, keys: Iterable[StreamKey]) -> dict[StreamKey, float]:
    """See `Store.oldest_contexts`."""
    oldest = {}
    for key in keys:
        at = reader.execute(
            "SELECT min(context.at) FROM stream JOIN context ON context.stream = stream.id"
            " WHERE scope = ? AND tenant = ? AND name = ?",
            key.parts,
        ).get
        if at is not None:
            oldest[key] = at
    return oldest
