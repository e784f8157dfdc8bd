"""Helpers for tests of programs that use wsrecover: real servers, and networks that fail on command."""

from __future__ import annotations

from .link import Cut, LossyLink, MemoryNetwork, MemoryPipe, PipeStream, cuts, memory_pipe_pair
from .local import LocalServer, Peer, local_server

__all__ = [
    "Cut",
    "LocalServer",
    "LossyLink",
    "MemoryNetwork",
    "MemoryPipe",
    "Peer",
    "PipeStream",
    "cuts",
    "local_server",
    "memory_pipe_pair",
]
