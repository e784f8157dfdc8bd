"""A client that changes what it follows, against a model of a server: no thread ever has a hole.

Follows are given up, refused and cut off at any point; the model knows up to where the session's state of
each thread is complete, and what a resume takes for granted.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TypeAlias

import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsrecover.client.following import Following
from wsrecover.errors import CommandError
from wsrecover.protocol.codec import decode_client
from wsrecover.protocol.context import EMPTY
from wsrecover.protocol.frames import ErrorBody, Follow, Snapshot

Threads: TypeAlias = tuple[str, ...] | None

THREADS = ("a", "b", "c")
FILTERS = (None, ("a",), ("a", "b"), ("b", "c"), ("c",))
STEPS = ("connect", "drop", "log", "answer", "refuse", "cut_before_answer", "give_up")


def passes(threads: Threads, thread: str) -> bool:
    return threads is None or thread in threads


class Server:
    """What the server has, and what of its log the session has; each `log` is an event in each thread."""

    def __init__(self, client: Following) -> None:
        self.client = client
        self.head = 0
        self.position: int | None = None
        self.complete = dict.fromkeys(THREADS, 0)
        self.filter: Threads = None
        self.asked: list[Follow] = []
        self.up = False

    def connect(self) -> None:
        if self.up:
            return
        threads, fresh = self.client.hello(resumes=self.position is not None)
        for thread in THREADS:
            if passes(threads, thread) and thread not in fresh:
                took = self.position
                assert took is None or self.complete[thread] >= took, f"{thread} has a hole before {took}"
        self.filter, self.up, self.asked = threads, True, []
        self._sent()
        self.client.attach(self._take)
        if fresh:
            self.client.received(Snapshot("user", self.head, {thread: EMPTY.json() for thread in fresh}))

    def _take(self, message: bytes) -> None:
        self.asked += [
            frame for frame in decode_client(message.decode(), max_bytes=9999) if isinstance(frame, Follow)
        ]

    def _sent(self) -> None:
        """The session has all that passes the filter."""
        self.position = self.head
        for thread in THREADS:
            if passes(self.filter, thread):
                self.complete[thread] = self.head

    def drop(self) -> None:
        if self.up:
            self.up = False
            self.client.detach()

    def log(self) -> None:
        self.head += 1
        if self.up:
            self._sent()

    def answer(self, *, lost: bool = False) -> None:
        if not self.up or not self.asked:
            return
        follow = self.asked.pop(0)
        before, self.filter = self.filter, follow.threads
        self._sent()
        new = [thread for thread in THREADS if passes(self.filter, thread) and not passes(before, thread)]
        if new:
            self.client.received(Snapshot("user", self.head, {thread: EMPTY.json() for thread in new}))
        if lost:
            self.log()
            self.drop()
        else:
            self.client.answer(follow.id, None)

    def cut_before_answer(self) -> None:
        self.answer(lost=True)

    def refuse(self) -> None:
        if self.up and self.asked:
            self.client.answer(self.asked.pop(0).id, ErrorBody("overloaded", "too many"))


@settings(max_examples=300)
@example(("a", "b"), ["connect", "drop", ("a",), "connect", "log", ("a", "b"), "drop", "connect"])
@example(("a", "b"), ["connect", ("a",), "drop", "connect", ("a", "b"), "answer", None, "refuse"])
@given(st.sampled_from(FILTERS), st.lists(st.sampled_from((*STEPS, *FILTERS)), max_size=40))
async def test_a_resume_takes_for_granted_only_what_the_session_has(
    first: Threads, steps: list[str | Threads]
) -> None:
    client = Following(first, lambda: None)
    server = Server(client)
    scopes: list[trio.CancelScope] = []

    async def follow(threads: Threads, scope: trio.CancelScope) -> None:
        with scope, suppress(CommandError):
            await client.follow(threads)

    async with trio.open_nursery() as nursery:
        for step in [*steps, "connect", *["answer"] * 20]:
            if step == "give_up":
                for scope in scopes:
                    scope.cancel()
            elif isinstance(step, str):
                getattr(server, step)()
            else:
                scopes.append(trio.CancelScope())
                nursery.start_soon(follow, step, scopes[-1])
            await trio.testing.wait_all_tasks_blocked()
        assert client.threads == server.filter, "what it takes itself to follow is what it follows"
        server.drop()
        server.connect()
        nursery.cancel_scope.cancel()
