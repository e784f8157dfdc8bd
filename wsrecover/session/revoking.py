"""Taking back what a token granted: at once, on stable storage, and for every connection that goes by it."""

from __future__ import annotations

from functools import partial
from operator import attrgetter

from wsrecover.access.claims import MAX_TOKEN_ID
from wsrecover.access.principal import Principal
from wsrecover.access.revocations import Revocations
from wsrecover.config import Config
from wsrecover.errors import StoreError, TokenError
from wsrecover.logger import get_logger
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.streams.store import Revocation, Store, Unit

from . import audit
from .registry import Registry
from .services import Services

__all__ = ["known_revocations", "revoke"]

log = get_logger(__name__)


async def known_revocations(store: Store, config: Config, now: float) -> Revocations:
    """What the store knows to be revoked, once it has forgotten what no token is left of at `now`.

    Raises `StoreError`.
    """
    known = Revocations(config.timeouts.token_leeway, config.tokens.max_lifetime)
    if config.tokens.max_lifetime is not None:
        await store.forget_revocations(before=known.outlived(now))
    for one in sorted(await store.revocations(), key=attrgetter("at")):
        _add(known, one)
    return known


def _add(revocations: Revocations, one: Revocation) -> None:
    if one.token_id:
        revocations.add_token(one.tenant, one.token_id, one.at)
    else:
        revocations.add_user(one.tenant, one.user, one.at)


async def revoke(
    registry: Registry,
    services: Services,
    tenant: str,
    *,
    user: str | None,
    token_id: str | None,
    erase: bool,
) -> int:
    """See `Server.revoke`."""
    if erase and user is None:
        raise TokenError("erase: a user must be named; a token has no log")
    if (user is None) == (token_id is None):
        raise TokenError("user, token_id: one of the two must be given")
    if token_id is not None and not 1 <= len(token_id) <= MAX_TOKEN_ID:
        raise TokenError(f"token_id: must be a string of 1 to {MAX_TOKEN_ID} characters")
    principal = Principal(tenant, "nobody" if user is None else user)
    one = Revocation(tenant, services.clock(), "" if user is None else principal.user, token_id or "")
    # It counts before it is durable: whoever revokes cannot wait for a disk.
    _add(services.revocations, one)
    closed = 0
    for session in list(registry.sessions.values()):
        for connection in list(session.connections.values()):
            if services.revocations.covers(connection.grant):
                connection.close(CloseCode.REVOKED, "the token was revoked")
                closed += 1
    audit.revoked(one, closed)
    if erase:
        await _erase(registry, services, one)
    else:
        await services.journal.commit(Unit(revocations=(one,)))
    await _forget_outlived(services, one.at)
    return closed


async def _forget_outlived(services: Services, now: float) -> None:
    """There are no more revocations than were made while a token may last."""
    before = services.revocations.outlived(now)
    if services.revocations.forget(before):
        try:
            await services.store.forget_revocations(before=before)
        except StoreError as error:  # The next start forgets them.
            log.warning("revocations_not_forgotten", error=str(error))


async def _erase(registry: Registry, services: Services, one: Revocation) -> None:
    """Erase the user together with the revocation.

    Nobody writes for the user from here until that is done but others who publish to it: what of its own is
    queued by now is erased, and what was about to be is refused.
    """
    over = partial(registry.admit, one.tenant, one.user)
    registry.bar(one.tenant, one.user)
    await services.journal.erase(one, over=over)
    await services.store.purge()
    audit.erased(one)
