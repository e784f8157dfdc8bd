"""Events as clients see them, their types, and what each type carries."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import attrs

__all__ = ["AGENT_EVENTS", "CRITICAL", "EVENT_TYPE", "TERMINAL", "Event"]

EVENT_TYPE: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}\Z")
"""What an event type's name may be."""

TERMINAL: Final = "agent_completed"
"""The one event that ends a run."""

AGENT_EVENTS: Final = ("agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed")
"""The five that a user must always see."""

CRITICAL: Final = frozenset(
    {*AGENT_EVENTS, "tool_failed", "message_completed", "input_requested", "input_resolved"}
)
"""Never shed, never merged with another type."""


@attrs.frozen
class Event:
    """One logged event. `ts` is unix seconds; `first_seq` is set where it covers `first_seq..seq`."""

    op: ClassVar[str] = "event"
    stream: str
    seq: int
    ts: float
    type: str
    data: dict[str, Any]
    thread: str | None = None
    run: str | None = None
    first_seq: int | None = None

    @property
    def first(self) -> int:
        """The first seq that this event covers."""
        return self.seq if self.first_seq is None else self.first_seq
