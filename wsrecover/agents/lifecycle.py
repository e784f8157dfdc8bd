"""From `agent_started` to exactly one `agent_completed`, whatever the agent's code does.

::

    start() ─▶ running ──┬─ returns ─────────────────────────▶ completed
    (committed)          ├─ raises · log broken ─────────────▶ failed    exception
                         ├─ time-out ────────────────────────▶ failed    timeout
                         ├─ cancel() ────────────────────────▶ cancelled
                         ├─ abandon() ───────────────────────▶ (nothing is logged)
                         ├─ cancelled from outside ──────────▶ failed    server_stopped
                         └─ the process dies ─ next start-up ▶ failed    producer_lost

The first cause decides: once a run was cancelled, stopped or timed out, that is how it ends, also where its
code returns or raises something else afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs
import orjson
import trio

from wsrecover.errors import (
    AgentError,
    InvalidEvent,
    RunBroken,
    StoreCorrupt,
    StoreError,
    StoreFailed,
    StoreUnavailable,
)
from wsrecover.logger import get_logger
from wsrecover.protocol.codec import encode_event, encode_json
from wsrecover.protocol.events import TERMINAL
from wsrecover.streams.journal import Journal
from wsrecover.streams.store import (
    Answer,
    Applied,
    Entry,
    Outcome,
    RunRecord,
    Store,
    StreamKey,
    Unit,
)

from .app import Agent
from .arguments import is_object
from .ending import (
    CANCELLED,
    LOG_FAILED,
    PRODUCER_LOST,
    STOPPED,
    Ending,
    Status,
    call,
    describe,
    errors_in,
    failed,
    is_cancelled,
    must_pass_at_once,
)
from .place import RunPlace
from .run import Run
from .runlog import RunLog

__all__ = ["Execution", "close_lost_runs"]

log = get_logger(__name__)

START_SECONDS: Final = 60.0
"""What `start` waits for the store at most; the store's own time-out is shorter."""

LOST_PER_UNIT: Final = 100
"""Lost runs that are ended in one unit at start-up."""

LOST_BYTES: Final = 4096
"""More than the end of a lost run can take, in which nothing but the ids is the app's."""


class Execution:
    """One run of an agent, from its start to its end.

    `start` and then, if that was applied, `execute` must be called once each, with no checkpoint of the
    caller's own in between: `start_soon(execution.execute)` at once. Then the run ends properly even if that
    nursery is cancelled.
    """

    def __init__(
        self,
        place: RunPlace,
        agent: Agent,
        *,
        run: str,
        input: dict[str, Any],
        thread: str | None = None,
    ) -> None:
        self._place = place
        self._agent = agent
        self._log = RunLog(place, run, thread)
        self.run: Final = Run(
            self._log,
            agent=agent.name,
            tenant=place.key.tenant,
            user=place.key.name,
            input=input,
            started=place.clock(),
        )
        self._scope = trio.CancelScope()
        self._cause: Ending | None = None
        self._answers: list[Answer] = []
        self._ending = False
        self._terminal: tuple[Entry, Status] | None = None
        self._recorded = False
        self._abandoned = False
        self._ended = trio.Event()
        self._began = 0.0

    async def start(self, answer: Answer | None = None) -> Outcome:
        """Commit `agent_started`, the run's record and the command's answer, all in one unit.

        With `Duplicate` or `Conflict` nothing starts. Raises `InvalidEvent` where the input cannot be logged
        and `StoreUnavailable` where nothing was committed; `StoreFailed` where nobody knows, in which case
        `close_lost_runs` will end a run that was recorded. Cancelling does not interrupt it, so that what
        was committed is told: it waits for the commit, at most `START_SECONDS`.
        """
        if self._abandoned:
            raise StoreUnavailable("the user's log was erased")
        run = self.run
        event = self._log.encode("agent_started", {"agent": run.agent, "input": run.input})
        run.input = orjson.loads(event.body)["data"]["input"]
        record = RunRecord(run.id, run.tenant, run.user, run.agent, run.started, run.thread)
        answers = () if answer is None else (answer,)
        unit = Unit((event,), answers=answers, runs_started=(record,))
        with trio.move_on_after(START_SECONDS, shield=True):
            return await self._place.journal.commit(unit)
        raise StoreFailed(f"no word from the store within {START_SECONDS:g} s")

    async def execute(self) -> None:
        """Run the agent's function, then write the terminal event.

        Never raises an `Exception`. Cancelled from outside: the agent is cancelled, the terminal event is
        written within `grace` seconds, and the cancellation passes on. While the store is down the terminal
        event is tried again and again. A `KeyboardInterrupt` passes on at once: the next
        start-up ends the run.
        """
        try:
            if not self._abandoned:
                await self._finish(await self._perform())
        finally:
            self._close()

    def cancel(self, answer: Answer | None = None) -> bool:
        """End the run as `cancelled`. False: it has ended or is about to, and takes no answer any more.

        `answer` is committed together with the terminal event; its result becomes {run, status} with the
        status that the run ends with. Where this is False, `wait_ended` tells the status.
        """
        if self._ending:
            return False
        if answer is not None:
            self._answers.append(answer)
        self._interrupt(CANCELLED)
        return True

    def hurry(self) -> None:
        """The nursery of `execute` is being cancelled: the run's scopes have `grace` seconds together."""
        if not self._scope.cancel_called:
            self._end_by(trio.current_time())

    def abandon(self) -> None:
        """End the run, which logs nothing from here on, not even that it ended: its log was erased."""
        self._abandoned = True
        self._log.writer.abandon()
        self._interrupt(CANCELLED)

    async def wait_ended(self) -> Status:
        """Wait until the terminal event is on stable storage; the run's last status.

        "failed" too where the terminal event could not be written before its time was up: then `recorded` is
        False, and the next start-up writes it.
        """
        await self._ended.wait()
        return self.run.status

    @property
    def recorded(self) -> bool:
        """Whether the terminal event, with the answers that `cancel` was given, is on stable storage."""
        return self._recorded

    def _interrupt(self, cause: Ending) -> None:
        if not self._scope.cancel_called:
            self._cause = cause
            self._end_by(trio.current_time())
        self._scope.cancel()

    def _end_by(self, when: float) -> None:
        """At `when`, trio's time, the agent is cancelled: its scopes have `grace` seconds from then on."""
        self._log.last_words_until = when + self._place.grace

    async def _perform(self) -> Ending:
        """Run the agent's code: how it ended."""
        self._began = trio.current_time()
        timeout = self._place.timeout if self._agent.timeout is None else self._agent.timeout
        if timeout is not None:
            self._scope.deadline = self._began + timeout
            self._end_by(self._scope.deadline)
        ending = STOPPED
        try:
            with self._scope:
                ending = await self._call()
        except BaseException as exc:  # Whatever an agent raises ends its run and nothing else.
            if must_pass_at_once(exc):
                raise
            ending = self._failure(exc)
        self._ending = True
        if self._scope.cancel_called:
            return self._cause or failed("timeout", f"the run took longer than {timeout} s")
        return ending

    async def _call(self) -> Ending:
        # A Cancelled that the agent kept and raises out of its scope ends the nursery without a word.
        ending = failed("exception", "Cancelled")
        async with trio.open_nursery() as nursery:
            self._log.nursery = nursery
            try:
                ending = _returned(await call(self._agent.function, self.run))
            finally:
                self._log.nursery = None
        return ending

    def _failure(self, exc: BaseException) -> Ending:
        errors = errors_in(exc)
        if errors and not self._abandoned and not any(isinstance(error, AgentError) for error in errors):
            log.error("agent_raised", **self._names(), exc_info=errors[0] if len(errors) == 1 else exc)
        if is_cancelled(exc):
            return STOPPED
        code, message, retryable = describe(exc)
        return failed(code, message, retryable=retryable)

    def _names(self) -> dict[str, str | None]:
        run = self.run
        return {
            "run": run.id,
            "agent": run.agent,
            "tenant": run.tenant,
            "user": run.user,
            "thread": run.thread,
        }

    async def _finish(self, ending: Ending) -> None:
        if self._abandoned:
            return
        try:
            await self._write_terminal(ending)
        except trio.Cancelled:
            # Writing it twice is safe: its event has an id, so the stream takes it once.
            with trio.move_on_after(self._place.grace, shield=True):
                await self._write_terminal(ending)
            raise

    async def _write_terminal(self, ending: Ending) -> None:
        if self._terminal is None:
            try:
                await self._log.end()
            except RunBroken:
                ending = LOG_FAILED
            self._terminal = self._encode_terminal(ending)
        event, status = self._terminal
        try:
            await self._commit_terminal(event, status)
        except StoreError:
            if not self._abandoned:
                log.exception("terminal_event_failed", **self._names())
        else:
            self.run.status = status
            self._recorded = True

    async def _commit_terminal(self, event: Entry, status: Status) -> None:
        result = encode_json({"run": self.run.id, "status": status}, field="result", max_bytes=1024)
        answers = [attrs.evolve(answer, result=result) for answer in self._answers]
        while True:
            unit = Unit((event,), answers=tuple(answers), runs_ended=(self.run.id,))
            outcome = await self._log.writer.finish(unit, retry=self._place.retry)
            if isinstance(outcome, Applied):
                return
            if not answers:
                raise StoreCorrupt(f"the id of the terminal event of run {self.run.id} is taken")
            # A repeated command must not keep the run from ending. Only the first answer of a unit is
            # conditional.
            del answers[0]

    def _encode_terminal(self, ending: Ending) -> tuple[Entry, Status]:
        duration = round(trio.current_time() - self._began, 6)
        usage = {} if self.run.usage is None else {"usage": self.run.usage}
        identity = _terminal_id(self.run.id)
        try:
            event = self._log.encode(TERMINAL, {**ending.data(), **usage, "duration": duration}, id=identity)
        except InvalidEvent as exc:
            ending = failed("exception", f"the result cannot be logged: {exc}")
            event = self._log.encode(TERMINAL, {**ending.data(), "duration": duration}, id=identity)
        if ending.error is not None:
            log.warning("run_failed", **self._names(), error=ending.error)
        return event, ending.status

    def _close(self) -> None:
        self._ending = True
        if self._abandoned and not self._recorded:
            self.run.status = "cancelled"
        elif not self._recorded:
            self.run.status = "failed"
            log.error("run_not_ended", **self._names())
        self._log.close()
        self._ended.set()


def _returned(result: object) -> Ending:
    if result is None or is_object(result):
        return Ending("completed", result)
    return failed("exception", f"the agent returned a {type(result).__name__}, not a JSON object")


def _terminal_id(run: str) -> str:
    """The event id of a run's terminal event: however often it is written, the stream takes it once.

    The tab keeps it apart from every id that a client can give.
    """
    return f"run\t{run}"


async def close_lost_runs(store: Store, journal: Journal, *, clock: Callable[[], float]) -> int:
    """At start-up: end the runs that an earlier process left under way; how many there were.

    Each gets `agent_completed` {status "failed", error code `producer_lost`, retryable}. Call it before any
    run is started. Raises `StoreError`; calling it again, also after a cancellation, ends those that are
    left.
    """
    records = await store.runs()
    for first in range(0, len(records), LOST_PER_UNIT):
        some = records[first : first + LOST_PER_UNIT]
        if not await _end_lost(some, journal, clock()):
            for record in some:
                if not await _end_lost([record], journal, clock()):
                    log.error("lost_run_not_ended", run=record.run, tenant=record.tenant, user=record.user)
    return len(records)


async def _end_lost(records: Sequence[RunRecord], journal: Journal, now: float) -> bool:
    """End these runs in one commit; False where an id of a terminal event stands for something else."""
    entries = tuple(_lost(record, now) for record in records)
    unit = Unit(entries, runs_ended=tuple(record.run for record in records))
    return isinstance(await journal.commit(unit), Applied)


def _lost(record: RunRecord, now: float) -> Entry:
    data = {**PRODUCER_LOST.data(), "duration": round(max(0.0, now - record.started), 6)}
    body = encode_event(
        ts=now, type=TERMINAL, data=data, thread=record.thread, run=record.run, max_bytes=LOST_BYTES
    )
    key = StreamKey("user", record.tenant, record.user)
    return Entry(key, body, now, record.thread, _terminal_id(record.run))
