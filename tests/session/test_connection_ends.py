"""What is left of a connection that has ended."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio

from wsrecover.errors import ConnectionClosed
from wsrecover.testing import local_server


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("says_bye", [False, True])
async def test_nothing_waits_for_the_garbage_collector(says_bye: bool) -> None:
    async with local_server() as local:
        async with local.peer("ada") as peer:
            await peer.until("live")
            sessions = local.server.registry.sessions
            (connection,) = [weakref.ref(one) for one in sessions["acme", "ada"].connections.values()]
            await peer.command("no_such_command", {})
            if says_bye:
                await peer.send({"op": "bye"})
                with pytest.raises(ConnectionClosed):
                    await peer.frame()
        with trio.fail_after(5):
            while connection() is not None:
                await trio.lowlevel.checkpoint()
