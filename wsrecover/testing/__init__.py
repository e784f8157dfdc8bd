"""Helpers for tests of programs that use wsrecover.

Real servers, networks that fail on command, the store contract's checker, and the checker of histories.
"""

from __future__ import annotations

from .history import check
from .link import Cut, LossyLink, cuts
from .local import LocalServer, Peer, local_server
from .memory import MemoryNetwork, MemoryPipe, PipeStream, memory_pipe_pair
from .recording import History, Report
from .stores import check_store

__all__ = [
    "Cut",
    "History",
    "LocalServer",
    "LossyLink",
    "MemoryNetwork",
    "MemoryPipe",
    "Peer",
    "PipeStream",
    "Report",
    "check",
    "check_store",
    "cuts",
    "local_server",
    "memory_pipe_pair",
]
