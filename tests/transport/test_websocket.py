"""One WebSocket on either side: messages, close codes, and how a connection may end."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import partial

import pytest
import trio
import websockets.sync.client

from wsrecover.errors import ConnectionClosed
from wsrecover.testing import MemoryNetwork, memory_pipe_pair
from wsrecover.transport import Outbox, ServerSocket, open_socket, text_frame
from wsrecover.transport.framing import PING_FRAME, cut_reason, masked_frame, payloads
from wsrecover.transport.listener import Handshakes
from wsrecover.transport.websocket import CLOSE_TIMEOUT, ClientSocket

connect = partial(open_socket, headers={}, subprotocols=[], timeout=5, max_message_bytes=1 << 20)


class TestFraming:
    @pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 100_000])
    async def test_a_text_frame_of_every_length(self, wire, size) -> None:
        payload = b"x" * size
        assert text_frame(payload) == wire.frame(1, payload, mask=None)
        masked = masked_frame(payload.decode())
        start = len(masked) - size
        assert masked == wire.frame(1, payload, mask=masked[start - 4 : start])

    @pytest.mark.parametrize("reason", ["", "x" * 200, "é" * 100, "x" + "€" * 60, "\ud800"])
    def test_a_reason_is_cut_to_whole_characters(self, reason) -> None:
        assert len(cut_reason(reason).encode()) <= 123
        assert cut_reason(reason) == reason[: len(cut_reason(reason))].replace("\ud800", "?")


class TestDialect:
    @pytest.mark.parametrize("sizes", [[0], [1, 125, 126], [65535, 65536, 3]])
    def test_payloads_are_found_again(self, sizes) -> None:
        said = [b"x" * size for size in sizes]
        assert list(payloads(b"".join(map(text_frame, said)))) == said

    @pytest.mark.parametrize("preface", [b"", b"101 "])
    async def test_text_is_translated_and_nothing_else_is(self, preface) -> None:
        near, far = memory_pipe_pair()
        sock = ServerSocket(Outbox(near), "test", max_message_bytes=100)
        sock.outbox.preface(preface)
        sock.translate(lambda said: b"" if said == b"hush" else text_frame(said.upper()) * 2)
        assert sock.outbox.offer(text_frame(b"hush"))
        assert sock.outbox.offer(text_frame(b"loud"))
        assert sock.outbox.offer(PING_FRAME)
        assert sock.put(b"last")
        sock.close_nowait(4000)
        closing = b"\x88\x02" + struct.pack("!H", 4000)
        expected = preface + text_frame(b"LOUD") * 2 + b"\x89\x00" + text_frame(b"LAST") * 2 + closing
        assert await far.receive_some(1000) == expected


class TestMessages:
    async def test_text_binary_and_empty(self, wire, server) -> None:
        client = await wire.upgraded(server)
        for opcode, payload in [(1, b""), (1, "é€😀".encode()), (2, bytes(range(256))), (1, b"x" * 65_536)]:
            await client.send(wire.frame(opcode, payload))
            assert await client.frame() == (opcode, payload)

    async def test_fragments_with_a_ping_between(self, wire, server) -> None:
        client = await wire.upgraded(server)
        text = "é€😀".encode()
        await client.send(
            wire.frame(1, text[:1], fin=False)
            + wire.frame(9, b"between")
            + wire.frame(0, b"", fin=False)
            + wire.frame(0, text[1:5], fin=False)
            + wire.frame(0, text[5:])
        )
        assert await client.frame() == (10, b"between")
        assert await client.frame() == (1, text)

    async def test_byte_by_byte(self, wire, server) -> None:
        client = await wire.upgraded(server)
        for byte in wire.frame(1, b"slow"):
            await client.send(bytes([byte]))
        assert await client.frame() == (1, b"slow")

    async def test_what_on_message_raises_comes_out_of_run(self, wire, server) -> None:
        raised: list[Exception] = []

        async def serve(sock: ServerSocket) -> None:
            def explode(message: str | bytes) -> None:
                raise KeyError(message)  # trio-websocket's own loop would swallow this one

            try:
                await sock.run(explode)
            except KeyError as error:
                raised.append(error)
            await sock.aclose(1011, "internal", timeout=1)

        server.serve = serve
        client = await wire.upgraded(server)
        await client.send(wire.frame(1, b"a") + wire.frame(1, b"b"))
        assert await client.close_code() == 1011
        assert [error.args for error in raised] == [("a",)]

    async def test_each_chunk_of_bytes_is_told(self, wire, server) -> None:
        told = trio.Event()
        chunks: list[float] = []

        def count(at: float) -> None:
            chunks.append(at)
            assert at == server.sockets[0].received_at
            told.set()

        async def serve(sock: ServerSocket) -> None:
            with trio.CancelScope() as scope:
                await sock.run_within(scope, lambda message: server.echo(sock, message), on_bytes=count)

        server.serve = serve
        client = await wire.upgraded(server)
        before = server.sockets[0].received_at
        await client.send(wire.frame(1, b"x")[:3])
        await told.wait()
        assert chunks[0] > before
        await client.send(wire.frame(1, b"x")[3:])
        await client.frame()
        assert len(chunks) == 2


class TestCloseCodes:
    @pytest.mark.parametrize(
        ("data", "code"),
        [
            pytest.param(lambda frame: frame(1, b"\xff"), 1007, id="invalid UTF-8"),
            pytest.param(lambda frame: frame(1, b"\xc3", fin=True), 1007, id="half a character"),
            pytest.param(lambda frame: frame(1, b"x", mask=None), 1002, id="unmasked"),
            pytest.param(lambda frame: frame(0x41, b"x"), 1002, id="RSV1 set"),
            pytest.param(lambda frame: frame(3, b"x"), 1002, id="reserved opcode"),
            pytest.param(lambda frame: frame(0, b"x"), 1002, id="continuation of nothing"),
            pytest.param(lambda frame: frame(9, b"x", fin=False), 1002, id="fragmented ping"),
            pytest.param(lambda frame: frame(9, b"x" * 126), 1002, id="long ping"),
            pytest.param(lambda frame: frame(8, b"\x03"), 1002, id="close with half a code"),
            pytest.param(lambda frame: frame(8, b"\x03\xed"), 1002, id="close with 1005"),
            pytest.param(lambda frame: b"\x81\xff" + b"\xff" * 8, 1002, id="length 2^64 - 1"),
            pytest.param(lambda frame: frame(1, b"x" * 65_537), 1009, id="one byte too large"),
            pytest.param(lambda frame: frame(2, b"x" * 65_537), 1009, id="one byte too large, binary"),
            pytest.param(lambda frame: frame(1, "€".encode() * 21_846), 1009, id="too large in bytes"),
            pytest.param(lambda frame: b"\x82\xff\x00\x00\x00\xff" + bytes(70_000), 1009, id="length 2^40"),
            pytest.param(
                lambda frame: frame(1, fin=False) + frame(0, fin=False) * 2000, 1009, id="empty fragments"
            ),
            pytest.param(
                lambda frame: frame(1, fin=False) + frame(0, b"x", fin=False) * 2000, 1009, id="fragments"
            ),
        ],
    )
    async def test_the_peers_fault_has_its_code(self, wire, server, data, code) -> None:
        client = await wire.upgraded(server)
        await client.send(data(wire.frame))
        assert await client.close_code() == code
        await client.stream.aclose()
        assert (await server.how_it_ended()).code == code
        assert server.sockets[0].outbox.closed

    @pytest.mark.parametrize("opcode", [9, 10])
    async def test_a_flood_of_control_frames_is_cut(self, wire, server, opcode) -> None:
        client = await wire.upgraded(server)
        await client.send(wire.frame(opcode, b"x") * 1000)
        assert await client.close_code() == 4004
        await client.stream.aclose()
        assert (await server.how_it_ended()).code == 4004

    async def test_a_message_of_exactly_the_limit_is_taken(self, wire, server) -> None:
        client = await wire.upgraded(server)
        await client.send(wire.frame(1, b"x" * 65_536))
        assert len((await client.frame())[1]) == 65_536

    @pytest.mark.parametrize(
        ("payload", "answer", "code"),
        [(b"\x03\xe8bye", b"\x03\xe8bye", 1000), (b"", b"", 1005), (b"\x11\x94", b"\x11\x94", 4500)],
    )
    async def test_the_peers_close_is_answered_and_the_connection_ended(
        self, wire, server, payload, answer, code
    ) -> None:
        client = await wire.upgraded(server)
        await client.send(wire.frame(8, payload))
        assert await client.frame() == (8, answer)
        assert await client.rest() == b""
        assert (await server.how_it_ended()).code == code

    async def test_a_lost_connection_is_1006(self, wire, server) -> None:
        client = await wire.upgraded(server)
        client.stream.setsockopt(1, 13, struct.pack("ii", 1, 0))
        await client.stream.aclose()
        assert (await server.how_it_ended()).code == 1006

    async def test_an_error_close_arrives_though_the_peer_is_still_sending(self, wire, server) -> None:
        client = await wire.upgraded(server)
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await client.send(wire.frame(2, bytes(3_000_000)))

            nursery.start_soon(flood)
            assert await client.close_code() == 1009
            await trio.aclose_forcefully(client.stream)


class TestClosing:
    async def test_close_nowait_ends_run_though_the_peer_never_answers(self, autojump_clock) -> None:
        pipe, peer = memory_pipe_pair()
        sock = ServerSocket(Outbox(pipe), "test", max_message_bytes=100)
        got: list[object] = []
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                got.append(await sock.run(got.append))

            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            sock.close_nowait(4002, "too slow " * 100)
            assert not sock.outbox.offer(text_frame(b"late"))
            assert not sock.outbox.offer(PING_FRAME)
            Outbox(peer).offer(b"\x81\x81\0\0\0\0x")
        assert trio.current_time() == pytest.approx(CLOSE_TIMEOUT)
        assert isinstance(got[0], ConnectionClosed)
        assert (got[0].code, len(got)) == (4002, 1)
        assert (await peer.receive_some(1000))[2:4] == struct.pack("!H", 4002)
        assert await peer.receive_some(1000) == b""

    async def test_a_flood_behind_our_close_is_not_read_until_the_time_is_up(self, autojump_clock) -> None:
        pipe, peer = memory_pipe_pair()
        sock, flood = ServerSocket(Outbox(pipe), "test", max_message_bytes=100), Outbox(peer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sock.run, print)
            await trio.testing.wait_all_tasks_blocked()
            sock.close_nowait(4004)
            with suppress(trio.BrokenResourceError):
                for _ in range(500):
                    flood.put(b"\x89\x80\0\0\0\0" * 10_000)
                    await flood.drain()
        assert trio.current_time() == 0
        assert 16_000_000 < flood.taken < 20_000_000

    @pytest.mark.parametrize("reading", [True, False])
    async def test_aclose_waits_for_the_peer_no_longer_than_its_time_out(
        self, autojump_clock, reading
    ) -> None:
        pipe, _ = memory_pipe_pair(10)
        sock = ServerSocket(Outbox(pipe), "test", max_message_bytes=100)
        sock.outbox.offer(text_frame(b"x" * 100))  # a peer that takes nothing either
        async with trio.open_nursery() as nursery:
            if reading:
                nursery.start_soon(sock.run, print)
                await trio.testing.wait_all_tasks_blocked()
            await sock.aclose(4000, timeout=0.7)
        assert trio.current_time() == pytest.approx(0.7)
        assert sock.outbox.closed

    async def test_aclose_returns_as_soon_as_the_peer_has_answered(self, wire, server) -> None:
        client = await wire.upgraded(server)

        async def answer() -> None:
            assert await client.close_code() == 4000
            await client.send(wire.frame(8, b"\x0f\xa0"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with trio.fail_after(30):
                await server.sockets[0].aclose(4000, "drain", timeout=60)
        assert await client.rest() == b""

    async def test_aclose_sends_what_was_pending_and_then_the_close(self, nursery: trio.Nursery) -> None:
        near, far = memory_pipe_pair(capacity=100)
        sock = ServerSocket(Outbox(near), "test", max_message_bytes=1 << 16)
        assert sock.outbox.offer(text_frame(b"x" * 1000))
        nursery.start_soon(partial(sock.aclose, 4000, timeout=60))
        got = b""
        with trio.fail_after(5):
            while len(got) < len(text_frame(b"x" * 1000)) + 4:
                got += await far.receive_some(1000)
        assert got == text_frame(b"x" * 1000) + b"\x88\x02" + struct.pack("!H", 4000)
        far.close()

    async def test_a_cancelled_aclose_closes_all_the_same(self) -> None:
        pipe, _ = memory_pipe_pair()
        sock = ServerSocket(Outbox(pipe), "test", max_message_bytes=100)
        with trio.CancelScope() as scope:
            scope.cancel()
            await sock.aclose(4000, timeout=60)
        assert sock.outbox.closed

    async def test_a_cancelled_run_leaves_the_socket_usable(self) -> None:
        pipe, peer = memory_pipe_pair()
        sock = ServerSocket(Outbox(pipe), "test", max_message_bytes=100)
        got: list[object] = []
        for _ in range(2):
            with trio.move_on_after(0):
                await sock.run(got.append)
        Outbox(peer).offer(b"\x81\x82\0\0\0\0hi" + b"\x88\x80\0\0\0\0")
        assert (await sock.run(got.append)).code == 1005
        assert got == ["hi"]

    async def test_killing_wakes_run(self, wire, server) -> None:
        await wire.upgraded(server)
        server.sockets[0].kill()
        assert (await server.how_it_ended()).code == 1006

    async def test_an_offered_ping_is_answered_by_life(self, wire, server) -> None:
        client = await wire.upgraded(server)
        assert server.sockets[0].outbox.offer(PING_FRAME)
        assert await client.frame() == (9, b"")


class TestTheClient:
    async def test_talks_both_ways_and_ends_with_1000(self, server) -> None:
        async with connect(server.url, subprotocols=["b", "a"]) as client:
            assert client.subprotocol == "b"
            for message in ("", "é" * 50_000, b"\x00\xff"):
                if len(message) < 60_000:
                    await client.send(message[:30_000])
                    assert await client.receive() == message[:30_000]
        assert (await server.how_it_ended()).code == 1000

    async def test_the_servers_close_is_told_after_the_messages_before_it(self, server) -> None:
        def answer(sock: ServerSocket, message: str | bytes) -> None:
            sock.outbox.offer(text_frame(b"one"))
            sock.outbox.offer(text_frame(b"two"))
            sock.close_nowait(4500, "replaced")

        server.on_message = answer
        async with connect(server.url) as client:
            await client.send("go")
            assert [await client.receive(), await client.receive()] == ["one", "two"]
            for _ in range(2):
                with pytest.raises(ConnectionClosed) as closed:
                    await client.receive()
                assert (closed.value.code, closed.value.reason) == (4500, "replaced")
            with pytest.raises(ConnectionClosed):
                await client.send("late")
            with pytest.raises(ConnectionClosed):
                await client.ping(1)

    async def test_a_ping_comes_back_while_somebody_receives(self, server) -> None:
        async with connect(server.url) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.receive)
            await client.ping(5)
            nursery.cancel_scope.cancel()

    async def test_a_ping_into_a_black_hole_is_too_slow(self, autojump_clock) -> None:
        client = ClientSocket(Outbox(memory_pipe_pair()[0]), None, max_message_bytes=100)
        with pytest.raises(trio.TooSlowError):
            await client.ping(5)

    async def test_a_ping_ends_with_the_connection(self, server) -> None:
        async with connect(server.url) as client, trio.open_nursery() as nursery:

            async def receive() -> None:
                with pytest.raises(ConnectionClosed):
                    await client.receive()

            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            server.sockets[0].kill()
            with pytest.raises(ConnectionClosed):
                await client.ping(60)

    async def test_a_ping_behind_our_own_close_is_not_taken_for_answered(self, autojump_clock) -> None:
        client = ClientSocket(Outbox(memory_pipe_pair()[0]), None, max_message_bytes=100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.aclose, 4500, "enough", timeout=1))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ConnectionClosed) as closed:
                await client.ping(5)
            assert closed.value.code == 4500

    async def test_a_cancelled_receive_loses_nothing(self, server) -> None:
        got: list[str | bytes] = []
        async with connect(server.url) as client:

            async def receive() -> None:
                got.append(await client.receive())

            for i in range(50):
                await client.send(str(i))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(receive)
                    for _ in range(i % 7):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            while len(got) < 50:
                await receive()
        assert got == [str(i) for i in range(50)]

    async def test_a_message_that_is_too_large_is_refused(self, server) -> None:
        server.on_message = lambda sock, message: sock.outbox.offer(text_frame(b"x" * 101))
        async with connect(server.url, max_message_bytes=100) as client:
            await client.send("go")
            with pytest.raises(ConnectionClosed) as closed:
                await client.receive()
            assert closed.value.code == 1009
        assert (await server.how_it_ended()).code == 1009

    async def test_everything_works_over_memory_pipes_in_virtual_time(self, server, autojump_clock) -> None:
        handshakes = Handshakes(
            answer=server.accept, timeout=5, head_bytes=1000, max_message_bytes=1000, max_under_way=9
        )
        async with trio.open_nursery() as nursery:
            network = MemoryNetwork(nursery, handshakes.shake, capacity=100)
            async with connect("ws://memory/echo", dial=network.dial) as client:
                await client.send("x" * 500)
                assert await client.receive() == "x" * 500
                network.cut()
                with pytest.raises(ConnectionClosed) as closed:
                    await client.receive()
                assert closed.value.code == 1006


class TestClientsThatOthersWrote:
    @pytest.mark.parametrize("secure", [False, True])
    async def test_websockets_in_a_thread(self, wire, certificate, secure) -> None:
        def talk(port: int) -> list[str | bytes]:
            with websockets.sync.client.connect(
                f"{'wss' if secure else 'ws'}://localhost:{port}/echo",
                ssl=certificate[1] if secure else None,
                subprotocols=["wsrecover.v1"],
                compression="deflate",
            ) as client:
                assert client.subprotocol == "wsrecover.v1"
                client.send(["frag", "mented"])
                client.send(b"x" * 60_000)
                client.ping().wait(5)
                return [client.recv(), client.recv()]

        options = {"ssl_context": certificate[0]} if secure else {}
        async with wire.server(**options) as server:
            assert await trio.to_thread.run_sync(talk, server.port) == ["fragmented", b"x" * 60_000]
            assert (await server.how_it_ended()).code == 1000

    async def test_our_client_over_tls(self, wire, certificate) -> None:
        async with wire.server(ssl_context=certificate[0]) as server:
            url = f"wss://localhost:{server.port}/"
            async with connect(url, ssl_context=certificate[1]) as client:
                await client.send("x" * 60_000)
                assert await client.receive() == "x" * 60_000
