"""The composition root: puts the parts together, starts them in order and stops them in the reverse one.

::

    config ─▶ store ─▶ journal ─▶ lost runs closed ─▶ sessions ─▶ listener ─▶ ready
"""

from __future__ import annotations

import gc
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, Final, Never

import attrs
import structlog
import trio

from . import logs
from .access.authenticator import Authenticator
from .access.opening import open_verifier
from .access.principal import Principal
from .agents.app import App
from .agents.ending import leaves
from .agents.lifecycle import close_lost_runs
from .config import Config, default_store, state_folder
from .errors import CommandError, ConfigError, InvalidEvent, StoreError, WsrecoverError
from .protocol import codec
from .protocol.cursor import Position
from .protocol.events import CRITICAL
from .protocol.fields import MAX_ID, is_id
from .protocol.schema import fitted
from .session.admission import Admission
from .session.broadcast import Broadcast, audience
from .session.drain import drain
from .session.heartbeat import sweep
from .session.quota import Quotas
from .session.receipts import Receipt
from .session.registry import Registry, RegistryStatistics
from .session.revoking import known_revocations, revoke
from .session.services import Services
from .streams.journal import Journal, JournalStatistics
from .streams.memory import open_memory
from .streams.registry import Streams
from .streams.sqlite import open_sqlite
from .streams.store import Applied, Entry, Store, StoreStatistics, StreamKey, Unit
from .transport.listener import Acceptance, Refusal, Request, open_listeners, serve_sockets

__all__ = ["Server", "ServerStatistics", "serve"]

log = structlog.get_logger(__name__)

SWITCH_INTERVAL: Final = 0.001
"""Seconds: with the default of 5 ms the store's thread waits that long for a busy loop at every commit."""

GC_THRESHOLDS: Final = (50_000, 20, 50)
"""One commit of 1,000 events makes 15,000 objects and drops most of them again. With Python's default, a look
for cycles every 700, that search was a third of all CPU per event."""


@attrs.frozen
class ServerStatistics:
    """What the parts count."""

    sessions: RegistryStatistics
    journal: JournalStatistics
    store: StoreStatistics


class Server:
    """A running server, as the program that embeds it sees it. `addresses` are (host, port)."""

    def __init__(
        self,
        services: Services,
        registry: Registry,
        addresses: tuple[tuple[str, int], ...],
        stop_accepting: Callable[[], object],
    ) -> None:
        self.addresses = addresses
        self.registry = registry
        self._services = services
        self._stop_accepting = stop_accepting

    @property
    def url(self) -> str:
        """Where clients connect: the first address."""
        scheme = "ws" if self._services.config.tls_certificate is None else "wss"
        host, port = self.addresses[0]
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def publish(
        self,
        tenant: str,
        user: str,
        type: str,  # noqa: A002  # The word of the wire.
        data: object,
        *,
        thread: str | None = None,
        id: str | None = None,  # noqa: A002  # The word of the wire.
    ) -> Position:
        """Log an event in the user's stream, connected or not; its position, once it is on stable storage.

        `data` is as in `Run.emit`. With an `id`, a repeat within ten minutes gives the first one's position.

        Raises `InvalidEvent`, `TokenError` for a name that no token could carry, `StoreUnavailable` or
        `StoreFailed` (nothing was logged), `CommandError("id_conflict")`. Cancelled, it may have taken
        effect.
        """
        if id is not None and not is_id(id):
            raise InvalidEvent("id", f"must be 1 to {MAX_ID} printable ASCII characters")
        principal, now = Principal(tenant, user), self._services.clock()
        fit = fitted(type, data, self._services.app.events)
        body = codec.encode_event(
            ts=now,
            type=type,
            data=fit,
            thread=thread,
            max_bytes=self._services.config.limits.event_bytes,
        )
        key = StreamKey("user", principal.tenant, principal.user)
        entry = Entry(key, body, now, thread, id, codec.digest(type, thread, fit) if id else b"")
        outcome = await self._services.journal.commit(Unit((entry,)))
        if not isinstance(outcome, Applied):
            raise CommandError("id_conflict", f"the id {id!r} was used with another body", field="id")
        return entry.position

    def ephemeral(
        self,
        tenant: str,
        user: str,
        type: str,  # noqa: A002  # The word of the wire.
        data: Mapping[str, Any],
        *,
        thread: str | None = None,
    ) -> int:
        """Show a user what is out of date in a moment; to how many connections, without waiting.

        It is not logged and has no seq: who is away or behind never sees it. Raises `InvalidEvent`, also for
        one that is larger than `limits.part_bytes` or of a type that a user must always see.
        """
        if type in CRITICAL:
            raise InvalidEvent("type", f"{type} must reach its user, and so is logged")
        services = self._services
        limits, now = services.config.limits, services.clock()
        fit = fitted(type, data, services.app.events)
        body = codec.encode_event(ts=now, type=type, data=fit, thread=thread, max_bytes=limits.part_bytes)
        session = self.registry.sessions.get((tenant, user))
        return 0 if session is None else session.show(Entry(session.key, body, now, thread))

    async def broadcast(
        self,
        to: str,
        type: str,  # noqa: A002  # The word of the wire.
        data: Mapping[str, Any],
        *,
        tenant: str | None = None,
        timeout: float | None = None,
    ) -> Receipt:
        """Log one event for many: `to` is "all", or of a `tenant` "tenant", "tier:<name>", "role:<name>".

        Who is away finds it on return. The receipt, given once the event is on stable storage, counts those
        who are entitled and connected in that moment and acknowledge it within `timeout` seconds (None:
        `timeouts.receipt`), over however many connections of theirs.

        Raises `InvalidEvent` (of `to` and `tenant` too), `StoreUnavailable` or `StoreFailed` (nothing was
        logged). Cancelled, it may have taken effect.
        """
        broadcast = Broadcast.of(self._services, audience(to, tenant), type, data, timeout=timeout)
        await broadcast.commit()
        return broadcast.receipt

    async def start_agent(
        self, tenant: str, user: str, agent: str, given: Mapping[str, Any], *, thread: str | None = None
    ) -> str:
        """Start an agent for a user, connected or not; the run's id, once its start is on stable storage.

        Raises `CommandError` (`not_found`, `overloaded`), `InvalidEvent`, `StoreUnavailable`, `StoreFailed`.
        """
        principal = Principal(tenant, user)
        runs = self.registry.of(principal).runs
        execution = runs.prepare(agent, dict(given), thread=thread)
        await runs.start(execution)
        return execution.run.id

    async def revoke(self, tenant: str, user: str | None = None, *, token_id: str | None = None) -> int:
        """Let tokens count no more: those of a user that were issued up to now, or the one with this `jti`.

        Connections that go by one are closed with 4503 before this waits for anything; it returns how many,
        once it is on stable storage and so outlives a restart. A token that does not say when it was issued
        (`iat`) counts as one of before. Runs and the log stay as they are.

        Raises `TokenError` for a name that no token could carry; `StoreUnavailable` or `StoreFailed`, and
        then it counts until a restart, so repeat it. Cancelled, likewise.
        """
        return await revoke(self.registry, self._services, tenant, user=user, token_id=token_id)

    async def drain(self) -> None:
        """Stop accepting, and ask every client to reconnect elsewhere or later: `drain`, then 4000.

        The closes are spread out, and over `timeouts.drain` seconds from now at the latest: whoever has not
        answered by then is cut. Runs go on, and are logged, until `serve` is cancelled, which is what comes
        next. Calling it again waits as well. Cancelled: no connection is accepted any more, and those whose
        turn has not come stay open.
        """
        self._stop_accepting()
        await drain(self.registry, self._services)

    def statistics(self) -> ServerStatistics:
        """Counts, without waiting."""
        return ServerStatistics(
            sessions=self.registry.statistics(),
            journal=self._services.journal.statistics(),
            store=self._services.store.statistics(),
        )


async def serve(
    app: App,
    config: Config,
    *,
    authenticator: Authenticator | None = None,
    wall_clock: Callable[[], float] = time.time,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Serve until cancelled. `await nursery.start(serve, app, config)` gives the `Server` once it is ready.

    Raises `ConfigError`, `StoreError` or `TransportError` where a part cannot start, in no group.

    Cancelling it tells all connections at once to come back later (`drain`, 4000), ends the runs with
    `server_stopped`, commits what was accepted, and closes the store. That takes a moment: peers that do not
    answer their close have 2 s; on a store that hangs, the runs have 5 s for their last words, the journal
    `timeouts.drain` and the store `timeouts.store` seconds. To stop without sending all clients to the next
    server in one moment, wait for `Server.drain` first; `wsrecover serve` does so on SIGTERM.

    `authenticator` decides who is let in; None: tokens, as `Config.tokens` says. `wall_clock` gives unix
    seconds. Where the program has not configured structlog, this does it
    (`Config.log_*`).
    """
    try:
        await _serve(app, config, authenticator, wall_clock, task_status)
    except BaseExceptionGroup as group:
        errors = [leaf for leaf in leaves(group) if not isinstance(leaf, trio.Cancelled)]
        if len(errors) == 1 and isinstance(errors[0], WsrecoverError):
            raise errors[0] from errors[0].__cause__
        raise


async def _serve(
    app: App,
    config: Config,
    authenticator: Authenticator | None,
    wall_clock: Callable[[], float],
    task_status: trio.TaskStatus[Server],
) -> Never:
    if not structlog.is_configured():
        logs.configure(config)
    admits: AbstractAsyncContextManager[Authenticator] = (
        open_verifier(config, wall_clock) if authenticator is None else nullcontext(authenticator)
    )
    context, quotas = _tls(config), Quotas(config)
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.set_threshold(*GC_THRESHOLDS)
    async with (
        admits as admission,
        _opened_store(config, wall_clock) as store,
        _running_journal(quotas, store, wall_clock) as (journal, streams),
        trio.open_nursery() as nursery,
    ):
        revoked = await known_revocations(store)
        services = Services(app, config, store, streams, journal, admission, wall_clock, quotas, revoked)
        await close_lost_runs(store, journal, clock=wall_clock)
        server = await _start(nursery, services, context)
        log.info(
            "ready",
            addresses=[f"{host}:{port}" for host, port in server.addresses],
            url=server.url,
            store=config.store,
        )
        task_status.started(server)
        try:
            await trio.sleep_forever()
        finally:
            services.receipts.close()
    raise AssertionError("unreachable: only cancellation ends serving")


async def _start(nursery: trio.Nursery, services: Services, context: ssl.SSLContext | None) -> Server:
    """Start what is served, the listener last."""
    registry = Registry(nursery, services)
    nursery.start_soon(sweep, registry, services)
    admission = Admission(nursery, registry, services)
    accepting = trio.CancelScope()
    listen = partial(_listen, services, admission.answer, accepting, ssl_context=context)
    addresses = await nursery.start(listen)
    return Server(services, registry, tuple(addresses), accepting.cancel)


@asynccontextmanager
async def _opened_store(config: Config, clock: Callable[[], float]) -> AsyncIterator[Store]:
    path = config.store_path
    if config.store == default_store():
        # Any other folder is the user's to make: one that is not there is more likely mistyped.
        state_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
    if path is None:
        store: Store = await open_memory(clock=clock)
    else:
        store = await open_sqlite(path, clock=clock, timeout=config.timeouts.store)
    try:
        yield store
    finally:
        with trio.move_on_after(config.timeouts.store, shield=True):
            try:
                await store.aclose()
            except StoreError:
                log.exception("store_not_closed")


@asynccontextmanager
async def _running_journal(
    quotas: Quotas, store: Store, clock: Callable[[], float]
) -> AsyncIterator[tuple[Journal, Streams]]:
    """The journal, which outlives what is served: a cancelled run still has its last event to write."""
    config, limits = quotas.config, quotas.config.limits
    streams = Streams(
        store, tail_events=limits.tail_events, tail_bytes=limits.tail_bytes, budget_bytes=limits.tails_bytes
    )
    journal = Journal(
        store,
        streams,
        max_units=limits.journal_units,
        max_bytes=limits.journal_bytes,
        retention=quotas.retention,
        clock=clock,
        snapshot_events=config.contexts.every,
    )
    async with trio.open_nursery() as nursery:
        shield = await nursery.start(_run_journal, journal)
        try:
            yield journal, streams
        finally:
            shield.deadline = trio.current_time() + config.timeouts.drain
            with trio.CancelScope(shield=True, deadline=shield.deadline):
                await journal.aclose()


async def _run_journal(
    journal: Journal, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
) -> None:
    """Shielded: whoever started it sets the shield's deadline when it stops serving."""
    with trio.CancelScope(shield=True) as scope:
        task_status.started(scope)
        await journal.run()


async def _listen(
    services: Services,
    answer: Callable[[Request], Awaitable[Refusal | Acceptance]],
    accepting: trio.CancelScope,
    *,
    ssl_context: ssl.SSLContext | None,
    task_status: trio.TaskStatus[list[tuple[str, int]]],
) -> None:
    config = services.config
    with ExitStack() as stack, accepting:
        listeners = [stack.enter_context(one) for one in await open_listeners(config.host, config.port)]
        await serve_sockets(
            listeners,
            answer,
            handshake_timeout=config.timeouts.handshake,
            head_bytes=config.limits.head_bytes,
            max_message_bytes=config.limits.message_bytes,
            max_handshakes=config.limits.handshakes,
            gate=services.addresses,
            ssl_context=ssl_context,
            task_status=task_status,
        )


def _tls(config: Config) -> ssl.SSLContext | None:
    if config.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("tls_certificate", str(error), "a PEM certificate and its key") from error
    return context
