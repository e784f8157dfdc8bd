"""S15: a process that is told to stop leaves in good order, and its clients go on with the next one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from process import ServerProcess, server_process
from serving import PATIENCE, Frame, frames_until_closed

from wsrecover import connect
from wsrecover.client import Event
from wsrecover.protocol.frames import SUBPROTOCOL
from wsrecover.testing import Peer
from wsrecover.transport import open_socket

SETTINGS = "[timeouts]\ndrain = 300.0\ndrain_retry_after = 0.25\ndrain_jitter = 0.5\n"
VALUES = 400


@asynccontextmanager
async def tab(server: ServerProcess, name: str) -> AsyncIterator[Peer]:
    async with open_socket(
        f"{server.url}/v1/connect?client={name}&from=start",
        headers={"Authorization": f"Bearer {server.token()}"},
        subprotocols=[SUBPROTOCOL],
        timeout=10.0,
        max_message_bytes=1 << 22,
    ) as socket:
        yield Peer(socket)


async def test_s15_sigterm_drains_and_the_next_process_goes_on(tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE):
        async with (
            server_process(tmp_path, settings=SETTINGS) as server,
            trio.open_nursery() as nursery,
        ):
            await server.start()
            async with connect(server.url, token=server.token(), rng=lambda: 0.0) as session:
                run = await session.start_agent("talker", {"tag": "one", "count": VALUES})
                events = [await anext(session) for _ in range(20)]
                async with tab(server, "a") as one, tab(server, "b") as other, tab(server, "deaf") as deaf:
                    for peer in (one, other, deaf):
                        await peer.until("live")
                    endings: list[tuple[list[Frame], int]] = []
                    exit_codes: list[int] = []

                    async def stop() -> None:
                        exit_codes.append(await server.stop())

                    async with trio.open_nursery() as stopping:
                        stopping.start_soon(stop)
                        for peer in (one, other):
                            endings.append(await frames_until_closed(peer))
                        await session.wait_status("waiting")
                        endings.append(await frames_until_closed(deaf))
                assert exit_codes == [0]
                for frames, code in endings:
                    assert code == 4000
                    assert frames[-1] == {"op": "drain", "retry_after": 0.25, "jitter": 0.5}
                await server.start()
                while not (isinstance(events[-1], Event) and events[-1].type == "agent_completed"):
                    events.append(await anext(session))
            nursery.cancel_scope.cancel()
    told = [event for event in events if isinstance(event, Event)]
    assert len(told) == len(events), "its positions are all good"
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    first, *values, last = told
    assert first.type == "agent_started"
    assert [event.data["value"] for event in values] == [f"one-{n}" for n in range(len(values))]
    assert (last.run, last.data["error"]["code"]) == (run, "server_stopped")
    ends = server.lines("stopping", "drained", "stopped")
    assert [line["event"] for line in ends] == ["stopping", "drained", "stopped"]
    assert (ends[1]["connections"], ends[1]["cut"]) == (4, 0), "the deaf one was waited for, too"
