"""One WebSocket of a session: its deadlines, what comes in, and how it ends.

::

    attached ──▶ opening ──▶ welcomed ──▶ ended
                 (streams)   (reading, delivering)

A connection runs in its session's nursery. It ends by itself when its socket does, when its peer is silent
for `heartbeat` + `heartbeat_grace` seconds, when its token expires, or when `close()` or `kill()` is called;
ending it never touches a run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, Literal, TypeAlias, TypeVar, TypeVarTuple, Unpack

import trio

from wsrecover.access.claims import Grant
from wsrecover.access.limits import Bucket, Rate, moment
from wsrecover.config import Limits, Timeouts
from wsrecover.errors import CommandError, ConnectionClosed, FrameError, StoreError, TokenError
from wsrecover.logger import get_logger
from wsrecover.protocol.closecodes import RULES, CloseCode
from wsrecover.protocol.codec import encode, welcome_frame
from wsrecover.protocol.frames import (
    Ack,
    Auth,
    AuthRequired,
    Bye,
    ErrorFrame,
    Follow,
    Ping,
    Pong,
    Reply,
    Send,
    ServerFrame,
)
from wsrecover.streams.stream import Stream
from wsrecover.transport.websocket import CLOSE_TIMEOUT, ServerSocket

from . import audit
from .calls import error_frame, in_doubt, refusal
from .contexts import Snapshot
from .delivery import Delivery
from .following import Following
from .introduction import Frame, Introduction
from .mishaps import QUIET_ENDS
from .owner import Home
from .presence import Member
from .proof import prove, refused
from .quota import Quota
from .snapshots import first_switch
from .turns import Turns
from .welcome import welcome

__all__ = ["Connection", "ConnectionState"]

log = get_logger(__name__)

Args = TypeVarTuple("Args")
R = TypeVar("R", Send, Auth, Follow)

ConnectionState: TypeAlias = Literal["opening", "live", "lagging", "closing"]
"""Before its welcome; at the head of all its streams; behind in one, as in a replay; about to end."""

AUTH_NOTICE: Final = 60.0
"""Seconds before a token's expiry at which the client is asked for another."""

_SECOND_HELLO: Final = FrameError("invalid", "this connection had its hello", field="op")

FLOODED: Final = encode(ErrorFrame("rate_limited", "too many pings and pongs", retry_after=1.0))
"""The last word to a peer that sends more of them than WebSocket libraries ever do."""


class Connection:
    """One WebSocket of a session; see the module's text for its life."""

    def __init__(self, home: Home, socket: ServerSocket, grant: Grant, introduction: Introduction) -> None:
        hello = introduction.hello
        self._home, self._services = home, home.services
        self.socket = socket
        self.member = Member(grant.principal.tenant, grant.principal.user, hello.client)
        self.id = os.urandom(8).hex()
        self.since = self._services.clock()
        self.limits: Limits = self._services.config.limits
        self.timeouts: Timeouts = self._services.config.timeouts
        self._ending: ConnectionClosed | None = None
        self._asked_at, self._asked_for_token = -math.inf, False
        self._at, self._wait = 0, 0.0
        self._turns = Turns(home.members, self.limits.commands_in_flight)
        self._frames = Bucket(Rate(self.limits.frames_per_second, self.limits.frames_burst))
        self._closed: trio.Event | None = None
        self._patience = self.timeouts.heartbeat + self.timeouts.heartbeat_grace
        now = trio.current_time()
        self._go_by(grant, now)  # Setting a deadline later would cost more than all that makes the scope.
        self._scope = trio.CancelScope(deadline=self._deadline(now))
        wanted = None if hello.threads is None else frozenset(hello.threads)
        self._delivery = Delivery(self, socket, wanted, snapshots=hello.from_ == "snapshot")
        self._following = Following(self._services, self.member, self._delivery)
        self._opening = hello, introduction.early
        self._decode = introduction.decode

    @property
    def delivery(self) -> Delivery:
        """What it is sent."""
        return self._delivery

    @property
    def quota(self) -> Quota:
        """What its user may still take up."""
        return self._home.quota

    @property
    def streams(self) -> Mapping[str, Stream]:
        """What it follows, by wire name."""
        return self._delivery.streams

    @property
    def processed(self) -> Mapping[str, int]:
        """The seq that its peer has acknowledged, by stream."""
        return self._following.processed

    @property
    def state(self) -> ConnectionState:
        """How far it has come."""
        if self._ending is not None:
            return "closing"
        if not self.streams:
            return "opening"
        return "lagging" if self._delivery.lagging else "live"

    async def run(self) -> None:
        """Serve until the connection ends and its socket is closed. Cancelled, it ends as by `drain`."""
        try:
            with self._scope:
                await self._serve()
            self._end_by_deadline()
        except Exception:
            self._ending = ConnectionClosed(CloseCode.INTERNAL_ERROR, "internal error")
            raise
        finally:
            ending = self._ending or self.drain()
            self._delivery.end()
            self._services.presence.leave(self)
            self._home.detach(self.member.client, self)
            code = ending.code if ending.code in RULES else "other"  # A peer may make up thousands.
            self._services.counts[f"closed.{code}"] += 1
            if ending.code not in QUIET_ENDS:
                self._services.note(f"connection.{code}")
            if not self.socket.outbox.closed:  # It is where the peer ended it, as most do.
                with trio.move_on_after(CLOSE_TIMEOUT + 1, shield=True):
                    await self.socket.aclose(ending.code, ending.reason, timeout=CLOSE_TIMEOUT)
                self.socket.kill()
            if self._closed is not None:
                self._closed.set()
            self._delivery.forget_owner()

    def _end_by_deadline(self) -> None:
        if self._ending is None and self._scope.deadline >= self._expires:
            self._ending = ConnectionClosed(CloseCode.TOKEN_EXPIRED, "the token expired")
        elif self._ending is None:
            self._ending = ConnectionClosed(CloseCode.HEARTBEAT_LOST, "nothing was heard")

    async def _serve(self) -> None:
        streams = self._home.streams_now(self.grant.principal)
        if streams is None:
            self._scope.deadline = self._expires  # Until they are open nobody listens to it.
            streams = await self._open_streams()
            self.heard(trio.current_time())
        if streams is None or self._ending is not None:  # A newer one may have come before it began.
            return
        self._begin(streams)
        ended = await self.socket.run_within(
            self._scope, self._on_message, on_bytes=self.heard, flood_notice=FLOODED
        )
        self._ending = self._ending or ended

    async def _open_streams(self) -> Mapping[str, Stream] | None:
        """What it is entitled to; None where that cannot be read, which ends it."""
        try:
            return await self._home.open_streams(self.grant.principal)
        except (StoreError, trio.TooSlowError) as error:
            log.warning("streams_unavailable", error=repr(error))
            word = ErrorFrame("store_unavailable", "the log cannot be read now", retry_after=1.0)
            self._close_with(word, CloseCode.TRY_AGAIN_LATER, word.message)
            return None

    def _begin(self, streams: Mapping[str, Stream]) -> None:
        hello, early = self._opening
        del self._opening  # It may be large, and the connection lasts for hours.
        start = self._following.start(hello, streams)
        switch = first_switch(hello, start.infos["user"])
        first = welcome_frame(welcome(self._home, self.grant, self.id, start.infos))
        self._delivery.begin(streams, start.after, start.held, first, gaps=start.gaps, switch=switch)
        self._services.presence.arrive(self)
        for frame in early:
            self._at = moment(trio.current_time())
            self._take(frame)

    def heard(self, now: float) -> None:
        """The peer is alive: its silence is counted from `now`, trio's time."""
        self._scope.deadline = self._deadline(now)

    def tick(self, now: float, unix: float) -> None:
        """Ask a silent peer for a sign of life, and one whose token runs out for another.

        `now` is trio's time, `unix` the wall clock's. Before its welcome it is asked nothing.
        """
        if not self._delivery.streams or self._ending is not None:
            return
        silent_since = self.socket.received_at
        if now - silent_since >= self.timeouts.heartbeat and self._asked_at <= silent_since:
            self._asked_at = now
            self._delivery.control(Ping())
        expires_in = self.grant.expires_at - unix
        if expires_in <= AUTH_NOTICE and not self._asked_for_token:
            self._asked_for_token = True
            self._delivery.control(AuthRequired(max(0.0, expires_in)))

    def close(self, code: int, reason: str) -> None:
        """End the connection with a close frame. Returns at once; the first reason given counts."""
        if self._ending is None:
            self._ending = ConnectionClosed(code, reason)
        self._delivery.end()
        self._services.presence.leave(self)
        self._scope.cancel()

    def drain(self) -> ConnectionClosed:
        """End the connection because the server stops, with a word when to come back; at once says how."""
        ending = self._ending
        if ending is None:
            ending = ConnectionClosed(CloseCode.DRAIN, "the server stops")
            self.socket.put(encode(self._services.farewell))
            self.socket.close_nowait(ending.code, ending.reason)
            self.close(ending.code, ending.reason)
        return ending

    async def wait_closed(self) -> None:
        """Wait until the socket is closed. Cancelling is safe."""
        if not self.socket.outbox.closed:
            self._closed = self._closed or trio.Event()
            await self._closed.wait()

    def kill(self) -> None:
        """End a connection whose socket is gone. Returns at once."""
        self.close(CloseCode.ABNORMAL_CLOSURE, "the socket broke")
        self.socket.kill()

    def start(self, member: Callable[[Unpack[Args]], Awaitable[None]], *args: *Args) -> None:
        """Run a task in the session's nursery."""
        self._home.members.start(member, *args)

    def missed(self, stream: Stream, first: int, last: int) -> None:
        """Note what the peer will never be sent."""
        self._following.missed(stream, first, last)

    def count(self, name: str, amount: int) -> None:
        """Count what was sent from the log, and the like."""
        self._services.counts[name] += amount

    async def snapshot(self) -> Snapshot:
        """The contexts of the user's threads. Raises `StoreError`."""
        self._services.counts["snapshots"] += 1
        return await self._home.contexts.snapshot()

    def _on_message(self, message: str | bytes) -> None:
        try:
            frames = self._decode(message, max_bytes=self.limits.message_bytes)
        except FrameError as error:
            self._refuse(error)
            return
        # Not when it was heard: a pong in front of it may have waited long for the socket, and others who
        # share a limit have been counted since.
        self._at = at = moment(trio.current_time())
        self._wait = self._home.quota.take_message(message, at)
        if wait := self._frames.take(at, len(frames)):
            most = self.limits.frames_per_second
            word = ErrorFrame("rate_limited", f"at most {most} frames in a second", retry_after=wait)
            self._close_with(word, CloseCode.RATE_LIMITED, word.message)
        for frame in frames:
            self._take(frame)

    def _take(self, frame: Frame) -> None:
        if self._ending is not None:
            return
        match frame:
            case Ack():
                for error in self._following.acknowledge(frame):
                    self._refuse(error)
            case Send():
                self._request(self._answer, frame, repeat=frame.age is not None)
            case Ping():
                self._delivery.control(Pong())
            case Auth():
                self._request(self._authenticate, frame)
            case Follow():
                self._request(self._refilter, frame)
            case Bye():
                self.close(CloseCode.NORMAL_CLOSURE, "bye")
            case Pong():
                pass
            case _:
                self._refuse(frame if isinstance(frame, FrameError) else _SECOND_HELLO)

    def _refuse(self, error: FrameError) -> None:
        self._services.note(f"frame.{error.code}")
        if error.close is None:
            self._delivery.control(error_frame(error))
        else:
            self._close_with(error_frame(error), error.close, error.message)

    def _close_with(self, word: ServerFrame, code: int, reason: str) -> None:
        """Close, with a last word behind what is on its way."""
        self.socket.put(encode(word))
        self.close(code, reason)

    def _request(
        self, handle: Callable[[R, trio.Event], Awaitable[None]], frame: R, *, repeat: bool = False
    ) -> None:
        """Handle a frame that is answered by `reply`, within the limits."""
        try:
            self._home.quota.take_command(self._at, self._wait, repeat=repeat)
            if isinstance(frame, Send):
                self._home.commands.admit(frame.id)
            else:
                self._turns.admit()
        except CommandError as error:
            self._services.note_refusal(error.code)
            self._delivery.control(refusal(frame.id, in_doubt(error) if repeat else error))
            return
        fail = partial(self.close, CloseCode.INTERNAL_ERROR, "internal error")
        self._turns.start(handle, frame, admitted=not isinstance(frame, Send), fail=fail)

    async def _answer(self, send: Send, begun: trio.Event) -> None:
        await self._delivery.opened()
        # From here a command comes to the journal without a checkpoint, so that the next one queues behind.
        begun.set()
        reply = await self._home.commands.answer(self.grant.principal, send, self)
        if reply is not None:
            self._delivery.control(reply)

    async def _refilter(self, follow: Follow, _: trio.Event) -> None:
        wanted = None if follow.threads is None else frozenset(follow.threads)
        self._delivery.refilter(wanted, follow.id)

    async def _authenticate(self, auth: Auth, _: trio.Event) -> None:
        """Exchange the grant. What the client says behind its `auth` is held to the new one."""
        if self._ending is not None:
            return
        principal = self.grant.principal
        try:
            grant = await prove(self._services, auth.token, self.socket.peer)
            if self.state == "closing":  # By now.
                return
        except CommandError as error:
            self._services.note(f"command.{error.code}")
            self._delivery.control(refusal(auth.id, error))
            return
        except TokenError as error:
            self._disown(auth, str(error), refused(error))
            return
        if (grant.principal.tenant, grant.principal.user) != (principal.tenant, principal.user):
            self._disown(auth, "the token speaks for somebody else", CloseCode.AUTHENTICATION_FAILED)
            return
        now = trio.current_time()
        self._go_by(grant, now)
        self.heard(now)
        audit.refreshed(self)
        self._home.quota.adopt(grant.principal)
        self._asked_for_token = False
        self._delivery.control(Reply(auth.id, "ok", result={}))
        if (grant.principal.roles, grant.principal.tier) != (principal.roles, principal.tier):
            self._following.leave(grant.principal)
            self.start(self._join_streams)

    async def _join_streams(self) -> None:
        """Follow what the peer is entitled to since its fresh token."""
        streams = await self._open_streams()
        # Where a token that came meanwhile entitles to others, its own task does this.
        if streams is not None and streams is self._home.streams_now(self.grant.principal):
            self._following.join(streams)

    def _disown(self, auth: Auth, problem: str, code: CloseCode) -> None:
        audit.disowned(self, code, problem)
        self._close_with(refusal(auth.id, CommandError("forbidden", problem, field="token")), code, problem)

    def _go_by(self, grant: Grant, now: float) -> None:
        """End when this grant's token, with its leeway, stops counting; `now` is trio's time."""
        self.grant = grant
        self._expires = now + (grant.expires_at + self.timeouts.token_leeway - self._services.clock())

    def _deadline(self, now: float) -> float:
        """When it ends by itself: one scope has both deadlines, for each costs every connection."""
        return min(now + self._patience, self._expires)
