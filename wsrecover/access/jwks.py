"""Where a key set comes from: a file or a URL of the settings, never one that a token names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trio

from wsrecover.errors import ConfigError, KeysUnavailable
from wsrecover.logger import get_logger

from .keys import Key, parse_jwks

__all__ = ["KeySource"]

log = get_logger(__name__)

MAX_BYTES: Final = 256 * 1024
"""Of a key set: a hundred RSA keys with their certificates."""

TIMEOUT: Final = 3.0
"""Seconds for the whole set to arrive; it must fit into a handshake, which may wait for it."""

RETRY_AFTER: Final = 60.0
"""Seconds between two looks for a key that is not known: else a stranger's tokens set our pace."""

MAX_AGE: Final = 600.0
"""Seconds after which the set is read again unasked, so that a key that was withdrawn ends here too."""


_ASKED: Final = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Not compressed: a few bytes that expand would be in memory before they could be counted."""


_PASSING: Final = frozenset((429, *range(500, 600)))
"""Statuses that say nothing of whether the URL is the right one."""


class _Unreachable(ValueError):
    """What is wrong may well pass by itself."""


class KeySource:
    """A key set that is read when the server starts, and again by the task in `run`.

    `keys` are the last that were read whole; a set that cannot be read changes nothing.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.keys: tuple[Key, ...] = ()
        self._read_at = float("-inf")
        self._asked = trio.Event()
        self._done = trio.Event()

    async def load(self) -> None:
        """Read the set for the first time.

        Raises `KeysUnavailable` where its URL cannot be reached now, and `ConfigError` where there is no such
        file or what is there is no key set.
        """
        try:
            await self._read()
        except _Unreachable as error:
            raise KeysUnavailable(f"{self.location} {error}") from error
        except ValueError as error:
            raise ConfigError(
                "tokens.jwks", f"{self.location} {error}", "a file or URL with a JSON Web Key Set"
            ) from error

    async def run(self) -> None:
        """Read the set again when it is asked for or old, until cancelled."""
        while True:
            with trio.move_on_at(self._read_at + MAX_AGE):
                await self._asked.wait()
            self._asked.set()  # Who asks while it is read waits for that, too.
            try:
                await self._read()
            except ValueError as error:
                log.warning("key_set_not_read", location=self.location, error=str(error))
            done, self._done, self._asked = self._done, trio.Event(), trio.Event()
            done.set()

    async def refreshed(self) -> bool:
        """Wait until the set was read again; False at once where that was less than a minute ago.

        Many may wait for one reading. Cancelling it leaves the reading to go on.
        """
        if trio.current_time() - self._read_at < RETRY_AFTER and not self._asked.is_set():
            return False
        self._asked.set()
        await self._done.wait()
        return True

    async def _read(self) -> None:
        url = "://" in self.location
        self._read_at = trio.current_time()
        keys = parse_jwks(await (_fetch if url else _load)(self.location), secrets=not url)
        if keys != self.keys:
            log.info("key_set_read", location=self.location, kids=[key.kid for key in keys])
            self.keys = keys


async def _load(location: str) -> bytes:
    try:
        async with await trio.open_file(Path(location), "rb") as file:
            text = await file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    return _bounded(text)


async def _fetch(url: str) -> bytes:
    """Raises `ValueError` for everything that goes wrong, `_Unreachable` for what is not for long."""
    import httpx  # noqa: PLC0415  A quarter second of start-up that only those with a URL pay.

    text = b""
    try:
        with trio.move_on_after(TIMEOUT) as scope:
            async with (
                httpx.AsyncClient(trust_env=False, timeout=None) as client,  # noqa: S113  The scope bounds it.
                client.stream("GET", url, headers=_ASKED) as response,
            ):
                if response.status_code != 200:
                    kind = _Unreachable if response.status_code in _PASSING else ValueError
                    raise kind(f"answers with the status {response.status_code}")
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise ValueError("answers in an encoding that was not asked for")
                async for piece in response.aiter_raw():
                    text += piece
                    if len(text) > MAX_BYTES:
                        scope.cancel()  # Leaving the loop would leave httpx's own generators half-way.
                return _bounded(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"cannot be fetched: {error}") from error
    except httpx.HTTPError as error:
        raise _Unreachable(f"cannot be fetched: {type(error).__name__}: {error}") from error
    _bounded(text)
    raise _Unreachable(f"did not come within {TIMEOUT:g} s")


def _bounded(text: bytes) -> bytes:
    if len(text) > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES} bytes")
    return text
