"""Where runs read the contexts of their user's threads."""

from __future__ import annotations

from typing import Protocol

import trio

from wsrecover.protocol.context import Context

__all__ = ["Threads"]


class Threads(Protocol):
    """The contexts of a user's threads, as the user's runs see them."""

    @property
    def patching(self) -> trio.Lock:
        """Held while a document changes: a patch is checked against what it is then applied to."""

    async def thread(self, name: str | None) -> Context:
        """A thread's context as of all that is committed. Raises `StoreError`; may be abandoned."""
