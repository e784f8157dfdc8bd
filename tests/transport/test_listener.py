"""The accept loop and the opening handshake, over real sockets."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest
import structlog
import trio

from wsrecover.errors import HandshakeRefused, TransportError
from wsrecover.testing import memory_pipe_pair
from wsrecover.transport import (
    Acceptance,
    Refusal,
    Request,
    SocketPipe,
    open_listeners,
    open_socket,
    text_frame,
)
from wsrecover.transport import doorway as doorway_module
from wsrecover.transport import listener as listener_module
from wsrecover.transport import upgrade as upgrade_module
from wsrecover.transport.doorway import Doorway
from wsrecover.transport.listener import Handshakes, authority

RESET = struct.pack("ii", 1, 0)


async def answer_to(wire: Any, server: Any, data: bytes) -> bytes:
    """What the server answers to `data`, to the end of the connection."""
    client = await wire.connect(server)
    await client.send(data)
    return await client.rest()


def status_of(answer: bytes) -> int:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert f"Content-Length: {len(body)}".encode() in lines
    assert b"Content-Type: text/plain; charset=utf-8" in lines
    assert any(line.startswith(b"Connection: close") for line in lines)
    return int(lines[0].split()[1])


async def still_serves(wire: Any, server: Any) -> None:
    client = await wire.upgraded(server)
    await client.send(wire.frame(1, b"alive"))
    assert await client.frame() == (1, b"alive")


@pytest.mark.parametrize(
    ("address", "written"),
    [(("127.0.0.1", 8765), "127.0.0.1:8765"), (("::1", 8765, 0, 0), "[::1]:8765")],
)
def test_an_address_is_written_as_in_a_url(address, written) -> None:
    assert authority(address) == written


class TestRefusalsBeforeTheUpgrade:
    @pytest.mark.parametrize(
        "head",
        [
            b"GET / HTTP/1.1\r\nHost: x",
            b"GET / HTTP/1.0",
            b"GET /favicon.ico?v HTTP/1.1\r\nHost: x",
            b"GET http://x/ HTTP/1.1\r\nHost: x",
            b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: keep-alive",
            b"POST /?=%zz HTTP/1.1\r\nHost: x\r\nContent-Length: 2",
            b"GET / HTTP/1.1\r\nHost: x\r\nCookie: t\xc3\xa9=1",
        ],
    )
    async def test_plain_http_is_told_how_to_connect(self, wire, server, head) -> None:
        answer = await answer_to(wire, server, head + b"\r\n\r\n")
        assert status_of(answer) == 426
        assert b"Upgrade: websocket" in answer
        assert b"WebSocket client" in answer

    @pytest.mark.parametrize(
        ("old", "new", "status"),
        [
            (b"GET ", b"POST ", 400),
            (b"GET ", b"G@T ", 400),
            (b" HTTP/1.1", b" HTTP/1.0", 400),
            (b" HTTP/1.1", b"  HTTP/1.1", 400),
            (b"/echo", b"http://test/echo", 400),
            (b"/echo", b"/echo?a=1&a=2", 400),
            (b"/echo", b"/echo?=a", 400),
            (b"Upgrade: websocket", b"Upgrade : websocket", 400),
            (b"Upgrade: websocket", b" Upgrade: websocket", 400),
            (b"/echo", b"/echo?a=%zz", 400),
            (b"/echo", b"/echo?a=%ff", 400),
            (b"Host: test\r\n", b"", 400),
            (b"Host: test\r\n", b"Host: test\r\nHost: other\r\n", 400),
            (b"Host: test\r\n", b"Host: test\r\nAuthorization: a\r\nAuthorization: b\r\n", 400),
            (b"Host: test\r\n", b"Host: test\r\n folded\r\n", 400),
            (b"Host: test\r\n", b"Host : test\r\n", 400),
            (b"Host: test\r\n", b"Host: t\xc3\xa9st\r\n", 400),
            (b"Host: test\r\n", b"Host: te\0st\r\n", 400),
            (b"Host: test\r\n", b"Host: test\n", 400),
            (b"Host: test\r\n", b"Host: test\r\nContent-Length: 0\r\n", 400),
            (b"Host: test\r\n", b"Host: test\r\nTransfer-Encoding: chunked\r\n", 400),
            (b"keep-alive, Upgrade", b"keep-alive", 400),
            (b"Upgrade: websocket", b"Upgrade: h2c", 426),
            (b"Version: 13", b"Version: 12", 426),
            (b"Sec-WebSocket-Version: 13\r\n", b"", 426),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZQ=", 400),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25j!!==", 400),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZSEh", 400),
            (b"Host: test\r\n", b"Host: test\r\nX: " + b" " * 32_000 + b"\r\n", 431),
            (b"Host: test\r\n", b"Host: test\r\n" + b"X: y\r\n" * 2_000, 431),
        ],
    )
    async def test_a_head_that_breaks_the_rules(self, wire, server, old, new, status) -> None:
        assert old in wire.upgrade
        assert status_of(await answer_to(wire, server, wire.upgrade.replace(old, new))) == status
        assert server.requests == []

    async def test_the_answer_arrives_though_the_client_is_still_sending_its_head(
        self, wire, monkeypatch
    ) -> None:
        monkeypatch.setattr(upgrade_module, "_LINGER", 300.0)  # Else the client must have sent all in time.
        async with wire.server(handshake_timeout=300.0) as server:
            client = await wire.connect(server)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, b"GET / HTTP/1.1\r\nX: " + b"x" * 2_000_000)
                assert b" 431 " in await client.head()
            await client.stream.send_eof()
            assert b"16384 bytes" in await client.rest()

    async def test_another_version_is_told_which_one(self, wire, server) -> None:
        answer = await answer_to(wire, server, wire.upgrade.replace(b"Version: 13", b"Version: 8"))
        assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer

    async def test_the_callers_refusal_is_sent_as_it_is(self, wire, server) -> None:
        async def answer(request: Request) -> Refusal:
            return Refusal(429, "slow down", (("Retry-After", "7"),))

        server.answer = answer
        reply = await answer_to(wire, server, wire.upgrade)
        assert status_of(reply) == 429
        assert b"\r\nRetry-After: 7\r\n" in reply
        assert reply.endswith(b"\r\n\r\nslow down\n")

    def test_a_refusal_cannot_smuggle_a_header(self) -> None:
        with pytest.raises(ValueError, match="headers"):
            Refusal(400, "", (("Retry-After", "1\r\nSet-Cookie: a"),))

    async def test_what_the_answer_raises_is_a_500_without_its_words(self, wire, server) -> None:
        async def answer(request: Request) -> Refusal:
            raise KeyError("secret")

        server.answer = answer
        with structlog.testing.capture_logs() as logs:
            reply = await answer_to(wire, server, wire.upgrade)
        assert status_of(reply) == 500
        assert b"secret" not in reply
        assert [entry["log_level"] for entry in logs] == ["error"]
        server.answer = server.accept
        await still_serves(wire, server)

    async def test_a_subprotocol_that_was_not_offered_is_a_500(self, wire, server) -> None:
        async def answer(request: Request) -> Acceptance:
            return Acceptance("other", server.own)

        server.answer = answer
        with structlog.testing.capture_logs():
            assert status_of(await answer_to(wire, server, wire.upgrade)) == 500
        assert server.sockets == []


class TestTheUpgrade:
    async def test_the_request_is_told_as_it_was_sent(self, wire, server) -> None:
        client = await wire.connect(server)
        await client.send(
            wire.upgrade.replace(b"/echo", b"/echo?client=%C3%A9+1&b=").replace(
                b"Host: test", b"hOST: test\r\nSec-WebSocket-Protocol: b, a\r\nsec-websocket-protocol: c"
            )
        )
        head = await client.head()
        request = server.requests[0]
        assert (request.method, request.path) == ("GET", "/echo")
        assert request.query == {"client": "é 1", "b": ""}
        assert request.headers["HOST"] == "test"
        assert request.subprotocols == ("b", "a", "c")
        assert request.peer == f"127.0.0.1:{client.stream.socket.getsockname()[1]}"
        assert b"\r\nSec-WebSocket-Protocol: b\r\n" in head + b"\r\n"

    async def test_the_accept_key_is_the_one_of_the_rfc(self, wire, server) -> None:
        client = await wire.connect(server)
        await client.send(wire.upgrade)
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in await client.head()

    async def test_compression_is_never_negotiated(self, wire, server) -> None:
        client = await wire.connect(server)
        await client.send(
            wire.upgrade.replace(b"Host: test", b"Host: test\r\nSec-WebSocket-Extensions: permessage-deflate")
        )
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 101")
        assert b"xtensions" not in head

    async def test_frames_that_came_with_the_head_are_not_lost(self, wire, server) -> None:
        client = await wire.upgraded(server, wire.frame(1, b"early") + wire.frame(1, b"bird")[:3])
        assert await client.frame() == (1, b"early")
        await client.send(wire.frame(1, b"bird")[3:])
        assert await client.frame() == (1, b"bird")

    async def test_a_head_sent_byte_by_byte(self, wire, server) -> None:
        client = await wire.connect(server)
        client.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(wire.upgrade)):
            await client.send(wire.upgrade[i : i + 1])
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")

    async def test_the_switch_and_the_first_message_are_one_write(self, wire, server) -> None:
        def own(sock: Any) -> None:
            assert sock.outbox.offer(text_frame(b"welcome"))
            assert sock.outbox.taken > 100
            server.own(sock)

        async def answer(request: Request) -> Acceptance:
            return Acceptance(None, own)

        server.answer = answer
        client = await wire.upgraded(server)
        assert await client.frame() == (1, b"welcome")

    async def test_secrets_stay_out_of_a_requests_repr(self, wire, server) -> None:
        client = await wire.connect(server)
        await client.send(
            wire.upgrade.replace(b"Host: test", b"Host: test\r\nAuthorization: Bearer CANARY").replace(
                b"/echo", b"/echo?token=CANARY"
            )
        )
        await client.head()
        assert "CANARY" not in repr(server.requests[0])

    async def test_an_owner_that_raises_costs_only_its_connection(self, wire, server) -> None:
        async def answer(request: Request) -> Acceptance:
            return Acceptance(None, lambda sock: 1 / 0)

        server.answer = answer
        with structlog.testing.capture_logs() as logs:
            assert await answer_to(wire, server, wire.upgrade) == b""
        assert [entry["event"] for entry in logs] == ["handshake_failed"]
        server.answer = server.accept
        await still_serves(wire, server)


class TestTheServerLives:
    async def test_bad_http_then_a_reset_a_thousand_times(self, wire, server) -> None:
        for i in range(1000):
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.send(b"\x16\x03\x01 not http \r\n\r\n" if i % 2 else b"GET")
            sock.close()
            if i % 50 == 0:
                await trio.lowlevel.checkpoint()
        await still_serves(wire, server)

    async def test_a_ping_after_our_close(self, wire, server) -> None:
        client = await wire.upgraded(server)
        await client.send(wire.frame(1, b"first"))
        await client.frame()
        server.sockets[0].close_nowait(4000, "over")
        await client.send(wire.frame(9, b"still there?"))
        assert await client.close_code() == 4000
        await client.send(wire.frame(9) + wire.frame(8, b"\x0f\xa0"))
        assert (await server.how_it_ended()).code == 4000
        await still_serves(wire, server)

    async def test_a_silent_connection_is_cut_at_the_handshake_time_out(
        self, wire, server, autojump_clock
    ) -> None:
        for said in (b"", wire.upgrade[:-1]):
            assert await heard_until_the_time_out(server.accept, said) == b""
        assert server.requests == []

    async def test_an_answer_that_takes_too_long_is_a_503(self, wire, autojump_clock) -> None:
        async def answer(request: Request) -> Refusal:
            await trio.sleep_forever()
            raise AssertionError

        reply = await heard_until_the_time_out(answer, wire.upgrade)
        assert status_of(reply) == 503
        assert b"Retry-After: 1" in reply

    async def test_too_many_handshakes_are_told_to_come_back(self, wire) -> None:
        async with wire.server(max_handshakes=1) as server:
            silent = await wire.connect(server)
            await silent.send(b"GET")
            assert status_of(await answer_to(wire, server, b"")) == 503
            await silent.stream.aclose()
            while b"101" not in await answer_line(wire, server):
                await trio.lowlevel.checkpoint()

    @pytest.mark.parametrize(
        ("number", "pauses"),
        [(errno.EMFILE, 3), (errno.ENFILE, 3), (errno.ENOMEM, 3), (errno.EPROTO, 3), (errno.ECONNABORTED, 0)],
    )
    async def test_accepting_goes_on_after_errors_and_pauses_when_nothing_is_left(
        self, wire, server, number, pauses, monkeypatch
    ) -> None:
        monkeypatch.setattr(doorway_module, "FIRST_PAUSE", 0.001)
        failures = 0

        class Exhausted(socket.socket):
            def accept(self) -> Any:
                nonlocal failures
                if failures < 3:
                    failures += 1
                    raise OSError(number, "exhausted")
                return super().accept()

        listener = Exhausted()
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        handshakes = Handshakes(
            answer=server.accept, timeout=5, head_bytes=1000, max_message_bytes=1000, max_under_way=9
        )
        with structlog.testing.capture_logs() as logs:
            async with trio.open_nursery() as nursery:
                doorway = Doorway()
                nursery.start_soon(listener_module._accept, listener, handshakes, doorway, nursery)
                server.port = listener.getsockname()[1]
                await still_serves(wire, server)
                nursery.cancel_scope.cancel()
        listener.close()
        assert (failures, doorway.statistics().failures) == (3, pauses)
        assert [line["event"] for line in logs] == ["accept_paused"] * bool(pauses)

    async def test_who_finds_no_descriptor_left_is_told_so_over_tls_too(self, wire, certificate) -> None:
        used = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
        # The connections that come get descriptors of the reserve, but not of its second half.
        doorway = Doorway(lambda: used[-1] // 0.8)
        try:
            async with wire.server(ssl_context=certificate[0], doorway=doorway) as server:
                with pytest.raises(HandshakeRefused) as refused:
                    async with open_socket(
                        server.url.replace("ws:", "wss:"),
                        headers={},
                        subprotocols=[],
                        timeout=5,
                        max_message_bytes=1000,
                        ssl_context=certificate[1],
                    ):
                        pass
        finally:
            for descriptor in used:
                os.close(descriptor)
        assert (refused.value.status, refused.value.retry_after) == (503, 1)
        assert doorway.statistics().turned_away == 1

    async def test_cancelling_it_spares_the_sockets_that_have_an_owner(self, wire) -> None:
        async with wire.server() as outer:
            handshakes = Handshakes(
                answer=outer.accept, timeout=5, head_bytes=1000, max_message_bytes=1000, max_under_way=9
            )
            ours, theirs = socket.socketpair()
            theirs.setblocking(False)
            async with trio.open_nursery() as nursery:
                client = wire.client(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
                nursery.start_soon(handshakes.shake, SocketPipe(theirs), "pair")
                await client.send(wire.upgrade)
                await client.head()
                nursery.cancel_scope.cancel()
            await client.send(wire.frame(1, b"on"))
            assert await client.frame() == (1, b"on")


async def heard_until_the_time_out(answer: Any, said: bytes) -> bytes:
    """What a client hears that says this and no more; in memory, where no time passes before it is read."""
    pipe, peer = memory_pipe_pair()
    peer.send_nowait(said)
    handshakes = Handshakes(
        answer=answer, timeout=5, head_bytes=1000, max_message_bytes=1000, max_under_way=9
    )
    began = trio.current_time()
    await handshakes.shake(pipe, "peer")
    assert trio.current_time() - began == pytest.approx(5)
    return await peer.receive_some(1000)


async def answer_line(wire: Any, server: Any) -> bytes:
    client = await wire.connect(server)
    await client.send(wire.upgrade)
    head: bytes = await client.head()
    await client.stream.aclose()
    return head


class TestListening:
    async def test_every_address_of_a_name_gets_the_same_port(self) -> None:
        listeners = await open_listeners("localhost", 0)
        ports = {listener.getsockname()[1] for listener in listeners}
        assert len(ports) == 1
        for listener in listeners:
            assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert 16_384 <= listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) <= 65_536
            listener.close()

    async def test_a_port_in_use_is_named(self) -> None:
        (first,) = await open_listeners("127.0.0.1", 0)
        port = first.getsockname()[1]
        with pytest.raises(TransportError, match=f"127.0.0.1:{port}: .*in use"):
            await open_listeners("127.0.0.1", port)
        first.close()

    async def test_an_unknown_host_is_named(self) -> None:
        with pytest.raises(TransportError, match=r"nowhere\.invalid"):
            await open_listeners("nowhere.invalid", 0)


class TestTheClient:
    async def test_a_refusal_carries_status_words_and_the_time_to_wait(self, server) -> None:
        async def answer(request: Request) -> Refusal:
            return Refusal(503, "draining", (("Retry-After", "3"),))

        server.answer = answer
        with pytest.raises(HandshakeRefused) as refused:
            async with open_socket(
                server.url, headers={}, subprotocols=[], timeout=5, max_message_bytes=1000
            ):
                pass
        assert (refused.value.status, refused.value.body, refused.value.retry_after) == (503, "draining", 3.0)

    async def test_nobody_listening_is_a_transport_error(self) -> None:
        (listener,) = await open_listeners("127.0.0.1", 0)
        port = listener.getsockname()[1]
        listener.close()
        with pytest.raises(TransportError, match=str(port)):
            async with open_socket(
                f"ws://127.0.0.1:{port}/", headers={}, subprotocols=[], timeout=5, max_message_bytes=1000
            ):
                pass

    async def test_a_server_that_says_nothing_is_a_transport_error(self) -> None:
        (listener,) = await open_listeners("127.0.0.1", 0)
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(TransportError, match="no answer"):
            async with open_socket(url, headers={}, subprotocols=[], timeout=0.05, max_message_bytes=1000):
                pass
        listener.close()

    @pytest.mark.parametrize(
        "url", ["http://a/", "ws:///x", "ws://user@host/", "ws://host/#part", "ws://host/é"]
    )
    async def test_a_url_that_is_none(self, url) -> None:
        with pytest.raises(ValueError, match="url"):
            async with open_socket(url, headers={}, subprotocols=[], timeout=1, max_message_bytes=1):
                pass

    async def test_a_header_cannot_smuggle_another(self, server) -> None:
        with pytest.raises(ValueError, match="headers"):
            async with open_socket(
                server.url, headers={"A": "b\r\nC: d"}, subprotocols=[], timeout=1, max_message_bytes=1
            ):
                pass

    async def test_an_error_in_the_block_comes_out_as_itself(self, server) -> None:
        with pytest.raises(ZeroDivisionError):
            async with open_socket(
                server.url, headers={}, subprotocols=[], timeout=5, max_message_bytes=1000
            ):
                raise ZeroDivisionError
        assert (await server.how_it_ended()).code == 1006
