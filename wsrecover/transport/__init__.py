"""Sockets and WebSockets: the only room that knows them. Each module says what it is for."""

from __future__ import annotations

from .dial import Dial, dial_tcp, open_socket
from .handshake import Refusal
from .head import Headers, Request
from .listener import Acceptance, Handshakes, open_listeners, serve_sockets
from .outbox import Outbox
from .pipe import Pipe, SocketPipe
from .websocket import ClientSocket, ServerSocket, text_frame

__all__ = [
    "Acceptance",
    "ClientSocket",
    "Dial",
    "Handshakes",
    "Headers",
    "Outbox",
    "Pipe",
    "Refusal",
    "Request",
    "ServerSocket",
    "SocketPipe",
    "dial_tcp",
    "open_listeners",
    "open_socket",
    "serve_sockets",
    "text_frame",
]
