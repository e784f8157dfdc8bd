"""The runs of one session: started in one commit with what belongs to it, and found by id while they last."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import attrs
import trio

from wsrecover.access.policy import may
from wsrecover.access.principal import Principal
from wsrecover.agents.lifecycle import Execution
from wsrecover.agents.place import RunPlace
from wsrecover.agents.requests import Requests
from wsrecover.errors import CommandError, StoreFailed, StoreUnavailable, WsrecoverError
from wsrecover.protocol.frames import RunInfo
from wsrecover.streams.store import Answer, Applied, Entry, Outcome, StreamKey

from .contexts import UserContexts
from .members import Members
from .quota import Quota
from .services import Services

__all__ = ["Runs"]


@attrs.define(eq=False)
class _Launch:
    """A run on its way from who asked for it to the member that runs it."""

    execution: Execution
    answer: Answer | None
    done: trio.Event = attrs.field(factory=trio.Event)
    outcome: Outcome | None = None
    error: WsrecoverError | None = None


class Runs:
    """The runs under way of one user, as many as its tier may have. `show` takes what is not logged."""

    def __init__(
        self,
        services: Services,
        key: StreamKey,
        members: Members,
        quota: Quota,
        show: Callable[[Entry], object],
        contexts: UserContexts,
    ) -> None:
        self._contexts = contexts
        self._services = services
        self._show = show
        self._key = key
        self._members = members
        self._quota = quota
        self._starting: set[Execution] = set()
        self._abandoned = False
        self._executions: dict[str, Execution] = {}
        self.requests = Requests()

    def __len__(self) -> int:
        return len(self._executions)

    def find(self, run: str) -> Execution | None:
        """The run under way with this id, if there is one."""
        return self._executions.get(run)

    def prepare(
        self,
        name: str,
        input: dict[str, Any],
        *,
        thread: str | None,
        field: str = "agent",
        principal: Principal | None = None,
    ) -> Execution:
        """A run of the agent `name`, not started yet.

        Raises `CommandError("not_found")`, also where the agent is not for the `principal` who asks, if it is
        somebody outside; `field` is where the caller had the name from.
        """
        services, config = self._services, self._services.config
        agent = services.app.agents.get(name)
        if agent is None or not (principal is None or may(principal, agent.roles)):
            raise CommandError("not_found", "there is no such agent", field=field)
        place = RunPlace(
            key=self._key,
            journal=services.journal,
            requests=self.requests,
            threads=self._contexts,
            schemas=services.app.events,
            show=self._show,
            clock=services.clock,
            alarms=services.alarms,
            event_bytes=config.limits.event_bytes,
            events_per_second=self._quota.tier.events_per_second,
            delta_interval=config.timeouts.delta_interval,
            timeout=config.timeouts.run,
        )
        return Execution(place, agent, run=secrets.token_hex(16), input=input, thread=thread)

    async def start(self, execution: Execution, answer: Answer | None = None) -> Outcome:
        """Start a run: its `agent_started`, its record and the answer in one commit, then the agent itself.

        Raises `CommandError("overloaded")` at the limit of runs, else what `Execution.start` raises.
        Cancelled, it may start nevertheless.
        """
        if self._abandoned:
            raise StoreUnavailable("the user's log was erased")
        self._quota.add_run(len(self._executions) + len(self._starting))
        launch = _Launch(execution, answer)
        try:
            self._members.start(self._run, launch)
        except StoreFailed:
            self._quota.drop_run()
            raise
        self._starting.add(execution)
        await launch.done.wait()
        if launch.outcome is None:
            raise launch.error or StoreFailed("the server stopped before the run was started")
        return launch.outcome

    async def _run(self, launch: _Launch) -> None:
        """Start and execute, both in one member: no run is left without an owner, whoever is cancelled."""
        try:
            await self._start_and_execute(launch)
        finally:
            self._quota.drop_run()

    async def _start_and_execute(self, launch: _Launch) -> None:
        execution = launch.execution
        try:
            launch.outcome = await execution.start(launch.answer)
        except WsrecoverError as error:
            launch.error = error
        finally:
            self._starting.discard(execution)
            launch.done.set()
        if isinstance(launch.outcome, Applied):
            self._executions[execution.run.id] = execution
            try:
                await execution.execute()
            finally:
                del self._executions[execution.run.id]
                if execution.run.status == "failed":
                    self._services.note("run.failed")

    def abandon(self) -> None:
        """Cut all runs off, also those about to start: they log nothing from here on. Returns at once."""
        self._abandoned = True
        for execution in (*self._executions.values(), *self._starting):
            execution.abandon()

    def hurry(self) -> None:
        """The session's nursery is being cancelled: see `Execution.hurry`. Returns at once."""
        for execution in self._executions.values():
            execution.hurry()

    def infos(self) -> tuple[RunInfo, ...]:
        """The runs under way, as `welcome` tells them."""
        runs = [execution.run for execution in self._executions.values()]
        return tuple([RunInfo(run.id, run.agent, run.status, run.thread) for run in runs])
