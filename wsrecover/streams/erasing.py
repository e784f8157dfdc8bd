"""Users that are to be erased: each has its turn between two commits, so each unit is before or after it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from wsrecover.errors import StoreError, StoreFailed

from .registry import Streams
from .store import Store, StreamKey, UserRevocation

__all__ = ["Erasure", "carry_out"]


class Erasure:
    """One user to be erased, and who waits for it.

    `over` is called once, in the journal's task, when it has taken effect or is known never to: it must not
    wait, nor raise.
    """

    __slots__ = ("_done", "_error", "_over", "one")

    def __init__(self, one: UserRevocation, over: Callable[[], object]) -> None:
        self.one = one
        self._over = over
        self._done = trio.Event()
        self._error: StoreError | None = None

    def end(self, error: StoreError | None = None) -> None:
        """It has taken effect; or, with an `error`, it has not. Only the first call counts."""
        if not self._done.is_set():
            self._error = error
            self._done.set()
            self._over()

    async def wait(self) -> None:
        """Wait until it has ended. Raises the error, if there was one. May be abandoned."""
        await self._done.wait()
        if self._error is not None:
            raise type(self._error)(*self._error.args)


async def carry_out(erasures: list[Erasure], store: Store, streams: Streams) -> None:
    """Erase each, and let go of its stream, before anybody else learns that it is gone.

    Cancelled: those that were not erased end with `StoreFailed`.
    """
    try:
        for erasure in erasures:
            try:
                await store.erase(erasure.one)
            except StoreError as error:
                erasure.end(error)
            else:
                streams.forget(StreamKey("user", erasure.one.tenant, erasure.one.user))
                erasure.end()
    finally:
        for erasure in erasures:
            erasure.end(StoreFailed("the journal ended before the user was erased"))
