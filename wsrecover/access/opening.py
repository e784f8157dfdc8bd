"""From the settings to what verifies tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from wsrecover.config import Config

from .jwks import KeySource
from .tokens import TokenVerifier, read_secret

__all__ = ["open_verifier"]


@asynccontextmanager
async def open_verifier(config: Config, clock: Callable[[], float]) -> AsyncIterator[TokenVerifier]:
    """The verifier that the settings describe, for the block; its key set is kept fresh meanwhile.

    The secret of the environment counts only where no key set is named. Raises `ConfigError`,
    and `KeysUnavailable` where the key set cannot be fetched now.
    """
    rules, source = config.tokens, None
    secret = config.secret
    if secret is None and (config.secret_file is not None or rules.jwks is None):
        secret = read_secret(None if config.secret_file is None else Path(config.secret_file))
    if rules.jwks is not None:
        source = KeySource(rules.jwks)
        await source.load()
    verifier = TokenVerifier(
        secret, leeway=config.timeouts.token_leeway, clock=clock, rules=rules, source=source
    )
    async with trio.open_nursery() as nursery:
        if source is not None:
            nursery.start_soon(source.run)
        try:
            yield verifier
        finally:
            nursery.cancel_scope.cancel()
