"""Helpers for tests of programs that use wsrecover: networks that fail on command."""

from __future__ import annotations

from .link import Cut, LossyLink, MemoryNetwork, MemoryPipe, PipeStream, cuts, memory_pipe_pair

__all__ = [
    "Cut",
    "LossyLink",
    "MemoryNetwork",
    "MemoryPipe",
    "PipeStream",
    "cuts",
    "memory_pipe_pair",
]
