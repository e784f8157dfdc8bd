"""A server in a task of its own, and what can be asked of one without disturbing it."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import trio

from wsrecover.agents import App
from wsrecover.errors import ConnectionClosed
from wsrecover.testing import LocalServer, Peer, local_server

__all__ = [
    "PATIENCE",
    "START",
    "Clock",
    "Frame",
    "Stop",
    "frames_until_closed",
    "log_of",
    "serve_until",
    "until_none",
]

Frame: TypeAlias = dict[str, Any]

PATIENCE: Final = 500.0
"""Seconds after which a wait for what must come fails. Nothing is timed by it: where others compile and test
meanwhile, all takes twenty times as long and more."""

START: Final[Frame] = {"from": "start"}
"""The field of hello that asks for the whole stream."""


class Clock:
    """Seconds that go by when the test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Stop:
    """Tells a server of `serve_until` to stop; `stopped` is set once it has."""

    def __init__(self) -> None:
        self.asked = trio.Event()
        self.stopped = trio.Event()

    async def __call__(self) -> None:
        self.asked.set()
        await self.stopped.wait()


async def serve_until(
    stop: Stop,
    app: App | None = None,
    store: str = "memory",
    port: int = 0,
    *,
    task_status: trio.TaskStatus[LocalServer] = trio.TASK_STATUS_IGNORED,
) -> None:
    """A server in a task of its own, so that those who are connected to it may outlive it."""
    async with local_server(app, store=store, port=port) as local:
        task_status.started(local)
        await stop.asked.wait()
    stop.stopped.set()


async def log_of(local: LocalServer, user: str = "ada") -> tuple[str, list[Frame]]:
    """The epoch of the user's stream, and all its events but for those that come in parts."""
    async with local.peer(user, **START) as peer:
        welcome, *frames = await peer.until("live")
    return welcome["streams"]["user"]["epoch"], [frame for frame in frames if frame["op"] == "event"]


async def until_none(local: LocalServer, what: Literal["connections", "runs"]) -> None:
    """Wait until the server has none of these any more."""
    with trio.fail_after(10):
        while getattr(local.server.statistics().sessions, what):  # noqa: ASYNC110  # Outside only counts are seen.
            await trio.sleep(0.001)


async def frames_until_closed(peer: Peer) -> tuple[list[Frame], int]:
    """All that the peer is still sent, and the code with which the connection ends."""
    frames: list[Frame] = []
    try:
        while True:
            frames.append(await peer.frame())
    except ConnectionClosed as closed:
        return frames, closed.code
