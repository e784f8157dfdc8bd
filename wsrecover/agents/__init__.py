"""What agents are written with."""

from __future__ import annotations

from wsrecover.errors import AgentError

from .app import Agent, App
from .command import Command
from .run import Run

__all__ = ["Agent", "AgentError", "App", "Command", "Run"]
