"""R6: a process that cannot have much more memory than its budget outlives those who would take far more."""

from __future__ import annotations

import json
import os
import resource
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import quote

import attrs
import trio
from figures import Figure
from process import TENANT, ServerProcess, server_process
from serving import PATIENCE

from wsrecover import Event, Position, connect
from wsrecover.client import ClientSession
from wsrecover.config import Limits
from wsrecover.session.pressure import HOLD
from wsrecover.testing import History, check

FULL: Final = os.environ.get("WSRECOVER_FAULTS") == "1"
MIB: Final = 1024 * 1024
BUDGET: Final = (64 if FULL else 16) * MIB
USERS: Final = 40 if FULL else 8
STALLED: Final = 48
"""Readers of each user in each of three storms: without a budget each holds a page and a write, 288 KiB."""

EVENTS: Final = 12
"""Events of one publish: as many as fit a message."""

PAD: Final = "x" * 4000
PUBLISHES: Final = 16
"""Of each user, before the flood and again meanwhile: more than a page and what systems take for a socket."""

LOGGED: Final = 2 * PUBLISHES * EVENTS
AT_ONCE: Final = 16
LET_IN: Final = 101

READ: Final = 5
"""Events that each user's own client has when it leaves, before the flood."""

BESIDE: Final = 48 * MIB
"""What the process may have beside its budget, above what it has when idle: SQLite's pages and log, what a
commit takes while it is written, and what is free, but in between."""

SETTINGS: Final = f"""
[limits]
memory_bytes = {BUDGET}
tail_bytes = {4 * MIB}
tail_events = 10000
handshakes = 100000
address_handshakes = 100000
address_connects_burst = 100000
[tier]
connections = {3 * STALLED}
bytes_per_second = 1_000_000_000
bytes_burst = 1_000_000_000
[timeouts]
write_progress = 300.0
linger = 2.0
"""


@attrs.frozen
class Told:
    """How a connect was answered: `retry_after` in seconds."""

    status: int
    retry_after: str | None


def memory(pid: int, field: str) -> int:
    """Bytes, of the process: `VmRSS` are resident, `VmHWM` were at most, `VmData` count against its limit."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def limit(pid: int) -> None:
    """From now on the process may have its budget and what is `BESIDE`; what it took at most is forgotten."""
    most = memory(pid, "VmData") + BUDGET + BESIDE
    resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def dial(port: int, token: str, query: str) -> socket.socket:
    """A client that has asked to connect, and for which its system takes next to nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", port))
    sock.sendall(
        f"GET /v1/connect?client={secrets.token_hex(4)}&{query} HTTP/1.1\r\nHost: localhost\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: wsrecover.v1\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    return sock


def answer(sock: socket.socket) -> Told:
    """Read the head of the answer, and not a byte more."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, f"the server left after {head!r}"
        head += byte
    first, *fields = head.decode().split("\r\n")
    values = dict(field.split(": ", 1) for field in fields if field)
    return Told(int(first.split()[1]), values.get("Retry-After"))


def storm(stack: ExitStack, port: int, tokens: Sequence[str], query: str) -> Counter[Told]:
    """All ask at once; who is let in stays, and reads nothing."""
    return Counter(answer(sock) for sock in [stack.enter_context(dial(port, one, query)) for one in tokens])


class Story:
    """What is published to the users, and what their own clients read of it before and after the flood."""

    def __init__(self, server: ServerProcess, service: ClientSession) -> None:
        self.server = server
        self.service = service
        self.users = [f"user{number}" for number in range(USERS)]
        self.history = History()
        self.left: dict[str, Position] = {}
        self.drained: dict[str, list[tuple[str, int, str]]] = {}

    async def publish(self) -> None:
        """Publish to all users, each event acknowledged."""
        await self.each(self._publish_to)

    async def each(self, act: Callable[[str], Awaitable[None]]) -> None:
        """Do it for each user, some of them at once."""
        turns = trio.CapacityLimiter(AT_ONCE)

        async def in_turn(user: str) -> None:
            async with turns:
                await act(user)

        async with trio.open_nursery() as nursery:
            for user in self.users:
                nursery.start_soon(in_turn, user)

    async def _publish_to(self, user: str) -> None:
        for _ in range(PUBLISHES):
            first = self.history.counts["publishes"]
            values = [f"value {first + number}" for number in range(EVENTS)]
            for value in values:
                self.history.invoke(value, f"{TENANT}/{user}")
            events = [{"type": "noted", "data": {"value": value, "pad": PAD}} for value in values]
            result = await self.service.send("publish", {"user": user, "events": events})
            for value, (epoch, seq) in zip(values, result["positions"], strict=True):
                self.history.ok(value, epoch, seq)

    async def leave(self, user: str) -> None:
        """The user's client reads some events and is gone."""
        async with connect(self.server.url, token=self.server.token(user), from_="start") as session:
            self.history.connect(f"{user} before")
            taken = await self._take(session, READ)
        self._note(user, f"{user} before", taken)
        self.left[user] = Position(*taken[-1][:2])

    async def come_back(self, user: str) -> None:
        """It comes back to where it left, and reads on to the head."""
        held, name, stream = self.left[user], f"{user} after", f"{TENANT}/{user}"
        token = self.server.token(user)
        async with connect(self.server.url, token=token, positions={"user": held}) as session:
            self.history.connect(name)
            self.history.resume(name, stream, held.epoch, held.seq)
            self._note(user, name, await self._take(session, LOGGED - held.seq))
        self.history.settled(name, stream)

    async def drain(self, user: str) -> None:
        """Somebody new reads all there is."""
        async with connect(self.server.url, token=self.server.token(user), from_="start") as session:
            self.drained[f"{TENANT}/{user}"] = await self._take(session, LOGGED)

    async def _take(self, session: ClientSession, count: int) -> list[tuple[str, int, str]]:
        taken = []
        while len(taken) < count:
            item = await anext(session)
            assert isinstance(item, Event), item
            taken.append((session.received["user"].epoch, item.seq, item.data["value"]))
        return taken

    def _note(self, user: str, name: str, taken: list[tuple[str, int, str]]) -> None:
        stream = f"{TENANT}/{user}"
        for epoch, seq, value in taken:
            self.history.deliver(name, stream, stream, epoch, seq, value)

    async def flood(self, stack: ExitStack) -> Counter[Told]:
        """Storms of readers that stop, new ones and then those that were here; how they were answered.

        With all of them there all users are published to.
        """
        told = Counter[Told]()
        for back in (False, False, True):
            for user in self.users:
                held = self.left[user]
                resume = quote(json.dumps({"user": [held.epoch, held.seq]}))
                query = f"resume={resume}" if back else "from=start"
                tokens = [self.server.token(user)] * STALLED
                storming = partial(storm, stack, self.server.port, tokens, query)
                told += await trio.to_thread.run_sync(storming)
        await self.publish()
        return told

    async def until_let_in(self) -> None:
        """Ask again when told to, until a new connection is let in."""
        with ExitStack() as stack:
            ask = partial(storm, stack, self.server.port, [self.server.token("new")], "from=start")
            while (told := next(iter(await trio.to_thread.run_sync(ask)))).status != LET_IN:
                assert told.retry_after is not None
                await trio.sleep(float(told.retry_after))


def is_alive(pid: int) -> bool:
    """Whether our child still runs: of one that was killed only the number is left."""
    return "VmRSS:" in Path(f"/proc/{pid}/status").read_text()


async def test_r6_a_flood_of_readers_that_stop_takes_the_budget_and_not_the_process(
    tmp_path: Path, figure: Figure
) -> None:
    with trio.fail_after(PATIENCE):
        async with server_process(tmp_path, settings=SETTINGS, program=("weighed_server.py",)) as server:
            await server.start()
            async with connect(server.url, token=server.token("backend", ("service",))) as service:
                told = Story(server, service)
                pid, idle = server.pid, memory(server.pid, "VmRSS")
                limit(pid)
                await told.publish()
                await told.each(told.leave)
                with ExitStack() as stack:
                    answers = await told.flood(stack)
                held = await service.send("weighed", {})
                resident = memory(pid, "VmHWM") - idle
                await told.until_let_in()
                await server.until_said("memory_recovered")
                await told.each(told.come_back)
                await told.each(told.drain)
            killed, errors = not is_alive(pid), "".join(server.said).count("MemoryError")
            assert not killed
            assert not errors
    report = check(told.history, told.drained)
    report.assert_clean(acknowledged=USERS * LOGGED, deliveries=USERS * LOGGED, resumes=USERS)
    assert {one.status for one in answers} == {LET_IN, 503}
    assert all(1 <= int(one.retry_after or 0) <= HOLD for one in answers if one.status == 503)
    wanted = 3 * USERS * STALLED * (Limits().page_bytes + Limits().part_bytes)
    assert wanted > 3 * (BUDGET + BESIDE)
    assert held["told"] <= held["held"] < BUDGET * 1.1
    what = f"{3 * USERS * STALLED} readers stop, budget {BUDGET // MIB} MiB"
    let_in = sum(count for one, count in answers.items() if one.status == LET_IN)
    allowed = (BUDGET + BESIDE) // MIB
    figure("R6", f"{what}: let in, the others told 503", let_in)
    figure("R6", f"{what}: held at most, MiB", f"{held['held'] / MIB:.1f} ({held['told'] / MIB:.1f} told)")
    figure("R6", f"{what}: resident above idle, MiB", f"{resident / MIB:.0f}, {allowed} allowed")
    figure("R6", f"{what}: OOM kills and memory errors", killed + errors)
    figure("R6", f"{what}: K", len(report.anomalies))
