"""Which threads a session follows, and of which of them it has the state."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

import attrs
import trio

from wsrecover.errors import CommandError, ConfigError, WsrecoverError
from wsrecover.protocol.codec import encode
from wsrecover.protocol.fields import MAX_THREADS, is_id
from wsrecover.protocol.frames import ErrorBody, Follow, Snapshot

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

    A change goes to the server at once, or with the next hello. `known` are the threads of the filter whose
    state the session has: of the others it is told in snapshots.
    """

    def __init__(self, threads: tuple[str, ...] | None) -> None:
        self.threads = threads
        self.known = _common(None, threads)
        self._said = threads
        self._asked: Follow | None = None
        self._change: _Change | None = None
        self._post: Callable[[bytes], None] | None = None
        self._turn = trio.Lock()
        self._end: WsrecoverError | None = None

    async def follow(self, threads: Sequence[str] | None) -> None:
        """Follow `threads` alone from now on; returns when that holds. See `ClientSession.follow`."""
        wanted = check_threads(threads)
        async with self._turn:
            if self._end is not None:
                raise self._end
            before = self.threads, self.known
            self.threads, self.known = wanted, _common(self.known, wanted)
            change = self._change = _Change(secrets.token_hex(16))
            self._tell(change.ref)
            try:
                await change.done.wait()
            finally:
                self._change = None
            if change.error is not None:
                self.threads, self.known = before
                raise change.error

    def _tell(self, ref: str) -> None:
        if self._post is not None:
            self._asked = Follow(ref, self.threads)
            self._post(encode(self._asked))

    def hello(self, *, resumes: bool) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        """The `threads` and `fresh` for a hello, with a position in the user's stream or without."""
        if not resumes:
            self.known = _common(None, self.threads)  # What is not known will be told from its beginning.
        self._said = self.threads
        if self.known is None:
            return self.threads, ()
        if self.threads is None:  # Threads without a name cannot be fresh: the filter is changed behind this.
            self._said = tuple(sorted(self.known))
            return self._said, ()
        return self.threads, tuple(sorted(set(self.threads) - self.known))

    def attach(self, post: Callable[[bytes], None]) -> None:
        """A connection is up."""
        self._post = post
        if self._said != self.threads:  # They changed since its hello.
            self._tell(secrets.token_hex(16) if self._change is None else self._change.ref)
        elif self._change is not None:
            self._change.settle()

    def detach(self) -> None:
        """The connection is gone."""
        self._post = None

    def end(self, error: WsrecoverError) -> None:
        """No connection will come any more."""
        self._end = error
        if self._change is not None:
            self._change.settle(error)

    def received(self, snapshot: Snapshot) -> None:
        """These threads have a state now."""
        if self.known is not None and self.threads is not None:
            self.known |= set(snapshot.threads).intersection(self.threads)

    def answer(self, ref: str | None, error: ErrorBody | None) -> bool:
        """The server answered; False where that was not to a `follow`."""
        if self._asked is None or ref != self._asked.id:
            return False
        if error is None:
            self.known = _common(_common(None, self._asked.threads), self.threads)
        self._asked = None
        if self._change is None or ref != self._change.ref:
            return True
        if error is None:
            self._change.settle()
        else:
            refusal = CommandError(
                error.code, error.message, field=error.field, retry_after=error.retry_after
            )
            self._change.settle(refusal)
        return True
