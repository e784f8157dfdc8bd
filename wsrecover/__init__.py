"""A WebSocket server for AI agents: what an agent emits is logged, and each client gets it once, in order.

`serve` runs an `App` of agents; `connect` follows what they do, across any number of dropped connections.
"""

from __future__ import annotations

from .access import Authenticator, Credentials, Grant, Principal
from .agents import AgentError, App, Command, Run
from .client import Changed, ClientSession, Ephemeral, Event, Forgotten, Gap, Position, Snapshot, connect
from .config import Config, Contexts, Limits, Origins, Retention, Tier, Timeouts, Tokens, load_config
from .errors import (
    CommandError,
    ConfigError,
    InvalidArgument,
    InvalidEvent,
    InvalidFilter,
    KeysUnavailable,
    NoAnswer,
    RunBroken,
    RunEnded,
    StoreClosed,
    StoreError,
    StoreFailed,
    StoreUnavailable,
    TokenError,
    TransportError,
    WsrecoverError,
)
from .manager import Server, ServerStatistics
from .server import serve
from .session.mishaps import ErrorCount
from .session.receipts import Receipt, ReceiptCounts
from .session.views import ConnectionView, SessionView

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
    "ConnectionView",
    "Contexts",
    "Credentials",
    "Ephemeral",
    "ErrorCount",
    "Event",
    "Forgotten",
    "Gap",
    "Grant",
    "InvalidArgument",
    "InvalidEvent",
    "InvalidFilter",
    "KeysUnavailable",
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
    "ServerStatistics",
    "SessionView",
    "Snapshot",
    "StoreClosed",
    "StoreError",
    "StoreFailed",
    "StoreUnavailable",
    "Tier",
    "Timeouts",
    "TokenError",
    "Tokens",
    "TransportError",
    "WsrecoverError",
    "connect",
    "load_config",
    "serve",
]
