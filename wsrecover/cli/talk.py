"""What the commands that talk to a server share: the way there, and one command with its result."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
import trio

from wsrecover.client import connect
from wsrecover.client.entry import check_url

from . import interrupts
from .exits import OK, Failure, reason, write_out
from .options import naming_source, token_source

__all__ = ["call", "check_reachable"]

PATIENCE: Final = 10.0
"""Seconds without a connection, or without an answer, after which a command fails."""

DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}


async def check_reachable(url: str) -> None:
    """Fail at once where nobody listens: a session would try again for ever."""
    parts = urlsplit(check_url(url))
    try:
        with trio.fail_after(PATIENCE):
            stream = await trio.open_tcp_stream(
                parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
            )
    except trio.TooSlowError as error:
        raise _nobody(url, f" within {PATIENCE:g} s") from error
    except OSError as error:
        raise _nobody(url, f": {reason(error)}") from error
    await stream.aclose()


def _nobody(url: str, how: str) -> Failure:
    advice = "\nStart one with: wsrecover dev" if _is_here(urlsplit(url).hostname or "") else ""
    return Failure(f"no server answers at {url}{how}.{advice}")


def _is_here(host: str) -> bool:
    """Whether a server that is started on this machine would answer there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def call(
    url: str, token: str | None, token_file: Path | None, kind: str, data: dict[str, Any], thread: str | None
) -> int:
    """Send one command and print its result as JSON."""
    source = token_source(token, token_file)

    async def talk() -> dict[str, Any]:
        await check_reachable(url)
        try:
            async with connect(url, token=source, events=False, give_up_after=PATIENCE) as session:
                return await session.send(kind, data, thread=thread, timeout=PATIENCE)
        except trio.TooSlowError:
            raise Failure(f"no answer within {PATIENCE:g} s; whether it took effect is not known") from None

    with naming_source(source, token):
        result = interrupts.run(talk)
    text = orjson.dumps(result).decode()
    try:
        write_out(f"{text}\n")
    except Failure as error:
        error.add_note(f"The command took effect all the same: {text}")
        raise
    return OK
