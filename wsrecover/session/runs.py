"""The runs of one session: started in one commit with what belongs to it, and found by id while they last."""

from __future__ import annotations

import secrets
from typing import Any

from wsrecover.agents.lifecycle import Execution
from wsrecover.agents.runlog import RunPlace
from wsrecover.errors import CommandError
from wsrecover.protocol.frames import RunInfo
from wsrecover.streams.store import Answer, Applied, Outcome, StreamKey

from .members import Members
from .services import Services

__all__ = ["Runs"]


class Runs:
    """The runs under way of one user, at most `limits.runs_per_user`."""

    def __init__(self, services: Services, key: StreamKey, members: Members) -> None:
        self._services = services
        self._key = key
        self._members = members
        self._starting = 0
        self._executions: dict[str, Execution] = {}

    def __len__(self) -> int:
        return len(self._executions)

    def find(self, run: str) -> Execution | None:
        """The run under way with this id, if there is one."""
        return self._executions.get(run)

    def prepare(
        self, name: str, given: dict[str, Any], *, thread: str | None, field: str = "agent"
    ) -> Execution:
        """A run of the agent `name`, not started yet.

        Raises `CommandError("not_found")`; `field` is where the caller had the name from.
        """
        agent = self._services.app.find(name)
        if agent is None:
            raise CommandError("not_found", "there is no such agent", field=field)
        config = self._services.config
        place = RunPlace(
            self._services.journal,
            self._key,
            self._services.clock,
            config.limits.event_bytes,
            timeout=config.timeouts.run,
        )
        return Execution(place, agent, run=secrets.token_hex(16), input=given, thread=thread)

    async def start(self, execution: Execution, answer: Answer | None = None) -> Outcome:
        """Start a run: its `agent_started`, its record and the answer in one commit, then the agent itself.

        Raises `CommandError("overloaded")` at the limit of runs, else what `Execution.start` raises.
        Cancelled, it sees the commit through first, so that no run is left without an owner.
        """
        limit = self._services.config.limits.runs_per_user
        if len(self._executions) + self._starting >= limit:
            raise CommandError("overloaded", f"{limit} runs are under way, the limit", retry_after=1.0)
        self._starting += 1
        try:
            with self._members.held():  # Whoever asks from outside is no member, and the commit takes time.
                outcome = await execution.start(answer)
                if isinstance(outcome, Applied):
                    self._executions[execution.run.id] = execution
                    self._members.start(self._execute, execution)
        finally:
            self._starting -= 1
        return outcome

    async def _execute(self, execution: Execution) -> None:
        try:
            await execution.execute()
        finally:
            del self._executions[execution.run.id]

    def infos(self) -> tuple[RunInfo, ...]:
        """The runs under way, as `welcome` tells them."""
        return tuple(
            RunInfo(run=run.id, agent=run.agent, status=run.status, thread=run.thread)
            for run in (execution.run for execution in self._executions.values())
        )
