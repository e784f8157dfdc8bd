"""Where a session's tokens come from."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from wsrecover.errors import ConfigError, TokenError

__all__ = ["Token", "TokenSource"]

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""A token, or what gives a fresh one each time it is called."""


class TokenSource:
    """The current token, asked for again only when it was refused or is about to expire."""

    def __init__(self, token: Token, *, timeout: float) -> None:
        if not callable(token):
            _check_token(token, "is")
        self._make = None if isinstance(token, str) else token
        self._token = token if isinstance(token, str) else None
        self._timeout = timeout

    @property
    def refreshable(self) -> bool:
        """Whether there is anybody to ask for another one."""
        return self._make is not None

    def refused(self) -> None:
        """The token does not count any more: the next `get` asks for another one."""
        if self._make is not None:
            self._token = None

    async def get(self) -> str:
        """The current token.

        Raises `TokenError` where the app's callback fails or takes too long, and `ConfigError` where it gives
        what is no token.
        """
        if self._token is None:
            self._token = await self.fresh()
        return self._token

    async def fresh(self) -> str:
        """A token just asked for, which is the current one from now on. Raises like `get`."""
        if self._make is None:
            raise TokenError("the token was given as a string: nobody can be asked for another one")
        try:
            with trio.fail_after(self._timeout):
                made = self._make()
                token = await made if inspect.isawaitable(made) else made
        except trio.TooSlowError:
            raise TokenError(f"the token callback gave none within {self._timeout:g} s") from None
        except Exception as error:
            raise TokenError(f"the token callback failed: {type(error).__name__}") from error
        _check_token(token, "the callback gave")
        self._token = token
        return token


def _check_token(token: object, how: str) -> None:
    if not isinstance(token, str):
        kind = "None" if token is None else f"a {type(token).__name__}"
        raise ConfigError("token", f"{how} {kind}", "a string, or a function that gives one")
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("token", f"{how} no token", "printable ASCII, without a line end")
