"""What the commands that talk to a server share: the way there, and one command with its result."""

from __future__ import annotations

import ipaddress
import secrets
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import orjson
import trio

from wsrecover.agents.ending import errors_in
from wsrecover.client import connect
from wsrecover.client.entry import check_url
from wsrecover.errors import CommandError
from wsrecover.protocol.fields import is_id

from . import interrupts
from .exits import OK, USAGE, Failure, reason, write_out
from .options import command_line, naming_source, token_source

__all__ = ["Command", "call", "check_reachable"]

GIVE_UP_AFTER: Final = 10.0
"""Seconds without a connection after which a command fails."""

DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}


async def check_reachable(url: str) -> None:
    """Fail at once where nobody listens: a session would try again for ever."""
    parts = urlsplit(check_url(url))
    try:
        with trio.fail_after(GIVE_UP_AFTER):
            stream = await trio.open_tcp_stream(
                parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
            )
    except trio.TooSlowError as error:
        raise _nobody(url, f" within {GIVE_UP_AFTER:g} s") from error
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


def _command_id(given: str | None) -> str:
    if given is None:
        return secrets.token_hex(16)
    if not is_id(given):
        raise Failure(f"--id is {given!r}; accepted: 1 to 128 printable ASCII characters", USAGE)
    return given


@attrs.frozen
class Command:
    """What is sent. Without an `id` it gets a random one."""

    kind: str
    data: dict[str, Any]
    thread: str | None
    id: str = attrs.field(converter=_command_id)


def call(
    command: Command, url: str, token: str | None, token_file: Path | None, timeout: float | None
) -> int:
    """Send the command and print its result as JSON; `timeout` (None: none) is seconds for the answer."""
    if timeout is not None and not timeout > 0:
        raise Failure(f"--timeout is {timeout:g}; accepted: a number of seconds > 0", USAGE)
    source = token_source(token, token_file)
    sent = False

    async def talk() -> dict[str, Any]:
        nonlocal sent
        await check_reachable(url)
        async with connect(url, token=source, events=False, give_up_after=GIVE_UP_AFTER) as session:
            sent = True
            try:
                return await session.send(
                    command.kind, command.data, thread=command.thread, id=command.id, timeout=timeout
                )
            except trio.TooSlowError:
                raise Failure(f"no answer within {timeout:g} s") from None

    try:
        with naming_source(source, token):
            result = interrupts.run(talk)
    except BaseException as error:
        if sent and not _is_refusal(error):
            again = command_line("--id", command.id)
            error.add_note(
                f"Whether it took effect is not known. To repeat it safely, within 10 minutes, add {again}"
            )
        raise
    text = orjson.dumps(result).decode()
    try:
        write_out(f"{text}\n")
    except Failure as error:
        error.add_note(f"The command took effect all the same: {text}")
        raise
    return OK


def _is_refusal(error: BaseException) -> bool:
    """Whether the server answered, and knows that it took no effect."""
    return any(isinstance(leaf, CommandError) and leaf.code != "outcome_unknown" for leaf in errors_in(error))
