"""The whole server without a socket or a thread, for tests that own the time and the order of tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from wsrecover.access.tokens import TokenVerifier
from wsrecover.agents import App
from wsrecover.config import Config
from wsrecover.server import Server, _opened_store, _running_journal
from wsrecover.session.admission import Admission
from wsrecover.session.heartbeat import sweep
from wsrecover.session.quota import Quotas
from wsrecover.session.registry import Registry
from wsrecover.session.services import Services
from wsrecover.session.shedding import shed
from wsrecover.testing import LocalServer, MemoryNetwork
from wsrecover.transport import Handshakes
from wsrecover.transport.doorway import Doorway

SECRET = b"for tests in memory alone, not a secret"


@attrs.frozen
class MemoryWorld:
    """A server that is reached by `network.dial`, and the parts that it is made of."""

    local: LocalServer
    network: MemoryNetwork
    services: Services
    registry: Registry


@asynccontextmanager
async def memory_world(app: App | None = None, **settings: Any) -> AsyncIterator[MemoryWorld]:
    """The parts that `serve` puts together, behind a network in memory. Both clocks are trio's.

    A `store` that is a file asks for a clock that only the test moves: its threads are no tasks of trio's.
    """
    config = Config(secret=SECRET, **{"store": "memory", **settings})
    limits, timeouts = config.limits, config.timeouts
    clock, quotas = trio.lowlevel.current_clock().current_time, Quotas(config)
    async with (
        _opened_store(config, clock) as store,
        _running_journal(quotas, store, clock) as (journal, streams),
        trio.open_nursery() as nursery,
    ):
        verifier = TokenVerifier(SECRET, leeway=timeouts.token_leeway, clock=clock)
        services = Services(app or App(), config, store, streams, journal, verifier, clock, quotas)
        registry = Registry(nursery, services)
        nursery.start_soon(sweep, registry, services)
        nursery.start_soon(shed, registry, services)
        nursery.start_soon(services.alarms.run)
        handshakes = Handshakes(
            answer=Admission(nursery, registry, services).answer,
            timeout=timeouts.handshake,
            head_bytes=limits.head_bytes,
            max_message_bytes=limits.message_bytes,
            max_under_way=limits.handshakes,
            gate=services.addresses,
        )
        network = MemoryNetwork(nursery, handshakes.shake)
        server = Server(services, registry, (("memory", 80),), network.refuse, Doorway())
        yield MemoryWorld(LocalServer(server, config, SECRET, clock), network, services, registry)
        nursery.cancel_scope.cancel()
