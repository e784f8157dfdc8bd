"""Whether the way of an event is compiled in this installation: see "Speed" in the README."""

from __future__ import annotations

from typing import Final

from .streams import entry

__all__ = ["COMPILED"]

COMPILED: Final = not entry.__file__.endswith(".py")
