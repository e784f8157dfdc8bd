"""Where the server's log goes: to stderr, as lines for a reader or as JSON for a collector."""

from __future__ import annotations

import logging
import sys
import textwrap
from io import StringIO
from typing import Final, TextIO

import structlog

from wsrecover.config import Config

__all__ = ["configure", "printable"]


_HARMLESS: Final = frozenset("\u00a0\u200c\u200d\u202f\u3000")
"""Spaces and joiners of other scripts and of emoji, which `str.isprintable` counts with the controls."""


def printable(text: str) -> str:
    """`text` with whatever a terminal might obey (controls, line ends, directions) as Python escapes it."""
    return "".join(char if char.isprintable() or char in _HARMLESS else repr(char)[1:-1] for char in text)


def configure(config: Config) -> None:
    """Set up structlog for this process, as `config.log_format` and `config.log_level` say.

    `serve` does it where the program has not configured structlog itself: without, structlog may print the
    variables of every frame of a traceback.
    """
    stamps: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if config.log_format == "json":
        last: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        last = [
            _escaped,
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback),
        ]
    structlog.configure(
        processors=[*stamps, *last],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[config.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class _Repr:
    """A text that structlog shows by its `repr`, as it does all that is no text."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return repr(self._text)


def _escaped(_: object, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """No id of a stranger moves the cursor of who reads the log: structlog quotes white space alone."""
    for name, value in line.items():
        if isinstance(value, str) and not value.isprintable():
            line[name] = _Repr(value)
    return line


def _traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """Plain and without the variables of every frame, tokens and users' data among them.

    What an exception says may quote a stranger: it is escaped, and indented, so that no line of it passes for
    one of the log.
    """
    text = StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    lines = map(printable, text.getvalue().split("\n"))
    out.write(textwrap.indent("\n".join(lines), "  "))
