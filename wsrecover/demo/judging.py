"""What an app got, held against what the log says: nothing is taken on trust."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import orjson

from wsrecover.protocol.events import COMPLETED, FRAGMENTS, Event
from wsrecover.streams.store import Entry

__all__ = ["Verdict", "judge", "recited", "unlogged"]


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
    if len(parts) != len(logged) or any(body.get("run") != event.run for body in parts):
        return False
    *others, last = parts
    if last["type"] != event.type:
        return False
    if not others:
        return bool(last["data"] == event.data)
    messages = {body["data"].get("message_id") for body in parts}
    if len(messages) != 1 or not {body["type"] for body in others} <= FRAGMENTS:
        return False
    text = "".join(body["data"]["text"] for body in others)
    if event.type == COMPLETED:
        # Whole, also where the client had the message's beginning.
        return bool(last["data"] == event.data) and bool(event.data["text"].endswith(text))
    return bool({**others[0]["data"], "text": text + last["data"]["text"]} == event.data)


def unlogged(made: Mapping[str, int], log: Sequence[Entry], run: str) -> int:
    """How many events that an agent says it made, by type, are not in its run's log."""
    bodies = [orjson.loads(entry.body) for entry in log]
    logged = Counter(body["type"] for body in bodies if body.get("run") == run)
    return (Counter(made) - logged).total()


def recited(got: Sequence[Event], run: str) -> str:
    """The text that a run's messages make, put together as an app would: deltas at their offsets in UTF-16
    units, and a finished message that stands for its deltas as a whole.
    """
    messages: dict[str, bytearray] = {}
    for event in got:
        if event.run != run:
            continue
        if event.type == COMPLETED and event.first < event.seq:
            messages[event.data["message_id"]] = bytearray(event.data["text"].encode("utf-16-le"))
        elif event.type == "message_delta":
            text = messages.setdefault(event.data["message_id"], bytearray())
            start = 2 * event.data["offset"]
            piece = event.data["text"].encode("utf-16-le")
            text[start : start + len(piece)] = piece
    return b"".join(messages.values()).decode("utf-16-le", errors="replace")
