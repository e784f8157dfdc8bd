"""R1, R3 and S05: what one address may do before anybody knows who is there."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from figures import Figure
from serving import START
from trio.testing import MockClock

from wsrecover.config import Limits
from wsrecover.errors import HandshakeRefused
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport import Dial, Pipe, SocketPipe

OTHER = "127.0.0.2"
"""Another address of this machine."""


def dial_from(source: str) -> Dial:
    async def dial(host: str, port: int) -> Pipe:
        sock = trio.socket.socket()
        await sock.bind((source, 0))
        await sock.connect((host, port))
        plain = socket.socket(fileno=sock.detach())
        plain.setblocking(False)
        return SocketPipe(plain)

    return dial


async def connect(local: LocalServer, source: str = "127.0.0.1", **hello: Any) -> tuple[int, float | None]:
    """How a connect from this address is answered: the status, and Retry-After."""
    try:
        async with local.peer(dial=dial_from(source), **hello) as peer:
            await peer.until("welcome")
            return 101, None
    except HandshakeRefused as refused:
        return refused.status, refused.retry_after


@asynccontextmanager
async def silent(local: LocalServer, source: str = "127.0.0.1") -> AsyncIterator[trio.SocketStream]:
    """A connection that says nothing, once the server has it."""
    unknown = local.server._services.addresses
    before = len(unknown)
    sock = trio.socket.socket()
    await sock.bind((source, 0))
    await sock.connect(local.server.addresses[0])
    await trio.testing.wait_all_tasks_blocked(0.001)  # The server's time-out has begun, not only its count.
    while len(unknown) == before:
        await trio.testing.wait_all_tasks_blocked(0.001)
    async with trio.SocketStream(sock) as stream:
        yield stream


def descriptors() -> int:
    """Those of this process, in which the server is."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_s05_connects_of_an_address_have_a_burst_and_a_rate(
    mock_clock: MockClock, figure: Figure
) -> None:
    limits = Limits(address_connects_per_second=1, address_connects_burst=5)
    async with local_server(limits=limits, wall_clock=trio.current_time) as local:
        answers = [await connect(local) for _ in range(8)]
        assert answers == [(101, None)] * 5 + [(429, 1)] * 3
        assert await connect(local, OTHER) == (101, None)
        mock_clock.jump(0.999)
        early = await connect(local)
        mock_clock.jump(0.001)
        figure("S05 R3", "connects of an address admitted before their time", int(early[0] == 101))
        assert (early, await connect(local)) == ((429, 1), (101, None))


async def test_s05_who_was_refused_in_good_time_is_not_held_against_the_others(mock_clock: MockClock) -> None:
    limits = Limits(address_connects_per_second=1, address_connects_burst=1)
    async with local_server(limits=limits, wall_clock=trio.current_time) as local:
        for _ in range(50):
            await connect(local)
        assert [await connect(local, f"127.0.1.{n}") for n in range(1, 20)] == [(101, None)] * 19


async def test_r1_an_address_may_hold_so_many_connections_that_say_nothing() -> None:
    async with local_server(limits=Limits(address_handshakes=3, handshakes=100)) as local:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(silent(local))
            held = await connect(local)
            assert held[0] == 429
            assert await connect(local, OTHER) == (101, None)
        with trio.fail_after(5):
            while (await connect(local))[0] != 101:
                await trio.testing.wait_all_tasks_blocked(0.001)


async def test_r1_who_is_known_does_not_count_and_who_waits_for_hello_does() -> None:
    async with local_server(limits=Limits(address_handshakes=3)) as local, AsyncExitStack() as stack:
        for number in range(6):
            known = await stack.enter_async_context(local.peer(client=f"c{number}"))
            await known.until("welcome")
        for _ in range(3):
            stranger = await stack.enter_async_context(local.stranger())
        assert (await connect(local))[0] == 429
        await stranger.send({"op": "hello", "client": "c9", "token": local.token()})
        await stranger.until("welcome")
        with trio.fail_after(5):
            while (await connect(local))[0] != 101:
                await trio.testing.wait_all_tasks_blocked(0.001)


async def test_r1_silent_connections_are_cut_at_the_handshake_time(mock_clock: MockClock) -> None:
    limits = Limits(address_handshakes=3)
    async with local_server(limits=limits, wall_clock=trio.current_time) as local:
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(silent(local)) for _ in range(3)]
            mock_clock.jump(5.1)
            for stream in streams:
                assert await stream.receive_some() == b""
        assert (await connect(local))[0] == 101


async def test_r1_a_head_that_comes_in_drops_is_cut_at_the_handshake_time_and_holds_nothing(
    mock_clock: MockClock, figure: Figure
) -> None:
    count, head = 200, b"GET /v1/connect HTTP/1.1\r\nHost: here\r\nX: " + b"slow" * 20
    limits = Limits(address_handshakes=count, address_connects_burst=count)
    async with local_server(limits=limits, wall_clock=trio.current_time) as local, AsyncExitStack() as stack:
        before = descriptors()
        streams = [await stack.enter_async_context(silent(local)) for _ in range(count)]
        assert descriptors() == before + 2 * count
        for at in range(0, 50, 5):  # A drop each half second, for ever.
            for stream in streams:
                await stream.send_all(head[at : at + 5])
            assert len(local.server._services.addresses) == count
            mock_clock.jump(0.5)
        for stream in streams:
            assert await stream.receive_some() == b""
        figure("R1", f"descriptors held by {count} slow handshakes after 5 s", descriptors() - before - count)
        assert descriptors() == before + count, "only those of their own ends are left"
        assert (await connect(local, OTHER))[0] == 101


async def test_r3_in_a_storm_those_who_come_back_are_let_in_before_those_who_are_new(
    mock_clock: MockClock,
) -> None:
    limits = Limits(fresh_connects_per_second=1, resumes_per_second=5)
    async with local_server(limits=limits, wall_clock=trio.current_time) as local:
        async with local.peer(**START) as peer:
            epoch = (await peer.frame())["streams"]["user"]["epoch"]
        answers = [await connect(local) for _ in range(12)]
        assert answers == [(101, None)] * 9 + [(503, 1)] * 3
        back = partial(connect, local, resume={"user": [epoch, 0]})
        answers = [await back() for _ in range(52)]
        assert answers == [(101, None)] * 50 + [(503, 1)] * 2
        mock_clock.jump(1)
        assert [await connect(local) for _ in range(2)] == [(101, None), (503, 1)]
        assert [await back() for _ in range(6)] == [(101, None)] * 5 + [(503, 1)]


async def test_r3_a_token_in_hello_gets_nobody_past_the_limit(mock_clock: MockClock) -> None:
    limits = Limits(fresh_connects_per_second=1)

    async def greet(local: LocalServer) -> str:
        async with local.stranger() as peer:
            await peer.send({"op": "hello", "client": "tab", "token": local.token()})
            frame = await peer.frame()
            return str(frame.get("code", frame["op"]))

    async with local_server(limits=limits, wall_clock=trio.current_time) as local:
        assert [await greet(local) for _ in range(12)] == ["welcome"] * 10 + ["overloaded"] * 2
        mock_clock.jump(1)
        assert [await greet(local) for _ in range(2)] == ["welcome", "overloaded"]


@pytest.mark.parametrize("where", ["header", "hello"])
async def test_r3_who_says_hello_after_the_upgrade_is_counted_by_what_it_says(
    mock_clock: MockClock, where: str
) -> None:
    limits = Limits(fresh_connects_per_second=1, resumes_per_second=1)

    async def greet(local: LocalServer, **more: Any) -> str:
        token = local.token()
        headers = {"Authorization": f"Bearer {token}"} if where == "header" else {}
        async with local.stranger(headers=headers) as peer:
            hello = {"op": "hello", "client": "tab", **more}
            await peer.send(hello if where == "header" else {**hello, "token": token})
            frame = await peer.frame()
            return str(frame.get("code", frame["op"]))

    async with local_server(limits=limits, wall_clock=trio.current_time) as local:
        assert [await greet(local) for _ in range(11)] == ["welcome"] * 10 + ["overloaded"]
        back = {"resume": {"user": ["some-epoch", 0]}}
        assert [await greet(local, **back) for _ in range(11)] == ["welcome"] * 10 + ["overloaded"]
        assert await greet(local) == "overloaded"


async def test_r3_a_bad_token_takes_nothing_from_those_with_a_good_one(mock_clock: MockClock) -> None:
    limits = Limits(fresh_connects_per_second=1)
    async with local_server(limits=limits, wall_clock=trio.current_time) as local:
        for _ in range(30):
            assert (await connect(local, token="nonsense"))[0] == 401
        assert (await connect(local))[0] == 101


async def test_r3_a_storm_from_one_address_is_refused_and_others_get_in(figure: Figure) -> None:
    """Nearly all of the storm are told 429 with Retry-After; who comes from elsewhere is let in each time."""
    storm, others = (20_000, 200) if os.environ.get("WSRECOVER_FAULTS") == "1" else (400, 20)
    rate, burst = 1, 50
    limits = Limits(address_connects_per_second=rate, address_connects_burst=burst)
    answers: Counter[tuple[int, bool]] = Counter()
    left = storm

    async def rush(local: LocalServer) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            status, retry_after = await connect(local, OTHER)
            answers[status, retry_after is not None] += 1

    taken = []
    async with local_server(limits=limits) as local:
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(rush, local)
            for number in range(others):
                before = time.perf_counter()
                assert (await connect(local, f"127.0.1.{number + 1}"))[0] == 101
                taken.append((time.perf_counter() - before) * 1000)
        seconds = trio.current_time() - started
    p99 = sorted(taken)[int(len(taken) * 0.99)]
    figure("R3", f"of {storm} connects from one address, refused with Retry-After", answers[429, True])
    figure("R3", "p99 of a connect from elsewhere meanwhile, ms", f"{p99:.1f}")
    assert set(answers) == {(101, False), (429, True)}
    assert burst <= answers[101, False] <= burst + seconds * rate


PROXY: Final = ("127.0.0.0/24",)


def by_proxy(
    local: LocalServer, forwarded: str | None, source: str = "127.0.0.1", **more: str
) -> AbstractAsyncContextManager[Peer]:
    """A connection with a token, and the header as a proxy at `source` would send it."""
    headers = {"Authorization": f"Bearer {local.token()}", **more}
    if forwarded is not None:
        headers["X-Forwarded-For"] = forwarded
    return local.stranger(headers=headers, dial=dial_from(source))


async def admitted(local: LocalServer, forwarded: str | None, source: str = "127.0.0.1") -> bool:
    try:
        async with by_proxy(local, forwarded, source):
            return True
    except HandshakeRefused as refused:
        if (refused.status, refused.retry_after) != (429, 1):
            raise
        return False


async def test_s05_behind_a_proxy_each_client_has_its_own_rate(mock_clock: MockClock) -> None:
    limits = Limits(address_connects_per_second=1, address_connects_burst=2)
    async with local_server(limits=limits, trusted_proxies=PROXY, wall_clock=trio.current_time) as local:
        for client in ("203.0.113.1", "203.0.113.2", "2001:db8::1", "2001:db8:1::1"):
            assert [await admitted(local, f"9.9.9.9, {client}") for _ in range(3)] == [True, True, False]
        # A client of that /64 under another of its addresses, and one that says it is somebody else.
        assert not await admitted(local, "2001:db8::ffff")
        assert not await admitted(local, "203.0.113.77, 203.0.113.1")
        # Who is not named by the proxy counts as the proxy.
        assert [await admitted(local, each) for each in (None, "nonsense", None)] == [True, True, False]
        mock_clock.jump(1)
        assert [await admitted(local, "203.0.113.1") for _ in range(2)] == [True, False]


async def test_s05_who_is_no_trusted_proxy_is_not_believed(mock_clock: MockClock, figure: Figure) -> None:
    """With none listed, and from an address beside those that are."""
    limits = Limits(address_connects_per_second=1, address_connects_burst=2)
    believed = 0
    for proxies, source in (((), "127.0.0.1"), (PROXY, "127.0.1.1")):
        async with local_server(
            limits=limits, trusted_proxies=proxies, wall_clock=trio.current_time
        ) as local:
            spoofed = [f"203.0.113.{number}" for number in range(20)]
            believed += sum([await admitted(local, each, source) for each in spoofed]) - 2
    figure("S05 R3", "connects beyond the limit by a spoofed X-Forwarded-For", believed)
    assert believed == 0


async def test_r1_behind_a_proxy_a_client_may_hold_so_many_that_say_nothing() -> None:
    limits = Limits(address_handshakes=2)
    async with local_server(limits=limits, trusted_proxies=PROXY) as local, AsyncExitStack() as stack:
        unknown = local.server._services.addresses
        for _ in range(2):
            headers = {"X-Forwarded-For": "203.0.113.1"}
            await stack.enter_async_context(local.stranger(headers=headers))
        assert not await admitted(local, "203.0.113.1")
        assert await admitted(local, "203.0.113.2")
        await stack.aclose()
        with trio.fail_after(5):
            while len(unknown):
                await trio.testing.wait_all_tasks_blocked(0.001)
        assert await admitted(local, "203.0.113.1")
