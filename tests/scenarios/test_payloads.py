"""E16, R05 and M05: payloads of every size and kind arrive as they were given, or are refused in words."""

from __future__ import annotations

import base64
import datetime as dt
import enum
import math
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import attrs
import orjson
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from serving import Frame, log_of
from stage import Stage
from strategies import json_values
from test_recovery import linked
from witness import Witness

from wsrecover import connect
from wsrecover.agents import App, Command, Run
from wsrecover.client import ClientSession, Event
from wsrecover.errors import CommandError, InvalidEvent
from wsrecover.protocol.fields import MAX_INT
from wsrecover.testing import Cut, LocalServer, Peer, local_server

KB: Final = 1000
LIMIT: Final = 1024 * 1024
PART: Final = 32 * 1024

SIZES: Final = {"1 KB": KB, "50 KB": 50 * KB, "1 MB": 1000 * KB}
"""Characters of the payload; what an event has beside it is less than 300 bytes."""


class Emitting:
    """An app whose agent emits what the test puts, and tells what it was refused."""

    def __init__(self) -> None:
        self.app = App()
        self.app.agent("emitter")(self._work)
        self.refused: list[InvalidEvent | None] = []
        self._put, self._taken = trio.open_memory_channel[tuple[str, Any] | None](1000)

    async def _work(self, run: Run) -> None:
        async for step in self._taken:
            if step is None:
                break
            try:
                await run.emit(*step)
            except InvalidEvent as error:
                self.refused.append(error)
            else:
                self.refused.append(None)

    def emit(self, kind: str, data: Any) -> None:
        self._put.send_nowait((kind, data))

    def finish(self) -> None:
        self._put.send_nowait(None)


@asynccontextmanager
async def emitting(emitter: Emitting) -> AsyncIterator[tuple[LocalServer, ClientSession]]:
    async with local_server(emitter.app) as local, connect(local.url, token=local.token) as session:
        await session.start_agent("emitter")
        yield local, session


async def event_of(session: ClientSession, *kinds: str) -> Event:
    async for item in session:
        if isinstance(item, Event) and item.type in kinds:
            return item
    raise AssertionError("the session ended")


class TestE16Sizes:
    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    async def test_e16_it_is_delivered_live_and_on_a_replay(self, size: int) -> None:
        emitter, text = Emitting(), "é" * (size // 2)
        async with emitting(emitter) as (local, session):
            emitter.emit("report", {"text": text})
            live = await event_of(session, "report")
            async with connect(local.url, token=local.token, from_="start") as later:
                replayed = await event_of(later, "report")
            async with local.peer(**{"from": "start"}) as peer:
                frames = await peer.until("live")
        assert live.data == {"text": text}
        assert replayed == live
        parts = [frame for frame in frames if frame["op"] == "part"]
        assert bool(parts) == (size > PART)
        assert all(len(base64.b64decode(part["bytes"])) <= PART for part in parts)
        assert emitter.refused == [None]

    @pytest.mark.parametrize("over", [1, 1000 * KB])
    async def test_e16_over_the_limit_it_is_refused_at_emit_and_the_run_goes_on(self, over: int) -> None:
        emitter = Emitting()
        async with emitting(emitter) as (local, session):
            emitter.emit("report", {"text": ""})
            await event_of(session, "report")
            *_, event = (await log_of(local))[1]
            envelope = len(orjson.dumps({k: v for k, v in event.items() if k not in ("op", "stream", "seq")}))
            # The clock's digits differ from event to event by a few.
            fits = LIMIT - envelope - 8
            emitter.emit("report", {"text": "x" * fits})
            emitter.emit("report", {"text": "x" * (fits + 16 + over)})
            emitter.emit("report", {"text": "after"})
            assert len((await event_of(session, "report")).data["text"]) == fits
            assert (await event_of(session, "report")).data == {"text": "after"}
            small = [event["data"]["text"] for event in (await log_of(local))[1] if event["type"] == "report"]
            assert small == ["", "after"], "the large one came in parts"
        first, second, refused, last = emitter.refused
        assert (first, second, last) == (None, None, None)
        assert refused is not None
        assert refused.field == "data"
        assert f"the limit is {LIMIT}" in refused.problem

    async def test_e16_over_the_limit_it_is_refused_on_every_other_way_in(self, stage: Stage) -> None:
        huge = {"text": "x" * LIMIT}

        @stage.app.command("boast")
        async def boast(command: Command, data: Nothing) -> Frame:
            with pytest.raises(InvalidEvent, match="the limit is") as caught:
                command.emit("report", huge)
            return {"field": caught.value.field}

        async with local_server(stage.app) as local:
            with pytest.raises(InvalidEvent, match="the limit is"):
                await local.server.publish("acme", "ada", "report", huge)
            async with connect(local.url, token=local.token) as session:
                assert await session.send("boast", {}) == {"field": "data"}
                with pytest.raises(CommandError) as refused:
                    await session.chat(huge)
                assert refused.value.code == "too_large"
            assert (await log_of(local))[1] == []


class TestR05CutInTheMiddle:
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    async def test_r05_a_client_goes_on_at_the_part_that_was_cut(self, share: float) -> None:
        async with local_server() as local:
            witness = Witness(local)
            await witness.publish(1, pad=1000 * KB)
            async with linked(local) as (link, url), witness.client(url=url) as client:
                await client.take(1)
                whole = link.moved["down"]
            async with linked(local, Cut(int(whole * share))) as (link, url):
                async with witness.client(url=url) as client:
                    await client.take(1)
                    client.settled()
                moved = link.moved["down"]
                assert link.cuts == 1
            # What the cut part had, in base64, comes again, and another welcome: no more.
            assert moved < whole + 2 * PART
            assert client.events[0].data["pad"] == "x" * 1000 * KB
            await witness.check(drained=1, deliveries=2)

    async def test_r05_many_cuts_in_one_event_cost_a_part_each(self) -> None:
        async with local_server() as local:
            witness = Witness(local)
            await witness.publish(1, pad=1000 * KB)
            async with linked(local) as (link, url), witness.client(url=url) as client:
                await client.take(1)
                whole = link.moved["down"]
            times = 8
            async with linked(local, *[Cut(whole // 10)] * times) as (link, url):
                async with witness.client(url=url) as client:
                    await client.take(1)
                    client.settled()
                moved = link.moved["down"]
                assert link.cuts == times
            assert moved < whole + times * 2 * PART
            await witness.check(drained=1, deliveries=2)

    @pytest.mark.parametrize("held", [1, 15, 30])
    async def test_r05_the_server_goes_on_at_the_byte_that_is_named(
        self, local: LocalServer, held: int
    ) -> None:
        await local.server.publish("acme", "ada", "report", {"text": "x" * 1000 * KB})
        await local.server.publish("acme", "ada", "after", {})
        async with local.peer(**{"from": "start"}) as peer:
            (welcome,) = await peer.until("welcome")
            first = [(await peer.until("part"))[-1] for _ in range(held)]
            peer.socket.kill()
        epoch = welcome["streams"]["user"]["epoch"]
        pieces = [base64.b64decode(part["bytes"]) for part in first]
        offset = sum(map(len, pieces))
        async with local.peer(resume={"user": [epoch, 0]}, part={"user": [1, offset]}) as peer:
            *frames, after = await peer.until("event", type="after")
        frames = [frame for frame in frames if frame["op"] == "part"]
        assert (frames[0]["offset"], after["seq"]) == (offset, 2)
        whole = orjson.loads(b"".join([*pieces, *(base64.b64decode(part["bytes"]) for part in frames)]))
        assert whole["data"] == {"text": "x" * 1000 * KB}


@attrs.frozen
class Nothing:
    pass


class Colour(enum.Enum):
    RED = "red"


ROUND_TRIP: Final[dict[str, Any]] = {
    "unicode": {"grüße": "日本語 🎉 \u0000 \u2028 e\u0301", "": "\U0010ffff"},
    "nested": {"a": [{"b": [[], {}, [None, True, [1.5]]]}], "depth": [[[[[[[["deep"]]]]]]]]},
    "integers": {"most": MAX_INT, "least": -MAX_INT, "zero": 0},
    "floats": {
        "tiny": 5e-324,
        "huge": 1.7976931348623157e308,
        "third": 1 / 3,
        "minus": -0.0,
        "whole": 1.0,
    },
    "nothing": {"null": None, "empty": "", "list": [], "object": {}},
    "keys that mean something elsewhere": {"op": "bye", "seq": 7, "__proto__": {}, "data": {"type": "x"}},
}

MOMENT: Final = dt.datetime(2026, 1, 31, 12, 30, 15, 250_000, dt.timezone(dt.timedelta(hours=1)))

REFUSED: Final[dict[str, tuple[Any, str]]] = {
    "NaN": ({"x": [1.0, math.nan]}, "data.x[1]"),
    "infinity": ({"x": {"y": -math.inf}}, "data.x.y"),
    "2^53": ({"x": MAX_INT + 1}, "data.x"),
    "-2^53": ({"x": -MAX_INT - 1}, "data.x"),
    "far beyond": ({"x": 10**400}, "data.x"),
    "a lone surrogate": ({"x": "\ud83d"}, "data.x"),
    "bytes": ({"x": b"raw"}, "data.x"),
    "a datetime": ({"x": MOMENT}, "data.x"),
    "a set": ({"x": {1}}, "data.x"),
    "an object": ({"x": object()}, "data.x"),
    "a key that is no text": ({"x": {1: 2}}, "data.x"),
    "a list": ([1], "data"),
    "nothing": (None, "data"),
}


class TestM05Kinds:
    @pytest.mark.parametrize("data", ROUND_TRIP.values(), ids=ROUND_TRIP)
    async def test_m05_what_json_has_comes_back_equal_on_every_way(self, data: Frame) -> None:
        emitter = Emitting()

        @emitter.app.command("echo")
        async def echo(command: Command, given: Anything) -> Frame:
            command.emit("echoed", given)
            return {"value": given.value}

        async with emitting(emitter) as (local, session):
            emitter.emit("emitted", data)
            assert same((await event_of(session, "emitted")).data, data)
            await local.server.publish("acme", "ada", "published", data)
            assert same((await event_of(session, "published")).data, data)
            await session.chat(data)
            assert same((await event_of(session, "chat")).data, data)
            assert same(await session.send("echo", {"value": data}), {"value": data})
            assert same((await event_of(session, "echoed")).data, {"value": data})
            emitter.finish()
        assert emitter.refused == [None]

    @settings(
        max_examples=200,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        deadline=None,
    )
    @given(value=json_values)
    def test_m05_any_json_comes_back_equal(self, value: Any) -> None:
        async def there_and_back() -> None:
            async with local_server() as local, local.peer() as peer:
                reply = await peer.command("chat", {"value": value})
                assert reply["status"] == "ok"
                (event,) = await peer.events(1)
                assert same(event["data"], {"value": value})

        trio.run(there_and_back)

    @pytest.mark.parametrize(("data", "field"), REFUSED.values(), ids=REFUSED)
    async def test_m05_what_json_has_not_is_refused_by_its_path_on_every_way(
        self, data: Any, field: str
    ) -> None:
        emitter = Emitting()

        @emitter.app.command("tell")
        async def tell(command: Command, given: Nothing) -> Frame:
            with pytest.raises(InvalidEvent) as caught:
                command.emit("emitted", data)
            return {"field": caught.value.field}

        async with emitting(emitter) as (local, session):
            emitter.emit("emitted", data)
            emitter.emit("after", {})
            await event_of(session, "after")
            with pytest.raises(InvalidEvent) as caught:
                await local.server.publish("acme", "ada", "published", data)
            assert caught.value.field == field
            assert await session.send("tell", {}) == {"field": field}
            with pytest.raises(CommandError) as refused:
                await session.chat(data)
            assert (refused.value.code, refused.value.field) == ("invalid", field)
            assert [event["type"] for event in (await log_of(local))[1]] == ["agent_started", "after"]
        assert [error and error.field for error in emitter.refused] == [field, None]

    async def test_m05_in_a_class_moments_and_bytes_travel_as_text_by_rule(self) -> None:
        sample = Sample(MOMENT, MOMENT.date(), b"\x00\xffraw", uuid.UUID(int=7), Colour.RED, {"at": [MOMENT]})
        text = {
            "at": "2026-01-31T12:30:15.250000+01:00",
            "day": "2026-01-31",
            "raw": "AP9yYXc=",
            "ref": "00000000-0000-0000-0000-000000000007",
            "colour": "red",
            "more": {"at": ["2026-01-31T12:30:15.250000+01:00"]},
        }
        emitter, heard = Emitting(), []

        @emitter.app.command("sample")
        async def take(command: Command, given: Sample) -> Sample:
            heard.append(given)
            return given

        async with emitting(emitter) as (local, session):
            emitter.emit("emitted", sample)
            assert (await event_of(session, "emitted")).data == text
            await local.server.publish("acme", "ada", "published", sample)
            assert (await event_of(session, "published")).data == text
            assert await session.send("sample", sample) == text
        assert heard == [attrs.evolve(sample, more=text["more"])]

    async def test_m05_integers_beyond_2_53_and_nan_are_refused_on_the_wire(self, local: LocalServer) -> None:
        async with local.peer() as peer:
            for number in ("9007199254740992", "-9007199254740992", "NaN", "1e999"):
                await peer.socket.send(
                    '{"op":"send","id":"once","type":"chat","data":{"x":%s}}' % number  # noqa: UP031  # Braces.
                )
                assert (await next_error(peer))["code"] == "malformed"
            assert (await peer.command("chat", {"x": MAX_INT}, id="once"))["result"] == {"seq": 1}


async def next_error(peer: Peer) -> Frame:
    return (await peer.until("error"))[-1]


def same(found: object, wanted: object) -> bool:
    """Equal, and of the same types all the way down: 1 is not 1.0, and 0.0 is not -0.0."""
    one, other = (orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for value in (found, wanted))
    return one == other


@attrs.frozen
class Anything:
    value: Any


@attrs.frozen
class Sample:
    at: dt.datetime
    day: dt.date
    raw: bytes
    ref: uuid.UUID
    colour: Colour
    more: Any = None
