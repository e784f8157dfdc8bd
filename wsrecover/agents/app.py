"""The registry of what a server can run."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

import attrs

from wsrecover.errors import ConfigError

from .run import Run

__all__ = ["Agent", "AgentFunction", "App"]

AgentFunction: TypeAlias = Callable[[Run], Awaitable[dict[str, Any] | None]]
F = TypeVar("F", bound=AgentFunction)

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}\Z")


@attrs.frozen
class Agent:
    """A registered agent. `timeout` bounds one run, in seconds; None: the server's own limit."""

    name: str
    function: AgentFunction
    timeout: float | None = None


class App:
    """What a server runs: its agents, by name.

    Register everything before serving; a run keeps the agent that it was started with.
    """

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The registered agents by name, read-only."""
        return MappingProxyType(self._agents)

    def find(self, name: str) -> Agent | None:
        """The agent of this name, if there is one."""
        return self._agents.get(name)

    def agent(self, name: str, *, timeout: float | None = None) -> Callable[[F], F]:
        """Register the decorated async function as the agent `name`; it is returned unchanged.

        `timeout` is in seconds. Raises `ConfigError` for a name that is bad or taken, a bad time-out, and a
        function that is not async.
        """
        if not (isinstance(name, str) and _NAME.match(name)):
            raise ConfigError("agent.name", f"is {name!r}", "a letter, then up to 63 of A-Z a-z 0-9 _ . : -")
        if timeout is not None and not _is_duration(timeout):
            raise ConfigError("agent.timeout", f"is {timeout!r}", "a number of seconds > 0, or None")

        def register(function: F) -> F:
            if not _is_async(function):
                raise ConfigError(f"agent {name!r}", f"is {function!r}", "an async function of one Run")
            if name in self._agents:
                raise ConfigError(f"agent {name!r}", "is registered already", "one function per name")
            self._agents[name] = Agent(name, function, timeout)
            return function

        return register


def _is_duration(seconds: object) -> bool:
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    return number and math.isfinite(seconds) and seconds > 0  # type: ignore[arg-type,operator]  # a number here


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # The method itself is asked whether it is async.
    )
