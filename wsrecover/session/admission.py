"""From an upgrade request to a connection in its session: who is it, what does it want, who takes it over.

::

    request ──▶ path, subprotocol, origin, token ──▶ token and ?client there ──▶ attach
                 404, 400, 403, 401 before 101 │ one is missing                ▲
                                               ▼                               │
                                             lobby ──▶ hello, token ───────────┘
                                             4501 after `handshake` s; 4502 for anything else

`attach` is synchronous: between taking the socket from the listener and giving it to a session there is no
checkpoint at which it could be lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import attrs
import trio

from wsrecover.access.authenticator import Credentials
from wsrecover.access.claims import Grant
from wsrecover.access.limits import Bucket, Rate, moment
from wsrecover.access.origins import is_allowed
from wsrecover.access.tokens import TokenVerifier
from wsrecover.errors import CommandError, FrameError, StoreFailed, StoreUnavailable, TokenError
from wsrecover.logger import get_logger
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.protocol.codec import decode_client, decode_hello, encode
from wsrecover.protocol.frames import SUBPROTOCOL, Drain, ErrorFrame, Hello
from wsrecover.protocol.plain import PLAIN
from wsrecover.transport.head import Request
from wsrecover.transport.listener import Acceptance, Refusal
from wsrecover.transport.websocket import CLOSE_TIMEOUT, ServerSocket

from . import audit
from .calls import error_frame
from .introduction import Frame, Introduction
from .plain import hear_plain, is_plain, plain_hello, speak_plain
from .proof import identify, prove, refused
from .registry import Registry
from .services import Services

__all__ = ["PATH", "Admission"]

log = get_logger(__name__)

PATH: Final = "/v1/connect"

BEARER: Final = "bearer."
"""What a browser, which can set no header, puts before its token as a second subprotocol entry."""


@attrs.frozen
class Goodbye:
    """How to part from a socket that nobody takes over."""

    code: int
    reason: str
    frame: ErrorFrame | Drain | None = None


class Admission:
    """Answers upgrade requests.

    `nursery` holds those who have not said `hello` yet, at most `limits.handshakes`.
    """

    def __init__(self, nursery: trio.Nursery, registry: Registry, services: Services) -> None:
        self._nursery = nursery
        self._registry = registry
        self._services = services
        self._waiting = 0
        authenticator = services.authenticator
        # Not a subclass's: it may ask for more than a token that verifies.
        self._verifier = authenticator if type(authenticator) is TokenVerifier else None
        limits = services.config.limits
        self._fresh = Bucket(Rate(limits.fresh_connects_per_second, 10 * limits.fresh_connects_per_second))
        self._resumes = Bucket(Rate(limits.resumes_per_second, 10 * limits.resumes_per_second))

    async def answer(self, request: Request) -> Refusal | Acceptance:
        """Decide on one upgrade request, before the 101."""
        decision = self.answer_now(request)
        if decision is not None:
            return decision
        try:
            grant = await identify(self._services, _credentials(request))
        except TokenError as error:
            return _noted(request, _unauthenticated(error))
        except CommandError as error:
            return _noted(request, Refusal(500, f"{error.message}\n"))
        return _noted(request, self._admit(request, grant))

    def answer_now(self, request: Request) -> Refusal | Acceptance | None:
        """The same where nobody has to be waited for; else None, and nothing has happened."""
        if refusal := self._misplaced(request):
            return _noted(request, refusal)
        try:
            credentials = _credentials(request)
            if self._verifier is None:
                return None
            grant = self._verifier.authenticate_nowait(credentials)
        except trio.WouldBlock:
            return None
        except TokenError as error:
            return _noted(request, _unauthenticated(error))
        return _noted(request, self._admit(request, grant))

    def _admit(self, request: Request, grant: Grant | None) -> Refusal | Acceptance:
        """Decide over somebody who is known, or shows nothing yet."""
        config, plain = self._services.config, is_plain(request)
        try:
            if grant is not None:
                self._services.revocations.check(grant)
        except TokenError as error:
            return _unauthenticated(error)
        try:
            hello = (plain_hello if plain else _hello)(request, config.limits.message_bytes)
        except FrameError as error:
            return Refusal(400, f"{error.message}\n")
        if problem := self._too_much(grant, hello):
            retry = (("Retry-After", str(math.ceil(problem.retry_after or 0))),)
            return Refusal(503, f"{problem.message}\n", retry)
        if plain:
            return self._accept_plain(request, grant, hello)
        if grant is None or hello is None:
            if self._waiting >= config.limits.handshakes:
                return Refusal(503, "Too many handshakes are under way.\n", (("Retry-After", "1"),))
            return Acceptance(SUBPROTOCOL, lambda socket: self._enter_lobby(socket, grant))
        return Acceptance(SUBPROTOCOL, lambda socket: self._attach(socket, grant, Introduction(hello)))

    def _misplaced(self, request: Request) -> Refusal | None:
        """What is wrong with the request whoever it is that makes it."""
        if request.path != PATH:
            return Refusal(404, f"Nothing is here; WebSockets connect at {PATH}.\n")
        if SUBPROTOCOL not in request.subprotocols and not is_plain(request):
            return Refusal(400, f"Sec-WebSocket-Protocol must offer {SUBPROTOCOL} or {PLAIN}.\n")
        config = self._services.config
        tls, headers = config.tls_certificate is not None, request.headers.lower
        if not is_allowed(config.origins, headers.get("origin"), headers["host"], tls=tls):
            return Refusal(403, "Pages from this origin may not connect here.\n")
        return None

    def _accept_plain(
        self, request: Request, grant: Grant | None, hello: Hello | None
    ) -> Refusal | Acceptance:
        if grant is None or hello is None:  # Plain words have no hello that could bring a token.
            return Refusal(401, "A token must come with the request.\n", (("WWW-Authenticate", "Bearer"),))
        chosen = PLAIN if PLAIN in request.subprotocols else None
        introduction = Introduction(hello, decode=hear_plain)
        return Acceptance(chosen, lambda socket: self._attach(speak_plain(socket), grant, introduction))

    def _too_much(self, grant: Grant | None, hello: Hello | None) -> CommandError | None:
        """Why one more connect is too much now, and for how long; else it is counted.

        Who has yet to prove anything, or to say `hello`, is counted with that: it may resume.
        """
        now, pressure, counts = trio.current_time(), self._services.pressure, self._services.counts
        resumes = grant is None or hello is None or bool(hello.resume)
        if wait := pressure.wait(now, resumes=resumes):
            counts["shed.resumes" if resumes else "shed.connects"] += 1
            return CommandError("overloaded", "memory is short", retry_after=wait)
        if grant is None or hello is None:
            return None
        if wait := (self._resumes if resumes else self._fresh).take(moment(now)):
            return CommandError("overloaded", "more connect than there is time for", retry_after=wait)
        pressure.enter()
        return None

    def _attach(self, socket: ServerSocket, grant: Grant, introduction: Introduction) -> None:
        if self._registry.draining:
            self._nursery.start_soon(_part_from, socket, self._farewell())
            return
        try:
            self._registry.of(grant.principal).attach(socket, grant, introduction)
        except CommandError as error:
            goodbye = Goodbye(CloseCode.TOO_MANY_CONNECTIONS, error.message, error_frame(error))
        except StoreUnavailable as error:
            goodbye = Goodbye(CloseCode.TRY_AGAIN_LATER, str(error))
        except StoreFailed:  # Its session was just stopped, and the server with it.
            goodbye = self._farewell()
        else:
            return
        self._nursery.start_soon(_part_from, socket, goodbye)

    def _enter_lobby(self, socket: ServerSocket, grant: Grant | None) -> None:
        self._waiting += 1
        if grant is None:
            self._services.addresses.stay(socket.peer)
        self._nursery.start_soon(self._lobby, socket, grant)

    async def _lobby(self, socket: ServerSocket, grant: Grant | None) -> None:
        """Wait for the first message. Reading stops with it: whoever takes the socket over reads on."""
        messages: list[str | bytes] = []
        try:
            with trio.move_on_after(self._services.config.timeouts.handshake) as scope:

                def take(message: str | bytes) -> None:
                    messages.append(message)
                    scope.cancel()

                await socket.run(take)
            goodbye = await self._introduce(socket, grant, messages)
        except trio.Cancelled:
            _say(socket, self._farewell())
            socket.kill()
            raise
        except Exception:
            log.exception("hello_failed", peer=socket.peer)
            socket.kill()
            return
        finally:
            self._waiting -= 1
            if grant is None:
                self._services.addresses.leave(socket.peer)
        if goodbye is not None:
            await _part_from(socket, goodbye)

    def _farewell(self) -> Goodbye:
        return Goodbye(CloseCode.DRAIN, "the server stops", self._services.farewell)

    async def _introduce(
        self, socket: ServerSocket, grant: Grant | None, messages: Sequence[str | bytes]
    ) -> Goodbye | None:
        """Attach the socket by its `hello`; or how to part from it."""
        if not messages:
            return Goodbye(CloseCode.AUTHENTICATION_FAILED, "no hello came in time")
        try:
            hello, *early = self._decode(messages)
            if not isinstance(hello, Hello):
                raise hello if isinstance(hello, FrameError) else _not_hello()
            if grant is None and hello.token is None:
                return Goodbye(
                    CloseCode.AUTHENTICATION_FAILED, "no token came, neither in the handshake nor in hello"
                )
            if grant is None:
                grant = await prove(self._services, hello.token or "", socket.peer)
            else:  # It may have been revoked while hello was waited for.
                self._services.revocations.check(grant)
            if problem := self._too_much(grant, hello):
                raise problem
        except FrameError as error:
            return Goodbye(CloseCode.PROTOCOL_ERROR, error.message, error_frame(error))
        except CommandError as error:
            return Goodbye(CloseCode.TRY_AGAIN_LATER, error.message, error_frame(error))
        except TokenError as error:
            return Goodbye(refused(error), str(error))
        self._attach(socket, grant, Introduction(hello, early))
        return None

    def _decode(self, messages: Sequence[str | bytes]) -> list[Frame]:
        """The frames of what came. Raises `FrameError` for the first message alone: whoever takes the socket
        over answers the others, as it would have later."""
        limit = self._services.config.limits.message_bytes
        first, *later = messages
        frames = list(decode_client(first, max_bytes=limit))
        for message in later:
            try:
                frames += decode_client(message, max_bytes=limit)
            except FrameError as error:
                frames.append(error)
        return frames


def _say(socket: ServerSocket, goodbye: Goodbye) -> None:
    reason = goodbye.frame.code if isinstance(goodbye.frame, ErrorFrame) else goodbye.reason
    audit.rejected(goodbye.code, reason, peer=socket.peer)
    if goodbye.frame is not None:
        socket.put(encode(goodbye.frame))
    socket.close_nowait(goodbye.code, goodbye.reason)


async def _part_from(socket: ServerSocket, goodbye: Goodbye) -> None:
    _say(socket, goodbye)
    await socket.aclose(goodbye.code, goodbye.reason, timeout=CLOSE_TIMEOUT)


def _not_hello() -> FrameError:
    return FrameError("invalid", "the first frame must be hello", field="op")


def _noted(request: Request, decision: Refusal | Acceptance) -> Refusal | Acceptance:
    if isinstance(decision, Refusal):
        # What is wrong with a request may quote it, and it may hold a secret in any place.
        reason = "bad request" if decision.status == 400 else decision.body
        audit.rejected(decision.status, reason, peer=request.peer)
    return decision


def _unauthenticated(error: TokenError) -> Refusal:
    return Refusal(401, f"{error}\n", (("WWW-Authenticate", 'Bearer error="invalid_token"'),))


def _credentials(request: Request) -> Credentials:
    """What the request shows. Raises `TokenError`."""
    return Credentials(_token(request), request.headers, request.peer)


def _token(request: Request) -> str | None:
    """The token of `Authorization: Bearer`, else of a `bearer.` subprotocol. Raises `TokenError`.

    A header of any other scheme is not for us: a proxy that asks for a password makes browsers send one.
    """
    scheme, _, token = request.headers.lower.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        if not token.strip():
            raise TokenError("Authorization: a token must follow `Bearer`")
        return token.strip()
    for entry in request.subprotocols:
        if entry.startswith(BEARER):
            return entry.removeprefix(BEARER)
    return None


def _hello(request: Request, max_bytes: int) -> Hello | None:
    """The `hello` that rides in the URL, if one does. Raises `FrameError`, as for the frame itself."""
    return decode_hello(request.query, max_bytes=max_bytes) if "client" in request.query else None
