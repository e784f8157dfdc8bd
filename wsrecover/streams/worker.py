"""A thread that does blocking work for tasks, in the order of asking and in groups."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import trio

__all__ = ["Job", "Worker"]

T = TypeVar("T")


class Job:
    """One piece of work: whoever runs it sets `result` or `error`. `task` is None once it was abandoned."""

    __slots__ = ("error", "result", "task", "work")

    def __init__(self, work: Callable[[], Any], task: trio.lowlevel.Task) -> None:
        self.work = work
        self.task: trio.lowlevel.Task | None = task
        self.result: Any = None
        self.error: Exception | None = None


class Worker:
    """Hands groups of jobs, whatever has gathered, to `run` in one thread of its own.

    `run` sets the result or error of each job and does not raise. `idle`, if given, is called in the thread
    while no job waits, for as long as it says that there is more to do.
    """

    def __init__(
        self, name: str, run: Callable[[Sequence[Job]], None], idle: Callable[[], bool] | None = None
    ) -> None:
        self._run = run
        self._idle = idle
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, done in the thread. Cancelled: it is done nevertheless, unheard."""
        job = Job(work, trio.lowlevel.current_task())
        self._queue.put(job)

        def abandon(_: object) -> trio.lowlevel.Abort:
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abandon)
        if job.error is not None:
            raise job.error
        return cast("T", job.result)

    async def stop(self) -> None:
        """Do what was asked for, then end the thread. Cancelled: it ends nevertheless."""
        self._queue.put(None)
        await self._ended.wait()

    def _serve(self) -> None:
        more = True
        stopping = False
        while not stopping:
            group, stopping = self._gather(block=not more)
            if group:
                self._run(group)
                more = True
                if not self._tell(self._wake, group):
                    return
            elif more:
                more = self._idle is not None and self._idle()
        self._tell(self._ended.set)

    def _gather(self, *, block: bool) -> tuple[list[Job], bool]:
        group: list[Job] = []
        while True:
            try:
                job = self._queue.get(block=block and not group)
            except queue.Empty:
                return group, False
            if job is None:
                return group, True
            group.append(job)

    def _tell(self, sync_fn: Callable[..., object], *args: object) -> bool:
        try:
            self._token.run_sync_soon(sync_fn, *args)
        except trio.RunFinishedError:  # Nobody is left to be told.
            return False
        return True

    @staticmethod
    def _wake(group: Sequence[Job]) -> None:
        for job in group:
            if job.task is not None:
                trio.lowlevel.reschedule(job.task)
