"""Reading pages of a stream from SQLite: from a landmark, or the newest row, back along `prev`."""

from __future__ import annotations

import zlib
from typing import Any, Final

import apsw

from wsrecover.errors import StoreCorrupt

from .sqlite_heads import Head
from .store import Entry, StreamKey

__all__ = ["PAGE", "read_keys", "read_page"]

_SEGMENT: Final = 256
"""Events that one query walks over at most, beside those up to the next landmark."""

PAGE: Final = """
WITH RECURSIVE walk(row, seq, prev, size) AS (
    SELECT row, seq, prev, length(body) FROM event WHERE row = coalesce(
        (SELECT landmark.row FROM event AS landmark INDEXED BY landmark
         WHERE landmark.stream = :stream AND landmark.seq BETWEEN :last AND :head
           AND (landmark.seq + landmark.stream) % 64 = 0
         ORDER BY landmark.seq LIMIT 1),
        :newest)
    UNION ALL
    SELECT event.row, event.seq, event.prev, length(event.body)
    FROM walk CROSS JOIN event ON event.row = walk.prev WHERE walk.seq > :first
    LIMIT 320
),
sized AS (SELECT row, seq, sum(size) OVER (ORDER BY seq) AS total FROM walk WHERE seq <= :last)
SELECT event.stream, event.seq, event.crc, event.ts, event.thread, event.body
FROM sized CROSS JOIN event ON event.row = sized.row
WHERE sized.total <= :max_bytes OR sized.seq = :always ORDER BY sized.seq
"""
# The walk asks for sizes only, which SQLite knows without loading the bodies; then come the bodies that fit.
# Its limit is what a segment and the way to it from the next landmark take: a torn chain could go in circles.


def read_page(
    reader: apsw.Connection, head: Head, after: int, *, upto: int, max_events: int, max_bytes: int
) -> list[Entry]:
    """See `Store.read`. Raises `StoreCorrupt` where what is found is not what was written."""
    while True:
        oldest = head.oldest
        tip = head.tip
        first = max(after + 1, oldest)
        last = min(upto, tip[0], first + max_events - 1)
        page: list[Entry] = []
        while first <= last:
            end = min(last, first + _SEGMENT - 1)
            found = _segment(reader, head, tip, first, end, max_bytes, always=0 if page else first)
            if (not found and not page) or (found and found[0].seq != first):
                break
            page += found
            max_bytes -= sum([len(entry.body) for entry in found])
            first += len(found)
            if first <= end:
                return page
        else:
            return page
        if head.oldest == oldest:
            raise StoreCorrupt(f"stream {head.key.parts}: seq {first} is missing")
        # It was trimmed, and swept away, after we looked where it begins: look again.


def _segment(
    reader: apsw.Connection,
    head: Head,
    tip: tuple[int, int, int],
    first: int,
    last: int,
    max_bytes: int,
    *,
    always: int,
) -> list[Entry]:
    found: list[tuple[Any, ...]] = reader.execute(
        PAGE,
        {
            "stream": head.id,
            "head": tip[0],
            "newest": tip[1],
            "first": first,
            "last": last,
            "max_bytes": max_bytes,
            "always": always,
        },
    ).fetchall()
    entries: list[Entry] = []
    expected = first
    for stream, seq, crc, ts, thread, body in found:
        if not entries:
            expected = seq
        if stream != head.id or seq != expected or zlib.crc32(body, seq) != crc:
            raise StoreCorrupt(f"stream {head.key.parts}: seq {seq} is not what was written")
        expected += 1
        entries.append(Entry(head.key, body, ts, thread, seq=seq))
    return entries


def read_keys(reader: apsw.Connection, after: StreamKey | None, limit: int) -> list[StreamKey]:
    """See `Store.keys`."""
    found = reader.execute(
        "SELECT scope, tenant, name FROM stream WHERE (scope, tenant, name) > (?, ?, ?)"
        " AND scope NOT IN ('erased', 'purged')"
        " ORDER BY scope, tenant, name LIMIT ?",
        (*(("", "", "") if after is None else after.parts), limit),
    )
    return [StreamKey(*row) for row in found]
