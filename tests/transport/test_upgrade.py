"""Handshakes that need no task: the request is there whole at its accept, and is answered at once."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import structlog
import trio

from wsrecover.transport import Acceptance, Refusal, Request

Decision = Refusal | Acceptance | None


class Gate:
    """Lets everybody in, and counts who is inside."""

    def __init__(self) -> None:
        self.inside: Counter[str] = Counter()
        self.entered = 0

    def enter(self, peer: str) -> float:
        self.inside[peer] += 1
        self.entered += 1
        return 0.0

    def leave(self, peer: str) -> None:
        self.inside[peer] -= 1

    def forwards(self, peer: str) -> bool:
        return False

    def client(self, peer: str, headers: Mapping[str, str]) -> str:
        return peer


class Decider:
    """An `answer_now` that notes in which task, if any, it was asked."""

    def __init__(self) -> None:
        self.decide: Callable[[Request], Decision] = lambda request: None
        self.tasks: list[str] = []

    def __call__(self, request: Request) -> Decision:
        self.tasks.append(trio.lowlevel.current_task().name)
        return self.decide(request)


@pytest.fixture
def now() -> Decider:
    return Decider()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def server(wire: Any, now: Decider, gate: Gate) -> Any:
    async with wire.server(answer_now=now, gate=gate) as server:
        yield server
    assert gate.inside.total() == 0


async def arrive(wire: Any, server: Any, data: bytes) -> Any:
    """A client all of whose `data` is there before it is accepted."""
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.sendall(data)
    sock.setblocking(False)
    return wire.client(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))


async def test_a_whole_request_finds_its_owner_in_the_step_that_accepts_it(wire, server, now, gate) -> None:
    owners: list[str] = []

    def own(sock: Any) -> None:
        owners.append(trio.lowlevel.current_task().name)
        server.own(sock)

    now.decide = lambda request: Acceptance(None, own)
    client = await arrive(wire, server, wire.upgrade + wire.frame(1, b"early"))
    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
    assert await client.frame() == (1, b"early")
    assert len(owners) == 1
    assert owners[0].endswith("._accept")
    assert server.requests == []
    assert gate.inside.total() == 0


async def test_who_has_to_be_waited_for_is_asked_of_the_other_answer(wire, server, now, gate) -> None:
    client = await arrive(wire, server, wire.upgrade)
    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
    assert (len(now.tasks), len(server.requests), gate.entered) == (1, 1, 1)


async def test_a_request_in_pieces_goes_on_behind_what_was_read(wire, server, now, gate) -> None:
    now.decide = lambda request: Acceptance(None, server.own)
    client = await arrive(wire, server, wire.upgrade[:-3])
    while not gate.entered:
        await trio.lowlevel.checkpoint()
    await client.send(wire.upgrade[-3:])
    assert (await client.head()).startswith(b"HTTP/1.1 101 ")
    assert (now.tasks, len(server.requests), gate.entered) == ([], 1, 1)


async def test_a_refusal_reaches_its_reader(wire, server, now, gate) -> None:
    now.decide = lambda request: Refusal(429, "slow down", (("Retry-After", "7"),))
    answer = await (await arrive(wire, server, wire.upgrade)).rest()
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert answer.endswith(b"\r\n\r\nslow down\n")
    assert (len(now.tasks), server.requests, gate.entered) == (1, [], 1)


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [(b"GET ", b"G@T ", 400), (b"Upgrade: websocket", b"Upgrade: h2c", 426), (b"X", b"x" * 20_000, 431)],
)
async def test_a_head_that_breaks_the_rules_is_not_asked_about(wire, server, now, old, new, status) -> None:
    head = wire.upgrade.replace(b"Host: test", b"Host: test\r\nX: X").replace(old, new)
    answer = await (await arrive(wire, server, head)).rest()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert now.tasks == []


async def test_what_it_raises_is_a_500_and_the_loop_goes_on(wire, server, now) -> None:
    def fail(request: Request) -> Decision:
        raise KeyError("secret")

    now.decide = fail
    with structlog.testing.capture_logs() as logs:
        answer = await (await arrive(wire, server, wire.upgrade)).rest()
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"secret" not in answer
    assert [entry["log_level"] for entry in logs] == ["error"]
    now.decide = lambda request: Acceptance(None, server.own)
    assert (await (await arrive(wire, server, wire.upgrade)).head()).startswith(b"HTTP/1.1 101 ")


async def test_a_refusal_that_cannot_be_sent_costs_only_its_connection(wire, server, now) -> None:
    now.decide = lambda request: Refusal(403, "\ud800")
    with structlog.testing.capture_logs() as logs:
        assert await (await arrive(wire, server, wire.upgrade)).rest() == b""
    assert [entry["event"] for entry in logs] == ["handshake_failed"]
    now.decide = lambda request: Acceptance(None, server.own)
    assert (await (await arrive(wire, server, wire.upgrade)).head()).startswith(b"HTTP/1.1 101 ")


async def test_a_subprotocol_that_was_not_offered_is_a_500(wire, server, now) -> None:
    now.decide = lambda request: Acceptance("other", server.own)
    with structlog.testing.capture_logs():
        answer = await (await arrive(wire, server, wire.upgrade)).rest()
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert server.sockets == []


async def test_an_owner_that_raises_costs_only_its_connection(wire, server, now) -> None:
    now.decide = lambda request: Acceptance(None, lambda sock: 1 / 0)
    with structlog.testing.capture_logs() as logs:
        assert await (await arrive(wire, server, wire.upgrade)).rest() == b""
    assert [entry["event"] for entry in logs] == ["handshake_failed"]
    now.decide = lambda request: Acceptance(None, server.own)
    assert (await (await arrive(wire, server, wire.upgrade)).head()).startswith(b"HTTP/1.1 101 ")


async def test_peers_that_left_before_their_accept_leave_nothing_behind(wire, server, now, gate) -> None:
    now.decide = lambda request: Acceptance(None, server.own)
    for _ in range(10):
        (await arrive(wire, server, b"")).stream.socket.close()
    assert (await (await arrive(wire, server, wire.upgrade)).head()).startswith(b"HTTP/1.1 101 ")
    assert gate.entered == 11
