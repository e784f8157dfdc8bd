"""One task that looks after all: it pings the silent, asks for tokens, and ends receipts."""

from __future__ import annotations

from typing import Final, Never

import trio

from wsrecover.logger import get_logger
from wsrecover.protocol.closecodes import CloseCode

from .registry import Registry
from .services import Services

__all__ = ["sweep"]

log = get_logger(__name__)

INTERVAL: Final = 1.0
"""Seconds between two rounds."""

SLICE: Final = 512
"""Sessions after which other tasks get their turn: about a millisecond."""


async def sweep(registry: Registry, services: Services) -> Never:
    """Tick every connection each second, so that a ping is late by no more.

    A dead peer itself is found by its connection's cancel scope.

    A task for each connection would cost 3 KiB; a round costs a comparison or two for each. A bug that shows
    with one connection ends that one.
    """
    while True:
        await trio.sleep(INTERVAL)
        now, unix = trio.current_time(), services.clock()
        services.receipts.expire(now)
        for number, session in enumerate(tuple(registry.sessions.values()), 1):
            for connection in session.connections.values():
                try:
                    connection.tick(now, unix)
                except Exception:  # One connection's bug must not end everybody's server.
                    log.exception("tick_failed", tenant=session.key.tenant, user=session.key.name)
                    connection.close(CloseCode.INTERNAL_ERROR, "internal error")
            if not number % SLICE:
                await trio.lowlevel.checkpoint()
