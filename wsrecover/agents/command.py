"""The app's own commands: how they are registered, and the API that their handlers see."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias, get_origin

import attrs

from wsrecover.access.principal import Principal
from wsrecover.errors import ConfigError
from wsrecover.protocol.schema import Schema

from .arguments import input_of

__all__ = ["Command", "Handler", "HandlerFunction", "data_schema"]

HandlerFunction: TypeAlias = "Callable[[Command, Any], Awaitable[Any]]"


@attrs.frozen
class Handler:
    """A registered command. `schema` is that of its data; `timeout` in seconds; None: the server's own.

    Senders with none of the `roles`, if there are any, cannot tell it from one that does not exist.
    """

    name: str
    function: HandlerFunction
    schema: Schema[Any]
    timeout: float | None = None
    roles: frozenset[str] = frozenset()


class Effects(Protocol):
    """What a command leads to."""

    def emit(self, type: str, data: object, thread: str | None) -> None:
        """See `Command.emit`."""

    async def start_agent(self, agent: str, input: dict[str, Any], thread: str | None) -> str:
        """See `Command.start_agent`."""


class Command:
    """One command, as its handler sees it: who sent it, in which thread, and what may come of it.

    `id` is the client's, the same on every repeat: a key for whatever else the handler must do once.
    """

    def __init__(self, principal: Principal, id: str, thread: str | None, effects: Effects) -> None:
        self.principal = principal
        self.id = id
        self.thread = thread
        self._effects = effects

    def emit(self, type: str, data: object, *, thread: str | None = None) -> None:
        """Emit an event into the sender's stream, in this command's thread or another.

        It is encoded now, and logged in one commit with the answer: not at all if the handler raises or is
        cut off. `type` and `data` are as in `Run.emit`. Raises `InvalidEvent`, also for one event too many,
        and `ScopeEnded` once the handler is done.
        """
        self._effects.emit(type, data, thread or self.thread)

    async def start_agent(
        self,
        agent: str,
        input: Mapping[str, Any] | attrs.AttrsInstance | None = None,
        *,
        thread: str | None = None,
    ) -> str:
        """Start an agent for the sender, in this command's thread or another; the run's id.

        `input` is a mapping or an instance of an attrs class. It starts at once, and goes on whatever becomes
        of the command. Raises `CommandError` (`not_found`, `overloaded`), `InvalidArgument` and `StoreError`.
        Cancelled, it may start nevertheless.
        """
        return await self._effects.start_agent(agent, input_of(input), thread or self.thread)


def data_schema(name: str, function: HandlerFunction) -> Schema[Any]:
    """The schema of the data of the command `name`: that of the function's second parameter.

    Raises `ConfigError` where that is no attrs class, or one with fields that have no place in JSON.
    """
    accepted = "an async function of a Command and of its data, an attrs class"
    try:
        parameters = [*inspect.signature(function, eval_str=True).parameters.values()]
    except Exception as error:  # Whatever evaluating the text of an annotation comes to.
        raise ConfigError(f"command {name!r}", f"is {function!r}: {error!r}", accepted) from error
    if len(parameters) != 2:
        raise ConfigError(f"command {name!r}", f"is a function of {len(parameters)} parameters", accepted)
    second = parameters[1]
    if second.kind not in (second.POSITIONAL_ONLY, second.POSITIONAL_OR_KEYWORD):
        raise ConfigError(f"command {name!r}", f"its parameter {second} is not positional", accepted)
    cls = get_origin(second.annotation) or second.annotation
    if not (isinstance(cls, type) and attrs.has(cls)):
        raise ConfigError(f"command {name!r}", f"its parameter `{second}` is of no attrs class", accepted)
    return Schema(second.annotation, name=f"command {name!r}")
