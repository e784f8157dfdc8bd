"""Who a token speaks for that came after the upgrade: in `hello`, or in `auth`."""

from __future__ import annotations

import trio

from wsrecover.access.authenticator import Credentials
from wsrecover.access.claims import Grant
from wsrecover.errors import CommandError, TokenError, TokenExpired, TokenRevoked
from wsrecover.protocol.closecodes import CloseCode

from .services import Services

__all__ = ["prove", "refused"]


def refused(error: TokenError) -> CloseCode:
    """The close code that tells a client what to do about its token."""
    match error:
        case TokenExpired():
            return CloseCode.TOKEN_EXPIRED
        case TokenRevoked():
            return CloseCode.REVOKED
    return CloseCode.AUTHENTICATION_FAILED


async def prove(services: Services, token: str, peer: str) -> Grant:
    """The token's grant. Raises `TokenError`, and `CommandError("overloaded")` where that takes too long."""
    with trio.move_on_after(services.config.timeouts.handshake):
        grant = await services.authenticator.authenticate(Credentials(token, {}, peer))
        if grant is None:
            raise TokenError("the token counts for nothing here")
        services.revocations.check(grant)
        return grant
    raise CommandError("overloaded", "the token could not be verified in time", retry_after=1.0)
