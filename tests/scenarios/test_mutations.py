"""P2 and P9: mutated handshakes, WebSocket frames and messages; nothing of them is left behind.

A part of them by default, 100,000 with WSRECOVER_FAULTS=1.
"""

from __future__ import annotations

import gc
import os
import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import orjson
import pytest
import trio
from figures import Figure
from mutants import GOOD, Mutator, damaged
from structlog.testing import capture_logs

from wsrecover.config import Limits, Tier
from wsrecover.errors import ConnectionClosed
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport.framing import masked_frame

FULL: Final = os.environ.get("WSRECOVER_FAULTS") == "1"
MESSAGES, FRAMES, HANDSHAKES = (80_000, 10_000, 10_000) if FULL else (4_000, 500, 500)
SEED: Final = 2
MARK: Final = '{"op":"send","id":"mark","type":"cancel_run","data":{"run":"none"}}'
PATIENCE: Final = 30.0

ENDLESS: Final = Limits(
    frames_per_second=1_000_000,
    frames_burst=1_000_000,
    fresh_connects_per_second=1_000_000,
    address_connects_per_second=1_000_000,
    address_connects_burst=1_000_000,
    tenant_commands_per_second=1_000_000,
)


@contextmanager
def nothing_unhandled() -> Iterator[list[str]]:
    """What the server logged as its own fault: empty at the end."""
    faults: list[str] = []
    with capture_logs() as logs:
        yield faults
    faults += [repr(line) for line in logs if line["log_level"] in ("error", "critical")]


def held() -> tuple[int, int]:
    """Tasks and descriptors of this process."""
    gc.collect()
    return trio.lowlevel.current_statistics().tasks_living, len(list(Path("/proc/self/fd").iterdir()))


async def settled(local: LocalServer, before: tuple[int, int], *, stay: int = 0) -> tuple[int, int]:
    """What is held more than before, once all that ends has ended: so many connections stay."""
    with trio.move_on_after(10):
        while local.server.statistics().sessions.connections > stay or held() > before:  # noqa: ASYNC110  # Seen from outside.
            await trio.sleep(0.01)
    tasks, descriptors = held()
    return tasks - before[0], descriptors - before[1]


@pytest.fixture
def endless() -> dict[str, object]:
    tier = Tier(commands_per_second=1_000_000, commands_burst=1_000_000, bytes_per_second=1_000_000_000)
    return {"limits": ENDLESS, "tier": tier}


async def ask(peer: Peer, message: str) -> None:
    await peer.socket.send(message)
    await peer.socket.send(MARK)
    with trio.fail_after(PATIENCE):
        while (await peer.frame()).get("id") != "mark":
            pass


async def test_p9_mutated_messages_are_answered_and_leave_nothing(
    figure: Figure, endless: dict[str, object]
) -> None:
    mutator, closes, sent = Mutator(SEED), Counter[int](), 0
    with nothing_unhandled() as faults:
        async with local_server(**endless) as local:
            async with local.peer() as warm:
                await warm.until("live")
            await settled_peers(local, 0)
            before = held()
            while sent < MESSAGES:
                async with local.peer() as peer:
                    await peer.until("live")
                    try:
                        while sent < MESSAGES:
                            sent += 1
                            await ask(peer, mutator.message())
                    except ConnectionClosed as closed:
                        closes[closed.code] += 1
            left = await settled(local, before)
    figure("P9 E12", f"unhandled exceptions in {sent} mutated messages", len(faults))
    figure("P9 E12", "tasks and descriptors left by them", left)
    assert faults == []
    assert set(closes) <= {4501}
    assert left == (0, 0)


async def test_p2_mutated_frames_close_their_connection_at_most(
    figure: Figure, endless: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(SEED)
    monkeypatch.setattr(os, "urandom", random.Random(SEED).randbytes)  # The masks, too, follow from the seed.
    with nothing_unhandled() as faults:
        async with local_server(**endless) as local, local.peer("witness") as witness:
            await witness.until("live")
            async with local.peer() as warm:
                await warm.until("live")
            await settled_peers(local, 1)
            before = held()
            sent = 0
            while sent < FRAMES:
                async with local.peer() as peer:
                    await peer.until("welcome")
                    for _ in range(10):
                        sent += 1
                        peer.socket.outbox.put(
                            damaged(masked_frame(orjson.dumps(rng.choice(GOOD)).decode()), rng)
                        )
                    # No reset: that would take what the server has not read yet along.
                    peer.socket.outbox.send_eof()
                    with trio.fail_after(PATIENCE), suppress(ConnectionClosed):
                        while True:
                            await peer.frame()
            await witness.send({"op": "ping"})
            await witness.until("pong")
            left = await settled(local, before, stay=1)
            closes = local.server.statistics().sessions.counts
    figure("P2", f"unhandled exceptions in {sent} mutated WebSocket frames", len(faults))
    figure("P2", "tasks and descriptors left by them", left)
    assert faults == []
    assert left == (0, 0)
    assert closes["closed.1002"] > FRAMES / 100
    assert closes["closed.1007"] > 0


async def settled_peers(local: LocalServer, count: int) -> None:
    """Wait until so many connections are left, and what they had is gone."""
    with trio.fail_after(PATIENCE):
        while local.server.statistics().sessions.connections > count:  # noqa: ASYNC110  # Seen from outside.
            await trio.sleep(0.01)
    await trio.testing.wait_all_tasks_blocked(0.02)


async def test_p2_mutated_handshakes_are_answered_or_dropped(
    figure: Figure, endless: dict[str, object]
) -> None:
    rng = random.Random(SEED)
    answers: Counter[bytes] = Counter()
    with nothing_unhandled() as faults:
        async with local_server(**endless) as local:
            request = (
                "GET /v1/connect?client=c1&from=start HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                f"Sec-WebSocket-Protocol: wsrecover.v1\r\nAuthorization: Bearer {local.token()}\r\n\r\n"
            ).encode()
            async with local.peer() as warm:
                await warm.until("live")
            await settled_peers(local, 0)
            before = held()

            async def shake(data: bytes) -> None:
                with socket.create_connection(local.server.addresses[0]) as plain:
                    stream = trio.SocketStream(trio.socket.from_stdlib_socket(plain))
                    await stream.send_all(data)
                    await stream.send_eof()
                    with trio.fail_after(PATIENCE):
                        answers[(await stream.receive_some())[9:12]] += 1

            for _ in range(HANDSHAKES):
                await shake(damaged(request, rng))
            await settled_peers(local, 0)
            left = await settled(local, before)
    figure("P2", f"unhandled exceptions in {HANDSHAKES} mutated handshakes", len(faults))
    figure("P2", "tasks and descriptors left by them", left)
    assert faults == []
    assert left == (0, 0)
    assert sum(answers.values()) == HANDSHAKES
    assert set(answers) <= {b"", b"101", b"400", b"401", b"403", b"404", b"426", b"431"}
    assert len(answers) > 4
