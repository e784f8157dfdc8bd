"""Cursor arithmetic: what an arriving event means to one who is at a position. For both sides."""

from __future__ import annotations

import enum

import attrs

__all__ = ["Position", "Step", "step"]


@attrs.frozen
class Position:
    """A place in a stream: all up to `seq`, in the history that `epoch` names. On the wire `[epoch, seq]`."""

    epoch: str
    seq: int


class Step(enum.Enum):
    """What an event that covers `first..seq` is to a cursor that has everything up to `last`."""

    NEW = "new"
    DUPLICATE = "duplicate"
    HOLE = "hole"
    OVERLAP = "overlap"


def step(last: int, first: int, seq: int) -> Step:
    """Judge an event that covers `first..seq` (SPEC.md, A client's duty)."""
    if seq <= last:
        return Step.DUPLICATE
    if first == last + 1:
        return Step.NEW
    return Step.HOLE if first > last + 1 else Step.OVERLAP
