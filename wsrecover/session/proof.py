"""Asking the authenticator who somebody is, at the upgrade or with a token that came later."""

from __future__ import annotations

import trio

from wsrecover.access.authenticator import Credentials
from wsrecover.access.claims import Grant
from wsrecover.agents.ending import errors_in, must_pass_at_once
from wsrecover.errors import CommandError, TokenError, TokenExpired, TokenRevoked
from wsrecover.logger import get_logger
from wsrecover.protocol.closecodes import CloseCode

from .services import Services

__all__ = ["identify", "prove", "refused"]

log = get_logger(__name__)


def refused(error: TokenError) -> CloseCode:
    """The close code that tells a client what to do about its token."""
    match error:
        case TokenExpired():
            return CloseCode.TOKEN_EXPIRED
        case TokenRevoked():
            return CloseCode.REVOKED
    return CloseCode.AUTHENTICATION_FAILED


async def identify(services: Services, credentials: Credentials) -> Grant | None:
    """Who it is that shows this; None where it shows nothing that counts.

    Raises `TokenError`, and `CommandError("internal")` where the authenticator failed: that is logged, and
    counted among the errors.
    """
    try:
        grant: object = await services.authenticator.authenticate(credentials)
    except TokenError:
        raise
    except BaseException as error:
        errors = errors_in(error)  # In a group with the cancellations, where it failed as it was cancelled.
        if not errors or must_pass_at_once(error):
            raise
        for leaf in errors:
            if isinstance(leaf, TokenError):  # Raised within a nursery.
                raise leaf from error
        log.exception("authenticator_failed", peer=credentials.peer)
        raise _unknown(services) from error
    if grant is None or isinstance(grant, Grant):
        return grant
    log.error("authenticator_failed", peer=credentials.peer, problem=f"it gave a {type(grant).__name__}")
    raise _unknown(services)


def _unknown(services: Services) -> CommandError:
    services.note("authenticator")
    return CommandError("internal", "the server cannot tell now who this is", retry_after=1.0)


async def prove(services: Services, token: str, peer: str) -> Grant:
    """The token's grant. Raises as `identify` does, and `CommandError("overloaded")` where that is slow."""
    with trio.move_on_after(services.config.timeouts.handshake):
        grant = await identify(services, Credentials(token, {}, peer))
        if grant is None:
            raise TokenError("the token counts for nothing here")
        services.revocations.check(grant)
        return grant
    raise CommandError("overloaded", "the token could not be verified in time", retry_after=1.0)
