"""What authentication and limits add to a connect with a remembered token, and to a command.

For a connect that is the whole decision over its upgrade, with the `hello` in its URL, and its audit line. No
socket: what is measured is the code that runs for it, as the server runs it, in this process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import structlog
import trio
from _harness import Figure, options, show

from wsrecover import Config, Grant, Limits, Principal, Tier
from wsrecover.access.limits import Bucket, Rate, moment
from wsrecover.protocol.frames import SUBPROTOCOL
from wsrecover.session import audit
from wsrecover.session.admission import PATH, Admission
from wsrecover.session.presence import Member
from wsrecover.testing import LocalServer, local_server
from wsrecover.transport import Acceptance, Headers, Request

CONNECT, COMMAND = 60.0, 3.0
"""Microseconds of CPU."""

ROUNDS = 20_000
PEER = "127.0.0.1:50000"
MEMBER = Member("acme", "ann", "bench")
MESSAGE = '{"op":"send","id":"0f6c1f5e8a","type":"chat","data":{"text":"hello"}}'


async def per_call(call: Callable[[], Awaitable[None]]) -> float:
    """Microseconds of CPU of one call."""
    started = time.process_time()
    for _ in range(ROUNDS):
        await call()
    return (time.process_time() - started) / ROUNDS * 1e6


def endless() -> Config:
    """Limits that are asked and never reached."""
    many = 1_000_000
    return Config(
        limits=Limits(
            address_connects_per_second=many,
            address_connects_burst=many,
            fresh_connects_per_second=many,
            tenant_commands_per_second=many,
            commands_in_flight=10**9,
            memory_bytes=10**15,
            frames_per_second=many,
            frames_burst=many,
        ),
        tier=Tier(
            commands_per_second=many,
            commands_burst=many,
            bytes_per_second=1_000_000_000,
            bytes_burst=1_000_000_000,
        ),
    )


@attrs.define
class Newcomer:
    """A connection, as the audit log sees it; its socket is itself."""

    grant: Grant
    member: Member = MEMBER
    id: str = "c0ffee"
    peer: str = PEER

    @property
    def socket(self) -> Newcomer:
        return self


class Parts:
    """What a server asks at each connect and command."""

    def __init__(self, local: LocalServer, nursery: trio.Nursery) -> None:
        self.services = local.server._services  # noqa: SLF001  These very parts are measured.
        session = local.server.registry.session("acme", "ann")
        self.quota, self.commands = session.quota, session.commands
        self.heard_at = trio.current_time()
        self.frames = Bucket(Rate(1_000_000, 1_000_000))
        self.admission = Admission(nursery, local.server.registry, self.services)
        headers = {
            "host": "127.0.0.1:8765",
            "origin": "http://127.0.0.1:8765",
            "authorization": f"Bearer {local.token('ann')}",
            "sec-websocket-protocol": SUBPROTOCOL,
        }
        self.request = Request("GET", PATH, {"client": "bench"}, Headers(headers), PEER)
        self.newcomer = Newcomer(Grant(Principal("acme", "ann"), expires_at=time.time() + 3600))

    async def connect(self) -> None:
        services, quota = self.services, self.quota
        services.addresses.enter(PEER)
        decision = self.admission.answer_now(self.request)
        assert isinstance(decision, Acceptance)
        quota.adopt(self.newcomer.grant.principal)
        quota.add_connection(0, replaces=False)
        audit.accepted(self.newcomer)
        quota.drop_connection()
        services.addresses.leave(PEER)

    async def command(self) -> None:
        at = moment(self.heard_at)  # Read when its bytes came, for the heartbeat.
        wait = self.quota.take_message(MESSAGE, at)
        self.frames.take(at, 1)
        self.quota.take_command(at, wait, repeat=False)
        self.commands.admit("0f6c1f5e8a")


async def measure(connect: Figure, command: Figure, repeat: int) -> None:
    async with local_server(config=endless()) as local, trio.open_nursery() as nursery:
        parts = Parts(local, nursery)
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
