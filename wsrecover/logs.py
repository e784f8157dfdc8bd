"""Where the server's log goes: to stderr, as lines for a reader or as JSON for a collector."""

from __future__ import annotations

import logging
import sys

import structlog

from wsrecover.config import Config

__all__ = ["configure"]


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
        # The default prints the variables of every frame, tokens and users' data among them, and takes 0.1 s.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*stamps, *last],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[config.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
