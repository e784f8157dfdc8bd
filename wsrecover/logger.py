"""The logger of every module: structlog's, whose lines may be lost, but never take the server with them."""

from __future__ import annotations

from typing import Any

import structlog

__all__ = ["Logger", "get_logger"]

_lost = 0


class Logger:
    """Passes each line on to structlog, as the program configured it.

    A line that cannot be written (the disk is full, whoever read stderr is gone, a processor of the program's
    raises) is lost: what it would have told of goes on. From then on each line says in `lines_lost` how many
    were, in all: of one that structlog filters out nobody can tell whether it was written.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def debug(self, event: str, **fields: object) -> None:
        """For whoever looks for a fault."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """For whoever runs the server."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Something is not as it should be."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Something failed."""
        self._write("error", event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """Something failed by the exception that is being handled, whose traceback is in the line."""
        self._write("exception", event, fields)

    def _write(self, method: str, event: str, fields: dict[str, object]) -> None:
        global _lost  # noqa: PLW0603  One count for the process, as there is one log.
        if _lost:
            fields["lines_lost"] = _lost
        try:
            getattr(self._inner, method)(event, **fields)
        except Exception:  # noqa: BLE001  Whom to tell? The next line does.
            _lost += 1


def get_logger(name: str, **always: object) -> Logger:
    """The logger of the module `name`, with some fields in each of its lines."""
    return Logger(structlog.get_logger(name, **always))
