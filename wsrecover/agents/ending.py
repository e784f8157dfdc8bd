"""How a run ends, and what its user may read about why."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Literal, TypeAlias, TypeVar, TypeVarTuple, Unpack

import attrs
import trio

from wsrecover.errors import AgentError, RunBroken, StoreError

__all__ = [
    "CANCELLED",
    "LOG_FAILED",
    "PRODUCER_LOST",
    "STOPPED",
    "Ending",
    "Status",
    "call",
    "describe",
    "errors_in",
    "failed",
    "is_cancelled",
    "must_pass_at_once",
    "readable",
]

Status: TypeAlias = Literal["running", "completed", "failed", "cancelled"]

Args = TypeVarTuple("Args")
T = TypeVar("T")

MESSAGE_CHARACTERS: Final = 1000
"""The longest message of an error; what is longer is cut."""


@attrs.frozen
class Ending:
    """The status of a run that is over, and what `agent_completed` says beside it."""

    status: Status
    result: dict[str, Any] | attrs.AttrsInstance | None = None
    error: dict[str, Any] | None = None

    def data(self) -> dict[str, Any]:
        """As fields of `agent_completed`."""
        data: dict[str, Any] = {"status": self.status}
        if self.result is not None:
            data["result"] = self.result
        if self.error is not None:
            data["error"] = self.error
        return data


def failed(code: str, message: str, *, retryable: bool = False) -> Ending:
    """The end of a run that failed."""
    return Ending("failed", error={"code": code, "message": message, "retryable": retryable})


CANCELLED: Final = Ending("cancelled")
STOPPED: Final = failed("server_stopped", "the server stopped before the run was done", retryable=True)
PRODUCER_LOST: Final = failed("producer_lost", "the process that ran the agent is gone", retryable=True)
LOG_FAILED: Final = failed("exception", "the event log failed; events of this run were lost", retryable=True)


async def call(function: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> T:
    """Call what the app gave.

    A `GeneratorExit` that it raises becomes a `RuntimeError`, as Python makes one of a `StopIteration`: it
    would end the server, as if all its tasks were being closed. Where they are, it passes.
    """
    task = trio.lowlevel.current_task()
    try:
        return await function(*args)
    except BaseException as exc:
        closing = not trio.lowlevel.in_trio_task() or trio.lowlevel.current_task() is not task
        found = tuple(_leaves(exc))
        exits = any(isinstance(leaf, GeneratorExit) for leaf in found)
        if closing or not exits or any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            raise
        raise RuntimeError("GeneratorExit was raised") from exc


def errors_in(exc: BaseException) -> list[BaseException]:
    """The exceptions in a group, however deep, but for cancellations; of any other exception itself."""
    return [leaf for leaf in _leaves(exc) if not isinstance(leaf, trio.Cancelled)]


def _leaves(exc: BaseException | None) -> Iterator[BaseException]:
    """As `errors_in`, cancellations too."""
    if isinstance(exc, BaseExceptionGroup):
        for inner in exc.exceptions:
            yield from _leaves(inner)
    elif exc is not None:
        yield exc


def is_cancelled(exc: BaseException | None) -> bool:
    """Whether a cancellation is under way in it: then only a shielded scope can wait."""
    return any(isinstance(leaf, trio.Cancelled) for leaf in _leaves(exc))


def must_pass_at_once(exc: BaseException | None) -> bool:
    """Whether it allows no waiting (`GeneratorExit`) or is meant for the process (`KeyboardInterrupt`).

    A `SystemExit` is neither: a library that gives up in one user's agent must not end everybody's server.
    """
    return any(isinstance(leaf, KeyboardInterrupt | GeneratorExit) for leaf in _leaves(exc))


def describe(exc: BaseException) -> tuple[str, str, bool]:
    """(code, message, retryable) of what an agent raised, in words that its user may read.

    An `AgentError` speaks for itself. Others may hold internals (paths, queries, secrets): only their class
    is named.
    """
    errors = errors_in(exc)
    if not errors:
        return "cancelled", "cancelled", False
    for error in errors:
        if isinstance(error, AgentError):
            with contextlib.suppress(Exception):  # What an app puts into it may raise where it is read.
                code = readable(error.code) if isinstance(error.code, str) else "exception"
                return code, readable(error.message), error.retryable is True
    if any(isinstance(error, RunBroken | StoreError) for error in errors):
        return "exception", "the event log failed", True
    return "exception", readable(", ".join(dict.fromkeys(type(error).__name__ for error in errors))), False


def readable(message: object) -> str:
    """Text that can be logged whatever the app put into it: no lone surrogates, not too long."""
    return str(message)[:MESSAGE_CHARACTERS].encode("utf-8", "replace").decode()
