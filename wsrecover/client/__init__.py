"""The Python client: a session that keeps itself connected and yields each event once."""

from __future__ import annotations

from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import Ephemeral, Event, Gap, Snapshot
from wsrecover.protocol.receiver import Changed, Forgotten

from .inbox import Item
from .keeper import OpenSocket
from .opening import connect
from .session import ClientSession
from .status import Status
from .tokens import Token

__all__ = [
    "Changed",
    "ClientSession",
    "Ephemeral",
    "Event",
    "Forgotten",
    "Gap",
    "Item",
    "OpenSocket",
    "Position",
    "Snapshot",
    "Status",
    "Token",
    "connect",
]
