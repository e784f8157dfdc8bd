"""The app's own commands: accepted on stable storage before their handler runs, answered once.

::

    accepted ──▶ the handler runs ─┬─ returns ──────────────▶ ok     ┐
    (committed)                    ├─ raises CommandError ──▶ error  ├ in one commit with what it emitted
                                   ├─ raises anything else ─▶ error  ┘ (of one that raised: nothing)
                                   └─ is cut off ───────────▶ stays accepted: outcome_unknown
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import attrs
import orjson
import trio

from wsrecover.agents.arguments import is_duration
from wsrecover.agents.command import Command, Handler
from wsrecover.agents.ending import call as call_app
from wsrecover.agents.ending import errors_in, must_pass_at_once, readable
from wsrecover.errors import CommandError, InvalidEvent, Misfit, ScopeEnded, StoreError
from wsrecover.logger import get_logger
from wsrecover.protocol import codec
from wsrecover.protocol.events import OF_RUNS
from wsrecover.protocol.schema import fitted, plain
from wsrecover.streams.store import Answer, AnswerStatus, Applied, Entry, StreamKey, Unit

from .calls import Call, Result, Status, outcome_unknown, settled, told
from .runs import Runs
from .services import Services

__all__ = ["RESULT_BYTES", "answer_own"]

log = get_logger(__name__)

RESULT_BYTES: Final = 64 * 1024
"""The most that a handler may return, encoded."""

EVENTS: Final = 100
"""Events that one command may emit."""

_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}\Z")

RETRY: Final = (0.1, 0.5, 1.0, 2.0)
"""Seconds between the tries to keep the answer of a handler that ran; the last one is repeated."""


@attrs.define(eq=False)
class _Effects:
    """What a handler leads to: its events are kept back until it is done."""

    services: Services
    key: StreamKey
    runs: Runs
    entries: list[Entry] = attrs.field(factory=list)
    done: bool = False

    def emit(self, type: str, data: object, thread: str | None) -> None:
        if self.done:
            raise ScopeEnded("the command has been answered")
        if len(self.entries) >= EVENTS:
            raise InvalidEvent("type", f"a command may emit {EVENTS} events, the limit")
        services, now = self.services, self.services.clock()
        body = codec.encode_event(
            ts=now,
            type=type,
            data=fitted(type, data, services.app.events),
            thread=thread,
            max_bytes=services.config.limits.event_bytes,
        )
        if type in OF_RUNS:
            raise InvalidEvent("type", f"{type} is made by runs alone")
        self.entries.append(Entry(self.key, body, now, thread))

    async def start_agent(self, agent: str, input: dict[str, Any], thread: str | None) -> str:
        execution = self.runs.prepare(agent, input, thread=thread)
        await self.runs.start(execution)
        return execution.run.id


async def answer_own(
    call: Call, handler: Handler, services: Services, key: StreamKey, runs: Runs
) -> tuple[Status, Result]:
    """Answer one of the app's own commands.

    Raises `CommandError`: of its data, of its handler, or of an earlier try; `StoreError` where it was not
    accepted. Cancelled: the handler is cut off.
    """
    try:
        data = handler.schema.structure(call.send.data, "data")
    except Misfit as error:
        # A repeat is answered as the first was, also where its data would not fit by now.
        if (known := await call.known(services.store)) is not None:
            return known
        raise CommandError("invalid", error.problem, field=error.field) from error
    accepted = attrs.evolve(call.answer(), status="accepted")
    outcome = await services.journal.commit(Unit(answers=(accepted,)))
    if not isinstance(outcome, Applied):
        return settled(outcome, {})
    effects = _Effects(services, key, runs)
    try:
        answer = await _run(call, handler, data, effects)
    finally:
        effects.done = True
    entries = tuple(effects.entries) if answer.status == "ok" else ()
    # The handler ran, and nobody but this task can say what it came to: so it tries for as long as it may.
    try:
        with trio.fail_after(services.config.timeouts.store):
            outcome = await services.journal.writer().finish(Unit(entries, (answer,)), retry=RETRY)
    except (StoreError, trio.TooSlowError) as problem:
        log.exception("command_answer_not_kept", **_names(call))
        raise outcome_unknown("the command's handler ran, but its answer could not be kept") from problem
    if isinstance(outcome, Applied):
        return "ok", told(answer.status, answer.result)
    return settled(outcome, {})


async def _run(call: Call, handler: Handler, data: object, effects: _Effects) -> Answer:
    """Run the handler: the answer that is to be kept, whatever it returned or raised.

    Raises `CommandError("outcome_unknown")` where its time was up.
    """
    command = Command(call.principal, call.send.id, call.send.thread, effects)
    timeout = handler.timeout or effects.services.config.timeouts.command
    try:
        with trio.move_on_after(timeout):
            returned = await call_app(handler.function, command, data)
            return _answer(call, effects, "ok", _result(returned))
    except BaseException as raised:  # Whatever a handler raises ends its command and nothing else.
        if must_pass_at_once(raised):
            raise
        error = _error(call, raised)
        # A cancellation from outside passes on, and alone: an error beside it would end the session.
        await trio.lowlevel.checkpoint_if_cancelled()
        return _answer(call, effects, "error", error)
    log.warning("command_timed_out", **_names(call), timeout=timeout)
    raise outcome_unknown(f"the command's handler took longer than {timeout:g} s")


def _answer(call: Call, effects: _Effects, status: AnswerStatus, result: bytes) -> Answer:
    return Answer(call.key, call.digest, effects.services.store.now(), result, status)


def _result(returned: object) -> bytes:
    result = plain(returned, "result") if attrs.has(type(returned)) else returned
    if result is None:
        result = {}
    if not isinstance(result, Mapping):
        raise TypeError(f"the handler returned a {type(returned).__name__}, not a JSON object")
    return codec.encode_json(dict(result), field="result", max_bytes=RESULT_BYTES)


def _error(call: Call, raised: BaseException) -> bytes:
    """What the client is told: a `CommandError` speaks for itself, of any other it reads nothing.

    Nor of one whose code is none: there the message was given in its place.
    """
    errors = errors_in(raised)
    refused = errors[0] if len(errors) == 1 else None
    if isinstance(refused, CommandError) and _is_code(refused.code):
        said = {
            "code": refused.code,
            "message": readable(refused.message),
            "field": None if refused.field is None else readable(refused.field),
            "retry_after": float(refused.retry_after) if is_duration(refused.retry_after) else None,
        }
    else:
        if errors:
            misread = {"bad_code": refused.code} if isinstance(refused, CommandError) else {}
            log.error("command_raised", **_names(call), **misread, exc_info=refused or raised)
        said = {"code": "internal", "message": "the command failed in the server"}
    return orjson.dumps(said)


def _is_code(code: object) -> bool:
    return isinstance(code, str) and _CODE.match(code) is not None


def _names(call: Call) -> dict[str, str]:
    return {"command": call.send.type, "tenant": call.key.tenant, "user": call.key.user}
