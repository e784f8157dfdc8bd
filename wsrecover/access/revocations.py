"""Which tokens count no more before their time is up."""

from __future__ import annotations

from wsrecover.errors import TokenRevoked

from .claims import Grant

__all__ = ["Revocations"]


class Revocations:
    """What was revoked: users up to a moment, and single tokens; each within its tenant."""

    def __init__(self) -> None:
        self._users: dict[tuple[str, str], float] = {}
        self._tokens: set[tuple[str, str]] = set()

    def add_user(self, tenant: str, user: str, at: float) -> None:
        """The user's tokens that were issued up to `at` (unix seconds), and those that do not say when."""
        self._users[tenant, user] = max(at, self._users.get((tenant, user), at))

    def add_token(self, tenant: str, token_id: str) -> None:
        """The token with this `jti`."""
        self._tokens.add((tenant, token_id))

    def covers(self, grant: Grant) -> bool:
        """Whether the grant's token was revoked."""
        principal = grant.principal
        at = self._users.get((principal.tenant, principal.user))
        if at is not None and (grant.issued_at is None or grant.issued_at <= at):
            return True
        return grant.token_id is not None and (principal.tenant, grant.token_id) in self._tokens

    def check(self, grant: Grant) -> None:
        """Raises `TokenRevoked`."""
        if self.covers(grant):
            raise TokenRevoked("the token was revoked")
