"""Keeps a session connected: tries, waits, tries again, and knows when there is no point.

::

    ┌▶ connecting ──▶ replaying ──▶ live ──┐
    │                                      │ the connection ended
    └── waiting ◀── judge: is there a point? ──▶ closed
"""

from __future__ import annotations

import math
import secrets
import ssl
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import attrs
import trio

from wsrecover.errors import (
    ConfigError,
    ConnectionClosed,
    HandshakeRefused,
    TokenError,
    TooLarge,
    TransportError,
    WsrecoverError,
    caused_by,
)
from wsrecover.protocol.backoff import STABLE_AFTER, Backoff
from wsrecover.protocol.closecodes import Action, CloseCode, after
from wsrecover.protocol.frames import SUBPROTOCOL, From, Hello
from wsrecover.protocol.receiver import USER

from .entry import entry
from .link import Link, Socket
from .shared import Shared

__all__ = ["Keeper", "OpenSocket", "Route", "new_client_id"]

MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024
"""Of the server's messages: they have about `part_bytes` bytes, which is at most 1 MiB, or are one frame."""

MAX_REFUSALS: Final = 3
"""Fresh tokens refused one after the other: the next one will be, too."""

MAX_REASON: Final = 200
"""Characters of why a token is refused: a proxy may say it with a whole page."""

LEAVE_TIMEOUT: Final = 2.0
"""Seconds for the server to close after `bye`."""

_FOR_GOOD: Final = frozenset({400, 403, 404, 426, 431})
"""HTTP statuses that another try will not change."""


class OpenSocket(Protocol):
    """Opens a WebSocket, as `transport.open_socket` does; raises `TransportError` and its kin."""

    def __call__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        subprotocols: Sequence[str],
        ssl_context: ssl.SSLContext | None,
        timeout: float,
        max_message_bytes: int,
    ) -> AbstractAsyncContextManager[Socket]: ...


@attrs.frozen(kw_only=True)
class Route:
    """Where to connect to and what to ask for. Times are in seconds."""

    url: str
    client: str
    from_: From
    ssl_context: ssl.SSLContext | None
    connect_timeout: float
    give_up_after: float
    dial: OpenSocket


def new_client_id() -> str:
    """128 random bits: nobody guesses it, so nobody takes over a connection with it."""
    return secrets.token_hex(16)


class Keeper:
    """The one task that owns a session's connections, one after the other."""

    def __init__(self, route: Route, shared: Shared) -> None:
        self.route = route
        self._shared = shared
        self._backoff = Backoff(shared.rng)
        self._link: Link | None = None
        self._outage = trio.CancelScope(deadline=math.inf)
        self._refusals = 0
        self._replaced = False
        self._leaving = False
        self._done = trio.Event()
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Keep the session connected until `leave` or until another try has no point: the end of all."""
        shared = self._shared
        final: WsrecoverError | None = None
        try:
            with self._scope:
                final = await self._keep()
            shared.last_error = final or shared.last_error
        finally:
            shared.inbox.end(final)
            error = final or TransportError("the session is closed")
            shared.outbox.end(error)
            shared.following.end(error)
            shared.board.end(error)
            self._done.set()

    async def leave(self) -> None:
        """End the session: `bye`, and at most 2 s for the server's close. Cancelled, it ends soon after."""
        self._leaving = True
        try:
            if self._link is not None:
                self._link.leave()
                with trio.move_on_after(LEAVE_TIMEOUT):
                    await self._done.wait()
        finally:
            self._scope.cancel()
        await self._done.wait()

    async def _keep(self) -> WsrecoverError | None:
        """Connect over and over; return why there is no point in another try, None after `leave`."""
        shared, patience = self._shared, self.route.give_up_after
        give_up_at = trio.current_time() + patience
        while True:
            with trio.CancelScope(deadline=give_up_at) as self._outage:
                error, link = await self._connection()
                shared.last_error = error
                if self._leaving:
                    return None
                if (final := self._judge(error, link)) is not None:
                    return final
                if link is not None and link.welcomed_at is not None:
                    self._outage.deadline = give_up_at = trio.current_time() + patience
                await self._wait(link, error)
            if self._outage.cancelled_caught:
                return shared.last_error or TransportError(f"no connection within {patience:g} s")

    async def _connection(self) -> tuple[WsrecoverError, Link | None]:
        """One try and, where it succeeds, the connection's whole life. Returns how it ended."""
        shared, route = self._shared, self.route
        shared.board.set("connecting")
        link = None
        try:
            token = await shared.tokens.get()
            url, first = entry(route.url, self._hello())
            opened = route.dial(
                url,
                headers={"Authorization": f"Bearer {token}"},
                subprotocols=[SUBPROTOCOL],
                ssl_context=route.ssl_context,
                timeout=route.connect_timeout,
                max_message_bytes=MAX_MESSAGE_BYTES,
            )
            async with opened as socket:
                self._link = link = Link(
                    socket, shared, welcome_timeout=route.connect_timeout, on_welcome=self._welcomed
                )
                error: WsrecoverError = await link.run(first)
                socket.kill()
        except (TransportError, TokenError, ConfigError) as failure:
            error = failure
        finally:
            self._link = None
            shared.inbox.replaying(going_on=False)
        return error, link

    def _hello(self) -> Hello:
        receiver, route = self._shared.receiver, self.route
        resume, part = receiver.resume(), receiver.part()
        threads, fresh = self._shared.following.hello(resumes=USER in resume)
        return Hello(
            client=route.client, resume=resume, part=part, threads=threads, fresh=fresh, from_=route.from_
        )

    def _welcomed(self) -> None:
        self._outage.deadline = math.inf
        self._refusals = 0
        self._backoff.connected(trio.current_time())

    def _judge(self, error: WsrecoverError, link: Link | None) -> WsrecoverError | None:
        """What to end with, where another try has no point. Otherwise prepares for it."""
        shared = self._shared
        action = _action(error)
        suspects = shared.outbox.detach(fatal=action == "fail_sends")
        shared.following.detach()
        lasted = 0.0 if link is None or link.welcomed_at is None else trio.current_time() - link.welcomed_at
        if lasted >= STABLE_AFTER:
            self._replaced = False
        if action == "refresh":
            shared.tokens.refused()
            self._refusals += 1
            if self._refusals >= MAX_REFUSALS or not shared.tokens.refreshable:
                why = str(error).splitlines()[0][:MAX_REASON]
                return caused_by(TokenError(f"the server does not accept the token: {why}"), error)
        elif action == "new_client_id" and not self._replaced:
            self._replaced = True
            self.route = attrs.evolve(self.route, client=new_client_id())
        elif (
            action in ("new_client_id", "stop")
            or isinstance(error, TooLarge)
            or (_is_protocol_error(error) and not suspects)
            or (_is_set_up_wrong(error) and shared.welcome is None)
        ):
            return error
        return None

    async def _wait(self, link: Link | None, error: WsrecoverError) -> None:
        """The backoff, or what the server asked for."""
        retry_after, jitter = 0.0, None
        if isinstance(error, HandshakeRefused):
            retry_after = error.retry_after or 0.0
        elif link is not None and link.drain is not None:
            retry_after, jitter = link.drain.retry_after, link.drain.jitter
        elif link is not None:
            retry_after = link.retry_after
        delay = self._backoff.delay(trio.current_time(), retry_after=retry_after, jitter=jitter)
        self._shared.board.wait_after(error)
        await trio.sleep(delay)


def _action(error: WsrecoverError) -> Action:
    if isinstance(error, HandshakeRefused):
        if error.status == 401:
            return "refresh"
        return "stop" if error.status in _FOR_GOOD else "reconnect"
    return after(error.code) if isinstance(error, ConnectionClosed) else "reconnect"


def _is_set_up_wrong(error: WsrecoverError) -> bool:
    """Whether people must change something here or there first. Later, a certificate may just be renewed."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__
    return isinstance(error, ConfigError) or cause is not None


def _is_protocol_error(error: WsrecoverError) -> bool:
    return isinstance(error, ConnectionClosed) and error.code == CloseCode.PROTOCOL_ERROR
