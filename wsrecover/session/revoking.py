"""Taking back what a token granted: at once, on stable storage, and for every connection that goes by it."""

from __future__ import annotations

from functools import partial
from operator import attrgetter

from wsrecover.access.revocations import Revocations
from wsrecover.config import Config
from wsrecover.errors import StoreError
from wsrecover.logger import get_logger
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.streams.store import Revocation, Store, TokenRevocation, Unit, UserRevocation

from . import audit
from .registry import Registry
from .services import Services

__all__ = ["erase", "known_revocations", "revoke"]

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
    match one:
        case UserRevocation(tenant, user, at):
            revocations.add_user(tenant, user, at)
        case TokenRevocation(tenant, token_id, at):
            revocations.add_token(tenant, token_id, at)


async def revoke(registry: Registry, services: Services, one: Revocation) -> int:
    """See `Server.revoke` and `Server.revoke_token`."""
    closed = _take_effect(registry, services, one)
    await services.journal.commit(Unit(revocations=(one,)))
    await _forget_outlived(services, one.at)
    return closed


async def erase(registry: Registry, services: Services, one: UserRevocation) -> int:
    """See `Server.erase`.

    Nobody writes for the user until it is done but others who publish to it: what of its own is queued by now
    is erased, and what was about to be is refused.
    """
    closed = _take_effect(registry, services, one)
    over = partial(registry.admit, one.tenant, one.user)
    registry.bar(one.tenant, one.user)
    await services.journal.erase(one, over=over)
    await services.store.purge()
    audit.erased(one)
    await _forget_outlived(services, one.at)
    return closed


def _take_effect(registry: Registry, services: Services, one: Revocation) -> int:
    """Close what goes by it; how many. It counts before it is durable: who revokes cannot wait for a disk."""
    _add(services.revocations, one)
    closed = 0
    for session in list(registry.sessions.values()):
        for connection in list(session.connections.values()):
            if services.revocations.covers(connection.grant):
                connection.close(CloseCode.REVOKED, "the token was revoked")
                closed += 1
    audit.revoked(one, closed)
    return closed


async def _forget_outlived(services: Services, now: float) -> None:
    """There are no more revocations than were made while a token may last."""
    before = services.revocations.outlived(now)
    if services.revocations.forget(before):
        try:
            await services.store.forget_revocations(before=before)
        except StoreError as error:  # The next start forgets them.
            log.warning("revocations_not_forgotten", error=str(error))
