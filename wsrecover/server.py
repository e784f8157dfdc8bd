"""The composition root: puts the parts together, starts them in order and stops them in the reverse one.

::

    config ─▶ store ─▶ journal ─▶ lost runs closed ─▶ sessions ─▶ listener ─▶ ready
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Final, Never

import structlog
import trio

from wsrecover.logger import get_logger

from . import logs
from .access.authenticator import Authenticator
from .access.opening import open_verifier
from .agents.app import App, is_async
from .agents.ending import errors_in
from .agents.lifecycle import close_lost_runs
from .config import Config, default_store, state_folder
from .errors import ConfigError, StoreError, WsrecoverError
from .interpreter import tuned
from .manager import Server, ServerStatistics
from .session.admission import Admission
from .session.heartbeat import sweep
from .session.quota import Quotas
from .session.registry import Registry
from .session.revoking import known_revocations
from .session.services import Services
from .session.shedding import shed
from .streams.journal import Journal
from .streams.memory import open_memory
from .streams.registry import Streams
from .streams.sqlite import open_sqlite
from .streams.store import Store
from .transport.doorway import Doorway
from .transport.listener import authority, open_listeners, serve_sockets

__all__ = ["Server", "ServerStatistics", "serve"]

log = get_logger(__name__)

JOURNAL_PART: Final = 16
"""The journal never takes more than this part of all memory, which it is by default: it fills up between two
looks at what is held."""


async def serve(
    app: App,
    config: Config,
    *,
    authenticator: Authenticator | None = None,
    wall_clock: Callable[[], float] = time.time,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> Never:
    """Serve until cancelled. `await nursery.start(serve, app, config)` gives the `Server` once it is ready.

    Raises `ConfigError`, `KeysUnavailable`, `StoreError` or `TransportError` where a part cannot start, in no
    group; `WsrecoverError` under asyncio.

    Cancelling it tells all connections at once to come back later (`drain`, 4000), ends the runs with
    `server_stopped`, commits what was accepted, and closes the store. That takes a moment: peers that do not
    answer their close have 2 s; on a store that hangs, the runs have 5 s for their last words, the journal
    `timeouts.drain` and the store `timeouts.store` seconds. To stop without sending all clients to the next
    server in one moment, wait for `Server.drain` first; `wsrecover serve` does so on SIGTERM.

    `authenticator` decides who is let in; None: tokens, as `Config.tokens` says. `wall_clock` gives unix
    seconds. Where the program has not configured structlog, this does it (`Config.log_*`).

    While it runs the whole process has other thresholds of garbage collection and a shorter switch interval
    (see `interpreter`). The last server of a process to end puts back what was there before.
    """
    if not trio.lowlevel.in_trio_run():
        raise WsrecoverError("serve needs trio, not asyncio: call it within trio.run")
    try:
        with tuned():
            await _serve(app, config, authenticator, wall_clock, task_status)
    except BaseExceptionGroup as group:
        errors = errors_in(group)
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
    if authenticator is not None and not is_async(getattr(authenticator, "authenticate", None)):
        accepted = "None, or an object with an async method `authenticate(credentials)`"
        raise ConfigError("authenticator", f"is a {type(authenticator).__name__}", accepted)
    if not structlog.is_configured():
        logs.configure(config)
    admits: AbstractAsyncContextManager[Authenticator] = (
        open_verifier(config, wall_clock) if authenticator is None else nullcontext(authenticator)
    )
    context, quotas, steady = _tls(config), Quotas(config), _steady(wall_clock)
    async with (
        admits as admission,
        _opened_store(config, steady) as store,
        _running_journal(quotas, store, wall_clock) as (journal, streams),
        trio.open_nursery() as nursery,
    ):
        revoked = await known_revocations(store, config, wall_clock())
        services = Services(app, config, store, streams, journal, admission, wall_clock, quotas, revoked)
        await close_lost_runs(store, journal, clock=wall_clock)
        server = await _start(nursery, services, context)
        log.info(
            "ready",
            addresses=[authority(address) for address in server.addresses],
            url=server.url,
            store=config.store,
        )
        task_status.started(server)
        try:
            await trio.sleep_forever()
        finally:
            services.receipts.close()
    raise AssertionError("unreachable: only cancellation ends serving")


def _steady(clock: Callable[[], float]) -> Callable[[], float]:
    """Unix seconds as `clock` has them now, and from now on as time passes, whatever that clock is set to."""
    running = trio.lowlevel.current_clock()
    began = clock() - running.current_time()
    return lambda: began + running.current_time()


async def _start(nursery: trio.Nursery, services: Services, context: ssl.SSLContext | None) -> Server:
    """Start what is served, the listener last."""
    registry = Registry(nursery, services)
    nursery.start_soon(sweep, registry, services)
    nursery.start_soon(shed, registry, services)
    nursery.start_soon(services.alarms.run)
    admission = Admission(nursery, registry, services)
    accepting = trio.CancelScope()
    doorway = Doorway()
    listen = partial(_listen, services, admission, accepting, doorway, ssl_context=context)
    addresses = await nursery.start(listen)
    return Server(services, registry, tuple(addresses), accepting.cancel, doorway)


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
        store,
        tail_events=limits.tail_events,
        tail_bytes=limits.tail_bytes,
        budget_bytes=min(limits.tails_bytes, limits.memory_bytes),
    )
    journal = Journal(
        store,
        streams,
        max_units=limits.journal_units,
        max_bytes=min(limits.journal_bytes, limits.memory_bytes // JOURNAL_PART),
        retention=quotas.retention,
        context_age=quotas.context_age,
        clock=clock,
        snapshot_events=config.contexts.every,
    )
    # Made here, not in its task: a cancellation between the two would find a shield that nobody ends.
    shield = trio.CancelScope(shield=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_journal, journal, shield)
        try:
            yield journal, streams
        finally:
            shield.deadline = trio.current_time() + config.timeouts.drain
            with trio.CancelScope(shield=True, deadline=shield.deadline):
                await journal.aclose()


async def _run_journal(journal: Journal, shield: trio.CancelScope) -> None:
    """Commit behind a shield, whose deadline is set by whoever stops serving."""
    with shield:
        await journal.run()


async def _listen(
    services: Services,
    admission: Admission,
    accepting: trio.CancelScope,
    doorway: Doorway,
    *,
    ssl_context: ssl.SSLContext | None,
    task_status: trio.TaskStatus[list[tuple[str, int]]],
) -> None:
    config = services.config
    with ExitStack() as stack, accepting:
        listeners = [stack.enter_context(one) for one in await open_listeners(config.host, config.port)]
        await serve_sockets(
            listeners,
            admission.answer,
            answer_now=admission.answer_now,
            handshake_timeout=config.timeouts.handshake,
            head_bytes=config.limits.head_bytes,
            max_message_bytes=config.limits.message_bytes,
            max_handshakes=config.limits.handshakes,
            gate=services.addresses,
            ssl_context=ssl_context,
            doorway=doorway,
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
