"""The fixtures of this room's tests; see `agents_world`."""

from __future__ import annotations

from agents_world import gated, small_world, world

__all__ = ["gated", "small_world", "world"]
