"""A real server, an agent that the test plays, and a client in another language or library as a program.

A client program takes its settings as one JSON argument, follows orders (JSON lines) on stdin, and prints
what its app got (JSON lines) on stdout. It ends when stdin ends or when a close code tells it to stop.

Settings: `url`; `hello`: "url" or "frame"; `token`: "header", "subprotocol" or "frame"; and where wanted
`client`, `from`, `threads` (fields of `hello`), `positions` ({stream: [epoch, seq]}: what an earlier process
stored) and `heartbeat` (seconds, instead of the server's).

===========================  ======================================================================
order                        what happens
===========================  ======================================================================
token                        here is the `token` that was wanted
online                       the network is there: connect at once. A client begins offline
offline                      the network is gone: the TCP connection breaks without a word
deaf                         what this connection still brings is lost on its way
send                         send the command `id`, `type`, `data`, `thread`; repeat it until answered
any other                    is an op, and sent as a frame without fields
===========================  ======================================================================

`offline` and `deaf` with `on` (fields of a frame) happen right after the first frame that has these fields.
Each order that was followed is printed as an item `order`.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import attrs
import trio
import trio_websocket

from wsrecover.agents import App, Run
from wsrecover.config import Retention
from wsrecover.session.contexts import UserContexts
from wsrecover.streams.store import StreamKey
from wsrecover.testing import LocalServer

Item = dict[str, Any]

PATIENCE = 300.0
"""Seconds after which a test gives up on what should have come, which may be a client's start or, after the
longest of its back-offs, its next try."""

USER = StreamKey("user", "acme", "ada")


@attrs.frozen
class Command:
    """How to run a client program, and the folder to run it in."""

    argv: Sequence[str]
    folder: Path


class Program:
    """A running client: what its app got so far, and a way to give it orders."""

    def __init__(self, process: trio.Process, token: Callable[[], str]) -> None:
        self.process = process
        self.items: list[Item] = []
        self._token = token
        self._orders = 0
        self._speaking = trio.Lock()
        self._over = False
        self._seen = 0
        self._news = trio.Event()

    async def order(self, do: str, **more: Any) -> None:
        """Give an order; returns once it is followed, so that what comes next comes after it."""
        number = await self._say({"do": do, **more})
        with trio.fail_after(PATIENCE):
            while len(self.all("order")) < number:
                await self._news.wait()

    async def _say(self, order: Item) -> int:
        assert self.process.stdin is not None
        async with self._speaking:
            await self.process.stdin.send_all(json.dumps(order).encode() + b"\n")
            self._orders += 1
            return self._orders

    async def until(self, got: str, **fields: Any) -> Item:
        """The next item of this kind with these fields; what comes before it is passed over."""
        with trio.move_on_after(PATIENCE):
            while True:
                while self._seen < len(self.items):
                    item = self.items[self._seen]
                    self._seen += 1
                    if item["got"] == got and all(item.get(name) == value for name, value in fields.items()):
                        return item
                if self._over:
                    break
                await self._news.wait()
        raise AssertionError(f"no {got} {fields} came, but {self.items}")

    def all(self, got: str) -> list[Item]:
        """Every item of this kind so far."""
        return [item for item in self.items if item["got"] == got]

    @property
    def events(self) -> list[Item]:
        """The events that the app got, as the log has them."""
        return [
            {name: value for name, value in item.items() if name not in ("got", "epoch", "parts", "stream")}
            for item in self.all("event")
        ]

    async def ended(self) -> None:
        """Wait until the program ends by itself."""
        with trio.fail_after(PATIENCE):
            assert await self.process.wait() == 0

    async def listen(self) -> None:
        """Collect what it prints until it ends, and give it tokens."""
        assert self.process.stdout is not None
        rest = b""
        async for piece in self.process.stdout:
            *lines, rest = (rest + piece).split(b"\n")
            for item in map(json.loads, lines):
                self.items.append(item)
                if item["got"] == "token_wanted":
                    await self._say({"do": "token", "token": self._token()})
            self._tell()
        self._over = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def running(
    command: Command, url: str, tokens: Callable[[], str], *, online: bool = True, **settings: Any
) -> AsyncIterator[Program]:
    """Run a client of the server at `url` for the block; `tokens` is asked for each token."""
    settings = {"url": url, "hello": "url", "token": "header", "from": "start", **settings}
    # A proxy of this machine's is not for a server on this machine.
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = await trio.lowlevel.open_process(
        [*command.argv, json.dumps(settings)], stdin=PIPE, stdout=PIPE, cwd=command.folder, env=env
    )
    try:
        async with trio.open_nursery() as nursery:
            program = Program(process, tokens)
            nursery.start_soon(program.listen)
            if online:
                await program.order("online")
            yield program
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            await process.wait()


@asynccontextmanager
async def scripted(*scripts: Sequence[Any]) -> AsyncIterator[tuple[str, list[Item]]]:
    """A server that sends its first client the first script, message by message, and so on; its URL, and each
    `hello`. A script may end with a close code.
    """
    hellos: list[Item] = []

    async def play(request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept(subprotocol="wsrecover.v1")
        hellos.append(json.loads(await socket.get_message()))
        for step in scripts[len(hellos) - 1]:
            if isinstance(step, int):
                await socket.aclose(step)
            else:
                await socket.send_message(json.dumps(step))
        while not socket.closed:
            try:
                await socket.get_message()
            except trio_websocket.ConnectionClosed:
                return

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, play, "127.0.0.1", 0, None)
        yield f"ws://127.0.0.1:{server.port}", hellos
        nursery.cancel_scope.cancel()


class Stage:
    """An app whose only agent, "story", does what the test says when the test says it."""

    def __init__(self) -> None:
        self.app = App()
        self.started = trio.Event()
        self._to_agent, self._lines = trio.open_memory_channel[tuple[list[Item], trio.Event]](0)
        self.app.agent("story")(self._story)

    async def _story(self, run: Run) -> None:
        self.started.set()
        async for lines, told in self._lines:
            for data in lines:
                await run.emit("app.line", data)
            await run.flush()
            told.set()

    async def tell(self, *lines: Item) -> None:
        """The agent emits these; returns when they are in the log."""
        told = trio.Event()
        with trio.fail_after(PATIENCE):
            await self._to_agent.send((list(lines), told))
            await told.wait()

    def end(self) -> None:
        """The agent returns."""
        self._to_agent.close()


def lines(first: int, last: int) -> list[Item]:
    """The data of events that are easy to tell apart."""
    return [{"line": number, "text": f"line {number} — “żółw 🐢”"} for number in range(first, last + 1)]


async def logged(server: LocalServer) -> list[Item]:
    """All that the log holds of ada's stream, read from the store and not over the wire."""
    store = server.server._services.store
    entries = await store.read(USER, 0, upto=2**53 - 1, max_events=100_000, max_bytes=2**40)
    return [{"seq": entry.seq, **json.loads(entry.body)} for entry in entries]


async def trim(server: LocalServer, oldest: int) -> None:
    """Forget ada's events before `oldest`, as the server's own retention would."""
    head = (await logged(server))[-1]["seq"]
    stream = await server.server._services.streams.open(USER)
    services = server.server._services
    await UserContexts(services, USER).store()
    gone = await services.store.retain({USER: Retention(events=head - oldest + 1)}, now=services.clock())
    stream.trim(gone.oldest[USER])
