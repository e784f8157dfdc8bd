"""The networks that fail on command do fail as commanded, and repeat it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from wsrecover.testing import Cut, LossyLink, PipeStream, cuts, memory_pipe_pair
from wsrecover.testing.link import How


@asynccontextmanager
async def link_to_a_source(*plan: Cut | None, size: int = 100_000) -> AsyncIterator[LossyLink]:
    """A link to a server that sends `size` bytes, then echoes until the end."""

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(bytes(size))
            async for data in stream:
                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        link = LossyLink("127.0.0.1", listeners[0].socket.getsockname()[1], plan=plan)
        await nursery.start(link.run)
        yield link
        nursery.cancel_scope.cancel()


async def dial(link: LossyLink) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", link.port)


async def read(stream: trio.SocketStream, up_to: int = 10**9) -> tuple[int, str]:
    """How many bytes came, and how it ended."""
    received = 0
    try:
        while received < up_to:
            data = await stream.receive_some()
            if not data:
                return received, "fin"
            received += len(data)
    except trio.BrokenResourceError:
        return received, "rst"
    return received, "open"


class TestPlannedCuts:
    @pytest.mark.parametrize("how", ["rst", "fin"])
    @pytest.mark.parametrize("after", [1, 17, 99_999])
    async def test_a_cut_falls_after_the_byte_it_was_planned_for(self, after: int, how: How) -> None:
        async with link_to_a_source(Cut(after, "down", how), None) as link:
            async with await dial(link) as stream:
                assert await read(stream) == (after, how)
            assert (link.cuts, link.moved["down"]) == (1, after)
            async with await dial(link) as stream:
                assert await read(stream, 100_000) == (100_000, "open")
            assert (link.cuts, link.connections) == (1, 2)

    async def test_a_cut_on_the_way_up(self) -> None:
        async with link_to_a_source(Cut(5, "up"), size=0) as link, await dial(link) as stream:
            await stream.send_all(b"1234")
            assert await read(stream, 4) == (4, "open")
            await stream.send_all(b"567")
            received, how = await read(stream)
            assert how == "rst"
            assert received <= 1
            assert link.moved["up"] == 5

    def test_a_seed_repeats_its_plan(self) -> None:
        plans = [cuts(random.Random(7), mean_bytes=1000) for _ in range(2)]
        first, second = ([next(plan) for _ in range(50)] for plan in plans)
        assert first == second
        assert {cut.how for cut in first} == {"rst", "fin"}
        assert {cut.way for cut in first} == {"up", "down"}


class TestCommands:
    async def test_cut_ends_what_is_open(self) -> None:
        async with link_to_a_source(size=10) as link, await dial(link) as stream:
            assert await read(stream, 10) == (10, "open")
            assert link.open == 1
            assert link.cut() == 1
            assert await read(stream) == (0, "rst")
            assert link.open == 0

    async def test_a_stall_holds_everything_back_until_it_ends(self) -> None:
        async with link_to_a_source(size=0) as link, await dial(link) as stream:
            await stream.send_all(b"1")
            assert await read(stream, 1) == (1, "open")
            link.stall("down")
            await stream.send_all(b"2")
            while link.moved["up"] < 2:
                await trio.lowlevel.checkpoint()
            assert link.moved["down"] == 1
            link.resume()
            assert await read(stream, 1) == (1, "open")

    async def test_refusing_resets_until_it_accepts_again(self) -> None:
        async with link_to_a_source(size=1) as link:
            link.refuse()
            async with await dial(link) as stream:
                assert await read(stream) == (0, "rst")
            link.accept()
            async with await dial(link) as stream:
                assert await read(stream, 1) == (1, "open")
            assert link.refusals == 1


class TestMemoryPipes:
    async def test_a_full_pipe_makes_the_writer_wait(self) -> None:
        pipe, peer = memory_pipe_pair(3)
        assert pipe.send_nowait(b"abcdef") == 3
        with pytest.raises(BlockingIOError):
            pipe.send_nowait(b"def")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            assert await peer.receive_some(2) == b"ab"
        assert pipe.send_nowait(b"def") == 2

    async def test_as_a_trio_stream_it_sends_all_and_ends(self) -> None:
        ours, theirs = (PipeStream(pipe) for pipe in memory_pipe_pair(10))
        received = bytearray()

        async def send() -> None:
            await ours.send_all(bytes(range(100)))
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for data in theirs:
                received += data
        assert received == bytes(range(100))
        await theirs.send_all(b"back")
        await theirs.aclose()
        assert await ours.receive_some() == b"back"
        assert await ours.receive_some() == b""
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(b"after the end")
        with pytest.raises(trio.ClosedResourceError):
            await theirs.send_all(b"after closing")

    async def test_a_stall_is_silence_and_a_cut_is_a_reset(self) -> None:
        pipe, peer = memory_pipe_pair()
        peer.stall()
        pipe.send_nowait(b"x")
        async with trio.open_nursery() as nursery:
            got: list[bytes] = []

            async def receive() -> None:
                got.append(await peer.receive_some(9))

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            assert got == []
            peer.stall(stalled=False)
        assert got == [b"x"]
        pipe.stall()
        peer.close()
        assert pipe.send_nowait(b"x") == 1, "nobody says that it is gone"
        pipe.stall(stalled=False)
        with pytest.raises(BrokenPipeError):
            pipe.send_nowait(b"x")
        pipe, peer = memory_pipe_pair()
        pipe.cut()
        for end in (pipe, peer):
            with pytest.raises(trio.BrokenResourceError):
                await end.receive_some(1)
            with pytest.raises(BrokenPipeError):
                end.send_nowait(b"x")
