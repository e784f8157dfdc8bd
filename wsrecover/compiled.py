"""Whether the way of an event is compiled in this installation: see "Compiled" in OPERATING.md."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

from .streams import entry

__all__ = ["COMPILED"]

COMPILED: Final = entry.__file__.endswith(tuple(EXTENSION_SUFFIXES))
