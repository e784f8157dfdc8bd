"""Cursor arithmetic: what an arriving event means to one who is at a position. For both sides."""

from __future__ import annotations

import attrs

__all__ = ["Position"]


@attrs.frozen
class Position:
    """A place in a stream: all up to `seq`, in the history that `epoch` names. On the wire `[epoch, seq]`."""

    epoch: str
    seq: int
