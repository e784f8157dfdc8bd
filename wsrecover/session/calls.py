"""One command on its way to its answer, and what becomes of an answer that the store had already."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import attrs
import orjson

from wsrecover.access.principal import Principal
from wsrecover.errors import CommandError, FrameError
from wsrecover.protocol.frames import ErrorBody, ErrorFrame, Reply, Send
from wsrecover.streams.store import (
    Answer,
    AnswerKey,
    AnswerStatus,
    Applied,
    Conflict,
    Duplicate,
    Outcome,
    Store,
)

__all__ = [
    "Call",
    "Result",
    "Status",
    "conflict",
    "error_frame",
    "in_doubt",
    "outcome_unknown",
    "refusal",
    "settled",
    "told",
]

Status: TypeAlias = Literal["ok", "duplicate"]
Result: TypeAlias = dict[str, Any]


@attrs.frozen
class Call:
    """One command as what answers it sees it. `now` is in unix seconds, `at` is the store's own time."""

    principal: Principal
    send: Send
    key: AnswerKey
    digest: bytes
    now: float
    at: float

    def answer(self, result: Result | None = None) -> Answer:
        """What the store is to keep for a repeat; None where the positions say it all."""
        encoded = None if result is None else orjson.dumps(result)
        return Answer(self.key, self.digest, self.at, encoded)

    async def known(self, store: Store) -> tuple[Status, Result] | None:
        """What a command whose answer has a result was answered before, if it was. Raises as `settled`."""
        known = await store.answer(self.key)
        if known is None:
            return None
        answer, _ = known
        if answer.digest != self.digest:
            raise conflict(self.key.id)
        return "duplicate", told(answer.status, answer.result)


def settled(outcome: Outcome, result: Result) -> tuple[Status, Result]:
    """The answer to a command whose unit came to `outcome`: `result`, or what was answered before.

    Raises `CommandError`: what was answered before where that was an error, `outcome_unknown`, `id_conflict`.
    """
    match outcome:
        case Applied():
            return "ok", result
        case Duplicate():
            return "duplicate", told(outcome.status, outcome.result)
        case Conflict():
            raise conflict(outcome.id)


def told(status: AnswerStatus, result: bytes | None) -> Result:
    """What an answer as it is kept says. Raises `CommandError` where that is an error, or not known."""
    if status == "accepted":
        raise outcome_unknown("the process ended in the command's handler")
    said: Result = orjson.loads(result or b"{}")
    if status == "error":
        raise CommandError(**said)
    return said


def conflict(ref: str) -> CommandError:
    """The id was used for something else."""
    return CommandError("id_conflict", f"the id {ref!r} was used with another body", field="id")


def outcome_unknown(why: str, *, retry_after: float | None = None) -> CommandError:
    """The command may have taken effect, and nobody knows; a repeat may tell, after so many seconds."""
    return CommandError("outcome_unknown", why, retry_after=retry_after)


def in_doubt(error: CommandError) -> CommandError:
    """What a repeat is told that a limit refuses: an earlier try may have taken effect."""
    why = f"{error.message}; what an earlier try did was not looked up"
    return outcome_unknown(why, retry_after=error.retry_after)


def refusal(ref: str, error: CommandError) -> Reply:
    """The reply that says why a command was refused."""
    body = ErrorBody(error.code, error.message, field=error.field, retry_after=error.retry_after)
    return Reply(ref, "error", error=body)


def error_frame(error: FrameError | CommandError) -> ErrorFrame:
    """The frame that tells of an error where there is no command to reply to."""
    ref = error.ref if isinstance(error, FrameError) else None
    retry_after = error.retry_after if isinstance(error, CommandError) else None
    return ErrorFrame(error.code, error.message, field=error.field, ref=ref, retry_after=retry_after)
