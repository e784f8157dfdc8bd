"""Clients that write down what they see, on the wire and as an app, for the history checker."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import orjson
import trio
from serving import PATIENCE

from wsrecover.client import Changed, ClientSession, Event, Gap, Item, Position, connect
from wsrecover.testing import History, LocalServer, Report, check
from wsrecover.testing.recording import Drained, Publish
from wsrecover.transport import ClientSocket, Dial, dial_tcp, open_socket


def value_of(kind: str, run: str | None, data: Mapping[str, Any]) -> str:
    """What tells an event from all others: the publisher's own value, or what the run said."""
    return str(data.get("v") or f"{run} {kind} {orjson.dumps(data, option=orjson.OPT_SORT_KEYS).decode()}")


class Witness:
    """All that happens at one server, as seen by those who publish and by its clients."""

    def __init__(self, local: LocalServer, *, dial: Dial = dial_tcp) -> None:
        self.local = local
        self.dial = dial
        self.readers: dict[str, list[str]] = {}
        self.history = History(self.readers)
        self._published = 0
        self._clients = 0

    async def publish(
        self, count: int = 1, user: str = "ada", *, tenant: str = "acme", pad: int = 0
    ) -> list[Position]:
        """Log so many events, each with a value of its own; their positions."""
        positions = []
        for _ in range(count):
            self._published += 1
            value = f"<{self._published} for {tenant}/{user}>"
            self.history.invoke(value, self._stream(tenant, user))
            try:
                position = await self.local.server.publish(
                    tenant, user, "noted", {"v": value, "pad": "x" * pad}
                )
            except BaseException:
                self.history.unknown(value)
                raise
            self.history.ok(value, position.epoch, position.seq)
            positions.append(position)
        return positions

    def _stream(self, tenant: str, user: str) -> str:
        stream = f"{tenant}/{user}"
        self.readers.setdefault(stream, [stream])
        return stream

    @asynccontextmanager
    async def client(
        self, user: str = "ada", *, tenant: str = "acme", url: str | None = None, **options: Any
    ) -> AsyncIterator[Client]:
        """A client for the block. It tries again without delay, unless `options` (of `connect`) say so."""
        self._clients += 1
        stream = self._stream(tenant, user)
        client = Client(self.history, f"{self._clients}", stream, self.dial)
        given = {
            "token": self.local.token(user, tenant=tenant),
            "rng": lambda: 0.0,
            "give_up_after": PATIENCE,
            "from_": "start",  # It wants every event, not what they add up to.
            **options,
        }
        async with connect(url or self.local.url, dial=client.dial, **given) as session:
            client.enter(session, options.get("positions") or {})
            yield client

    async def drain(self, stream: str) -> Drained:
        """The stream as somebody new finds it, from its oldest event to its head."""
        tenant, user = stream.split("/")
        token = self.local.token(user, tenant=tenant)
        entries: list[tuple[str, int, str]] = []
        async with connect(
            self.local.url, token=token, from_="start", dial=partial(open_socket, dial=self.dial)
        ) as session:
            info = session._welcome.streams["user"]
            with trio.fail_after(PATIENCE):
                while info.oldest + len(entries) <= info.head:
                    item = await anext(session)
                    if isinstance(item, Event):
                        entries.append((info.epoch, item.seq, value_of(item.type, item.run, item.data)))
        return entries

    async def check(self, **at_least: int) -> Report:
        """Hold everything seen against the logs. What agents logged counts as published."""
        drained = {stream: await self.drain(stream) for stream in self.readers}
        for stream, entries in drained.items():
            for _, _, value in entries:
                if value not in self.history.publishes and not value.startswith("<"):
                    # Nobody noted when: as good as before everything else.
                    self.history.publishes[value] = Publish(value, stream, thread=None, invoked=0)
        report = check(self.history, drained)
        report.assert_clean(**at_least)
        return report


class Client:
    """One app of a user, with a connection that the test may drop and hold back.

    `events` is what reached the app, `notices` all else that did; `messages` are the sizes
    of what was received. `url`, if set, is where further connections go.
    """

    def __init__(self, history: History, name: str, stream: str, dial: Dial) -> None:
        self.name = name
        self.stream = stream
        self.session: ClientSession
        self.events: list[Event] = []
        self.notices: list[Item] = []
        self.acks: list[dict[str, int]] = []
        self._acked = trio.lowlevel.ParkingLot()
        self.messages: list[int] = []
        self.welcomes: list[dict[str, Any]] = []
        self._history = history
        self._dial = dial
        self._socket: ClientSocket | None = None
        self._way_is_free = trio.Event()
        self._way_is_free.set()
        self._turned_away = trio.Event()
        self._partial = b""
        self.url: str | None = None

    @property
    def seqs(self) -> list[int]:
        """The seqs of what reached the app, in the order of arrival."""
        return [event.seq for event in self.events]

    @property
    def app(self) -> str:
        """The app's name in the history, which its connections come and go under."""
        return f"{self.name}/app"

    def enter(self, session: ClientSession, positions: Mapping[str, Position]) -> None:
        self.session = session
        self._history.connect(self.app)
        held, state = positions.get("user"), self.welcomes[0]["streams"]["user"]
        self._begin(self.app, None if held is None else (held.epoch, held.seq), state)

    async def drop(self) -> None:
        """The connection, once live, breaks, and until `come_back` there is no other one."""
        with trio.fail_after(PATIENCE):
            await self.session.wait_status("live")
            self._way_is_free = trio.Event()
            self._turned_away = trio.Event()
            self.blink()
            await self._turned_away.wait()

    def blink(self) -> None:
        """The connection breaks; the next one may come at once."""
        self._history.fault("drop")
        if self._socket is not None:
            self._socket.kill()

    def come_back(self) -> None:
        """There is a way to the server again."""
        self._way_is_free.set()

    async def acknowledged(self, seq: int, *, times: int = 1) -> None:
        """Wait until the client has said so often that it processed up to this seq."""
        with trio.fail_after(PATIENCE):
            while self.acks.count({"user": seq}) < times:
                await self._acked.park()

    async def take(self, count: int) -> list[Event]:
        """The next `count` events that reach the app."""
        return await self._take(lambda got: len(got) >= count)

    async def until(self, kind: str) -> list[Event]:
        """The next events up to the first of this type."""
        return await self._take(lambda got: bool(got) and got[-1].type == kind)

    async def _take(self, enough: Callable[[list[Event]], bool]) -> list[Event]:
        got: list[Event] = []
        with trio.fail_after(PATIENCE):
            while not enough(got):
                item = await anext(self.session)
                if isinstance(item, Event):
                    got.append(item)
                self.note(item)
        return got

    def note(self, item: Item) -> None:
        """Write down what reached the app."""
        if isinstance(item, Event):
            self.events.append(item)
            epoch = self.session.received["user"].epoch
            value = value_of(item.type, item.run, item.data)
            self._history.deliver(self.app, self.stream, self.stream, epoch, item.seq, value)
            return
        self.notices.append(item)
        if isinstance(item, Gap):
            self._history.gap(self.app, self.stream, item.from_, item.to)
        elif isinstance(item, Changed):
            held, first = item.held, item.position.seq + 1
            self._history.refused(self.app, self.stream, held.epoch, held.seq, first)

    def settled(self) -> None:
        """Nothing more is to come: the app must have all there is."""
        self._history.settled(self.app, self.stream)

    @asynccontextmanager
    async def dial(self, url: str, **given: Any) -> AsyncIterator[_Tap]:
        """For `connect`: a real WebSocket that is written down."""
        self._turned_away.set()
        await self._way_is_free.wait()
        if self.url is not None:
            url = urlunsplit(urlsplit(url)._replace(netloc=urlsplit(self.url).netloc))
        async with open_socket(url, dial=self._dial, **given) as socket:
            self._socket = socket
            name = f"{self.name}/{len(self.welcomes) + 1}"
            resume = json.loads(parse_qs(urlsplit(url).query).get("resume", ["{}"])[0])
            yield _Tap(socket, partial(self._see, name, resume.get("user")), self._say)

    def _say(self, payload: str) -> None:
        frame = orjson.loads(payload)
        if frame["op"] == "ack":
            self.acks.append(frame["pos"])
            self._acked.unpark_all()
            self._history.ack()

    def _see(self, connection: str, held: tuple[str, int] | None, message: str) -> None:
        """Write down one message of the wire."""
        self.messages.append(len(message))
        frames = orjson.loads(message)
        for frame in frames if isinstance(frames, list) else [frames]:
            match frame["op"]:
                case "welcome":
                    self.welcomes.append(frame)
                    self._history.connect(connection)
                    self._begin(connection, held, frame["streams"]["user"])
                case "event":
                    self._arrived(connection, frame)
                case "part":
                    self._partial = self._partial[: frame["offset"]] + base64.b64decode(frame["bytes"])
                    if len(self._partial) == frame["total"]:
                        self._arrived(connection, orjson.loads(self._partial))
                case "gap":
                    self._history.gap(connection, self.stream, frame.get("from"), frame.get("to"))

    def _arrived(self, connection: str, frame: dict[str, Any]) -> None:
        value = value_of(frame["type"], frame.get("run"), frame["data"])
        epoch = self.welcomes[-1]["streams"]["user"]["epoch"]
        self._history.deliver(connection, self.stream, self.stream, epoch, frame["seq"], value)

    def _begin(self, connection: str, held: tuple[str, int] | None, state: dict[str, Any]) -> None:
        if held is None:
            self._history.begin(connection, self.stream, state["epoch"], state["from"])
        elif state["resumed"]:
            self._history.resume(connection, self.stream, *held)
        else:
            self._history.refused(connection, self.stream, *held, state["from"])


class _Tap:
    """A client's socket, and somebody who listens in."""

    def __init__(
        self, socket: ClientSocket, heard: Callable[[str], None], said: Callable[[str], None]
    ) -> None:
        self._socket = socket
        self._heard = heard
        self._said = said

    async def send(self, payload: str | bytes) -> None:
        await self._socket.send(payload)
        assert isinstance(payload, str)
        self._said(payload)

    async def receive(self) -> str | bytes:
        message = await self._socket.receive()
        assert isinstance(message, str)
        self._heard(message)
        return message

    async def aclose(self, code: int, reason: str = "", *, timeout: float) -> None:
        await self._socket.aclose(code, reason, timeout=timeout)

    def kill(self) -> None:
        self._socket.kill()
