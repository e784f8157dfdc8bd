"""Which tokens count no more before their time is up."""

from __future__ import annotations

from wsrecover.errors import TokenError, TokenExpired, TokenRevoked

from .claims import Grant

__all__ = ["Revocations"]


class Revocations:
    """What was revoked: users up to a moment, and single tokens; each within its tenant.

    `leeway` (seconds) is how far the clocks of issuers may be ahead. With a `max_lifetime` (seconds) no token
    counts that lasts longer, or does not say since when it does: so it is known when nothing is left that a
    revocation could be about, and it is forgotten. None: all are kept for ever.
    """

    def __init__(self, leeway: float = 0.0, max_lifetime: float | None = None) -> None:
        self._leeway = leeway
        self._max_lifetime = max_lifetime
        # Both with when it was, the oldest first.
        self._users: dict[tuple[str, str], float] = {}
        self._tokens: dict[tuple[str, str], float] = {}

    def __len__(self) -> int:
        """How many are known."""
        return len(self._users) + len(self._tokens)

    def add_user(self, tenant: str, user: str, at: float) -> None:
        """The user's tokens that were issued up to `at` (unix seconds), and those that do not say when."""
        self._users[tenant, user] = max(at, self._users.pop((tenant, user), at))

    def add_token(self, tenant: str, token_id: str, at: float) -> None:
        """The token with this `jti`, which was issued up to `at`."""
        self._tokens[tenant, token_id] = max(at, self._tokens.pop((tenant, token_id), at))

    def covers(self, grant: Grant) -> bool:
        """Whether the grant's token was revoked, or may have been."""
        principal = grant.principal
        at = self._users.get((principal.tenant, principal.user))
        if at is not None and (grant.issued_at is None or grant.issued_at <= at + self._leeway):
            return True
        return grant.token_id is not None and (principal.tenant, grant.token_id) in self._tokens

    def check(self, grant: Grant) -> None:
        """Raises `TokenError` for a token that lasts too long, and `TokenRevoked`.

        `TokenExpired` for one whose issuer may have made it before the revocation, by a clock that is ahead,
        or right behind it: whoever has it may get another.
        """
        longest, since = self._max_lifetime, grant.issued_at
        if longest is not None and (since is None or grant.expires_at - since > longest):
            raise TokenError(f"exp: the token must count for at most {longest:g} s from its iat")
        if self.covers(grant):
            tenant, user = grant.principal.tenant, grant.principal.user
            by_id = (tenant, grant.token_id) in self._tokens
            if not by_id and since is not None and since > self._users[tenant, user]:
                raise TokenExpired("iat: the token is too close to a revocation, it may be from before")
            raise TokenRevoked("the token was revoked")

    def outlived(self, now: float) -> float:
        """Of those of before this time (unix seconds), no token is left at `now`."""
        if self._max_lifetime is None:
            return float("-inf")
        # A token's iat may be ahead of us by the leeway, and its exp is granted the leeway, too.
        return now - self._max_lifetime - 2 * self._leeway

    def forget(self, before: float) -> bool:
        """Forget those of `before` (unix seconds); whether there were any."""
        known = len(self)
        for revoked in (self._users, self._tokens):
            while revoked and (oldest := next(iter(revoked.items())))[1] < before:
                del revoked[oldest[0]]
        return len(self) < known
