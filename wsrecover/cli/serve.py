"""`wsrecover serve`: a server as a process of its own."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import trio
from cyclopts import Parameter

import wsrecover.server
from wsrecover.agents.app import App
from wsrecover.agents.ending import errors_in
from wsrecover.config import Config
from wsrecover.errors import ConfigError, TransportError
from wsrecover.logger import get_logger
from wsrecover.logs import configure
from wsrecover.server import Server
from wsrecover.transport.doorway import raise_descriptor_limit

from .exits import OK, Failure
from .options import (
    Audience,
    ConfigFile,
    Host,
    Issuer,
    Jwks,
    LogFormatOption,
    OperatorIssuer,
    Origin,
    Port,
    SecretFile,
    Store,
    check_files,
    settings,
)

__all__ = ["run_server", "serve"]

log = get_logger(__name__)

_IMPORTERS: Final = ("wsrecover", "importlib")
"""The packages whose frames stand above those of a module that `--app` names."""


def serve(
    *,
    app: Annotated[
        str | None,
        Parameter(help="The agents to run, as module:attribute. [default: none, events are published]"),
    ] = None,
    host: Host = None,
    port: Port = None,
    store: Store = None,
    secret_file: SecretFile = None,
    jwks: Jwks = None,
    issuer: Issuer = (),
    operator_issuer: OperatorIssuer = (),
    audience: Audience = None,
    origin: Origin = (),
    config: ConfigFile = None,
    log_format: LogFormatOption = None,
) -> int:
    """Serve until SIGTERM or SIGINT. The log goes to stderr; its line `ready` names the addresses."""
    chosen = settings(
        config,
        host=host,
        port=port,
        store=store,
        secret_file=None if secret_file is None else os.fspath(secret_file),
        log_format=log_format,
        tables={
            "tokens": {
                "jwks": jwks,
                "issuers": issuer,
                "operator_issuers": operator_issuer,
                "audience": audience,
            },
            "origins": {"allowed": origin},
        },
    )
    check_files(chosen)
    configure(chosen)
    trio.run(run_server, App() if app is None else load_app(app), chosen)
    return OK


async def run_server(app: App, config: Config, on_ready: Callable[[Server], object] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    The process may have as many descriptors as its hard limit says from then on.
    `on_ready` is called once the server listens. Cancelling stops it as it stops `wsrecover.serve`.
    """
    raise_descriptor_limit()
    server: Server | None = None
    async with trio.open_nursery() as nursery:

        async def stop() -> None:
            if server is not None:
                await server.drain()
            nursery.cancel_scope.cancel()

        await nursery.start(_on_signal, stop)
        try:
            server = await nursery.start(wsrecover.server.serve, app, config)
        except* TransportError as group:
            (error,) = errors_in(group)
            cause = error.__cause__
            ports_fault = isinstance(cause, OSError) and cause.errno in (errno.EADDRINUSE, errno.EACCES)
            port = "another port with --port; 0 takes any free one"
            advice = port if ports_fault else "another address with --host"
            raise Failure(f"listener: {error}\nChoose {advice}.") from error
        if on_ready is not None:
            on_ready(server)
    log.info("stopped")


async def _on_signal(
    stop: Callable[[], Awaitable[None]], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        number = await anext(signals)
    # Python's own handler would only cancel the server, which then waits for its agents' threads.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    log.info("stopping", signal=signal.Signals(number).name)
    await stop()


def load_app(name: str) -> App:
    """The `App` that `module:attribute` names, searched in the current folder first.

    Raises `ConfigError` where it names none, and `Failure`, which says where, if the module raises.
    """
    accepted = "module:attribute, where the attribute is a wsrecover.App"
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ConfigError("app", f"is {name!r}", accepted)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - an entry of sys.path is a string
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        raise ConfigError("app", f"names a module that is not there: {error.name}", accepted) from error
    except Exception as error:  # Whatever a module may raise: its author is told.
        raise _broken(module_name, error) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, App):
        raise ConfigError("app", f"{name} is {'absent' if app is None else type(app).__name__}", accepted)
    return app


def _broken(module_name: str, error: Exception) -> Failure:
    """A module that raised: where in its own code, and what."""
    at = error.__traceback__
    while at is not None and at.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _IMPORTERS:
        at = at.tb_next
    lines = "".join((*traceback.format_tb(at), *traceback.format_exception_only(error)))
    return Failure(f"app: the module {module_name} cannot be imported:\n{lines.rstrip()}")
