"""One task that looks after all: it pings the silent, asks for tokens, and ends receipts."""

from __future__ import annotations

from typing import Final, Never

import trio

from .registry import Registry
from .services import Services

__all__ = ["sweep"]

INTERVAL: Final = 1.0
"""Seconds between two rounds."""

SLICE: Final = 512
"""Sessions after which other tasks get their turn: about a millisecond."""


async def sweep(registry: Registry, services: Services) -> Never:
    """Tick every connection each second, so that a ping is late by no more.

    A dead peer itself is found by its connection's cancel scope.

    A task for each connection would cost 3 KiB; a round costs a comparison or two for each.
    """
    while True:
        await trio.sleep(INTERVAL)
        now, unix = trio.current_time(), services.clock()
        services.receipts.expire(now)
        for number, session in enumerate(tuple(registry.sessions.values()), 1):
            for connection in session.connections.values():
                connection.tick(now, unix)
            if not number % SLICE:
                await trio.lowlevel.checkpoint()
