"""Which threads a session follows, and for which of them it has no state yet."""

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


class Following:
    """The filter of the user's stream, over any number of connections.

    A change goes to the server at once, or with the next hello. `fresh` are the threads of the filter that
    came to it since, until a snapshot brought them; `lacks` says that there is no naming them.
    """

    def __init__(self, threads: tuple[str, ...] | None) -> None:
        self.threads = threads
        self.fresh: set[str] = set()
        self.lacks = False
        self._said = threads
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
            before = self.threads
            self._set(wanted)
            change = self._change = _Change(secrets.token_hex(16))
            self._tell(change.ref)
            try:
                await change.done.wait()
            finally:
                self._change = None
            if change.error is not None:
                self.threads = before
                self.fresh.intersection_update(before or ())
                raise change.error

    def _set(self, wanted: tuple[str, ...] | None) -> None:
        before, self.threads = self.threads, wanted
        if wanted is None:
            self.lacks = self.lacks or before is not None
        elif before is not None:
            self.fresh = (self.fresh | set(wanted).difference(before)) & set(wanted)

    def _tell(self, ref: str) -> None:
        if self._post is not None:
            self._post(encode(Follow(ref, self.threads)))

    def hello(self) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
        """The `threads` and `fresh` for a hello."""
        self._said = self.threads
        return self.threads, tuple(sorted(self.fresh))

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
        self.fresh.difference_update(snapshot.threads)
        self.lacks = self.lacks and snapshot.more

    def answer(self, ref: str | None, error: ErrorBody | None) -> bool:
        """The server answered; False where that was not to a `follow`."""
        if self._change is None or ref != self._change.ref:
            return False
        if error is None:
            self._change.settle()
        else:
            refusal = CommandError(
                error.code, error.message, field=error.field, retry_after=error.retry_after
            )
            self._change.settle(refusal)
        return True
