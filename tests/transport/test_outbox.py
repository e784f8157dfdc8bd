"""The outbox: order, coalescing, whole frames, and what cancellation does to them."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from wsrecover.testing import MemoryPipe, memory_pipe_pair
from wsrecover.transport import Outbox, SocketPipe, text_frame
from wsrecover.transport.outbox import CONTROL_BYTES

PONG = b"\x8a\x04pong"
CLOSE = b"\x88\x02\x0f\xa0"


class Recorder:
    """A pipe over a memory pipe that counts the writes which took something."""

    def __init__(self, pipe: MemoryPipe) -> None:
        self.pipe = pipe
        self.writes: list[bytes] = []

    def send_nowait(self, data: bytes | memoryview) -> int:
        taken = self.pipe.send_nowait(data)
        if taken:
            self.writes.append(bytes(data[:taken]))
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)


class Lax(Recorder):
    """A pipe that gives what only is like bytes, as trio's streams may."""

    async def receive_some(self, max_bytes: int) -> bytearray:
        return bytearray(await self.pipe.receive_some(max_bytes))


def frames(data: bytes) -> list[bytes]:
    """The payloads of the unmasked frames in `data`, which must hold whole frames only."""
    found = []
    while data:
        size, start = data[1], 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
        assert len(data) >= start + size, "a torn frame"
        found.append(data[start : start + size])
        data = data[start + size :]
    return found


async def everything(peer: MemoryPipe, chunk: int = 1000) -> bytes:
    data = b""
    while more := await peer.receive_some(chunk):
        data += more
    return data


async def stuck(task: Callable[[], Awaitable[object]]) -> bool:
    """Whether `task` waits, once every other task waits, too."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

            nursery.start_soon(watch)
            await task()
            nursery.cancel_scope.cancel()
    return scope.cancelled_caught


class TestOffering:
    async def test_a_message_is_taken_whole_or_not_at_all(self) -> None:
        pipe, peer = memory_pipe_pair(100)
        outbox = Outbox(pipe)
        first = text_frame(b"a" * 150)
        assert outbox.offer(first)
        assert (outbox.taken, outbox.pending) == (100, len(first) - 100)
        assert not outbox.offer(text_frame(b"b"))
        assert await peer.receive_some(100) == first[:100]
        outbox.flush()
        assert outbox.pending == 0
        assert outbox.offer(text_frame(b"b"))
        assert frames(first[:100] + await peer.receive_some(1000)) == [b"a" * 150, b"b"]

    async def test_the_preface_rides_in_front_of_the_next_write(self) -> None:
        pipe, _ = memory_pipe_pair()
        recorder = Recorder(pipe)
        outbox = Outbox(recorder)
        outbox.preface(b"HTTP/1.1 101\r\n\r\n")
        outbox.preface(b"welcome ")
        assert outbox.pending == 0
        assert outbox.offer(b"page")
        assert outbox.offer(b"live")
        assert recorder.writes == [b"HTTP/1.1 101\r\n\r\nwelcome page", b"live"]

    async def test_what_is_held_goes_as_one_write_with_flush_or_in_front_of_the_next_one(self) -> None:
        pipe, _ = memory_pipe_pair()
        recorder = Recorder(pipe)
        outbox = Outbox(recorder)
        assert outbox.hold(b"a")
        assert outbox.hold(b"b")
        assert recorder.writes == []
        outbox.flush()
        assert recorder.writes == [b"ab"]
        assert outbox.hold(b"c")
        assert outbox.put(b"pong")
        outbox.flush()
        assert recorder.writes == [b"ab", b"cpong"]

    async def test_nothing_is_held_behind_what_is_pending_or_a_close_frame(self) -> None:
        pipe, _ = memory_pipe_pair(10)
        outbox = Outbox(pipe)
        assert outbox.hold(b"a" * 20)
        outbox.flush()
        assert outbox.pending == 10
        assert not outbox.hold(b"b")
        closing = Outbox(memory_pipe_pair()[0])
        assert closing.put(b"\x88\x00")
        assert not closing.hold(b"b")

    async def test_what_is_held_is_translated(self) -> None:
        pipe, peer = memory_pipe_pair()
        outbox = Outbox(pipe)
        outbox.translate = bytes.upper
        assert outbox.hold(text_frame(b"a"))
        assert outbox.hold(PONG)
        outbox.flush()
        assert await peer.receive_some(10) == text_frame(b"A") + PONG

    async def test_a_preface_alone_goes_out_with_flush_or_drain(self) -> None:
        for send in (lambda outbox: outbox.flush(), lambda outbox: outbox.drain()):
            pipe, peer = memory_pipe_pair()
            outbox = Outbox(pipe)
            outbox.preface(b"101")
            waiting = send(outbox)
            if not isinstance(waiting, bool):
                await waiting
            assert await peer.receive_some(10) == b"101"

    async def test_what_is_like_bytes_is_received_as_bytes(self) -> None:
        pipe, peer = memory_pipe_pair()
        peer.send_nowait(b"hello")
        assert type(await Outbox(Lax(pipe)).receive_some(10)) is bytes

    async def test_whoever_drains_learns_how_the_connection_was_lost(self) -> None:
        pipe, peer = memory_pipe_pair(10)
        outbox = Outbox(pipe)
        outbox.offer(b"x" * 20)
        peer.cut()
        with pytest.raises(trio.BrokenResourceError) as lost:
            await outbox.drain()
        assert isinstance(lost.value.__cause__, BrokenPipeError)
        assert outbox.closed

    async def test_a_lost_connection_closes_it_without_raising(self) -> None:
        pipe, peer = memory_pipe_pair()
        outbox = Outbox(pipe)
        peer.cut()
        assert not outbox.offer(b"x")
        assert outbox.closed
        with pytest.raises(trio.ClosedResourceError):
            await outbox.drain()


class TestTheLibrarysFrames:
    async def test_a_pong_waits_behind_what_is_pending(self) -> None:
        pipe, peer = memory_pipe_pair(100)
        outbox = Outbox(pipe)
        outbox.offer(text_frame(b"a" * 300))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.send_all, PONG)
            data = b""
            while len(data) < 304 + len(PONG):
                data += await peer.receive_some(7)
        assert frames(data) == [b"a" * 300, b"pong"]

    async def test_nothing_follows_a_close_frame(self) -> None:
        pipe, peer = memory_pipe_pair()
        outbox = Outbox(pipe)
        await outbox.send_all(CLOSE)
        assert not outbox.offer(text_frame(b"late"))
        assert not outbox.put(text_frame(b"late"))
        with pytest.raises(trio.ClosedResourceError):
            await outbox.send_all(PONG)
        outbox.close()
        assert await everything(peer) == CLOSE

    async def test_it_does_not_wait_while_another_task_drains(self) -> None:
        pipe, _ = memory_pipe_pair(10)
        outbox = Outbox(pipe)
        outbox.offer(text_frame(b"a" * 50))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.drain)
            await trio.testing.wait_all_tasks_blocked()
            assert not await stuck(lambda: outbox.send_all(PONG))
            nursery.cancel_scope.cancel()

    async def test_a_peer_that_only_pings_is_no_longer_read_at_some_point(self) -> None:
        pipe, _ = memory_pipe_pair(10)
        outbox = Outbox(pipe)
        outbox.offer(text_frame(b"a" * 50))

        async def flood() -> None:
            for _ in range(CONTROL_BYTES):
                await outbox.send_all(PONG)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.drain)
            await trio.testing.wait_all_tasks_blocked()
            assert await stuck(flood)
            assert outbox.pending <= CONTROL_BYTES + 100
            nursery.cancel_scope.cancel()

    async def test_it_waits_where_nobody_else_would_send_the_rest(self) -> None:
        pipe, _ = memory_pipe_pair(3)
        outbox = Outbox(pipe)
        assert await stuck(lambda: outbox.send_all(PONG))


class TestDraining:
    async def test_any_number_of_tasks_may_drain(self) -> None:
        pipe, peer = memory_pipe_pair(10)
        outbox = Outbox(pipe)
        outbox.offer(b"x" * 100)
        async with trio.open_nursery() as nursery:
            scopes = []
            for _ in range(3):
                scopes.append(trio.CancelScope())
                nursery.start_soon(drain_within, outbox, scopes[-1])
            await trio.testing.wait_all_tasks_blocked()
            scopes[0].cancel()  # whichever task waits for the pipe, another takes over
            await trio.testing.wait_all_tasks_blocked()
            scopes[1].cancel()
            received = 0
            while received < 100:
                received += len(await peer.receive_some(100))
        assert outbox.pending == 0

    async def test_no_progress_is_too_slow(self, autojump_clock: trio.testing.MockClock) -> None:
        pipe, peer = memory_pipe_pair(10)
        outbox = Outbox(pipe)
        outbox.offer(b"x" * 100)

        async def read_slowly() -> None:
            for _ in range(5):
                await trio.sleep(9)
                await peer.receive_some(10)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_slowly)
            with pytest.raises(trio.TooSlowError):
                await outbox.drain(progress_timeout=10)
        assert trio.current_time() == pytest.approx(5 * 9 + 10)
        assert not outbox.closed

    async def test_a_lost_connection_wakes_every_task(self) -> None:
        pipe, peer = memory_pipe_pair(10)
        outbox = Outbox(pipe)
        outbox.offer(b"x" * 100)
        errors: list[Exception] = []

        async def drain() -> None:
            try:
                await outbox.drain()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(drain)
            await trio.testing.wait_all_tasks_blocked()
            peer.cut()
        assert len(errors) == 3

    @pytest.mark.parametrize("pipe_of", ["memory", "socket"])
    async def test_closing_wakes_whoever_waits(self, pipe_of: str) -> None:
        pipe, other = memory_pipe_pair(10) if pipe_of == "memory" else socket_pair()
        outbox = Outbox(pipe)
        while not outbox.pending:
            outbox.offer(b"x" * 100_000)
        async with trio.open_nursery() as nursery:

            async def wait(operation: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await operation()

            nursery.start_soon(wait, outbox.drain)
            nursery.start_soon(wait, outbox.drain)
            nursery.start_soon(wait, outbox.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            outbox.close()
            outbox.close()
        other.close()
        for operation in (outbox.drain, outbox.receive_some, lambda: outbox.send_all(PONG)):
            await wait(operation)

    @pytest.mark.parametrize("steps", range(30))
    async def test_cancelled_anywhere_the_frames_stay_whole_and_in_order(self, steps: int) -> None:
        pipe, peer = memory_pipe_pair(64)
        outbox = Outbox(pipe)
        sent: list[bytes] = []

        async def write() -> None:
            for i in range(10):
                payload = bytes([65 + i]) * 100
                if outbox.offer(text_frame(payload)):
                    sent.append(payload)
                await outbox.send_all(PONG)
                await outbox.drain()

        received = b""

        async def read() -> None:
            nonlocal received
            while more := await peer.receive_some(13):
                received += more

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            async with trio.open_nursery() as writers:
                writers.start_soon(write)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                writers.cancel_scope.cancel()
            await outbox.drain()
            assert outbox.offer(text_frame(b"after"))
            await outbox.drain()
            outbox.close()
        got = frames(received)
        assert got[-1] == b"after"
        assert [payload for payload in got[:-1] if payload != b"pong"] == sent
        assert got.count(b"pong") in (len(sent), len(sent) - 1)


async def drain_within(outbox: Outbox, scope: trio.CancelScope) -> None:
    with scope:
        await outbox.drain()


def socket_pair(buffer: int = 0) -> tuple[SocketPipe, SocketPipe]:
    """The two ends of a TCP connection, with kernel buffers of about `buffer` bytes each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    if buffer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    ours.setblocking(False)
    theirs.setblocking(False)
    return SocketPipe(ours), SocketPipe(theirs)


class TestOverRealSockets:
    async def test_partial_writes_with_a_small_send_buffer_keep_the_order(self) -> None:
        pipe, peer = socket_pair(buffer=4096)
        outbox = Outbox(pipe)
        partial = 0

        async def write() -> None:
            nonlocal partial
            for i in range(50):
                assert outbox.offer(text_frame(b"%04d" % i * 10_000))
                partial += outbox.pending > 0
                await outbox.send_all(PONG)
                await outbox.drain()
            outbox.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            data = await everything(peer, chunk=1500)
        peer.close()
        assert partial > 10
        assert frames(data) == [part for i in range(50) for part in (b"%04d" % i * 10_000, b"pong")]

    async def test_end_and_loss_are_told_apart(self) -> None:
        pipe, peer = socket_pair()
        peer.send_eof()
        assert await Outbox(pipe).receive_some() == b""
        pipe.close()
        peer.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            pipe.send_nowait(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await pipe.wait_writable()

    async def test_a_read_that_filled_its_buffer_is_followed_by_one_that_need_not_wait(self) -> None:
        pipe, peer = socket_pair()
        peer.send_nowait(b"abcdef")
        assert [await pipe.receive_some(3), await pipe.receive_some(3)] == [b"abc", b"def"]
        assert await stuck(lambda: pipe.receive_some(3))
        peer.send_nowait(b"g")
        assert await pipe.receive_some(3) == b"g"
        pipe.close()
        peer.close()


class TestTls:
    async def test_what_goes_in_comes_out_whatever_the_chunks(self, certificate: Any) -> None:
        for capacity in (1_000, 50_000, 1_000_000):
            server, client = await secured(certificate, capacity)
            page = text_frame(b"a" * 100_000)
            server.preface(b"101")
            assert server.offer(page)
            assert server.pending == 0 or not server.offer(b"more")
            received = b""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.drain)
                nursery.start_soon(client.send_all, b"hello")
                while len(received) < len(page) + 3:
                    received += await client.receive_some(999)
            assert received == b"101" + page
            assert await server.receive_some() == b"hello"
            server.close()
            client.close()

    async def test_taken_iff_nothing_is_pending(self, certificate: Any) -> None:
        server, client = await secured(certificate, 1000)
        assert server.offer(b"x" * 2000)
        assert server.pending > 1000
        assert not server.offer(b"y")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain)
            assert await exactly(client, 2000) == b"x" * 2000
        assert server.offer(b"y")
        assert await client.receive_some() == b"y"

    async def test_closing_says_so_inside_tls(self, certificate: Any) -> None:
        server, client = await secured(certificate, 10_000)
        server.offer(b"last")
        server.close()
        assert await client.receive_some() == b"last"
        assert await client.receive_some() == b""

    async def test_a_peer_that_does_not_speak_tls_is_a_broken_connection(self, certificate: Any) -> None:
        pipe, peer = memory_pipe_pair()
        peer.send_nowait(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError) as broken:
            await Outbox(pipe).start_tls(certificate[0])
        assert "TLS" in str(broken.value)

    async def test_bytes_that_are_no_records_break_it(self, certificate: Any) -> None:
        pipe, peer = memory_pipe_pair()
        server, client = Outbox(pipe), Outbox(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.start_tls, certificate[0])
            await client.start_tls(certificate[1], server_hostname="localhost")
        peer.send_nowait(b"x" * 100)
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()


async def exactly(outbox: Outbox, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await outbox.receive_some(size - len(data))
    return data


async def secured(certificate: Any, capacity: int) -> tuple[Outbox, Outbox]:
    """A server's and a client's outbox, past the TLS handshake."""
    pipe, peer = memory_pipe_pair(capacity)
    server, client = Outbox(pipe), Outbox(peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.start_tls, certificate[0])
        nursery.start_soon(lambda: client.start_tls(certificate[1], server_hostname="localhost"))
    return server, client
