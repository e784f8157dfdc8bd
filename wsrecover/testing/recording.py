"""What the history checker is given, and what it answers; see `history`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import attrs

__all__ = ["ANOMALIES", "Anomaly", "Drained", "History", "Kind", "Move", "Publish", "Report", "Seen"]

Kind: TypeAlias = Literal[
    "lost", "duplicate", "reorder", "skip", "divergence", "phantom", "leak", "false_gap", "order"
]

ANOMALIES: Final[Mapping[Kind, str]] = {
    "lost": "acknowledged or delivered, but neither in the log nor in a gap; or not sent to one who is live",
    "duplicate": "one value at two seqs, or one seq twice on a connection",
    "reorder": "an earlier seq after a later one on a connection",
    "skip": "seqs left out without a skip or gap, also after a resume; or another epoch without a word",
    "divergence": "two values at one seq, or a merged event whose text is not that of its events",
    "phantom": "a value that was never published, or whose publish was refused",
    "leak": "a value of another stream, or a stream shown to one who may not read it",
    "false_gap": "a gap, refused resume or skip over events that were there and inside the filter",
    "order": "published after another was acknowledged, but with a lower seq",
}

Drained: TypeAlias = Sequence[tuple[str, int, str]]
"""A stream as a fresh reader found it at the end: (epoch, seq, value), oldest first."""


@attrs.define
class Publish:
    """One publish; `invoked` and `answered` are places in the history."""

    value: str
    stream: str
    thread: str | None
    invoked: int
    outcome: Literal["ok", "fail", "unknown"] = "unknown"
    answered: int | None = None
    epoch: str = ""
    seq: int = 0


@attrs.frozen
class Seen:
    """An event that reached a connection; it covers `first`..`seq`."""

    connection: str
    principal: str
    stream: str
    epoch: str
    first: int
    seq: int
    value: str


@attrs.frozen
class Move:
    """What else changes where a connection stands. `first` and `seq` are None where they were not told."""

    how: Literal["resume", "refused", "begin", "skip", "gap", "snapshot", "follow", "settled"]
    connection: str
    stream: str
    epoch: str = ""
    first: int | None = None
    seq: int | None = None
    threads: frozenset[str] | None = None


class History:
    """What a test did and saw. Call each method when its event happens; none of them waits.

    `readers` says, for streams where that is to be checked, which principals may read them.
    """

    def __init__(self, readers: Mapping[str, Collection[str]] | None = None) -> None:
        self.readers: Mapping[str, Collection[str]] = readers or {}
        self.publishes: dict[str, Publish] = {}
        self.path: list[Seen | Move] = []
        self.filters: dict[str, frozenset[str] | None] = {}
        self.counts: Counter[str] = Counter()
        self._clock = 0

    def invoke(self, value: str, stream: str, *, thread: str | None = None) -> None:
        """A publish begins. Raises `ValueError` where the value was used before."""
        if value in self.publishes:
            raise ValueError(f"the value {value!r} was published before: values must be unique")
        self.publishes[value] = Publish(value, stream, thread, self._tick())
        self.counts["publishes"] += 1

    def ok(self, value: str, epoch: str, seq: int) -> None:
        """It was acknowledged with this position."""
        publish = self._answer(value)
        publish.outcome, publish.epoch, publish.seq = "ok", epoch, seq
        self.counts["acknowledged"] += 1

    def fail(self, value: str) -> None:
        """It was refused: it must have had no effect."""
        self._answer(value).outcome = "fail"
        self.counts["failed"] += 1

    def unknown(self, value: str) -> None:
        """Nobody knows: it took effect once or not at all."""
        self._answer(value)
        self.counts["unknown"] += 1

    def connect(self, connection: str, *, threads: Collection[str] | None = None) -> None:
        """A connection opened, with this filter of threads (None: all). Each needs a name of its own."""
        self.filters[connection] = None if threads is None else frozenset(threads)
        self.counts["connects"] += 1

    def begin(self, connection: str, stream: str, epoch: str, first: int) -> None:
        """Without a position: `first` is what welcome says will follow."""
        self.path.append(Move("begin", connection, stream, epoch, first=first))

    def resume(self, connection: str, stream: str, epoch: str, seq: int) -> None:
        """The position (epoch, seq) that the client gave was accepted."""
        self.path.append(Move("resume", connection, stream, epoch, seq=seq))
        self.counts["resumes"] += 1

    def refused(self, connection: str, stream: str, epoch: str, seq: int, first: int) -> None:
        """The position (epoch, seq) that the client gave was not; `first` is what will follow."""
        self.path.append(Move("refused", connection, stream, epoch, first=first, seq=seq))
        self.counts["refused"] += 1

    def deliver(
        self,
        connection: str,
        principal: str,
        stream: str,
        epoch: str,
        seq: int,
        value: str,
        *,
        first_seq: int | None = None,
    ) -> None:
        """An event arrived; a merged one covers `first_seq`..`seq` and its value is their texts joined."""
        first = seq if first_seq is None else first_seq
        self.path.append(Seen(connection, principal, stream, epoch, first, seq, value))
        self.counts["deliveries"] += 1

    def skip(self, connection: str, stream: str, to: int) -> None:
        """The server said `skip`."""
        self.path.append(Move("skip", connection, stream, seq=to))
        self.counts["skips"] += 1

    def gap(self, connection: str, stream: str, first: int | None, last: int | None) -> None:
        """The server said `gap`; None where the range is not known."""
        self.path.append(Move("gap", connection, stream, first=first, seq=last))
        self.counts["gaps"] += 1

    def snapshot(self, connection: str, stream: str, seq: int) -> None:
        """A whole snapshot as of `seq` arrived."""
        self.path.append(Move("snapshot", connection, stream, seq=seq))
        self.counts["snapshots"] += 1

    def follow(self, connection: str, stream: str, threads: Collection[str] | None, seq: int) -> None:
        """The filter changed; it holds for what comes after `seq`."""
        chosen = None if threads is None else frozenset(threads)
        self.path.append(Move("follow", connection, stream, seq=seq, threads=chosen))

    def ack(self) -> None:
        """A client acknowledged."""
        self.counts["acks"] += 1

    def fault(self, name: str) -> None:
        """A fault was fired."""
        self.counts["faults"] += 1
        self.counts[f"fault {name}"] += 1

    def settled(self, connection: str, stream: str) -> None:
        """The connection is live at the end: it must have been sent all there is."""
        self.path.append(Move("settled", connection, stream))

    def _answer(self, value: str) -> Publish:
        publish = self.publishes[value]
        publish.answered = self._tick()
        return publish

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


@attrs.frozen
class Anomaly:
    """Something that must not be."""

    kind: Kind
    stream: str
    detail: str


@attrs.frozen
class Report:
    """What `check` found, and how much there was to find it in."""

    anomalies: tuple[Anomaly, ...]
    counts: Mapping[str, int]

    def of(self, kind: Kind) -> list[Anomaly]:
        """The anomalies of one kind."""
        return [anomaly for anomaly in self.anomalies if anomaly.kind == kind]

    def assert_clean(self, **at_least: int) -> None:
        """Raise `AssertionError` with a table where there are anomalies, or less than this of a count."""
        vacuous = {name: least for name, least in at_least.items() if self.counts.get(name, 0) < least}
        if self.anomalies or vacuous:
            raise AssertionError("\n".join(self._lines(vacuous)))

    def __str__(self) -> str:
        return "\n".join(self._lines({}))

    def _lines(self, vacuous: Mapping[str, int]) -> Iterator[str]:
        yield f"{len(self.anomalies)} anomalies"
        for kind, meaning in ANOMALIES.items():
            found = self.of(kind)
            if found:
                yield f"  {kind:<12}{len(found):>7}  {meaning}"
                yield from (f"      {anomaly.stream}: {anomaly.detail}" for anomaly in found[:5])
        yield "in a history of"
        for name, count in self.counts.items():
            yield f"  {name:<24}{count:>7}"
        for name, least in vacuous.items():
            yield f"  {name}: {self.counts.get(name, 0)}, at least {least} were to be seen"
