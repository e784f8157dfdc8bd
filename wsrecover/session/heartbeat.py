"""One task that looks after the silent: it sends the pings, asks for fresh tokens, and ends old receipts."""

from __future__ import annotations

from typing import Never

import trio

from .registry import Registry
from .services import Services

__all__ = ["sweep"]

INTERVAL = 1.0
"""Seconds between two rounds; a ping is late by at most that."""


async def sweep(registry: Registry, services: Services) -> Never:
    """Tick every connection each second. A dead peer itself is found by its connection's cancel scope.

    A task for each connection would cost 3 KiB; a round costs a comparison or two for each.
    """
    while True:
        await trio.sleep(INTERVAL)
        now, unix = trio.current_time(), services.clock()
        services.receipts.expire(now)
        for session in registry.sessions.values():
            for connection in session.connections.values():
                connection.tick(now, unix)
