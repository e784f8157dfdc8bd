"""The audit log: who was let in, who was not and why, and what was taken back.

A stream of its own beside the server's log: each line says `log="audit"`. It holds no secret, and of a token
no more than its `jti`.
"""

from __future__ import annotations

from typing import Any, Protocol

from wsrecover.access.claims import Grant
from wsrecover.logger import get_logger
from wsrecover.streams.store import Revocation, TokenRevocation, UserRevocation

from .presence import Member

__all__ = ["accepted", "disowned", "erased", "refreshed", "rejected", "replaced", "revoked"]

log = get_logger("wsrecover.audit", log="audit")


class Peer(Protocol):
    """The other end of a connection's socket, as `HOST:PORT`."""

    peer: str


class Party(Protocol):
    """A connection."""

    id: str
    grant: Grant
    member: Member

    @property
    def socket(self) -> Peer:
        """Where it comes from."""


def _names(one: Party) -> dict[str, Any]:
    who = one.grant.principal
    return {
        "tenant": who.tenant,
        "user": who.user,
        "token_id": one.grant.token_id,
        "client": one.member.client,
        "connection": one.id,
        "peer": one.socket.peer,
    }


def accepted(one: Party) -> None:
    """A connection goes by its grant."""
    log.info("accepted", **_names(one), roles=one.grant.principal.roles)


def refreshed(one: Party) -> None:
    """It goes by another grant, its present one, from now on."""
    log.info("refreshed", **_names(one), roles=one.grant.principal.roles)


def rejected(code: int, reason: str, *, peer: str) -> None:
    """Somebody was turned away: `code` is an HTTP status or a close code."""
    # A console shows the repr: of an enum's member that is more than the number.
    log.info("rejected", code=int(code), reason=reason.strip(), peer=peer)


def disowned(one: Party, code: int, reason: str) -> None:
    """It is closed for another token that it brought: a `rejected`, too."""
    log.info("rejected", **_names(one), code=int(code), reason=reason)


def replaced(one: Party) -> None:
    """It gave way to a newer one of the same client id."""
    log.info("replaced", **_names(one))


def erased(one: UserRevocation) -> None:
    """Nothing is left of what the log held of the user."""
    log.warning("erased", tenant=one.tenant, user=one.user)


def revoked(one: Revocation, closed: int) -> None:
    """Tokens count no more; `closed` connections went by them."""
    user = one.user if isinstance(one, UserRevocation) else None
    token_id = one.token_id if isinstance(one, TokenRevocation) else None
    log.warning("revoked", tenant=one.tenant, user=user, token_id=token_id, closed=closed)
