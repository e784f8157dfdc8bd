"""Every error that wsrecover raises, in one tree.

::

    WsrecoverError
    ├── ConfigError           a setting is wrong: names the field and the accepted values
    ├── InvalidArgument       what a program gives is not accepted: names the parameter and the limit
    │   ├── InvalidFilter     what is asked of sessions is not to be had: names the filter and the values
    │   └── InvalidEvent      what is emitted cannot be logged: names the field and the limit
    ├── FrameError            what the peer sent is not a frame; carries the `error` frame to answer with
    ├── Misfit                data does not fit its schema: names the field
    ├── CommandError          a command was refused: code, message, field, retry_after
    ├── BufferFull            nobody takes what a client received, and an answer lies behind it
    ├── AgentError            what an agent raises to fail its run in words that its user may read
    ├── TokenError            a token does not prove who it speaks for
    │   ├── TokenExpired      it did, until its time was up
    │   ├── TokenRevoked      it did, until it was revoked
    │   └── UnknownKey        it is signed with a key that is not known, or not known yet
    ├── KeysUnavailable       the key set that tokens are proved with cannot be fetched now
    ├── StoreError
    │   ├── StoreUnavailable  nothing was committed; the store may heal
    │   ├── StoreFailed       the store cannot know what is on disk: it stays down until it is opened again
    │   │   └── StoreClosed   it is down, after such a failure or its end; nothing of this call took effect
    │   ├── StoreLocked       another process has it
    │   ├── StoreMismatch     written by a schema that this version does not know
    │   └── StoreCorrupt      what it holds contradicts itself
    ├── RunError
    │   ├── RunBroken         a commit with events of this run failed; it can emit no more
    │   ├── RunEnded          the run has its terminal event already
    │   ├── NoAnswer          nobody answered what the agent asked in time
    │   └── ScopeEnded        the tool call, message or command was completed already
    └── TransportError
        ├── TooLarge          the server sends an event that is larger than a client takes
        ├── ConnectionClosed  the WebSocket ended: code, reason
        └── HandshakeRefused  the peer answered the upgrade with an HTTP status

`CommandError` and `FrameError` carry the error codes of SPEC.md, the same on server and client.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = [
    "AgentError",
    "BufferFull",
    "CommandError",
    "ConfigError",
    "ConnectionClosed",
    "FrameError",
    "HandshakeRefused",
    "InvalidArgument",
    "InvalidEvent",
    "InvalidFilter",
    "KeysUnavailable",
    "Misfit",
    "NoAnswer",
    "RunBroken",
    "RunEnded",
    "RunError",
    "ScopeEnded",
    "StoreClosed",
    "StoreCorrupt",
    "StoreError",
    "StoreFailed",
    "StoreLocked",
    "StoreMismatch",
    "StoreUnavailable",
    "TokenError",
    "TokenExpired",
    "TokenRevoked",
    "TooLarge",
    "TransportError",
    "UnknownKey",
    "WsrecoverError",
    "caused_by",
]

E = TypeVar("E", bound=BaseException)


class WsrecoverError(Exception):
    """The root of all errors that wsrecover raises."""


class ConfigError(WsrecoverError):
    """A setting is wrong. The message names `field` and what is accepted."""

    def __init__(self, field: str, problem: str, accepted: str) -> None:
        super().__init__(f"{field}: {problem}; accepted: {accepted}")
        self.field = field
        self.problem = problem
        self.accepted = accepted


class InvalidArgument(WsrecoverError):
    """What a program gives cannot be. Nothing happened. `field` is the parameter, or the path in it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class InvalidFilter(InvalidArgument):
    """No session or connection could ever let this filter pass. The message names what is accepted."""

    def __init__(self, field: str, problem: str, accepted: str) -> None:
        super().__init__(field, f"{problem}; accepted: {accepted}")
        self.problem = problem
        self.accepted = accepted


class FrameError(WsrecoverError):
    """What the peer sent is not a frame of this protocol.

    `close` is the close code that must follow, or None where the connection safely survives.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        field: str | None = None,
        ref: str | None = None,
        close: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.ref = ref
        self.close = close


class InvalidEvent(InvalidArgument):
    """An event cannot be logged as given. Nothing was logged; the run goes on."""


class Misfit(WsrecoverError):
    """Data does not fit its schema. `field` is the path of what is wrong (`data.items[2].price`)."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class CommandError(WsrecoverError):
    """A command was refused. `retry_after` is in seconds.

    `code` is one of SPEC.md's error codes, or from a handler one of the app's own: a letter, then up to 63
    letters, digits, `_`, `.` and `-`. The text of the error names code, field and message.
    """

    def __init__(
        self, code: str, message: str, *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        where = f"{field}: " if field and not f"{message}".startswith(f"{field}:") else ""
        super().__init__(f"{code}: {where}{message}")
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after


class BufferFull(WsrecoverError):
    """Nobody iterates over a session, and what lies unread is all that it takes: no answer gets past it.

    Whether a command took effect whose answer was awaited is not known.
    """


class AgentError(WsrecoverError):
    """What an agent raises to fail its run, or a tool call, in words that its user may read.

    Of any other exception the user is told no more than the class name. `retryable`: the same input may
    work later.
    """

    def __init__(self, message: str, *, code: str = "exception", retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retryable = retryable


class TokenError(WsrecoverError):
    """A token does not prove who it speaks for. The message never contains the token."""


class TokenExpired(TokenError):
    """The token was good until its time was up: whoever sent it may get a fresh one."""


class TokenRevoked(TokenError):
    """The token, or all that its user had, was revoked: another one may count, this one never will."""


class UnknownKey(TokenError):
    """The token names a key that is not among those trusted; it may have been published just now."""


class KeysUnavailable(WsrecoverError):
    """The key set that tokens are proved with cannot be fetched now; it may be a moment later."""


class StoreError(WsrecoverError):
    """The root of what a store raises."""


class StoreUnavailable(StoreError):
    """Nothing of the call took effect; a later one may succeed (disk full, store gone)."""


class StoreFailed(StoreError):
    """A write or fsync failed so that nobody knows what is on disk. The store must be opened again."""


class StoreClosed(StoreFailed):
    """It takes nothing any more, after such a failure or its end: nothing of this call took effect."""


class StoreLocked(StoreError):
    """Another process has the store open."""


class StoreMismatch(StoreError):
    """The store was written by a schema that this version does not know."""


class StoreCorrupt(StoreError):
    """What the store holds contradicts itself."""


class RunError(WsrecoverError):
    """The root of what a run raises to its agent."""


class RunBroken(RunError):
    """A commit that held events of this run failed: it can emit no more, so that its log has no hole."""


class RunEnded(RunError):
    """The run has its terminal event already."""


class NoAnswer(RunError):
    """Nobody answered what the agent asked before its time was up. The run goes on."""


class ScopeEnded(RunError):
    """The tool call, message or command was completed already, has not begun, or would begin twice.

    Nothing was logged.
    """


class TransportError(WsrecoverError):
    """The root of what the transport raises."""


class TooLarge(TransportError):
    """The server sends an event, or a snapshot, of more bytes than a client takes. It would do so again."""


class ConnectionClosed(TransportError):
    """The WebSocket ended. `code` is its close code (1006: none came), `reason` the peer's words."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"closed with {code}" + (f": {reason}" if reason else ""))
        self.code = code
        self.reason = reason


class HandshakeRefused(TransportError):
    """The server answered the upgrade with an HTTP status. `retry_after` is in seconds."""

    def __init__(self, status: int, body: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(f"HTTP {status}" + (f": {body}" if body else ""))
        self.status = status
        self.body = body
        self.retry_after = retry_after


def caused_by(error: E, cause: BaseException | None) -> E:
    """`error`, with its cause, or with none to be told: compiled, a `raise` does not hear its `from`."""
    error.__cause__ = cause
    return error
