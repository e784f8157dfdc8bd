"""The demo's second part: a client that is away for longer than the log reaches back.

It has the beginning of a run, then no connection until the run is over and the log was trimmed past it. When
it is back it is told the gap and a snapshot, and its context must be what somebody new is told.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from typing import Final

import attrs
import trio

from wsrecover.access.tokens import sign
from wsrecover.client import ClientSession, Event, Gap, Snapshot, connect
from wsrecover.config import Config, Retention
from wsrecover.protocol.context import Context
from wsrecover.server import Server, serve
from wsrecover.testing.link import LossyLink

from .agents import AGENT, demo_app

__all__ = ["Absence", "stay_away"]

TENANT: Final = "demo"
USER: Final = "traveller"
THREAD: Final = "journey"

MEANWHILE: Final = "demo.meanwhile"
"""The type of events that only make the log move on."""

KEPT: Final = Retention(events=4)
"""What a log keeps here: less than any run of the demo's agent makes."""

TIME_LIMIT: Final = 30.0
"""Seconds in which the client must be through: what has not come by then is taken for lost."""

LOOK_AGAIN: Final = 0.02
"""Seconds from one look at the log's oldest event to the next."""


@attrs.frozen
class Absence:
    """What the client found: how many `events` were gone, and whether its context was the server's.

    Where it was `late`, it had not found out within `TIME_LIMIT`.
    """

    events: int
    equal: bool
    late: bool = False

    @property
    def recovered(self) -> bool:
        """Whether there was a gap, and the state was whole behind it."""
        return self.events > 0 and self.equal


async def stay_away(file: Path, text: str) -> Absence:
    """Serve, start the agent on `file`, which says `text`, cut the client off, and look at what it finds."""
    absence = Absence(0, equal=False, late=True)
    gone = trio.Event()
    with tempfile.TemporaryDirectory(prefix="wsrecover-demo-", ignore_cleanup_errors=True) as folder:
        config = Config(
            port=0,
            store=f"sqlite:{Path(folder) / 'away.db'}",
            secret=secrets.token_bytes(32),
            retention=KEPT,
        )
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve, demo_app(file, pace=gone.wait), config)
            link = LossyLink(*server.addresses[0])
            await nursery.start(link.run)
            with trio.move_on_after(TIME_LIMIT):
                missed, found, told = await _travel(link, server, config.secret or b"", gone)
                absence = Absence(missed, equal=found == told and _says(found, text))
            nursery.cancel_scope.cancel()
    return absence


async def _travel(
    link: LossyLink, server: Server, secret: bytes, gone: trio.Event
) -> tuple[int, Context, Context]:
    """How many events the client missed, its context, and the server's."""
    token = sign(secret, tenant=TENANT, user=USER, lifetime=3600.0, clock=time.time)
    missed = 0
    async with connect(f"ws://127.0.0.1:{link.port}", token=token, rng=lambda: LOOK_AGAIN) as session:
        await session.start_agent(AGENT, thread=THREAD)
        await _first_event(session)
        link.refuse()
        link.cut()
        gone.set()
        await _until_trimmed(server, token)
        link.accept()
        async for item in session:
            if isinstance(item, Gap) and item.stream == "user" and item.to is not None:
                missed += item.to + 1 - (item.from_ or item.to)
            if isinstance(item, Snapshot) and not item.more:
                break
        return missed, session.context(THREAD), await _told_anew(server.url, token)


def _says(context: Context, text: str) -> bool:
    """Whether it holds what the agent recited, as far as a context reaches back."""
    said = "".join(str(message.text) for message in context.conversation)
    return text.endswith(said) if context.truncated else said == text


async def _first_event(session: ClientSession) -> Event:
    async for item in session:
        if isinstance(item, Event):
            return item
    raise AssertionError("unreachable: a session that ends raises")


async def _until_trimmed(server: Server, token: str) -> None:
    """Wait until the run is over, and an event is gone that the client cannot have."""
    mark, *_ = [
        await server.publish(TENANT, USER, MEANWHILE, {}, thread=THREAD) for _ in range(2 * KEPT.events)
    ]
    while True:
        async with connect(server.url, token=token, from_="start") as watching:
            if (await _first_event(watching)).seq > mark.seq and not watching.runs:
                return
        await trio.sleep(LOOK_AGAIN)


async def _told_anew(url: str, token: str) -> Context:
    """The thread's context as somebody is told who has nothing."""
    async with connect(url, token=token) as session:
        async for item in session:
            if isinstance(item, Snapshot) and not item.more:
                break
        return session.context(THREAD)
