"""How a command ends: one or two lines that say what to do, and the exit code that scripts expect."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable
from typing import Final

from cyclopts import CycloptsError

from wsrecover.access.tokens import SECRET_VARIABLE
from wsrecover.agents.ending import errors_in
from wsrecover.errors import (
    ConfigError,
    ConnectionClosed,
    HandshakeRefused,
    KeysUnavailable,
    StoreError,
    StoreLocked,
    TokenError,
    TransportError,
    WsrecoverError,
)
from wsrecover.protocol.closecodes import CloseCode

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "USAGE",
    "Failure",
    "fill_streams",
    "finish",
    "reader_left",
    "reason",
    "token_refused",
    "why_not",
    "write_out",
]

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130
"""128 + SIGINT, as a shell would put it."""

_UNKNOWN_AUTHORITY: Final = frozenset({18, 19, 20, 21})
"""OpenSSL's codes for a certificate that may be good: nobody that is trusted says so."""


# Not a `WsrecoverError`: those are what callers of the library handle, and of this nobody but `finish` knows.
class Failure(Exception):
    """A command cannot do what was asked. The message says what to do about it."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def finish(command: Callable[[], int]) -> int:
    """Run the command; its exit code. What a user can mend is told in words, then the error's notes."""
    try:
        code = command()
        write_out("")
    except BaseException as error:
        found = errors_in(error)
        if any(isinstance(leaf, KeyboardInterrupt) for leaf in found):
            sys.stderr.write("wsrecover: interrupted\n")
            _tell_notes(error)
            return INTERRUPTED
        if reader_left(error):
            return _end_quietly()
        words = [_words(leaf) for leaf in found]
        if not found or None in words:
            raise
        code, message = next(word for word in words if word is not None)
        sys.stderr.write(f"wsrecover: {message}\n")
        _tell_notes(error)
    return code


def fill_streams() -> None:
    """Let what is written to a stream that was closed (`>&-`) go nowhere: nobody wants it."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def write_out(text: str) -> None:
    """Write to stdout at once. Raises `BrokenPipeError` where nobody reads it, else `Failure`."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(f"stdout cannot be written: {reason(error)}") from error


def _tell_notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", ()):
        sys.stderr.write(f"{note}\n")


def reader_left(error: BaseException) -> bool:
    """Whether all that is wrong is that nobody reads stdout any more."""
    found = errors_in(error)
    return bool(found) and all(isinstance(leaf, BrokenPipeError) for leaf in found)


def token_refused(error: BaseException) -> bool:
    """Whether it says that the server does not accept the token."""
    match error:
        case HandshakeRefused(status=401) | TokenError():
            return True
        case ConnectionClosed(code=code):
            return code in (CloseCode.TOKEN_EXPIRED, CloseCode.AUTHENTICATION_FAILED)
    return False


def reason(error: BaseException) -> str:
    """Why it happened, in the words of the operating system where it has some."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(reason(inner) for inner in error.exceptions))
    if error.__cause__ is not None:
        return reason(error.__cause__)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {getattr(error, 'verify_message', error)}"
    if isinstance(error, ssl.SSLError):
        problem = str(getattr(error, "reason", error)).replace("_", " ").lower()
        return f"TLS failed, {problem}: does the server speak it?"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def why_not(error: WsrecoverError) -> str:
    """Why there is no connection, in one line."""
    if isinstance(error, TokenError) and isinstance(error.__cause__, Failure):
        return str(error.__cause__)
    return reason(error) if _is_the_systems(error) else _trouble(error)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_the_systems(error: BaseException) -> bool:
    """Whether it is a connection's, and the operating system or TLS has the words for it."""
    return isinstance(error, TransportError) and isinstance(_root(error), OSError)


def _words(error: BaseException) -> tuple[int, str] | None:
    match error:
        case Failure():
            return error.code, str(error)
        case CycloptsError():
            return USAGE, f"{error}\nSee: {' '.join(('wsrecover', *(error.command_chain or ()), '--help'))}"
        case ConfigError():
            advice = "\nName a file of them with --secret-file." if error.field == SECRET_VARIABLE else ""
            return USAGE, f"config: {error}{advice}"
        case KeysUnavailable():
            advice = "Without its keys no token counts: start again once it can be reached."
            return FAILED, f"tokens.jwks: {error}\n{advice}"
        case StoreLocked():
            return FAILED, f"store: {error}\nStop the other process, or give this one its own with --store."
        case StoreError():
            return FAILED, f"store: {error}"
        case _ if token_refused(error):
            return _refusal(error)
        case WsrecoverError() | OSError():
            return FAILED, _trouble(error)
    return None


def _trouble(error: WsrecoverError | OSError) -> str:
    if isinstance(error, HandshakeRefused) and ("\n" in error.body.strip() or error.body.startswith("<")):
        return f"HTTP {error.status}, with a page for people: is this the address of a wsrecover server?"
    if not _is_the_systems(error):
        return str(error)
    root = _root(error)
    unknown = getattr(root, "verify_code", None) in _UNKNOWN_AUTHORITY
    advice = "\nSet SSL_CERT_FILE to a file with the certificate of who signed it." if unknown else ""
    return f"the connection failed: {reason(error)}{advice}"


def _refusal(error: BaseException) -> tuple[int, str]:
    """Why a token was refused, as the server said it, or why there was none to send."""
    said = error.__cause__ if isinstance(error, TokenError) and error.__cause__ else error
    if isinstance(said, Failure):
        return said.code, str(said)
    if isinstance(said, ConnectionClosed):
        words = said.reason
    else:
        words = said.body.strip() if isinstance(said, HandshakeRefused) else str(said)
    problem = "the token has expired" if "expired" in words else f"the token was refused: {words or said}"
    return FAILED, f"{problem}\nSign a new one with: wsrecover token"


def _end_quietly() -> int:
    # `wsrecover tail | head`: what was asked for was read. Python flushes at exit, into a pipe that is gone.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK
