"""What authentication and limits add to a connect with a remembered token, and to a command.

No socket: what is measured is the code that runs for it, as the server runs it, in this process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio
from _harness import SECRET, Figure, options, show, token

from wsrecover import Config, Limits, Tier
from wsrecover.access import Credentials, TokenVerifier
from wsrecover.access.addresses import Addresses
from wsrecover.access.limits import Bucket, Rate
from wsrecover.access.origins import is_allowed
from wsrecover.access.revocations import Revocations
from wsrecover.session import audit
from wsrecover.session.quota import Quota, Quotas
from wsrecover.streams.store import StreamKey
from wsrecover.transport import Headers

CONNECT, COMMAND = 60.0, 3.0
"""Microseconds of CPU."""

ROUNDS = 20_000
MESSAGE = '{"op":"send","id":"0f6c1f5e8a","type":"chat","data":{"text":"hello"}}'


async def per_call(call: Callable[[], Awaitable[None]]) -> float:
    """Microseconds of CPU of one call."""
    started = time.process_time()
    for _ in range(ROUNDS):
        await call()
    return (time.process_time() - started) / ROUNDS * 1e6


class Parts:
    """What a server asks at each connect and command."""

    def __init__(self) -> None:
        endless = 1_000_000
        self.config = Config(
            store="memory",
            secret=SECRET,
            limits=Limits(
                address_connects_per_second=endless,
                address_connects_burst=endless,
                tenant_commands_per_second=endless,
            ),
            tier=Tier(
                commands_per_second=endless,
                commands_burst=endless,
                bytes_per_second=1_000_000_000,
                bytes_burst=1_000_000_000,
            ),
        )
        self.verifier = TokenVerifier(SECRET, leeway=30, clock=time.time)
        self.revocations = Revocations(30.0)
        self.addresses = Addresses(self.config.limits)
        self.fresh = Bucket(Rate(1_000_000, 1_000_000))
        self.quota = Quota(Quotas(self.config), StreamKey("user", "bench", "ann"))
        self.frames = Bucket(Rate(1_000_000, 1_000_000))
        self.headers = Headers({"host": "127.0.0.1:8765", "origin": "http://127.0.0.1:8765"})
        self.token = token("ann")

    async def connect(self) -> None:
        peer = "127.0.0.1:50000"
        self.addresses.enter(peer)
        is_allowed(self.config.origins, self.headers["origin"], self.headers["host"], tls=False)
        grant = await self.verifier.authenticate(Credentials(self.token, self.headers, peer))
        assert grant is not None
        self.revocations.check(grant)
        self.fresh.take(trio.current_time())
        self.revocations.check(grant)
        self.quota.adopt(grant.principal)
        self.quota.add_connection(0, replaces=False)
        audit.accepted(grant, client="bench", peer=peer)
        self.quota.drop_connection()
        self.addresses.leave(peer)

    async def command(self) -> None:
        wait = self.quota.take_message(MESSAGE)
        self.frames.take(trio.current_time(), 1)
        self.quota.take_command(wait, repeat=False)


async def measure(connect: Figure, command: Figure, repeat: int) -> None:
    parts = Parts()
    for _ in range(repeat):
        connect.values.append(await per_call(parts.connect))
        command.values.append(await per_call(parts.command))


def main() -> None:
    given = options(__doc__ or "", repeat=5)
    connect, command = Figure("connect, token remembered, with its audit line"), Figure("command")
    with Path(os.devnull).open("w") as nowhere:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.PrintLoggerFactory(nowhere),
            cache_logger_on_first_use=True,
        )
        trio.run(measure, connect, command, given.repeat)
    show(
        "what authentication and limits cost",
        "µs CPU",
        [connect, command],
        [f"target: a connect ≤ {CONNECT:.0f}, a command ≤ {COMMAND:.0f}"],
    )


if __name__ == "__main__":
    main()
