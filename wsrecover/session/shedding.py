"""Weighing what the process holds for its users, and forgetting what can be read again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Never

import attrs
import trio

from wsrecover.streams.store import ENTRY_BYTES, StreamKey

from .lag import FRAME_BYTES
from .pressure import CONNECTION_BYTES, RUN_BYTES, SESSION_BYTES, Stage, Weights
from .registry import Registry
from .services import Services

__all__ = ["look", "shed", "weigh"]

SLICE: Final = 256
"""Sessions that are weighed in one go: about a millisecond."""


async def shed(registry: Registry, services: Services) -> Never:
    """Look each second, sooner where much was taken, and rarely where there is much room."""
    pressure = services.pressure
    while True:
        await pressure.wait_due()
        if pressure.is_due(trio.current_time()):
            await look(registry, services)


async def look(registry: Registry, services: Services) -> None:
    """Weigh what is held, and shed in order: see `Pressure`. Other tasks run in between; may be cancelled."""
    pressure, weights = services.pressure, await weigh(registry, services)
    now = trio.current_time()
    pressure.note(weights, now, upto=Stage.TAILS)
    if pressure.stage >= Stage.TAILS:
        weights = _forget_idle(registry, services, weights)
        pressure.note(weights, now, upto=Stage.TAILS)
        if pressure.reaches(Stage.CONNECTS):  # Before anybody is turned away.
            weights = _forget_tails(services, weights)
        pressure.note(weights, now)
    if not weights.log:
        services.streams.allow(services.config.limits.memory_bytes - weights.total)


async def weigh(registry: Registry, services: Services) -> Weights:
    """What is held now, from counts that are kept anyway."""
    contexts = backlog = connections = runs = 0
    sessions = tuple(registry.sessions.values())
    for place, session in enumerate(sessions):
        if place % SLICE == 0:
            await trio.lowlevel.checkpoint()
        contexts += session.contexts.held
        runs += len(session.runs)
        connections += len(session.connections)
        for connection in session.connections.values():
            backlog += connection.delivery.backlog
    journal = services.journal.statistics()
    return Weights(
        log=services.store.statistics().held,
        tails=_tails(services),
        journal=journal.bytes + journal.waiting_bytes + (journal.units + journal.waiting) * ENTRY_BYTES,
        backlog=backlog,
        contexts=contexts,
        sessions=len(sessions) * SESSION_BYTES + connections * CONNECTION_BYTES + runs * RUN_BYTES,
    )


def _tails(services: Services) -> int:
    tails = services.streams.statistics()
    return tails.tail_bytes + tails.tail_events * FRAME_BYTES


def _forget_idle(registry: Registry, services: Services, weights: Weights) -> Weights:
    """Forget what belongs to nobody who is here: the tails of users away, the contexts of idle sessions."""
    freed = 0
    for session in registry.sessions.values():
        if session.state == "idle":
            freed += session.contexts.forget()
    services.counts["shed.contexts"] += freed
    away = [session.key for session in registry.sessions.values() if not session.connections]
    return _forget_tails(services, attrs.evolve(weights, contexts=max(weights.contexts - freed, 0)), away)


def _forget_tails(services: Services, weights: Weights, keys: Iterable[StreamKey] | None = None) -> Weights:
    """Forget the tails of these streams, or of all. Those of a store in memory are its log: they stay."""
    if weights.log:
        return weights
    services.counts["shed.tails"] += services.streams.shed(keys)
    return attrs.evolve(weights, tails=_tails(services))
