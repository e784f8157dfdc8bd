"""What an app got, held against what the log says: nothing is taken on trust."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import orjson

from wsrecover.protocol.events import Event
from wsrecover.streams.store import Entry

__all__ = ["Verdict", "judge", "recited"]


@attrs.frozen
class Verdict:
    """Counts of events. `altered` are those whose content is not the log's, or that the log does not know."""

    published: int
    delivered: int
    duplicates: int
    missing: int
    reordered: int
    altered: int

    @property
    def exact(self) -> bool:
        """Each event of the log was delivered once, in order and as it was written."""
        faults = self.duplicates + self.missing + self.reordered + self.altered
        return faults == 0 and self.published == self.delivered


def judge(log: Sequence[Entry], got: Sequence[Event]) -> Verdict:
    """Compare one stream's log with the events that an app got from it, in the order of their arrival.

    A merged event counts as those that it covers.
    """
    bodies = {entry.seq: orjson.loads(entry.body) for entry in log}
    times: Counter[int] = Counter()
    reordered = altered = newest = 0
    for event in got:
        covered = range(event.first, event.seq + 1)
        reordered += sum(seq < newest and not times[seq] for seq in covered)
        times.update(covered)
        newest = max(newest, event.seq)
        altered += not _says_the_same(event, [bodies.get(seq) for seq in covered])
    return Verdict(
        published=len(bodies),
        delivered=times.total(),
        duplicates=sum(count - 1 for count in times.values()),
        missing=sum(seq not in times for seq in bodies),
        reordered=reordered,
        altered=altered,
    )


def _says_the_same(event: Event, logged: Sequence[Mapping[str, Any] | None]) -> bool:
    parts = [body for body in logged if body is not None]
    if len(parts) != len(logged):
        return False
    if any((body["type"], body.get("run")) != (event.type, event.run) for body in parts):
        return False
    if len(parts) == 1:
        return bool(parts[0]["data"] == event.data)
    merged = {**parts[0]["data"], "text": "".join(body["data"]["text"] for body in parts)}
    of_one_message = len({body["data"].get("message_id") for body in parts}) == 1
    return of_one_message and merged == event.data


def recited(got: Sequence[Event], run: str) -> str:
    """The text that a run's deltas make, put together as an app would: each at its offset in UTF-16 units."""
    messages: dict[str, bytearray] = {}
    for event in got:
        if event.run == run and event.type == "message_delta":
            text = messages.setdefault(event.data["message_id"], bytearray())
            start = 2 * event.data["offset"]
            piece = event.data["text"].encode("utf-16-le")
            text[start : start + len(piece)] = piece
    return b"".join(messages.values()).decode("utf-16-le", errors="replace")
