"""Events as clients see them, their types, and what each type carries."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import attrs

from .fields import Id, Seq, StreamName

__all__ = [
    "AGENT_EVENTS",
    "AS_SENT",
    "COMPLETED",
    "CRITICAL",
    "EVENT_TYPE",
    "FRAGMENTS",
    "OF_RUNS",
    "STATE_PATCH",
    "TERMINAL",
    "TYPES",
    "Event",
]

EVENT_TYPE: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}\Z")
"""What an event type's name may be."""

TERMINAL: Final = "agent_completed"
"""The one event that ends a run."""

STATE_PATCH: Final = "state_patch"
"""Changes a document of its thread; made by the server, which knows whether it applies."""

OF_RUNS: Final = frozenset({"agent_started", TERMINAL, STATE_PATCH, "input_requested", "input_resolved"})
"""Those that are true only where the server makes them for a run: anybody else's would be a run that never
ends, or a request that nobody can answer."""

AGENT_EVENTS: Final = (
    "agent_started",
    "agent_thinking",
    "tool_executing",
    "tool_completed",
    "agent_completed",
)
"""The five that a user must always see."""

CRITICAL: Final = frozenset(
    {*AGENT_EVENTS, "tool_failed", "message_completed", "input_requested", "input_resolved"}
)
"""Never shed, never merged with another type."""

FRAGMENTS: Final = frozenset({"message_delta", "agent_thinking"})
"""Pieces of a message, where they carry a `message_id`: adjacent ones may come merged on a replay."""

COMPLETED: Final = "message_completed"
"""The end of a message, with its whole text: on a replay it may stand for all of its fragments."""

TYPES: Final = CRITICAL | {
    "tool_progress",
    "message_started",
    "message_delta",
    "state_patch",
    "user_message",
    "chat",
    "notice",
}
"""Every type that the protocol itself knows; others are the app's own."""


AS_SENT: Final = frozenset({"user_message", "chat", "notice"})
"""Those whose data is the app's own."""


@attrs.frozen
class Event:
    """One logged event. `ts` is unix seconds; `first_seq` is set where it covers `first_seq..seq`."""

    op: ClassVar[str] = "event"
    stream: StreamName
    seq: Seq
    ts: float
    type: str
    data: dict[str, Any]
    thread: Id | None = None
    run: Id | None = None
    first_seq: Seq | None = None

    @property
    def first(self) -> int:
        """The first seq that this event covers."""
        return self.seq if self.first_seq is None else self.first_seq
