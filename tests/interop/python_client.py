"""A client of wsrecover on `websockets`, written from SPEC.md alone: a program that speaks JSON lines.

Run as `python python_client.py SETTINGS`. `interop_world` says what the settings, the orders on stdin and the
lines on stdout are.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

Frame = dict[str, Any]

LARGEST_EVENT = 16 * 1024 * 1024
LARGEST_ORDER = 1024 * 1024
PONG_SECONDS = 10.0
ACK_SECONDS = 1.0
ACK_EVENTS = 100
FIRST_CEILING, LAST_CEILING, HELD_SECONDS = 0.5, 20.0, 60.0

# What a refused handshake means to a client, as close codes.
TOKEN_REFUSED, GAVE_UP = 4001, 4599

REFRESH, NEW_CLIENT_ID, FAIL_SENDS, STOP = {4001}, {4500}, {1007, 1009, 4502}, {1000, 4501, 4503}


class LinkLostError(Exception):
    """The client gives the connection up: the link is dead, or what came does not fit."""


@dataclass
class Stream:
    """What is known of a stream. `last` is None after a gap without an end: whatever comes next is next."""

    epoch: str
    last: int | None
    part: bytearray = field(default_factory=bytearray)
    part_of: tuple[int, int] = (0, 0)


@dataclass
class Command:
    """A command without an answer."""

    frame: Frame
    first_sent: float | None = None
    suspicious_closes: int = 0


def utf16_units(text: str) -> bytes:
    """Two bytes for each unit."""
    return text.encode("utf-16-le", "surrogatepass")


class Client:
    """Keeps a connection, and hands each event to `app` once and in order."""

    def __init__(self, settings: Frame, app: Callable[[Frame], None]) -> None:
        self.settings = settings
        self.app = app
        self.id = settings.get("client") or secrets.token_urlsafe(16)
        self.streams = {
            name: Stream(epoch, seq) for name, (epoch, seq) in settings.get("positions", {}).items()
        }
        self.commands: dict[str, Command] = {}
        self.reached: dict[str, int] = {}
        self.token: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.online = asyncio.Event()
        self.back = asyncio.Event()
        self.socket: ClientConnection | None = None
        self.introduced = False
        self.deaf = False
        self.traps: list[tuple[Frame, str]] = []
        self.replaced = False
        self.unacked = 0
        self.ceiling = FIRST_CEILING
        self.least_wait = 0.0
        self.drain: tuple[float, float] | None = None
        self.heartbeat = 25.0

    # What the app orders

    async def order(self, order: Frame) -> None:
        match order["do"]:
            case "token":
                self.token.set_result(order["token"])
                await self.send({"op": "auth", "id": secrets.token_hex(16), "token": order["token"]})
            case "online":
                self.online.set()
                self.back.set()
            case "offline" | "deaf" if "on" in order:
                self.traps.append((order["on"], order["do"]))
            case "offline":
                self.drop()
            case "deaf":
                self.deaf = True
            case "send":
                names = ("id", "type", "data", "thread")
                frame = {"op": "send", **{name: order[name] for name in names if name in order}}
                command = self.commands[order["id"]] = Command(frame)
                await self.send_command(command)
            case op:
                await self.send({"op": op})

    def drop(self) -> None:
        """The network is gone: the TCP connection breaks without a word."""
        self.online.clear()
        self.deaf = True
        if self.socket is not None:
            self.socket.transport.abort()

    # Connections

    async def run(self) -> None:
        """Connect and reconnect until a close says that it is over."""
        while True:
            await self.online.wait()
            if not self.token.done():
                self.app({"got": "token_wanted"})
            token = await self.token
            begun = time.monotonic()
            self.back.clear()
            code = await self.connection(token)
            if time.monotonic() - begun >= HELD_SECONDS:
                self.ceiling, self.replaced = FIRST_CEILING, False
            self.app({"got": "closed", "code": code})
            if not self.goes_on(code):
                return
            if self.online.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.back.wait(), self.wait_seconds())

    def goes_on(self, code: int) -> bool:
        """Do what the table of close codes says; whether to reconnect."""
        if code in REFRESH:
            self.token = asyncio.get_running_loop().create_future()
        elif code in NEW_CLIENT_ID:
            if self.replaced:
                return False
            self.replaced = True
            self.id = secrets.token_urlsafe(16)
        elif code in FAIL_SENDS:
            for ref, command in list(self.commands.items()):
                command.suspicious_closes += command.first_sent is not None
                if command.suspicious_closes == 2:
                    del self.commands[ref]
                    self.app({"got": "failed", "id": ref})
        return not (code in STOP or (4500 <= code <= 4999 and code not in NEW_CLIENT_ID | FAIL_SENDS))

    def wait_seconds(self) -> float:
        if self.drain is not None:
            (least, jitter), self.drain = self.drain, None
            return least + random.uniform(0, jitter)
        least, self.least_wait = self.least_wait, 0.0
        wait = least + random.uniform(0, self.ceiling)
        self.ceiling = min(self.ceiling * 2, LAST_CEILING)
        return wait

    async def connection(self, token: str) -> int:
        """One connection from its handshake to its close; the close code."""
        hello = self.hello()
        url, headers, subprotocols = self.settings["url"] + "/v1/connect", {}, ["wsrecover.v1"]
        match self.settings["token"]:
            case "header":
                headers["Authorization"] = f"Bearer {token}"
            case "subprotocol":
                subprotocols.append(f"bearer.{token}")
            case "frame":
                hello["token"] = token
        if self.settings["hello"] == "url":
            url += "?" + urlencode({name: in_url(value) for name, value in hello.items() if name != "token"})
        try:
            async with connect(url, additional_headers=headers, subprotocols=subprotocols) as socket:
                return await self.talk(socket, hello)
        except InvalidStatus as error:
            status = error.response.status_code
            self.least_wait = float(error.response.headers.get("Retry-After", 0))
            self.app({"got": "refused", "status": status})
            if status == 401:
                return TOKEN_REFUSED
            return 1006 if status == 429 or status >= 500 else GAVE_UP
        except (OSError, InvalidHandshake):
            self.app({"got": "unreachable"})
        return 1006

    async def talk(self, socket: ClientConnection, hello: Frame) -> int:
        self.socket, self.introduced, self.deaf = socket, False, False
        acks = asyncio.create_task(self.ack_regularly())
        try:
            if self.settings["hello"] == "frame":
                await self.send({"op": "hello", **hello})
            while True:
                message = json.loads(await self.message(socket))
                for frame in message if isinstance(message, list) else [message]:
                    if not self.deaf:
                        await self.take(frame)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else 1006
        except (LinkLostError, TimeoutError):
            socket.transport.abort()
            return 1006
        finally:
            self.socket = None
            acks.cancel()

    async def message(self, socket: ClientConnection) -> str | bytes:
        heartbeat = self.settings.get("heartbeat", self.heartbeat)
        try:
            return await asyncio.wait_for(socket.recv(), heartbeat)
        except TimeoutError:
            await self.send({"op": "ping"})
            return await asyncio.wait_for(socket.recv(), PONG_SECONDS)

    def hello(self) -> Frame:
        """What says who the client is and where it stands."""
        hello: Frame = {"client": self.id}
        held = {name: stream for name, stream in self.streams.items() if stream.last is not None}
        if held:
            hello["resume"] = {name: [stream.epoch, stream.last] for name, stream in held.items()}
        if parts := {name: [s.part_of[0], len(s.part)] for name, s in held.items() if s.part}:
            hello["part"] = parts
        return hello | {name: self.settings[name] for name in ("from", "threads") if name in self.settings}

    async def send(self, frame: Frame) -> None:
        """Send it if there is a connection; what must not be lost is repeated on the next one."""
        if self.socket is not None and (self.introduced or frame["op"] == "hello"):
            try:
                await self.socket.send(json.dumps(frame))
            except ConnectionClosed:
                self.app({"got": "unsent", "op": frame["op"]})

    async def send_command(self, command: Command) -> None:
        if self.introduced:
            age = {} if command.first_sent is None else {"age": time.monotonic() - command.first_sent}
            command.first_sent = command.first_sent or time.monotonic()
            await self.send(command.frame | age)

    async def ack(self) -> None:
        self.unacked = 0
        pos = {name: stream.last for name, stream in self.streams.items() if stream.last is not None}
        if pos:
            await self.send({"op": "ack", "pos": pos})

    async def ack_regularly(self) -> None:
        while True:
            await asyncio.sleep(ACK_SECONDS)
            if self.unacked:
                await self.ack()

    # What comes

    async def take(self, frame: Frame) -> None:
        handler = getattr(self, "on_" + frame["op"], None)
        if handler is not None:
            await handler(frame)
        for trap in [trap for trap in self.traps if trap[0].items() <= frame.items()]:
            self.traps.remove(trap)
            if trap[1] == "offline":
                self.drop()
            self.deaf = True

    async def on_welcome(self, frame: Frame) -> None:
        self.introduced, self.heartbeat = True, frame["heartbeat"]
        for name in set(self.streams) - set(frame["streams"]):
            del self.streams[name]
        self.app({"got": "connected", "client": self.id, "streams": frame["streams"], "runs": frame["runs"]})
        self.follow(frame["streams"])
        await self.ack()
        for command in list(self.commands.values()):
            await self.send_command(command)

    async def on_streams(self, frame: Frame) -> None:
        for name in frame["removed"]:
            self.streams.pop(name, None)
        self.follow(frame["added"])
        self.app({"got": "streams", "added": list(frame["added"]), "removed": frame["removed"]})

    def follow(self, states: dict[str, Frame]) -> None:
        for name, state in states.items():
            held = self.streams.get(name)
            if held is not None and not state["resumed"]:
                self.app({"got": "history_changed", "stream": name, "reason": state["reason"]})
                held = None
            if held is None:
                held = self.streams[name] = Stream(state["epoch"], 0)
            elif held.epoch != state["epoch"]:
                held.part.clear()
            held.epoch, held.last = state["epoch"], state["from"] - 1

    async def on_event(self, event: Frame, parts: int = 0) -> None:
        stream = self.streams[event["stream"]]
        first = event.get("first_seq", event["seq"])
        if stream.last is not None:
            if event["seq"] <= stream.last:
                self.app({"got": "dropped", "stream": event["stream"], "seq": event["seq"]})
                return
            if first > stream.last + 1:
                self.hole(event)
            if first <= stream.last:
                event = self.beyond(event, stream.last + 1)
        self.reach(event)
        shown = {name: value for name, value in event.items() if name != "op"}
        self.app({"got": "event", "epoch": stream.epoch, "parts": parts, **shown})
        stream.last = event["seq"]
        self.unacked += 1
        if self.unacked >= ACK_EVENTS:
            await self.ack()

    def beyond(self, event: Frame, first_seq: int) -> Frame:
        """The part of a merged fragment that the app does not have yet."""
        data = event["data"]
        if event["type"] == "message_completed":
            return event | {"first_seq": first_seq}
        have = self.reached.get(data["message_id"], 0) - data["offset"]
        text = utf16_units(data["text"])[2 * have :].decode("utf-16-le", "surrogatepass")
        return event | {
            "first_seq": first_seq,
            "data": data | {"offset": data["offset"] + have, "text": text},
        }

    def reach(self, event: Frame) -> None:
        data = event["data"]
        if event["type"] == "message_completed":
            self.reached.pop(data["message_id"], None)
        elif event["type"] in ("message_delta", "agent_thinking") and "message_id" in data:
            self.reached[data["message_id"]] = data["offset"] + len(utf16_units(data["text"])) // 2

    async def on_part(self, frame: Frame) -> None:
        stream, of = self.streams[frame["stream"]], (frame["seq"], frame["total"])
        if stream.last is not None and frame["seq"] <= stream.last:
            return
        self.app({"got": "part", **{name: frame[name] for name in ("stream", "seq", "offset", "total")}})
        if frame["offset"] == 0:
            stream.part.clear()
            stream.part_of = of
        if frame["offset"] != len(stream.part) or of != stream.part_of or frame["total"] > LARGEST_EVENT:
            stream.part.clear()
            self.hole(frame)
        stream.part += base64.b64decode(frame["bytes"], validate=True)
        if len(stream.part) == frame["total"]:
            event = json.loads(stream.part)
            stream.part.clear()
            await self.on_event(event, parts=1)

    async def on_skip(self, frame: Frame) -> None:
        self.forward(frame["stream"], frame["to"])
        self.app({"got": "skip", "stream": frame["stream"], "to": frame["to"]})

    async def on_gap(self, frame: Frame) -> None:
        stream = self.streams[frame["stream"]]
        if stream.last is not None and frame.get("from", 0) > stream.last + 1:
            self.hole(frame)
        self.app({"got": "gap", **{name: value for name, value in frame.items() if name != "op"}})
        if "to" in frame:
            self.forward(frame["stream"], frame["to"])
        else:
            stream.last = None

    async def on_snapshot(self, frame: Frame) -> None:
        self.forward(frame["stream"], frame["seq"])
        self.app({"got": "snapshot", "stream": frame["stream"], "threads": frame["threads"]})

    async def on_live(self, frame: Frame) -> None:
        stream = self.streams[frame["stream"]]
        if stream.last is not None and frame["seq"] > stream.last:
            self.hole(frame)
        self.app({"got": "live", "stream": frame["stream"], "seq": frame["seq"]})

    async def on_ephemeral(self, frame: Frame) -> None:
        self.app({"got": "ephemeral", **{name: value for name, value in frame.items() if name != "op"}})

    async def on_reply(self, frame: Frame) -> None:
        self.commands.pop(frame["id"], None)
        self.app({"got": "reply", **{name: value for name, value in frame.items() if name != "op"}})

    async def on_ping(self, frame: Frame) -> None:
        await self.send({"op": "pong"})
        self.app({"got": "ping"})

    async def on_pong(self, frame: Frame) -> None:
        self.app({"got": "pong"})

    async def on_auth_required(self, frame: Frame) -> None:
        self.token = asyncio.get_running_loop().create_future()
        self.app({"got": "token_wanted"})

    async def on_drain(self, frame: Frame) -> None:
        self.drain = (frame["retry_after"], frame["jitter"])

    async def on_error(self, frame: Frame) -> None:
        self.least_wait = frame.get("retry_after", 0.0)
        self.app({"got": "error", **{name: value for name, value in frame.items() if name != "op"}})

    def forward(self, name: str, seq: int) -> None:
        stream = self.streams[name]
        stream.last = seq if stream.last is None else max(stream.last, seq)

    def hole(self, frame: Frame) -> None:
        self.app({"got": "hole", "op": frame["op"], "stream": frame["stream"], "seq": frame.get("seq")})
        raise LinkLostError


def in_url(value: Any) -> str:
    """A field of `hello` as a parameter: strings themselves, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def to_stdout(item: Frame) -> None:
    sys.stdout.write(json.dumps(item) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Follow the orders on stdin until it ends, or until the client is told to stop."""
    client = Client(json.loads(sys.argv[1]), to_stdout)
    orders = asyncio.StreamReader(limit=LARGEST_ORDER)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )

    async def follow_orders() -> None:
        while line := await orders.readline():
            order = json.loads(line)
            await client.order(order)
            to_stdout({"got": "order", "do": order["do"]})

    tasks = [asyncio.create_task(client.run()), asyncio.create_task(follow_orders())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(main())
