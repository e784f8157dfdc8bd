"""A WebSocket server for AI agents: what an agent emits is logged, and each client gets it once, in order.

`serve` runs an `App` of agents; `connect` follows what they do, across any number of dropped connections.
"""

from __future__ import annotations

from .access import Authenticator, Credentials, Grant, Principal
from .agents import AgentError, App, Command, Run
from .client import Changed, ClientSession, Ephemeral, Event, Forgotten, Gap, Position, Snapshot, connect
from .config import Config, Limits, Origins, Retention, Tier, Timeouts, Tokens
from .errors import (
    CommandError,
    ConfigError,
    InvalidEvent,
    NoAnswer,
    RunBroken,
    RunEnded,
    StoreError,
    StoreUnavailable,
    TokenError,
    TransportError,
    WsrecoverError,
)
from .server import Server, serve
from .session.receipts import Receipt, ReceiptCounts

__all__ = [
    "AgentError",
    "App",
    "Authenticator",
    "Changed",
    "ClientSession",
    "Command",
    "CommandError",
    "Config",
    "ConfigError",
    "Credentials",
    "Ephemeral",
    "Event",
    "Forgotten",
    "Gap",
    "Grant",
    "InvalidEvent",
    "Limits",
    "NoAnswer",
    "Origins",
    "Position",
    "Principal",
    "Receipt",
    "ReceiptCounts",
    "Retention",
    "Run",
    "RunBroken",
    "RunEnded",
    "Server",
    "Snapshot",
    "StoreError",
    "StoreUnavailable",
    "Tier",
    "Timeouts",
    "TokenError",
    "Tokens",
    "TransportError",
    "WsrecoverError",
    "connect",
    "serve",
]
