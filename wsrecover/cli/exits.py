"""How a command ends: one or two lines that say what to do, and the exit code that scripts expect."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Final

import trio
from cyclopts import CycloptsError

from wsrecover.errors import (
    CommandError,
    ConfigError,
    ConnectionClosed,
    HandshakeRefused,
    StoreError,
    StoreLocked,
    TokenError,
    WsrecoverError,
)

__all__ = ["FAILED", "INTERRUPTED", "OK", "USAGE", "Failure", "finish", "leaves"]

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell would put it."""


class Failure(Exception):  # It ends a command as it should end: it is not a fault of the program.
    """A command cannot do what was asked. The message says what to do about it."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def finish(command: Callable[[], int]) -> int:
    """Run the command; its exit code. What a user can mend is told in words."""
    try:
        code = command()
        sys.stdout.flush()
    except BaseException as error:
        found = list(leaves(error))
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            return INTERRUPTED
        if all(isinstance(leaf, BrokenPipeError) for leaf in found):
            return _reader_left()
        words = [_words(leaf) for leaf in found]
        if not found or None in words:
            raise
        code, message = next(word for word in words if word is not None)
        sys.stderr.write(f"wsrecover: {message}\n")
    return code


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a group of groups, without the cancellations that they caused."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    elif not isinstance(error, trio.Cancelled):
        yield error


def _words(error: BaseException) -> tuple[int, str] | None:
    match error:
        case Failure():
            return error.code, str(error)
        case CycloptsError():
            return USAGE, f"{error}\nSee: wsrecover --help"
        case ConfigError():
            return USAGE, f"config: {error}"
        case StoreLocked():
            return FAILED, f"store: {error}\nStop the other process, or give this one its own with --store."
        case StoreError():
            return FAILED, f"store: {error}"
        case HandshakeRefused(status=401) | TokenError():
            return FAILED, f"the token was refused: {error}\nSign a new one with: wsrecover token"
        case ConnectionClosed(code=4501):
            return FAILED, f"the token was refused: {error}\nSign a new one with: wsrecover token"
        case CommandError():
            return FAILED, f"{error.code}: {error.message}" + (
                f" (field {error.field})" if error.field else ""
            )
        case WsrecoverError() | OSError():
            return FAILED, str(error)
    return None


def _reader_left() -> int:
    # `wsrecover tail | head`: what was asked for was read. Python flushes at exit, into a pipe that is gone.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK
