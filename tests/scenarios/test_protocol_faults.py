"""P4, P6 to P8, P10, P11 and A5: what a stranger may send costs little and is refused in words."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest
import trio
from figures import Figure
from serving import frames_until_closed
from trio.testing import MockClock

from wsrecover.testing import LocalServer, local_server

KEY: Final = "AAAAAAAAAAAAAAAAAAAAAA=="
MASK: Final = bytes(4)


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server


def resident() -> int:
    """The KiB of memory that this process has, server and all."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4


def peak(*, anew: bool = False) -> int:
    """The most KiB that it has had since the last time that this began `anew`."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return int(status.partition("VmHWM:")[2].split()[0])


def frame(first: int, payload: bytes = b"") -> bytes:
    """A masked frame of at most 125 bytes; the mask is zero."""
    return bytes((first, 0x80 | len(payload))) + MASK + payload


async def answer(local: LocalServer, head: bytes) -> tuple[bytes, float]:
    """The status with which a request is answered, and after how many milliseconds."""
    async with await trio.open_tcp_stream(*local.server.addresses[0]) as stream:
        started = time.perf_counter()
        await stream.send_all(head)
        with trio.fail_after(10):
            status = (await stream.receive_some())[9:12]
        return status, (time.perf_counter() - started) * 1000


def request(local: LocalServer, *more: str, body: str = "") -> bytes:
    lines = (
        "GET /v1/connect?client=c1 HTTP/1.1",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Protocol: wsrecover.v1",
        f"Authorization: Bearer {local.token()}",
        *more,
    )
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode("latin-1")


@pytest.mark.parametrize("size", [0, 1])
async def test_p4_a_message_in_200_000_fragments_is_cut(
    local: LocalServer, figure: Figure, size: int
) -> None:
    async with local.peer() as peer, local.peer("grace") as other:
        for each in (peer, other):
            await each.until("live")
        before, started = resident(), time.process_time()
        fragments = frame(0x01, b"x" * size) + frame(0x00, b"x" * size) * 200_000
        peer.socket.outbox.put(fragments)
        with trio.fail_after(60):
            _, code = await frames_until_closed(peer)
        used, grown = time.process_time() - started, resident() - before - len(fragments) // 1024
        assert code == 1009
        await other.send({"op": "ping"})
        await other.until("pong")
    figure("P4", f"200,000 fragments of {size} bytes: CPU seconds of both ends", f"{used:.2f}")
    figure("P4", f"200,000 fragments of {size} bytes: KiB grown beside them", max(grown, 0))


@pytest.mark.parametrize(("size", "expected"), [(2**63, 1002), (2**62, 1009), (2**29, 1009), (70_000, 1009)])
async def test_p6_a_length_that_is_too_large_is_refused_without_making_room(
    local: LocalServer, figure: Figure, size: int, expected: int
) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        before = peak(anew=True)
        peer.socket.outbox.put(b"\x81\xff" + size.to_bytes(8, "big") + MASK + b"x" * 70_000)
        _, code = await frames_until_closed(peer)
        grown = peak() - before
    figure("P6", f"a frame of {size} bytes: KiB at the peak beside what there was", grown)
    assert code == expected
    assert grown < 4096


async def test_p7_compression_is_never_negotiated_and_a_reserved_bit_closes(
    local: LocalServer, figure: Figure
) -> None:
    async with await trio.open_tcp_stream(*local.server.addresses[0]) as stream:
        await stream.send_all(request(local, "Sec-WebSocket-Extensions: permessage-deflate"))
        head = (await stream.receive_some()).lower()
        assert head.startswith(b"http/1.1 101")
        negotiated = head.count(b"sec-websocket-extensions")
    figure("P7", "extensions negotiated", negotiated)
    assert negotiated == 0
    for bit in (0x40, 0x20, 0x10):
        async with local.peer() as peer:
            await peer.until("live")
            peer.socket.outbox.put(frame(0x81 | bit, b"{}"))
            assert (await frames_until_closed(peer))[1] == 1002


async def test_p8_no_json_takes_long_to_refuse(local: LocalServer, figure: Figure) -> None:
    worst = 0.0
    messages = [
        "[" * 60_000,
        "[" * 30_000 + "]" * 30_000,
        '{"a":' * 10_000 + "1" + "}" * 10_000,
        "9" * 60_000,
        "-1e" + "9" * 60_000,
        '{"op":"ack","pos":{"user":' + "9" * 4_000 + "}}",
        '{"op":"ping",' + ",".join(f'"k{n}":{n}' for n in range(5_000)) + ',"k0":1}',
        '"' + "\\ud800" * 10_000 + '"',
        "[" + ",".join(["1" * 17] * 3_000) + "]",
        "[" + ",".join(["NaN", "-Infinity", "1e999"] * 2_000) + "]",
        "[" + ",".join(["{}"] * 20_000) + "]",
        " " * 65_000,
        '{"op":"hello","client":"' + "x" * 60_000 + '"}',
    ]
    async with local.peer() as peer:
        await peer.until("live")
        for message in messages:
            started = time.perf_counter()
            await peer.socket.send(message)
            with trio.fail_after(10):
                refused = (await peer.until("error"))[-1]
            assert refused["code"] in {"malformed", "invalid", "unknown_op"}
            worst = max(worst, (time.perf_counter() - started) * 1000)
    figure("P8", f"worst of {len(messages)} hostile JSON messages, ms", f"{worst:.1f}")


HEADS: Final[dict[str, tuple[Callable[[LocalServer], bytes], set[bytes]]]] = {
    "2,000 headers": (lambda local: request(local, *(f"X-{n}: y" for n in range(2_000))), {b"431"}),
    "120 small headers": (lambda local: request(local, *(f"X-{n}: y" for n in range(120))), {b"431"}),
    "32 KB of spaces": (lambda local: request(local, "X-Pad:" + " " * 32_768), {b"431"}),
    "bytes that are not ASCII": (lambda local: request(local, "X-Name: \u00e9\u00ff"), {b"400"}),
    "a folded header": (lambda local: request(local, "X-A: b", " c: d"), {b"400"}),
    "an empty name": (lambda local: request(local, ": nothing"), {b"400"}),
    "a space before the colon": (lambda local: request(local, "X-A : b"), {b"400"}),
    "two hosts": (lambda local: request(local, "Host: other"), {b"400"}),
    "a bare line feed": (lambda local: request(local).replace(b"\r\n", b"\n") + b"\r\n\r\n", {b"400"}),
    "a NUL": (lambda local: request(local, "X-A: \x00"), {b"400"}),
}


async def test_p10_hostile_heads_are_refused_fast(local: LocalServer, figure: Figure) -> None:
    worst = 0.0
    for name, (make, expected) in HEADS.items():
        status, taken = await answer(local, make(local))
        worst = max(worst, taken)
        assert status in expected, name
    figure("P10", f"worst of {len(HEADS)} hostile heads, ms", f"{worst:.1f}")


async def test_p11_an_upgrade_with_a_body_is_refused(local: LocalServer, figure: Figure) -> None:
    heads = [
        request(local, "Content-Length: 5", body="hello"),
        request(local, "Content-Length: 0"),
        request(local, "Transfer-Encoding: chunked", body="0\r\n\r\n"),
        request(local, "Transfer-Encoding: identity"),
        request(local, "Content-Length: 5", "Transfer-Encoding: chunked", body="0\r\n\r\n"),
        request(local).replace(b"GET ", b"POST "),
    ]
    accepted = [await answer(local, head) for head in heads]
    figure("P11", f"of {len(heads)} upgrades with a body, accepted", sum(s == b"101" for s, _ in accepted))
    assert {status for status, _ in accepted} == {b"400"}


async def test_a5_who_connects_and_says_nothing_is_cut_at_the_handshake_time(
    mock_clock: MockClock, figure: Figure
) -> None:
    async with local_server(wall_clock=trio.current_time) as local:
        unknown, cut_after = local.server._services.addresses, []
        for said in (b"", b"G", b"GET /v1/connect HTTP/1.1\r\nHost: here\r\n", b"\x16\x03\x01"):
            async with await trio.open_tcp_stream(*local.server.addresses[0]) as stream:
                if said:
                    await stream.send_all(said)
                while not len(unknown):
                    await trio.testing.wait_all_tasks_blocked(0.001)
                accepted = trio.current_time()
                while len(unknown):
                    mock_clock.jump(0.5)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                cut_after.append(trio.current_time() - accepted)
                assert await stream.receive_some() == b""
    figure("A5", "seconds until one that says nothing is cut", max(cut_after))
    assert set(cut_after) == {local.config.timeouts.handshake}
