"""Commands on their way: each is repeated under its id, over any number of connections, until answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import orjson
import trio

from wsrecover.errors import CommandError, InvalidEvent, WsrecoverError
from wsrecover.protocol.codec import encode
from wsrecover.protocol.fields import is_id
from wsrecover.protocol.frames import ErrorFrame, Reply, Send

from .refusal import refusal

__all__ = ["MAX_IN_FLIGHT", "Outbox"]

MAX_IN_FLIGHT: Final = 32
"""Commands that a server is sent before it answered one; more wait for their turn. It allows as many by
default, and says so where it allows fewer."""

FATAL_CLOSES: Final = 2
"""A command that was outstanding at so many closes for a protocol error is taken for their cause."""

_LENGTH_OF_AGE: Final = 32


@attrs.define(eq=False)
class _Command:
    id: str
    encoded: bytes
    first_sent: tuple[float, float] | None = None
    fatal_closes: int = 0
    answer: Reply | Exception | None = None
    answered: trio.Event = attrs.field(factory=trio.Event)

    def settle(self, answer: Reply | Exception) -> None:
        self.answer = answer
        self.answered.set()

    def is_like(self, other: _Command) -> bool:
        """Whether they say the same, in whatever order."""
        return self.encoded == other.encoded or orjson.loads(self.encoded) == orjson.loads(other.encoded)

    def message(self) -> bytes:
        """The frame to send now; a repeat says how old it is (protocol: `age`)."""
        # One of these stands still while a machine sleeps, and the other one can be set.
        now = trio.current_time(), time.time()
        if self.first_sent is None:
            self.first_sent = now
            return self.encoded
        age = max(this - first for this, first in zip(now, self.first_sent, strict=True))
        return b'%b,"age":%.3f}' % (self.encoded[:-1], age)


class Outbox:
    """The commands without an answer, in the order in which they were made, which is that of sending them.

    `in_flight` is what the connection at hand was sent and has not answered: also what nobody waits for any
    more, for the server is at work on it all the same.
    """

    def __init__(self, on_urgent: Callable[[], None]) -> None:
        self._commands: dict[str, _Command] = {}
        self._in_flight: dict[str, _Command] = {}
        self._most = MAX_IN_FLIGHT
        self._post: Callable[[bytes], None] | None = None
        self._on_urgent = on_urgent
        self._max_bytes: int | None = None
        self._end: Exception | None = None

    @property
    def waiting(self) -> bool:
        """Whether a command has no answer yet."""
        return bool(self._commands)

    async def call(
        self,
        command_id: str,
        type: str,
        data: Mapping[str, Any],
        thread: str | None,
    ) -> dict[str, Any]:
        """Send a command and wait for its result; see `ClientSession.send`."""
        command = self._make(command_id, type, data, thread)
        if self._end is not None:
            raise self._end
        if command.id in self._commands:
            raise CommandError("invalid", "a command with it waits for its answer", field="id")
        sent = self._in_flight.get(command.id)
        if sent is not None and not sent.is_like(command):  # Its answer would be taken for this one's.
            problem = "another command with it was sent and is not answered"
            raise CommandError("id_conflict", problem, field="id")
        self._commands[command.id] = command
        self._on_urgent()
        try:
            self._send_on()
            await command.answered.wait()
        finally:
            if self._commands.get(command.id) is command:  # Or a repeat has come since, behind the answer.
                del self._commands[command.id]
        return _result(command.answer)

    def _send_on(self) -> None:
        """Send as many commands as the server takes now."""
        for command in self._commands.values():
            if self._post is None or len(self._in_flight) >= self._most:
                return
            if command.id not in self._in_flight:
                self._in_flight[command.id] = command
                self._post(command.message())

    def _settle(self, name: str, answer: Reply | Exception) -> None:
        """Give a command its answer; one that nobody waits for only makes room."""
        self._in_flight.pop(name, None)
        command = self._commands.pop(name, None)
        if command is not None:
            command.settle(answer)
        self._send_on()

    def _make(self, command_id: str, type: str, data: Mapping[str, Any], thread: str | None) -> _Command:
        if not is_id(command_id):
            raise CommandError("invalid", "is not 1 to 128 printable ASCII characters", field="id")
        try:
            encoded = encode(Send(command_id, type, dict(data), thread))
        except InvalidEvent as error:
            raise CommandError("invalid", str(error), field=error.field) from error
        if self._max_bytes is not None and len(encoded) + _LENGTH_OF_AGE > self._max_bytes:
            problem = f"{len(encoded)} bytes encoded, the server takes messages of at most {self._max_bytes}"
            raise CommandError("too_large", problem, field="data")
        return _Command(command_id, encoded)

    def attach(self, post: Callable[[bytes], None], limits: Mapping[str, Any]) -> None:
        """A connection is up: send what has no answer yet, and then each command as it comes.

        `limits` are those of its welcome: `message_bytes` and `commands_in_flight`.
        """
        max_bytes, most = limits.get("message_bytes"), limits.get("commands_in_flight")
        self._max_bytes = max_bytes if isinstance(max_bytes, int) else None
        self._most = min(MAX_IN_FLIGHT, max(1, most)) if isinstance(most, int) else MAX_IN_FLIGHT
        self._post = post
        self._send_on()

    def detach(self, *, fatal: bool) -> bool:
        """The connection is gone, `fatal` where it was closed for what a client sent.

        Returns whether commands were outstanding that may have been the cause.
        """
        self._post = None
        suspects, self._in_flight = self._in_flight, {}
        for name in suspects.keys() & self._commands.keys() if fatal else ():
            command = self._commands[name]
            command.fatal_closes += 1
            if command.fatal_closes >= FATAL_CLOSES:
                error = CommandError("malformed", "the server closed the connection over it, twice")
                self._settle(name, error)
        return bool(suspects)

    def reply(self, reply: Reply) -> None:
        """An answer came."""
        self._settle(reply.id, reply)

    def refuse(self, error: ErrorFrame) -> None:
        """A frame was refused: where it was a command's, that is its answer."""
        self._settle(error.ref or "", refusal(error))

    def end(self, error: Exception) -> None:
        """No connection will come any more: every command fails with `error`."""
        self._end = error
        self._post = None
        self.fail(error)

    def fail(self, error: Exception) -> None:
        """Every command that has no answer yet, sent or not, fails with `error`."""
        commands, self._commands = self._commands, {}
        for command in commands.values():
            command.settle(error)


def _result(answer: Reply | Exception | None) -> dict[str, Any]:
    if isinstance(answer, Reply):
        if answer.status != "error":
            return answer.result or {}
        if answer.error is None:
            raise CommandError("internal", "the server refused without a reason")
        raise refusal(answer.error)
    raise answer or WsrecoverError("answered with nothing")
