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


@attrs.frozen
class RunPlace:
    """Where runs write, and under which limits.

    `key` is the user's stream. `schemas` are what is registered for types of events, `requests` those of the
    user's runs. `clock` gives unix seconds. `event_bytes` bounds one encoded event. `timeout` bounds a run
    whose agent has no time-out of its own, in seconds. `grace` is the time in seconds that a cancelled run
    has for its last words, and again for its terminal event. `retry` are the delays in seconds between tries
    to write the terminal event while the store is down; the last one is repeated. `show` hands an event that
    is not logged to whoever is connected; it raises `InvalidEvent` for a large one. None: nobody ever is.
    `events_per_second` is how many events a run may make, and as many at once; above it its author waits.
    Each delta of a text is one; text above it is gathered for longer. None: as many as the journal takes.
    `delta_interval` is the time in seconds from one delta of a message to the next, 0: each piece of text is
    a delta; `alarms` tell when it has passed. `threads` are the contexts of the user's threads; None: nobody
    keeps them.
    """

    journal: Journal
    key: StreamKey
    clock: Callable[[], float]
    event_bytes: int
    alarms: Alarms
    timeout: float | None = None
    grace: float = 5.0
    retry: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 5.0)
    schemas: Mapping[str, Schema[Any]] = attrs.field(factory=dict)
    requests: Requests = attrs.field(factory=Requests)
    show: Callable[[Entry], object] | None = None
    events_per_second: int | None = None
    delta_interval: float = 0.025
    threads: Threads | None = None
