"""E13 and R5: a server that runs out of descriptors turns away who is new, and nobody else."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio
from figures import Figure
from process import TENANT, ServerProcess, server_process
from serving import PATIENCE

from wsrecover import connect
from wsrecover.client import ClientSession, Event
from wsrecover.errors import HandshakeRefused
from wsrecover.testing import History, Report, check
from wsrecover.transport import ClientSocket, open_socket
from wsrecover.transport.doorway import LONGEST_PAUSE, QUIET

DESCRIPTORS: Final = 128
RESERVE: Final = 32
EVERYTHING: Final = 10_000
STREAM: Final = f"{TENANT}/ada"


class Story:
    """One who publishes to ada and one who reads it, and what they saw, for the history checker."""

    def __init__(self, server: ServerProcess, reader: ClientSession, service: ClientSession) -> None:
        self.history = History()
        self.history.connect("reader")
        self.server = server
        self.reader = reader
        self.service = service

    async def publish(self, count: int) -> None:
        """Publish so many events, each acknowledged and then read."""
        for _ in range(count):
            value = f"value {self.history.counts['publishes']}"
            self.history.invoke(value, STREAM)
            event = {"type": "noted", "data": {"value": value}}
            result = await self.service.send("publish", {"user": "ada", "events": [event]})
            ((epoch, seq),) = result["positions"]
            self.history.ok(value, epoch, seq)
            item = await anext(self.reader)
            assert isinstance(item, Event), item
            self.history.deliver("reader", STREAM, STREAM, epoch, item.seq, item.data["value"])

    async def hoard(self, count: int) -> dict[str, Any]:
        """Let the app in the server open files, or close them, until it has so many; how many it has."""
        self.history.fault("hoard")
        return dict(await self.service.send("hoard", {"count": count}))

    async def check(self, **at_least: int) -> Report:
        """Hold all against the log as somebody new finds it."""
        self.history.settled("reader", STREAM)
        drained: list[tuple[str, int, str]] = []
        room = {"buffer_items": 10**6, "buffer_bytes": 10**9}
        async with connect(self.server.url, token=self.server.token(), from_="start", **room) as session:
            await session.wait_status("live")
            epoch, head = session.received["user"].epoch, session.received["user"].seq
            while not drained or drained[-1][1] < head:
                item = await anext(session)
                assert isinstance(item, Event), item
                drained.append((epoch, item.seq, item.data["value"]))
        report = check(self.history, {STREAM: drained})
        report.assert_clean(**at_least)
        return report


@asynccontextmanager
async def story(folder: Path) -> AsyncIterator[Story]:
    """A server process with few descriptors, and two who are connected to it."""
    with trio.fail_after(PATIENCE):
        async with server_process(folder, descriptors=DESCRIPTORS) as server:
            await server.start()
            async with (
                connect(server.url, token=server.token(), from_="start") as reader,
                connect(server.url, token=server.token("backend", ("service",))) as service,
            ):
                yield Story(server, reader, service)


def dialled(server: ServerProcess) -> Any:
    return open_socket(
        f"{server.url}/v1/connect?client={secrets.token_hex(8)}",
        headers={"Authorization": f"Bearer {server.token('crowd')}"},
        subprotocols=["wsrecover.v1"],
        timeout=20,
        max_message_bytes=65536,
    )


async def crowd(server: ServerProcess, stack: AsyncExitStack) -> tuple[list[ClientSocket], HandshakeRefused]:
    """As many connections as are let in, and how the next one is refused."""
    sockets: list[ClientSocket] = []
    while True:
        try:
            sockets.append(await stack.enter_async_context(dialled(server)))
        except HandshakeRefused as refused:
            return sockets, refused


async def test_e13_r5_a_crowd_that_takes_all_descriptors_is_told_503_and_leaves_a_reserve(
    tmp_path: Path, figure: Figure
) -> None:
    async with story(tmp_path) as told, AsyncExitStack() as stack:
        server = told.server
        await told.publish(5)
        sockets, refused = await crowd(server, stack)
        again = [(await crowd(server, stack))[1] for _ in range(20)]
        assert {(one.status, one.retry_after) for one in (refused, *again)} == {(503, 1)}
        assert DESCRIPTORS // 2 < len(sockets) < DESCRIPTORS - RESERVE
        await told.publish(20)
        held = await told.hoard(RESERVE // 2)
        assert held["held"] == RESERVE // 2, "the app has descriptors although the crowd has the rest"
        await told.publish(20)
        await told.hoard(0)
        assert len(server.lines("descriptors_short")) == 1, "said once"
        for socket in sockets[:10]:
            await socket.aclose(1000, timeout=2)
        while not (await crowd(server, stack))[0]:  # noqa: ASYNC110  # A process is seen from outside only.
            await trio.sleep(0.01)
        await told.publish(5)
        for socket in sockets:
            await socket.aclose(1000, timeout=2)
        report = await told.check(acknowledged=50, deliveries=50, faults=2)
    figure("R5 E13", f"connections let in with {DESCRIPTORS} descriptors", len(sockets))
    figure("R5 E13", "K while descriptors run short", len(report.anomalies))


async def test_e13_r5_without_any_descriptor_accepting_pauses_and_goes_on_by_itself(
    tmp_path: Path, figure: Figure
) -> None:
    async with story(tmp_path) as told, trio.open_nursery() as nursery:
        server, let_in = told.server, trio.Event()

        async def newcomer() -> None:
            async with dialled(server):
                let_in.set()

        await told.publish(5)
        before = await told.hoard(EVERYTHING)
        assert before["held"] < DESCRIPTORS
        nursery.start_soon(newcomer)
        await server.until_said("accept_paused")
        fault_ends = trio.current_time() + 2 * LONGEST_PAUSE
        while trio.current_time() < fault_ends:
            await told.publish(1)
        await told.publish(5)
        assert not let_in.is_set()
        after = await told.hoard(0)
        await let_in.wait()
        (warning,) = server.lines("accept_paused")
        assert "Too many open files" in warning["error"]
        while not server.lines("accepting_again"):
            await trio.sleep(QUIET / 4)
            async with dialled(server):
                pass
        (recovered,) = server.lines("accepting_again")
        assert 2 <= recovered["failures"] <= 6 + recovered["troubled_seconds"] / LONGEST_PAUSE
        report = await told.check(acknowledged=10, deliveries=10, faults=2)
    figure("R5 E13", "accepts tried in 2 s without descriptors", recovered["failures"])
    figure(
        "R5 E13", "CPU of the server meanwhile, busy with others, s", f"{after['cpu'] - before['cpu']:.2f}"
    )
    figure("R5 E13", "K while nothing can be accepted", len(report.anomalies))
