"""Whether a client may resume where it says that it is, and where its replay begins. Pure decisions.

An epoch is `<incarnation>-<generation>`: which log it is, and which opening of the store wrote it. A restart
goes on with the same log under a new generation, so the positions of earlier generations stay good. A
restored backup does too, but it lacks what was written after it was made, and writes other events under seqs
that clients of the lost future hold already. The first seq that each generation wrote tells the two apart::

    generation a    1 2 3 4 5 6 7 8      backup made at 5, then lost
    generation b              6 7 8 9    mark (b, 6): of the positions of a, those up to 5 are still true
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import attrs

from .cursor import Position
from .frames import From, Hello, ResumeReason, StreamInfo

__all__ = ["Mark", "Verdict", "held_part", "judge", "make_epoch", "parse_epoch"]

Mark: TypeAlias = tuple[str, int]
"""A generation and the first seq that it wrote to the stream."""


@attrs.frozen
class Verdict:
    """The first seq to send, and why that is not the one after the client's position (None where it is)."""

    from_seq: int
    resumed: bool
    reason: ResumeReason | None = None


def make_epoch(incarnation: str, generation: str) -> str:
    """The epoch that clients are told. A generation has no `-` in it; an incarnation may."""
    return f"{incarnation}-{generation}"


def parse_epoch(epoch: str) -> tuple[str, str] | None:
    """(incarnation, generation), or None where `epoch` is not of that form."""
    incarnation, dash, generation = epoch.rpartition("-")
    return (incarnation, generation) if dash and incarnation and generation else None


def judge(
    position: Position | None,
    *,
    incarnation: str,
    lineage: Sequence[str],
    marks: Sequence[Mark],
    oldest: int,
    head: int,
    begin: From,
) -> Verdict:
    """Decide on a resume from `position` (None: the client gave none).

    `lineage` is the store's generations, oldest first, the current one last; `marks` are of this stream.
    `oldest` is `head + 1` where nothing is kept. Where the position is refused, `begin` says where to start;
    a snapshot stands for all up to the head.
    """
    reason = _refusal(position, incarnation, lineage, marks, oldest, head)
    if reason is None and position is not None:
        return Verdict(position.seq + 1, resumed=True)
    return Verdict(oldest if begin == "start" else head + 1, resumed=False, reason=reason)


def _refusal(
    position: Position | None,
    incarnation: str,
    lineage: Sequence[str],
    marks: Sequence[Mark],
    oldest: int,
    head: int,
) -> ResumeReason | None:
    if position is None:
        return "new"
    names = parse_epoch(position.epoch)
    if names is None or names[0] != incarnation:
        return "epoch_changed"
    if not _is_true_of(names[1], position.seq, lineage, marks):
        return "epoch_changed"
    if position.seq > head:
        return "ahead"
    return "trimmed" if position.seq < oldest - 1 else None


def _is_true_of(generation: str, seq: int, lineage: Sequence[str], marks: Sequence[Mark]) -> bool:
    """Whether what `generation` wrote up to `seq` is what the log holds."""
    if lineage and generation == lineage[-1]:
        return True
    if generation not in lineage:
        return False
    later = frozenset(lineage[lineage.index(generation) + 1 :])
    return all(seq < first for writer, first in marks if writer in later)


def held_part(hello: Hello, stream: str, info: StreamInfo) -> tuple[int, int] | None:
    """The (seq, offset) from which to go on with the event that the client holds the beginning of, if any.

    Bytes are good within one epoch only: a later generation may have begun to write at that very seq, and
    then the position before it is accepted although another event follows.
    """
    position = hello.resume.get(stream)
    if position is None or not info.resumed or position.epoch != info.epoch:
        return None
    return hello.part.get(stream)
