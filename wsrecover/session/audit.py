"""The audit log: who was let in, who was not and why, and what was taken back.

A stream of its own beside the server's log: each line says `log="audit"`. It holds no secret, and of a token
no more than its `jti`.
"""

from __future__ import annotations

from typing import Any

from wsrecover.access.claims import Grant
from wsrecover.logger import get_logger
from wsrecover.streams.store import Revocation

__all__ = ["accepted", "erased", "refreshed", "rejected", "replaced", "revoked"]

_audit = get_logger("wsrecover.audit", log="audit")


def _who(grant: Grant) -> dict[str, Any]:
    principal = grant.principal
    return {"tenant": principal.tenant, "user": principal.user, "token_id": grant.token_id}


def accepted(grant: Grant, *, client: str, peer: str) -> None:
    """A connection goes by this grant."""
    _audit.info("accepted", **_who(grant), roles=grant.principal.roles, client=client, peer=peer)


def refreshed(grant: Grant, *, client: str, peer: str) -> None:
    """It goes by this one from now on."""
    _audit.info("refreshed", **_who(grant), roles=grant.principal.roles, client=client, peer=peer)


def rejected(code: int, reason: str, *, peer: str, grant: Grant | None = None) -> None:
    """Somebody was turned away: `code` is an HTTP status or a close code."""
    # A console shows the repr: of an enum's member that is more than the number.
    _audit.info(
        "rejected", code=int(code), reason=reason.strip(), peer=peer, **(_who(grant) if grant else {})
    )


def replaced(grant: Grant, *, client: str, peer: str) -> None:
    """A connection gave way to a newer one of the same client id; `peer` is the older one's."""
    _audit.info("replaced", **_who(grant), client=client, peer=peer)


def erased(one: Revocation) -> None:
    """Nothing is left of what the log held of the user."""
    _audit.warning("erased", tenant=one.tenant, user=one.user)


def revoked(one: Revocation, closed: int) -> None:
    """Tokens count no more; `closed` connections went by them."""
    user, token_id = one.user or None, one.token_id or None
    _audit.warning("revoked", tenant=one.tenant, user=user, token_id=token_id, closed=closed)
