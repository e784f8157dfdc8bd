"""`wsrecover dev`: a server to try things with, and what to type next."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Final

import trio
from cyclopts import Parameter

from wsrecover.access.tokens import MIN_SECRET_BYTES, sign
from wsrecover.demo.agents import demo_app
from wsrecover.logs import configure
from wsrecover.server import Server

from .exits import OK, write_out
from .options import (
    DEFAULT_URL,
    DEV_TOKEN,
    Host,
    LogFormatOption,
    Port,
    Store,
    command_line,
    dev_file,
    settings,
)
from .serve import load_app, run_server

__all__ = ["dev"]

TENANT: Final = "dev"
USER: Final = "you"
LIFETIME: Final = 24 * 3600.0
"""Seconds: a day of trying things."""


def dev(
    *,
    app: Annotated[
        str | None,
        Parameter(help="The agents to run, as module:attribute. [default: a demo agent, `reader`]"),
    ] = None,
    host: Host = None,
    port: Port = None,
    store: Store = None,
    log_format: LogFormatOption = None,
) -> int:
    """Serve with a made-up secret and a demo agent; print a token and what to type next."""
    secret = _kept_secret(dev_file("dev.secret"))
    chosen = settings(
        None,
        host=host,
        port=port,
        store=store or f"sqlite:{dev_file('dev.db')}",
        secret=secret,
        log_format=log_format,
    )
    configure(chosen)
    token = sign(secret, tenant=TENANT, user=USER, roles=("service",), lifetime=LIFETIME, clock=time.time)
    agents = demo_app() if app is None else load_app(app)

    def ready(server: Server) -> None:
        file = dev_file(DEV_TOKEN)
        _write_private(file, f"{token}\n".encode("ascii"))
        write_out(_welcome(server.url, chosen.store, token, file, next(iter(agents.agents), None)))

    trio.run(run_server, agents, chosen, ready)
    return OK


def _welcome(url: str, store: str, token: str, file: Path, agent: str | None) -> str:
    at = () if url == DEFAULT_URL else ("--url", url)
    next_steps = [command_line("wsrecover", "tail", *at)]
    if agent is not None:
        start = f'{{"agent": "{agent}", "input": {{}}}}'
        next_steps.append(command_line("wsrecover", "send", *at, "start_agent", start))
    next_steps.append(command_line("wsrecover", "send", *at, "chat", '{"text": "hello"}'))
    next_steps.append(command_line("wsrecover", "publish", *at, USER, "notice", '{"text": "from a service"}'))
    if store == "memory":
        last = "Then stop this server: its log, kept in memory, ends with it."
    else:
        port = f" with --port {url.rpartition(':')[2]}" if at else ""
        last = f"Then stop this server, start it again{port}: the log and `tail` go on where they were."
    commands = "\n".join(f"  {step}" for step in next_steps)
    return (
        f"wsrecover listens at {url} and keeps its log in {store}\n\n"
        f"A token for the user {USER} of the tenant {TENANT}, with the role service, good for 24 hours:\n"
        f"  {token}\n"
        f"The commands below find it in {file}\n\n"
        f"Type next, in another terminal:\n{commands}\n"
        f"{last}\n"
    )


def _kept_secret(file: Path) -> bytes:
    """Made up once and kept, so that tokens and positions outlive a restart."""
    try:
        secret = file.read_bytes()
    except FileNotFoundError:
        secret = b""
    if len(secret) < MIN_SECRET_BYTES:
        secret = secrets.token_hex(MIN_SECRET_BYTES).encode("ascii")
        _write_private(file, secret)
    return secret


def _write_private(file: Path, content: bytes) -> None:
    """Write a file whole or not at all, that only its owner may read."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    fresh.replace(file)
