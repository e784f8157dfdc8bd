"""The registry of what a server can run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

import attrs

from wsrecover.access.principal import Principal
from wsrecover.errors import ConfigError, TokenError
from wsrecover.protocol.events import AS_SENT, EVENT_TYPE, TYPES
from wsrecover.protocol.frames import COMMANDS
from wsrecover.protocol.schema import Schema

from .arguments import is_duration
from .command import Handler, HandlerFunction, data_schema
from .run import Run

__all__ = ["Agent", "AgentFunction", "App", "is_async"]

AgentFunction: TypeAlias = Callable[[Run], Awaitable[dict[str, Any] | attrs.AttrsInstance | None]]
F = TypeVar("F", bound=AgentFunction)
H = TypeVar("H", bound=HandlerFunction)

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}\Z")


@attrs.frozen
class Agent:
    """A registered agent. `timeout` bounds one run, in seconds; None: the server's own limit.

    Clients with none of the `roles`, if there are any, cannot tell it from one that does not exist.
    """

    name: str
    function: AgentFunction
    timeout: float | None = None
    roles: frozenset[str] = frozenset()


class App:
    """What a server runs: its agents and its own commands, by name.

    Register everything before serving; a run keeps the agent that it was started with.
    """

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}
        self._commands: dict[str, Handler] = {}
        self._events: dict[str, Schema[Any]] = {}

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The registered agents by name, read-only."""
        return MappingProxyType(self._agents)

    @property
    def commands(self) -> Mapping[str, Handler]:
        """The handlers of the app's own commands by name, read-only."""
        return MappingProxyType(self._commands)

    @property
    def events(self) -> Mapping[str, Schema[Any]]:
        """What is registered for types of events, read-only."""
        return MappingProxyType(self._events)

    def agent(
        self, name: str, *, timeout: float | None = None, roles: Iterable[str] = ()
    ) -> Callable[[F], F]:
        """Register the decorated async function as the agent `name`; it is returned unchanged.

        What it returns is the run's result: a JSON object, an instance of an attrs class, or None.
        `timeout` is in seconds. Where `roles` are given, clients need one of them to start it; to others it
        does not exist. Raises `ConfigError` for a name that is bad or taken, a bad time-out or role, and a
        function that is not async or cannot be called with a `Run` alone.
        """
        _check("agent", name, timeout)
        needed = _needed("agent", roles)

        def register(function: F) -> F:
            if not (is_async(function) and _takes_one(function)):
                raise ConfigError(f"agent {name!r}", f"is {function!r}", "an async function of one Run")
            if name in self._agents:
                raise ConfigError(f"agent {name!r}", "is registered already", "one function per name")
            self._agents[name] = Agent(name, function, timeout, needed)
            return function

        return register

    def command(
        self, name: str, *, timeout: float | None = None, roles: Iterable[str] = ()
    ) -> Callable[[H], H]:
        """Register the decorated async function as the handler of the command `name`; it is returned
        unchanged.

        It is called with a `Command` and the command's data: the annotation of its second parameter, an attrs
        class, says what fits. It runs once for each id, in the session of the user who sent it, for at most
        `timeout` seconds (None: `timeouts.command`). What it returns is the result: a JSON object of at most
        64 KiB, an instance of an attrs class, or None. A `CommandError(code, message)` that it raises is the
        client's answer; any other exception is told as `internal`, without a word of what it was, and logged.
        Each of these is kept as the answer to a repeat; one that was cut off is answered `outcome_unknown`.
        Where `roles` are given, the sender needs one of them; to others the command does not exist.

        Raises `ConfigError` for a name that is bad, taken or the protocol's own, a bad time-out or role, and
        a function that is not as said.
        """
        _check("command", name, timeout)
        needed = _needed("command", roles)

        def register(function: H) -> H:
            if not is_async(function):
                raise ConfigError(f"command {name!r}", f"is {function!r}", "an async function")
            if name in self._commands or name in COMMANDS:
                raise ConfigError(f"command {name!r}", "is registered already", "one function per name")
            self._commands[name] = Handler(name, function, data_schema(name, function), timeout, needed)
            return function

        return register

    def event(self, type: str, cls: type[Any]) -> None:
        """Hold every event of `type` to `cls`, an attrs class, wherever it comes from.

        One that does not fit, or has a field more, is refused where it is emitted or published, and not
        logged. Of the protocol's own types only those that carry what was sent may be registered. Raises
        `ConfigError` for another, a bad name, one that is taken, and a class with fields that have no place
        in JSON.
        """
        name = f"event {type!r}"
        if not (isinstance(type, str) and EVENT_TYPE.match(type)) or type in TYPES - AS_SENT:
            raise ConfigError(name, "cannot be registered", f"[a-z][a-z0-9_.]{{0,63}}, or {sorted(AS_SENT)}")
        if type in self._events:
            raise ConfigError(name, "is registered already", "one class per type")
        if not attrs.has(cls):
            raise ConfigError(name, f"is {cls!r}", "an attrs class")
        self._events[type] = Schema(cls, closed=True, name=name)


def _check(kind: str, name: object, timeout: object) -> None:
    if not (isinstance(name, str) and _NAME.match(name)):
        raise ConfigError(f"{kind}.name", f"is {name!r}", "a letter, then up to 63 of A-Z a-z 0-9 _ . : -")
    if timeout is not None and not (is_duration(timeout) and timeout > 0):
        raise ConfigError(f"{kind}.timeout", f"is {timeout!r}", "a number of seconds > 0, or None")


def _needed(kind: str, roles: Iterable[str]) -> frozenset[str]:
    """The roles that are asked for: one mistyped would close a door for ever, or leave it open."""
    try:
        return frozenset(Principal("any", "any", roles).roles)
    except TokenError as error:
        accepted = "a list of roles, each 1 to 64 printable ASCII characters without spaces"
        raise ConfigError(f"{kind}.roles", f"is {roles!r}", accepted) from error


def _takes_one(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function, follow_wrapped=False).bind(None)
    except TypeError:
        return False
    except ValueError:  # It tells nobody what it takes.
        return True
    return True


def is_async(function: object) -> bool:
    """Whether calling it gives something to await."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004  # The method itself is asked whether it is async.
    )
