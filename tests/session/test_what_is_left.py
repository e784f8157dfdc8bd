"""What is left in memory of a connection, and of a session, that has ended."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio

from wsrecover.config import Timeouts
from wsrecover.errors import ConnectionClosed
from wsrecover.protocol.frames import Hello
from wsrecover.testing import local_server


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("says_bye", [False, True])
async def test_nothing_of_a_connection_waits_for_the_garbage_collector(says_bye: bool) -> None:
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


@pytest.mark.usefixtures("no_collector")
async def test_what_a_client_opened_with_is_not_kept_for_as_long_as_it_is_connected() -> None:
    def hellos() -> int:
        # Not by isinstance: a proxy of what is gone, which another test may have left, raises then.
        return sum(type(one) is Hello for one in gc.get_objects())

    before = hellos()
    async with local_server() as local, local.peer("ada", resume={"user": ["log-a", 3]}) as peer:
        await peer.until("live")
        await peer.command("no_such_command", {})
        assert hellos() == before


@pytest.mark.usefixtures("no_collector")
async def test_the_contexts_of_a_session_do_not_wait_for_it_either() -> None:
    async with local_server(timeouts=Timeouts(linger=0.01)) as local:
        async with local.peer("ada") as peer:
            await peer.command("chat", {"text": "hello"}, thread="t1")
            contexts = local.server.registry.sessions["acme", "ada"].contexts
            context = weakref.ref((await contexts.snapshot()).contexts["t1"])
            assert context() is not None
        with trio.fail_after(5):
            while context() is not None:
                await trio.lowlevel.checkpoint()
