"""Where runs write, and under which limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from wsrecover.protocol.schema import Schema
from wsrecover.streams.journal import Journal
from wsrecover.streams.store import Entry, StreamKey

from .alarms import Alarms
from .requests import Requests
from .threads import Threads

__all__ = ["RunPlace"]


@attrs.frozen(kw_only=True)
class RunPlace:
    """Where the runs of one user write, and under which limits."""

    key: StreamKey
    """The user's stream."""
    journal: Journal
    requests: Requests
    """Those of the user's runs."""
    threads: Threads | None
    """The contexts of the user's threads; None: nobody keeps them."""
    schemas: Mapping[str, Schema[Any]]
    """What is registered for types of events."""
    show: Callable[[Entry], object] | None
    """Hands an event that is not logged to whoever is connected, and raises `InvalidEvent` for a large one.
    None: nobody ever is."""
    clock: Callable[[], float]
    """Gives unix seconds."""
    alarms: Alarms
    """Tell when gathered text is due."""

    event_bytes: int
    """The most that one event may take, encoded."""
    events_per_second: int | None
    """How many events a run may make, and as many at once; above it its author waits. Each delta of a text is
    one; text above it is gathered for longer. None: as many as the journal takes."""
    delta_interval: float
    """Seconds from one delta of a message to its next; 0: each piece of text is a delta."""
    timeout: float | None
    """Seconds that a run may take whose agent has no time-out of its own; None: as long as it needs."""
    grace: float = 5.0
    """Seconds that a cancelled run has for its last words, and again for its terminal event."""
    retry: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0)
    """Seconds between tries to write the terminal event while the store is down; the last one is repeated."""
