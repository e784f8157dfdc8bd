"""Which of a user's requests are open: where an answer finds the run that waits for it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Final, Protocol

from wsrecover.errors import CommandError
from wsrecover.streams.store import Answer, Outcome

__all__ = ["Answerable", "Requests", "already_resolved"]

REMEMBERED: Final = 256
"""Requests of one user of which it is remembered that they were resolved."""


class Answerable(Protocol):
    """A request, as its answer finds it."""

    @property
    def id(self) -> str:
        """Its id on the wire."""

    async def respond(self, value: Any, answer: Answer) -> Outcome:
        """Resolve it by `value`, in one commit with the command's `answer`; see `Request.respond`."""


class Requests:
    """The open requests of one user's runs, and the latest that were resolved."""

    def __init__(self) -> None:
        self._open: dict[str, Answerable] = {}
        self._resolved: OrderedDict[str, None] = OrderedDict()

    def open(self, request: Answerable) -> None:
        """From now on it can be answered."""
        self._open[request.id] = request

    def close(self, request: Answerable) -> None:
        """Nobody waits for its answer any more."""
        del self._open[request.id]
        self._resolved[request.id] = None
        if len(self._resolved) > REMEMBERED:
            self._resolved.popitem(last=False)

    def find(self, id: str) -> Answerable:
        """The open request. Raises `CommandError` (`already_resolved`, `not_found`)."""
        request = self._open.get(id)
        if request is None:
            raise already_resolved() if id in self._resolved else _not_found()
        return request


def already_resolved() -> CommandError:
    """It was answered before, or nobody waits for the answer any more."""
    return CommandError("already_resolved", "the request was resolved before", field="data.request")


def _not_found() -> CommandError:
    return CommandError("not_found", "there is no such request", field="data.request")
