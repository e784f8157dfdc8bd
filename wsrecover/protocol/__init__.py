"""The words on the wire, version 1, without any I/O: no trio, no clock, no socket, no randomness.

SPEC.md, beside this file, is for those who write a client.
"""

from __future__ import annotations

from .cursor import Position
from .events import Event

__all__ = ["Event", "Position"]
