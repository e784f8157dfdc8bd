"""How whoever embeds the server decides who is let in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import attrs

from .claims import Grant

__all__ = ["Authenticator", "Credentials"]


@attrs.frozen
class Credentials:
    """What a peer shows. `token` is a bearer token from wherever it came; `headers` are those of the upgrade
    request, by name in any case, and empty for a token that came later; `peer` is its address.
    """

    token: str | None = attrs.field(repr=False)
    headers: Mapping[str, str] = attrs.field(repr=False)
    peer: str


class Authenticator(Protocol):
    """Decides who somebody is: by a token, a cookie, an API key.

    Browsers send cookies wherever a page leads them: who goes by a cookie must rely on `Config.origins`.
    """

    async def authenticate(self, credentials: Credentials) -> Grant | None:
        """Who it is; None where nothing that counts was shown, which leaves the peer time to say `hello`.

        Asked at each upgrade, at a `hello` with a token, and at each `auth`; within the handshake's time-out.
        Raises `TokenError`, whose message the peer reads, to turn it away. Any other exception is logged as
        `authenticator_failed` and answered with 500 (at an upgrade), 1013 or `internal`: peers try again.
        """
        ...
