"""From an accepted connection to the owner of its WebSocket.

::

    TLS ─▶ head ─▶ check ─▶ answer(request) ┬▶ Refusal: HTTP answer, closed
                                            └▶ Acceptance: 101 as preface, owner(socket), end

From `owner(socket)` on, a plain call without a checkpoint, the socket is the owner's alone. Where the request
is there whole and can be granted at once, as most are, the way there is a plain call, too: a task and its
time-out would cost as much as half of it.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, Protocol, TypeAlias

import attrs
import trio

from wsrecover.logger import get_logger

from .handshake import Refusal, check_upgrade, encode_refusal, encode_switch, refuse_head
from .head import HeadError, Request, parse_request
from .outbox import RECEIVE_BYTES, Outbox
from .pipe import Pipe, SocketPipe
from .websocket import ServerSocket

__all__ = ["Acceptance", "Answer", "AnswerNow", "Gate", "Handshakes", "read_head", "turn_away"]

log = get_logger(__name__)

_LINGER: Final = 1.0
_SERVER_BUG: Final = Refusal(500, "The server could not answer this request.")
_BUSY: Final = Refusal(503, "Too many handshakes are under way.", (("Retry-After", "1"),))
_SLOW: Final = Refusal(503, "The answer took too long.", (("Retry-After", "1"),))


@attrs.frozen
class Acceptance:
    """The upgrade is granted. `subprotocol` is one of those offered, or None.

    `owner` is called with the socket right after the 101 was put in front of its first write. If it raises,
    that is logged and the socket closed.
    """

    subprotocol: str | None
    owner: Callable[[ServerSocket], None]


class Gate(Protocol):
    """Decides by its address alone, which is `host:port`, whether somebody may come in."""

    def enter(self, peer: str) -> float | None:
        """0.0, or the seconds after which it would be welcome; None where its address has too many."""
        ...

    def leave(self, peer: str) -> None:
        """Called once for each `enter`, when the handshake is over."""
        ...

    def forwards(self, peer: str) -> bool:
        """Whether `peer` comes in for somebody else, who is to `enter` in its place, as its request tells."""
        ...

    def client(self, peer: str, headers: Mapping[str, str]) -> str:
        """Who that is, by the request's headers."""
        ...


Answer: TypeAlias = Callable[[Request], Awaitable[Refusal | Acceptance]]

AnswerNow: TypeAlias = Callable[[Request], Refusal | Acceptance | None]

_Rest: TypeAlias = Callable[[], Awaitable[None]]
"""What is left to do of a handshake."""


@attrs.define(kw_only=True)
class Handshakes:
    """The handshakes of one server: their limits, and how many are `under_way`.

    `answer` decides over each well-formed upgrade; what it raises is logged and answered with 500.
    `answer_now` is asked before it, and says None where that takes waiting.
    """

    answer: Answer
    timeout: float
    head_bytes: int
    max_message_bytes: int
    max_under_way: int
    ssl_context: ssl.SSLContext | None = None
    gate: Gate | None = None
    answer_now: AnswerNow | None = None
    under_way: int = attrs.field(default=0, init=False)

    def begin(
        self, pipe: SocketPipe, peer: str, nursery: trio.Nursery, refusal: Refusal | None = None
    ) -> None:
        """`shake`, and where something has to be waited for, in a task of `nursery`. Raises nothing."""
        forwarded, wait = self._enter(peer)
        rest: _Rest | None = None
        try:
            if not self._is_turned_away(pipe, wait):
                rest = self._shake_now(pipe, peer, refusal or _paced(wait), forwarded=forwarded)
        finally:
            if rest is None:
                self._leave(peer, forwarded=forwarded)
        if rest is not None:
            nursery.start_soon(self._finish, rest, peer, forwarded)

    async def _finish(self, rest: _Rest, peer: str, forwarded: bool) -> None:  # noqa: FBT001  As `start_soon` has it.
        try:
            await rest()
        finally:
            self._leave(peer, forwarded=forwarded)

    async def shake(self, pipe: Pipe, peer: str, refusal: Refusal | None = None) -> None:
        """See one connection through its handshake, to its owner or its end. Raises nothing but Cancelled.

        With a `refusal` it is told that, whoever it is.
        """
        forwarded, wait = self._enter(peer)
        try:
            if not self._is_turned_away(pipe, wait):
                await self._shake(Outbox(pipe), peer, refusal or _paced(wait), forwarded=forwarded)
        finally:
            self._leave(peer, forwarded=forwarded)

    def _enter(self, peer: str) -> tuple[bool, float | None]:
        """Whether the peer comes for somebody else, and what the gate says to it otherwise."""
        gate = self.gate
        self.under_way += 1
        if gate is None:
            return False, 0.0
        forwarded = gate.forwards(peer)
        return forwarded, 0.0 if forwarded else gate.enter(peer)

    def _leave(self, peer: str, *, forwarded: bool) -> None:
        self.under_way -= 1
        if self.gate is not None and not forwarded:
            self.gate.leave(peer)

    def _is_turned_away(self, pipe: Pipe, wait: float | None) -> bool:
        if self.under_way > self.max_under_way:
            turn_away(pipe, self.ssl_context, _BUSY)
        elif wait is None:
            turn_away(pipe, self.ssl_context, _too_many(1))
        else:
            return False
        return True

    def _shake_now(
        self, pipe: SocketPipe, peer: str, refusal: Refusal | None, *, forwarded: bool
    ) -> _Rest | None:
        """As far as it goes without waiting; who is refused, or comes by a proxy, takes the longer way."""
        outbox = Outbox(pipe)
        rest: _Rest | None = None
        request: Request | None = None
        early, received, owned = b"", b"", False
        try:
            if self.ssl_context is None:
                received = pipe.receive_nowait(RECEIVE_BYTES)
            if received and refusal is None and not forwarded:
                request, early = self._whole(received, peer)
            if request is not None:
                decision = self._decide_now(request)
                if isinstance(decision, Acceptance):
                    self._hand_over(outbox, request, early, decision)
                    owned = True
                    return None
                refusal = decision
            rest = partial(self._shake, outbox, peer, refusal, forwarded=forwarded, received=received)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("handshake_lost", peer=peer)
        except Exception:
            log.exception("handshake_failed", peer=peer)
        finally:
            if rest is None and not owned:
                outbox.close()
        return rest

    def _whole(self, received: bytes, peer: str) -> tuple[Request | None, bytes]:
        """The request, and what came behind it, if it is there whole and nothing is wrong with it."""
        end = received.find(b"\r\n\r\n", 0, self.head_bytes + 4)
        if end < 0:
            return None, b""
        try:
            request = parse_request(received[:end], peer)
        except HeadError:
            return None, b""
        return (None if check_upgrade(request) else request), received[end + 4 :]

    def _decide_now(self, request: Request) -> Refusal | Acceptance | None:
        if self.answer_now is None:
            return None
        try:
            decision = self.answer_now(request)
        except Exception:
            log.exception("upgrade_not_decided", peer=request.peer)
            return _SERVER_BUG
        return None if decision is None else _checked(request, decision)

    async def _shake(
        self, outbox: Outbox, peer: str, refusal: Refusal | None, *, forwarded: bool, received: bytes = b""
    ) -> None:
        handed_over = False
        try:
            with trio.move_on_after(self.timeout):
                handed_over = await self._converse(outbox, peer, refusal, received, forwarded=forwarded)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("handshake_lost", peer=peer)
        except Exception:
            log.exception("handshake_failed", peer=peer)
        finally:
            if not handed_over:
                outbox.close()

    async def _converse(
        self, outbox: Outbox, peer: str, refusal: Refusal | None, received: bytes, *, forwarded: bool
    ) -> bool:
        if self.ssl_context is not None:
            await outbox.start_tls(self.ssl_context)
        try:
            head, early = await read_head(outbox, self.head_bytes, received)
        except HeadError as error:
            await _refuse(outbox, Refusal(error.status, error.problem))
            return False
        if refusal is not None:
            await _refuse(outbox, refusal)
            return False
        try:
            request = parse_request(head, peer)
        except HeadError as error:
            await _refuse(outbox, refuse_head(head, error.status, error.problem))
            return False
        gate = self.gate
        if gate is None or not forwarded:
            return await self._answer(outbox, request, early)
        request = attrs.evolve(request, peer=gate.client(peer, request.headers))
        wait = gate.enter(request.peer)
        try:
            if wait == 0.0:
                return await self._answer(outbox, request, early)
            await _refuse(outbox, _too_many(1 if wait is None else wait))
            return False
        finally:
            gate.leave(request.peer)

    async def _answer(self, outbox: Outbox, request: Request, early: bytes) -> bool:
        decision = check_upgrade(request) or await self._decide(request, outbox)
        if isinstance(decision, Refusal):
            await _refuse(outbox, decision)
            return False
        self._hand_over(outbox, request, early, decision)
        return True

    def _hand_over(self, outbox: Outbox, request: Request, early: bytes, decision: Acceptance) -> None:
        key = request.headers.lower["sec-websocket-key"]
        outbox.preface(encode_switch(key, decision.subprotocol))
        limit = self.max_message_bytes
        decision.owner(ServerSocket(outbox, request.peer, early=early, max_message_bytes=limit))

    async def _decide(self, request: Request, outbox: Outbox) -> Refusal | Acceptance:
        try:
            decision = await self.answer(request)
        except trio.Cancelled:
            outbox.put(encode_refusal(_SLOW))
            raise
        except Exception:
            log.exception("upgrade_not_decided", peer=request.peer)
            return _SERVER_BUG
        return _checked(request, decision)


def _checked(request: Request, decision: Refusal | Acceptance) -> Refusal | Acceptance:
    if isinstance(decision, Acceptance) and decision.subprotocol not in (None, *request.subprotocols):
        log.error("subprotocol_not_offered", subprotocol=decision.subprotocol)
        return _SERVER_BUG
    return decision


async def read_head(outbox: Outbox, max_bytes: int, received: bytes = b"") -> tuple[bytes, bytes]:
    """The bytes up to the empty line that ends a head, and those after it, which came early.

    `received` are those that were read before.

    Raises:
        HeadError: 431 where the head is larger than `max_bytes`.
        trio.BrokenResourceError: the peer left before its end.
    """
    searched = 0
    while True:
        end = received.find(b"\r\n\r\n", searched, max_bytes + 4)
        if end >= 0:
            return received[:end], received[end + 4 :]
        if len(received) > max_bytes:
            raise HeadError(431, f"head: more than {max_bytes} bytes")
        searched = max(0, len(received) - 3)
        data = await outbox.receive_some()
        if not data:
            raise trio.BrokenResourceError("the peer left before the end of the head")
        received += data


async def _refuse(outbox: Outbox, refusal: Refusal) -> None:
    """Send the answer, and let the peer read it: bytes left unread would turn our end into a reset."""
    outbox.put(encode_refusal(refusal))
    with trio.move_on_after(_LINGER):
        await outbox.drain()
        outbox.send_eof()
        while await outbox.receive_some():
            pass


def _paced(wait: float | None) -> Refusal | None:
    return _too_many(wait) if wait else None


def _too_many(wait: float) -> Refusal:
    retry = (("Retry-After", str(math.ceil(wait))),)
    return Refusal(429, "Too many connections come from this address.", retry)


def turn_away(pipe: Pipe, ssl_context: ssl.SSLContext | None, refusal: Refusal) -> None:
    """Say so as far as that goes at once, without even reading the request."""
    if ssl_context is None:
        with suppress(OSError):
            pipe.send_nowait(encode_refusal(refusal))
            pipe.send_eof()
    pipe.close()
