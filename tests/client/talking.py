"""A session with a scripted server, and what the tests do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from scripted import Peer, Server, live, welcome

from wsrecover.client import ClientSession, Event, Item, connect

URL = "ws://server"
RESUMED: dict[str, Any] = {"resumed": True}


@asynccontextmanager
async def opened(server: Server, **changes: Any) -> AsyncIterator[ClientSession]:
    """A session with `server`; what hangs fails after a virtual day."""
    given = {"token": "t0", "dial": server.dial, "rng": lambda: 0.5, **changes}
    with trio.fail_after(24 * 3600):
        async with connect(URL, **given) as session:
            yield session


async def take(session: ClientSession, count: int) -> list[Item]:
    return [await anext(session) for _ in range(count)]


def seqs(items: list[Item]) -> list[int]:
    return [item.seq for item in items if isinstance(item, Event)]


async def stay(peer: Peer) -> None:
    peer.say(welcome(), live(0))
    await peer.until_bye()
