"""Requests: questions of a run's that wait for a person's answer.

::

                    answered, with the commit of its event
    open ─────────────────────────────────────────────────▶ resolved
       └── timeout, or withdrawn (the run stopped asking) ─────▲

Whoever comes first decides. A request that was resolved has one `input_resolved`; where the run broke or its
process died in between it is the run's terminal event that ends it.
"""

from __future__ import annotations

import math
from typing import Any

import attrs
import trio

from wsrecover.errors import CommandError, Misfit, NoAnswer
from wsrecover.protocol.schema import Schema
from wsrecover.streams.store import Answer, Applied, Outcome, Unit

from .ending import must_pass_at_once
from .requests import already_resolved
from .runlog import RunLog

__all__ = ["Request"]


@attrs.define(eq=False)
class Request:
    """One question. `timeout` is in seconds; None: it waits for as long as the run may take."""

    id: str
    prompt: str
    schema: Schema[Any] | None
    timeout: float | None
    log: RunLog
    resolved: bool = False
    answer: Any = None
    _answered: trio.Event = attrs.field(factory=trio.Event)
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def ask(self) -> Any:
        """Emit `input_requested` and wait for the answer; see `Run.ask`."""
        requests = self.log.place.requests
        event = self.log.encode("input_requested", self._requested())
        requests.open(self)
        try:
            await self.log.write(event)
            await self._wait()
        finally:
            requests.close(self)
        if not self._answered.is_set():
            raise NoAnswer(f"nobody answered within {self.timeout:g} s")
        return self.answer

    async def _wait(self) -> None:
        try:
            with trio.move_on_after(math.inf if self.timeout is None else self.timeout):
                await self._answered.wait()
            async with self._lock:  # An answer whose commit is under way comes first.
                if not self.resolved:
                    await self._resolve(None, reason="timeout")
        except BaseException as exc:
            if not (must_pass_at_once(exc) or self.resolved):
                await self._withdraw(exc)
            raise

    async def _withdraw(self, exc: BaseException) -> None:
        with self.log.last_words():
            async with self._lock:  # An answer whose commit is under way comes first, and may yet fail.
                if not self.resolved:
                    await self._resolve(exc, reason="withdrawn")

    async def respond(self, value: Any, answer: Answer) -> Outcome:
        """Resolve it by `value`, in one commit with the command's `answer`.

        Raises `CommandError` (`already_resolved`; `invalid` where the value does not fit) and `StoreError`;
        it stays open then. Cancelled, it may have been resolved.
        """
        fit = value
        if self.schema is not None:
            try:
                fit = self.schema.structure(value, "data.answer")
            except Misfit as error:
                raise CommandError("invalid", error.problem, field=error.field) from error
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()
        try:
            if self.resolved:
                raise already_resolved()
            event = self.log.encode("input_resolved", {"request_id": self.id, "answer": value})
            outcome = await self.log.place.journal.commit(Unit((event,), (answer,)))
            if isinstance(outcome, Applied):
                self.answer, self.resolved = fit, True
                self._answered.set()
            return outcome
        finally:
            self._lock.release()

    def _requested(self) -> dict[str, Any]:
        data: dict[str, Any] = {"request_id": self.id, "prompt": self.prompt}
        if self.schema is not None:
            data["schema"] = self.schema.description
        if self.timeout is not None:
            data["expires_at"] = self.log.place.clock() + self.timeout
        return data

    async def _resolve(self, exc: BaseException | None, *, reason: str) -> None:
        self.resolved = True
        data = {"request_id": self.id, "reason": reason}
        await self.log.write_last(self.log.encode("input_resolved", data), exc)
