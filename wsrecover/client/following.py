"""Which threads a session follows, and of which of them it has the state."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import attrs
import trio

from wsrecover.errors import ConfigError, WsrecoverError
from wsrecover.protocol.codec import encode
from wsrecover.protocol.fields import MAX_THREADS, is_id
from wsrecover.protocol.frames import ErrorBody, ErrorFrame, Follow, Snapshot

from .refusal import refusal

__all__ = ["Following", "check_threads"]


def check_threads(threads: Sequence[str] | None) -> tuple[str, ...] | None:
    """The filter that `threads` stand for. Raises `ConfigError`."""
    if threads is None:
        return None
    if isinstance(threads, str) or len(threads) > MAX_THREADS or not all(map(is_id, threads)):
        accepted = f"at most {MAX_THREADS} ids of 1 to 128 printable ASCII characters"
        raise ConfigError("threads", "is not a list of ids", accepted)
    return tuple(dict.fromkeys(threads))


@attrs.define(eq=False)
class _Change:
    """A `follow` without an answer."""

    ref: str
    done: trio.Event = attrs.field(factory=trio.Event)
    error: WsrecoverError | None = None

    def settle(self, error: WsrecoverError | None = None) -> None:
        self.error = error
        self.done.set()


def _common(one: frozenset[str] | None, threads: tuple[str, ...] | None) -> frozenset[str] | None:
    """What is in both, None being all there is."""
    if threads is None:
        return one
    return frozenset(threads) if one is None else one.intersection(threads)


class Following:
    """The filter of the user's stream, over any number of connections; None stands for all threads.

    A change goes to the server at once, or with the next hello. What the server has is `held`; of that the
    session has the state of `known`, and is told the others in snapshots. What it was asked and has not
    answered may hold, or not, by the time at which the connection ends.
    """

    def __init__(self, threads: tuple[str, ...] | None, on_urgent: Callable[[], None]) -> None:
        self.threads = threads
        self._on_urgent = on_urgent
        self._held = threads
        self._known = _common(None, threads)
        self._said = threads
        self._asked: list[Follow] = []
        self._change: _Change | None = None
        self._post: Callable[[bytes], None] | None = None
        self._turn = trio.Lock()
        self._end: WsrecoverError | None = None

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._change is not None and not self._change.done.is_set()

    async def follow(self, threads: Sequence[str] | None) -> None:
        """Follow `threads` alone from now on; returns when that holds. See `ClientSession.follow`."""
        wanted = check_threads(threads)
        async with self._turn:
            if self._end is not None:
                raise self._end
            self.threads = wanted
            change = self._change = _Change(secrets.token_hex(16))
            self._on_urgent()
            self._tell(change.ref)
            try:
                await change.done.wait()
            finally:
                self._change = None
            if change.error is not None:
                raise change.error

    def _tell(self, ref: str) -> None:
        if self._post is not None:
            self._asked.append(Follow(ref, self.threads))
            self._post(encode(self._asked[-1]))

    def hello(self, *, resumes: bool) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        """The `threads` and `fresh` for a hello, with a position in the user's stream or without."""
        self._said = self.threads
        if not resumes:  # Everything will be told from its beginning.
            self._known = _common(None, self.threads)
        elif self.threads is None and self._known is not None:
            # Threads without a name cannot be fresh: the filter is changed behind this hello.
            self._said = tuple(sorted(self._known)) if self._held is None else self._held
        self._known = _common(self._known, self._said)
        if self._said is None or self._known is None:
            return self._said, ()
        return self._said, tuple(sorted(set(self._said) - self._known))

    def attach(self, post: Callable[[bytes], None]) -> None:
        """A connection is up."""
        self._post, self._held = post, self._said
        if self._said != self.threads:  # They changed since its hello, or could not be said in it.
            self._tell(secrets.token_hex(16) if self._change is None else self._change.ref)
        elif self._change is not None:
            self._change.settle()

    def detach(self) -> None:
        """The connection is gone."""
        self._post = None
        for follow in self._asked:
            self._known = _common(self._known, follow.threads)
        self._asked.clear()

    def end(self, error: WsrecoverError) -> None:
        """No connection will come any more."""
        self._end = error
        self.fail(error)

    def fail(self, error: WsrecoverError) -> None:
        """Whoever waits for an answer gets `error`; the change may hold nevertheless."""
        if self._change is not None and self.waiting:
            self._change.settle(error)

    def received(self, snapshot: Snapshot) -> None:
        """These threads have a state now."""
        chosen = self._asked[0].threads if self._asked else self._held
        if self._known is not None and chosen is not None:
            self._known |= set(snapshot.threads).intersection(chosen)

    def answer(self, ref: str | None, error: ErrorBody | ErrorFrame | None) -> bool:
        """The server answered; False where that was not to a `follow`."""
        asked = next((follow for follow in self._asked if follow.id == ref), None)
        if asked is None:
            return False
        self._asked.remove(asked)
        if error is None:  # That comes behind the snapshot of what is new.
            self._held, self._known = asked.threads, _common(None, asked.threads)
        else:
            self.threads = self._asked[-1].threads if self._asked else self._held
        if self._change is not None and ref == self._change.ref:
            self._change.settle(None if error is None else refusal(error))
        return True
