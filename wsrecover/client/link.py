"""One connection's life: from the first message to the close.

::

    opened ──▶ welcomed ──▶ ended (an error that says how)
               (reading, writing, acknowledging, listening for silence)

Four tasks: one reads, one writes, so that a command that is cancelled never tears a frame, one acknowledges
and one pings. Whichever finds the end first says how, and the others are cancelled.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import trio

from wsrecover.errors import (
    BufferFull,
    ConfigError,
    ConnectionClosed,
    FrameError,
    TokenError,
    TooLarge,
    TransportError,
)
from wsrecover.logger import get_logger
from wsrecover.protocol.codec import decode_server, encode
from wsrecover.protocol.frames import (
    Auth,
    AuthRequired,
    Bye,
    ClientFrame,
    Drain,
    ErrorFrame,
    Event,
    Live,
    Ping,
    Pong,
    Reply,
    ServerFrame,
    Skip,
    Snapshot,
    Streams,
    Welcome,
)
from wsrecover.protocol.receiver import Forgotten, Item

from .inbox import URGENT_FACTOR, Entry
from .progress import Track
from .shared import Shared

__all__ = ["Link", "Socket"]

PING_GRACE: Final = 10.0
"""Seconds of further silence after a ping: the link is dead."""

WRITE_TIMEOUT: Final = 10.0
"""Seconds in which the server must take a message."""

MIN_HEARTBEAT: Final = 1.0
"""Seconds: whatever a server says, a link is not asked more often."""

MAX_UNSENT: Final = 1024
"""Messages that wait for the writer; more, and the server takes too little to be of use."""

log = get_logger(__name__)


class Socket(Protocol):
    """What a link needs of `transport.websocket.ClientSocket`, so that proxies may stand in between."""

    async def send(self, payload: str | bytes) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def aclose(self, code: int, reason: str = "", *, timeout: float) -> None: ...
    def kill(self) -> None: ...


class Link:
    """One open WebSocket of a session; see the module's text for its life."""

    def __init__(
        self, socket: Socket, shared: Shared, *, welcome_timeout: float, on_welcome: Callable[[], None]
    ) -> None:
        self.socket = socket
        self.welcomed_at: float | None = None
        self.drain: Drain | None = None
        self.retry_after = 0.0
        self._shared = shared
        self._welcome_timeout = welcome_timeout
        self._on_welcome = on_welcome
        self._error: TransportError | None = None
        self._scope = trio.CancelScope()
        self._leaving = False
        self._paused = False
        self._unsent: list[bytes] = []
        self._to_write = trio.lowlevel.ParkingLot()
        self._heartbeat = math.inf
        self._heard = trio.current_time()
        self._auth_id = ""
        self._refreshing = False
        self._catching_up: set[str] = set()

    async def run(self, first: bytes | None) -> TransportError:
        """Serve the connection until it ends and return how; `first` is the message to begin with.

        Cancelling it leaves the socket as it is: kill it.
        """
        if first is not None:
            self._post_bytes(first)
        with self._scope:
            async with trio.open_nursery() as nursery:
                self._start = nursery.start_soon
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch)
                try:
                    await self._read()
                except TransportError as error:
                    self._stop(error)
                except FrameError as error:
                    log.warning("server_not_understood", error=str(error))
                    kind = TooLarge if error.code == "too_large" else TransportError
                    self._stop(kind(f"the server cannot be trusted any further: {error}"))
        return self._error or TransportError("the connection was given up")

    def leave(self) -> None:
        """Say `bye`: the server closes with 1000. Returns at once; what still comes in is not delivered."""
        self._leaving = True
        self._shared.inbox.poke()
        if self.welcomed_at is not None:
            self._acknowledge()
        self._post(Bye())

    def _stop(self, error: TransportError) -> None:
        if self._error is None:
            self._error = error
        self._scope.cancel()

    def _post(self, frame: ClientFrame) -> None:
        self._post_bytes(encode(frame))

    def _post_bytes(self, message: bytes) -> None:
        if len(self._unsent) >= MAX_UNSENT:
            self._stop(TransportError(f"{MAX_UNSENT} messages wait to be sent"))
            return
        self._unsent.append(message)
        self._to_write.unpark()

    async def _write(self) -> None:
        while True:
            while not self._unsent:
                await self._to_write.park()
            message = self._unsent.pop(0)
            try:
                with trio.fail_after(WRITE_TIMEOUT):
                    await self.socket.send(message.decode())
            except trio.TooSlowError:
                self._stop(TransportError(f"the server took nothing for {WRITE_TIMEOUT:g} s"))
            except ConnectionClosed:
                return  # The reader learns how it ended.

    async def _watch(self) -> None:
        """Find out about a server that has vanished: its welcome, then its life signs."""
        await trio.sleep(self._welcome_timeout)
        if self.welcomed_at is None:
            self._stop(TransportError(f"no welcome within {self._welcome_timeout:g} s"))
        while True:
            heard = self._heard
            # While the reader waits for the app, silence says nothing about the server.
            await trio.sleep_until((trio.current_time() if self._paused else heard) + self._heartbeat)
            if self._paused or heard != self._heard:
                continue
            self._post(Ping())
            await trio.sleep(PING_GRACE)
            if not self._paused and heard == self._heard:
                silence = self._heartbeat + PING_GRACE
                self._stop(TransportError(f"nothing was heard from the server for {silence:g} s"))

    async def _keep_acknowledging(self) -> None:
        while True:
            await self._shared.progress.due()
            self._acknowledge()

    def _acknowledge(self) -> None:
        ack = self._shared.progress.ack()
        if ack is not None:
            self._post(ack)

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            self._heard = trio.current_time()
            self._deliver(message)
            if not self._leaving:
                self._paused = True
                await self._wait_room()
                self._paused = False
                self._heard = trio.current_time()

    async def _wait_room(self) -> None:
        """Wait for the app. Where nobody iterates no answer can be read: who waits for one is told."""
        shared = self._shared
        while True:
            try:
                return await shared.inbox.wait_room(self._reach)
            except BufferFull as error:
                shared.outbox.fail(error)
                shared.following.fail(error)

    def _reach(self) -> float:
        """How far past its bounds the inbox may grow now."""
        if self._leaving:
            return math.inf  # The server's close is awaited, and what comes before it is not delivered.
        return URGENT_FACTOR if self._shared.outbox.waiting or self._shared.following.waiting else 1

    def _deliver(self, message: str | bytes) -> None:
        """Handle one message; where a frame does not follow on what was received, those before it count."""
        entries: list[Entry] = []
        receive, tracks = self._shared.receiver.receive, self._shared.progress.tracks
        try:
            for frame in decode_server(message):
                if frame.__class__ is Event:
                    entries += [_entry(item, tracks) for item in receive(frame)]
                else:
                    self._take(frame, entries)
        finally:
            if not self._leaving:
                self._shared.inbox.put(entries, len(message))
                self._show_progress()

    def _take(self, frame: ServerFrame, entries: list[Entry]) -> None:
        match frame:
            case Reply():
                self._answered(frame)
            case ErrorFrame():
                self._refused(frame)
            case Ping():
                self._post(Pong())
            case Pong():
                pass
            case AuthRequired():
                if self._shared.tokens.refreshable and not self._refreshing:
                    self._refreshing = True
                    self._start(self._refresh, frame.expires_in)
            case Drain():
                self.drain = frame
                self._scope.deadline = trio.current_time() + frame.retry_after + frame.jitter
            case Welcome():
                self._welcome(frame, entries)
            case _:
                self._receive(frame, entries)

    def _receive(self, frame: ServerFrame, entries: list[Entry]) -> None:
        shared = self._shared
        items = shared.receiver.receive(frame)
        if isinstance(frame, Welcome | Streams):
            streams = frame.streams if isinstance(frame, Welcome) else frame.added
            shared.progress.follow(streams)
            self._catching_up.update(streams)
        for item in items:
            if isinstance(item, Snapshot):
                shared.following.received(item)
            if isinstance(item, Forgotten):
                shared.progress.forget(item.stream)
            if isinstance(item, Live | Forgotten):
                self._catching_up.discard(item.stream)
            entries.append(_entry(item, shared.progress.tracks))

    def _welcome(self, frame: Welcome, entries: list[Entry]) -> None:
        shared = self._shared
        if self.welcomed_at is not None:
            raise FrameError("malformed", "a second welcome on one connection")
        self._receive(frame, entries)
        shared.progress.connected()
        self._heartbeat = max(MIN_HEARTBEAT, frame.heartbeat)
        self.welcomed_at = trio.current_time()
        self._start(self._keep_acknowledging)
        shared.following.attach(self._post_bytes)  # First: so many commands may wait that it is one too many.
        shared.outbox.attach(self._post_bytes, frame.limits)
        shared.welcome = frame
        self._on_welcome()

    def _show_progress(self) -> None:
        if self.welcomed_at is not None and not self._leaving:
            self._shared.inbox.replaying(bool(self._catching_up))
            self._shared.board.set("replaying" if self._catching_up else "live")

    def _answered(self, reply: Reply) -> None:
        if reply.id == self._auth_id:
            if reply.status == "error":
                self._shared.tokens.refused()
            return
        if not self._shared.following.answer(reply.id, reply.error):
            self._shared.outbox.reply(reply)

    def _refused(self, error: ErrorFrame) -> None:
        if error.ref is None:
            self.retry_after = error.retry_after or 0.0
        if not self._shared.following.answer(error.ref, error):
            self._shared.outbox.refuse(error)

    async def _refresh(self, expires_in: float) -> None:
        """Hand in a fresh token, at a random moment of the first half of the time that is left."""
        await trio.sleep(self._shared.rng() * expires_in / 2)
        self._refreshing = False
        try:
            token = await self._shared.tokens.fresh()
        except (TokenError, ConfigError) as error:
            # The server closes when the old token ends, and the next try asks again.
            log.warning("token_refresh_failed", error=str(error))
            self._shared.last_error = error
            return
        self._auth_id = secrets.token_hex(16)
        self._post(Auth(self._auth_id, token))


def _entry(item: Item, tracks: Mapping[str, Track]) -> Entry:
    """What goes to the app, and the position that is processed once it has handled it.

    A gap, a changed history and all but the last of a snapshot's frames move nothing: a position without the
    state that belongs to it, which follows, would make a restart lose that state.
    """
    if isinstance(item, Event):
        return item, tracks.get(item.stream), item.seq
    match item:
        case Live(stream=stream, seq=seq) | Skip(stream=stream, to=seq):
            return None, tracks.get(stream), seq
        case Snapshot(stream=stream, seq=seq, more=False):
            return item, tracks.get(stream), seq
        case _:
            return item, None, 0
