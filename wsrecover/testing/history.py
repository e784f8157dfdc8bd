"""The history checker: was anything lost, repeated, reordered, invented or shown to a stranger?

A test records what it did and saw, in the order in which that happened, with a value for each publish that no
other has. At the end it heals everything, reads each stream from its oldest event to its head with a fresh
reader, and asks `check` whether the two fit together::

    history = History()
    history.invoke("v1", "acme/ann")                 # about to publish
    history.ok("v1", epoch, 1)                       # it was acknowledged: or fail, or unknown
    history.resume("c2", "acme/ann", epoch, 0)       # a connection's position was accepted
    history.deliver("c2", "acme/ann", "acme/ann", epoch, 1, "v1")
    check(history, {"acme/ann": drained}).assert_clean(publishes=1, resumes=1)

Streams have one name for the whole test (`tenant/user`, not `user`), made from the principal that reads it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

import attrs

from wsrecover.protocol.resume import parse_epoch

from .recording import Anomaly, Drained, History, Kind, Move, Publish, Report, Seen

__all__ = ["check"]


def check(
    history: History, drained: Mapping[str, Drained], *, trimmed: Mapping[str, int] | None = None
) -> Report:
    """Every anomaly of `history`, given each stream as a fresh reader found it at the end.

    Where the test's retention let go of a stream's prefix, `trimmed` names the last seq that may be missing:
    else an acknowledged event that is not there and in no gap that a connection was told is lost.
    """
    checker = _Checker(history, drained)
    for stream, last in (trimmed or {}).items():
        checker.gaps[stream].append((1, last))
    return checker.report()


def _line(epoch: str) -> str:
    """The history that an epoch stands for: restarts of a store go on with it under another generation."""
    names = parse_epoch(epoch)
    return epoch if names is None else names[0]


@attrs.define
class _Kept:
    """What a stream held at the end. What is here was there at any time since it was written."""

    line: str = ""
    seqs: list[int] = attrs.field(factory=list)
    values: dict[int, str] = attrs.field(factory=dict)

    def holds(self, epoch: str, seq: int) -> bool:
        """Whether all that follows this position is here."""
        return bool(self.seqs) and self.line == _line(epoch) and self.seqs[0] - 1 <= seq <= self.seqs[-1]

    def between(self, first: int, last: int) -> list[int]:
        return self.seqs[bisect_left(self.seqs, first) : bisect_right(self.seqs, last)]


@attrs.define
class _Stand:
    """Where a connection stands in a stream. `jump`: the next event or snapshot may lie further ahead."""

    line: str | None = None
    last: int | None = None
    jump: bool = False
    seen: set[int] = attrs.field(factory=set)
    filters: list[tuple[int, frozenset[str] | None]] = attrs.field(factory=list)

    def passes(self, seq: int, thread: str | None) -> bool:
        chosen = next(threads for after, threads in reversed(self.filters) if after < seq)
        return chosen is None or thread is None or thread in chosen


class _Checker:
    def __init__(self, history: History, drained: Mapping[str, Drained]) -> None:
        self.history = history
        self.anomalies: list[Anomaly] = []
        self.counts = Counter(history.counts)
        self.kept: defaultdict[str, _Kept] = defaultdict(_Kept)
        self.places: dict[tuple[str, str, int], str] = {}
        self.where: dict[str, tuple[str, str, int]] = {}
        self.gaps: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self.stands: dict[tuple[str, str], _Stand] = {}
        self.told: set[tuple[str, str, str, int]] = set()
        for stream, entries in drained.items():
            self._learn_drained(stream, entries)

    def report(self) -> Report:
        for publish in self.history.publishes.values():
            if publish.outcome == "ok":
                self._place(publish.value, publish.stream, publish.epoch, publish.seq)
        for step in self.history.path:
            if isinstance(step, Seen) and step.first == step.seq:
                self._known(step.value, step.stream)
                self._place(step.value, step.stream, step.epoch, step.seq)
            elif isinstance(step, Move) and step.how == "gap" and None not in (step.first, step.seq):
                self.gaps[step.stream].append((step.first or 0, step.seq or 0))
        for step in self.history.path:
            if isinstance(step, Seen):
                self._deliver(step)
            else:
                self._move(step)
        self._check_lost()
        self._check_order()
        return Report(tuple(dict.fromkeys(self.anomalies)), dict(self.counts))

    def _found(self, kind: Kind, stream: str, detail: str) -> None:
        self.anomalies.append(Anomaly(kind, stream, detail))

    def _learn_drained(self, stream: str, entries: Drained) -> None:
        kept = self.kept[stream]
        for epoch, seq, value in entries:
            if kept.seqs and (_line(epoch), seq) != (kept.line, kept.seqs[-1] + 1):
                self._found("skip", stream, f"in the log seq {seq} follows {kept.seqs[-1]}")
            self._known(value, stream)
            self._place(value, stream, epoch, seq)
            kept.line = _line(epoch)
            kept.seqs.append(seq)
            kept.values[seq] = value
        self.counts["drained"] += len(entries)

    def _known(self, value: str, stream: str) -> None:
        publish = self.history.publishes.get(value)
        if publish is None or publish.outcome == "fail":
            what = "was never published" if publish is None else "was refused"
            self._found("phantom", stream, f"{value!r} {what}")
        elif publish.stream != stream:
            self._found("leak", stream, f"{value!r} was published to {publish.stream}")

    def _place(self, value: str, stream: str, epoch: str, seq: int) -> None:
        """Note that the value stands there; both must be unique."""
        place = (stream, _line(epoch), seq)
        other = self.places.setdefault(place, value)
        if other != value:
            self._found("divergence", stream, f"seq {seq} is {other!r} and {value!r}")
        first = self.where.setdefault(value, place)
        if first[0] == stream and first != place:
            self._found("duplicate", stream, f"{value!r} has the seqs {first[2]} and {seq}")

    def _stand(self, connection: str, stream: str) -> _Stand:
        stand = self.stands.get((connection, stream))
        if stand is None:
            filters: list[tuple[int, frozenset[str] | None]] = [(-1, self.history.filters.get(connection))]
            stand = self.stands[connection, stream] = _Stand(filters=filters)
        return stand

    def _deliver(self, event: Seen) -> None:
        stream, first, seq = event.stream, event.first, event.seq
        readers = self.history.readers.get(stream)
        if readers is not None and event.principal not in readers:
            self._found("leak", stream, f"seq {seq} was shown to {event.principal}")
        if first < seq:
            self._check_merged(event)
        stand = self._stand(event.connection, stream)
        if stand.line not in (None, _line(event.epoch)):
            self._found("skip", stream, f"{event.connection} got epoch {event.epoch} without a word")
        elif stand.last is not None and seq <= stand.last:
            kind: Kind = "duplicate" if seq in stand.seen else "reorder"
            self._found(kind, stream, f"{event.connection} got seq {seq} after {stand.last}")
        elif stand.last is not None and first > stand.last + 1:
            self._hole(event, stand)
        self._count_again(event)
        stand.line, stand.jump = _line(event.epoch), False
        stand.last = max(seq, stand.last or 0)
        stand.seen.update(range(first, seq + 1))

    def _hole(self, event: Seen, stand: _Stand) -> None:
        missing = (stand.last or 0) + 1, event.first - 1
        if not stand.jump:
            detail = f"{event.connection} got seq {event.first} after {stand.last}"
            self._found("skip", event.stream, detail)
        elif self.kept[event.stream].between(*missing):
            self._found("false_gap", event.stream, f"{event.connection} missed {missing}, which is there")

    def _check_merged(self, event: Seen) -> None:
        line = _line(event.epoch)
        texts = [self.places.get((event.stream, line, seq)) for seq in range(event.first, event.seq + 1)]
        if None not in texts and "".join(text or "" for text in texts) != event.value:
            detail = f"{event.first}..{event.seq} merged is {event.value!r}, not {texts!r}"
            self._found("divergence", event.stream, detail)

    def _count_again(self, event: Seen) -> None:
        for seq in range(event.first, event.seq + 1):
            place = (event.principal, event.stream, _line(event.epoch), seq)
            self.counts["redeliveries"] += place in self.told
            self.told.add(place)

    def _move(self, move: Move) -> None:
        stand = self._stand(move.connection, move.stream)
        kept = self.kept[move.stream]
        seq = move.seq or 0
        if move.how == "resume":
            stand.line, stand.last, stand.jump = _line(move.epoch), seq, False
            stand.seen.clear()
        elif move.how in ("begin", "refused"):
            if move.how == "refused" and kept.holds(move.epoch, seq):
                detail = f"{move.connection} may not resume at {seq}, and what follows is there"
                self._found("false_gap", move.stream, detail)
            # A refused position may be of another history: what follows names its own epoch.
            stand.line = _line(move.epoch) if move.how == "begin" else None
            stand.last, stand.jump = (move.first or 1) - 1, True
            stand.seen.clear()
        elif move.how == "follow":
            stand.filters.append((seq, move.threads))
        elif move.how == "settled":
            self._check_settled(move, stand)
        else:
            self._pass_over(move, stand)

    def _pass_over(self, move: Move, stand: _Stand) -> None:
        """A skip, gap or snapshot: what it passes over must be outside the filter, or gone."""
        if move.seq is None:  # A gap whose range was not told: the next event shows it.
            stand.jump = True
            return
        first = move.first if stand.last is None else stand.last + 1
        over = [] if first is None else self.kept[move.stream].between(first, move.seq)
        if move.how == "gap":
            wrong = over
        elif move.how == "snapshot" and (stand.jump or stand.last is None):
            wrong = []
        else:
            wrong = [seq for seq in over if stand.passes(seq, self._thread(move.stream, seq))]
        if wrong:
            detail = f"{move.connection} was told {move.how} up to {move.seq}, but seq {wrong[0]} is there"
            self._found("false_gap", move.stream, detail)
        stand.last = max(move.seq, stand.last or 0)
        stand.jump = stand.jump or move.how == "gap"

    def _thread(self, stream: str, seq: int) -> str | None:
        publish = self.history.publishes.get(self.kept[stream].values[seq])
        return None if publish is None else publish.thread

    def _check_settled(self, move: Move, stand: _Stand) -> None:
        kept = self.kept[move.stream]
        owed = kept.between((stand.last or 0) + 1, kept.seqs[-1]) if kept.seqs else []
        owed = [seq for seq in owed if stand.passes(seq, self._thread(move.stream, seq))]
        if owed:
            self._found("lost", move.stream, f"{move.connection} is live but never got seq {owed[0]}")

    def _told_or_acknowledged(self) -> Iterator[tuple[str, str, int]]:
        for publish in self.history.publishes.values():
            if publish.outcome == "ok":
                yield publish.value, publish.stream, publish.seq
        for step in self.history.path:
            if isinstance(step, Seen) and step.first == step.seq:
                yield step.value, step.stream, step.seq

    def _check_lost(self) -> None:
        for value, stream, seq in self._told_or_acknowledged():
            publish = self.history.publishes.get(value)
            if publish is None or publish.stream != stream:
                continue  # A phantom or a leak, and said to be one.
            gone = any(first <= seq <= last for first, last in self.gaps[stream])
            if not gone and self.kept[stream].values.get(seq) != value:
                self._found("lost", stream, f"{value!r} (seq {seq}) is not in the log")

    def _check_order(self) -> None:
        """A publish that began after another's acknowledgement has the higher seq."""
        moments: defaultdict[tuple[str, str], list[tuple[int, bool, Publish, int]]] = defaultdict(list)
        for publish in self.history.publishes.values():
            place = self.where.get(publish.value)
            if place is None or place[0] != publish.stream:
                continue
            moments[place[:2]].append((publish.invoked, False, publish, place[2]))
            if publish.outcome == "ok" and publish.answered is not None:
                moments[place[:2]].append((publish.answered, True, publish, place[2]))
        for (stream, _), steps in moments.items():
            highest = 0
            for _, acknowledged, publish, seq in sorted(steps, key=lambda step: step[0]):
                if acknowledged:
                    highest = max(highest, seq)
                elif seq < highest:
                    self._found("order", stream, f"{publish.value!r} (seq {seq}) after {highest} was known")
