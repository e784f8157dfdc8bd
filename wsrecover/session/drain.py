"""Leaving in good order: every client is told when to come back, and they do not all do so at once."""

from __future__ import annotations

from typing import Final

import trio

from wsrecover.logger import get_logger

from .registry import Registry
from .services import Services

__all__ = ["drain"]

log = get_logger(__name__)

PACE: Final = 1000.0
"""Connections closed in a second: whoever takes them over spends 250 µs on each (benches/resume.py)."""


async def drain(registry: Registry, services: Services) -> None:
    """Close every connection with `drain` and 4000, one after the other; no new one is attached.

    Returns once all are closed and their commands are answered, at most `timeouts.drain` seconds later: who
    is left then is cut. Each peer has the time that any close gives it to answer; half of `drain` at most
    goes on the pauses in between.
    Cancelled: those whose turn has not come stay open.
    """
    registry.draining = True
    leaving = [one for session in registry.sessions.values() for one in session.connections.values()]
    patience = services.config.timeouts.drain
    pause = min(1 / PACE, patience / 2 / max(1, len(leaving)))
    begun = trio.current_time()
    with trio.move_on_after(patience):
        for number, connection in enumerate(leaving):
            await trio.sleep_until(begun + number * pause)
            connection.drain()
        for connection in leaving:
            await connection.wait_closed()
        # A handler that is cut off leaves its client not knowing what came of it.
        for session in [*registry.sessions.values()]:
            await session.commands.wait_idle()
    silent = [connection for connection in leaving if not connection.socket.outbox.closed]
    for connection in silent:
        connection.drain()
        connection.socket.kill()
    log.info("drained", connections=len(leaving), cut=len(silent))
