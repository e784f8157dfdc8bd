"""What is logged is strict JSON that comes back as it was given; anything else is refused by its path."""

from __future__ import annotations

import datetime as dt
import enum
import math
import types
import uuid
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import json_values, objects

from wsrecover.errors import InvalidEvent
from wsrecover.protocol.codec import (
    decode_event,
    digest,
    encode,
    encode_event,
    encode_event_of,
    encode_json,
    event_author,
    event_frame,
    event_thread,
)
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.encode import _type_fields
from wsrecover.protocol.fields import MAX_DEPTH, MAX_INT
from wsrecover.protocol.frames import Hello, Reply, Send

LIMIT = 1 << 20


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Colour(enum.Enum):
    RED = "red"


@attrs.frozen
class Task:
    name: str
    due: Any = None


class Text(str):
    __slots__ = ()


class Number(int):
    __slots__ = ()


def event_with(data: Any, *, max_bytes: int = LIMIT, **kwargs: Any) -> bytes:
    return encode_event(**{"ts": 1.5, "type": "chat", "data": data, "max_bytes": max_bytes, **kwargs})


class TestWhatCannotBeLogged:
    @pytest.mark.parametrize(
        ("data", "field"),
        [
            ({"items": [1, 2, 3, {"x": math.nan}]}, "data.items[3].x"),
            ({"x": math.inf}, "data.x"),
            ({"x": 2**53}, "data.x"),
            ({"x": -(2**53)}, "data.x"),
            ({"x": 10**400}, "data.x"),
            ({"x": "\ud800"}, "data.x"),
            ({"\ud800": 1}, "data"),
            ({"x": {1: 2}}, "data.x"),
            ({"x": b"bytes"}, "data.x"),
            ({"x": {1, 2}}, "data.x"),
            ({"x": dt.datetime(2024, 1, 1, tzinfo=dt.UTC)}, "data.x"),
            ({"x": dt.date(2024, 1, 1)}, "data.x"),
            ({"x": object()}, "data.x"),
            ({"x": Text("a")}, "data.x"),
            ({"x": Number(1)}, "data.x"),
            ({Text("x"): 1}, "data"),
            ({1: 1}, "data"),
            ({None: 1}, "data"),
            ({"x": math.nan}, "data.x"),
            ({"x": 1, "y": math.nan}, "data.y"),
            ({"x": "null", "y": -math.inf}, "data.y"),
            (types.MappingProxyType({"x": math.nan}), "data.x"),
            ([1], "data"),
            (None, "data"),
        ],
    )
    def test_the_path_is_named(self, data: Any, field: str) -> None:
        with pytest.raises(InvalidEvent) as caught:
            event_with(data)
        assert caught.value.field == field
        assert caught.value.__context__ is None or caught.value.__suppress_context__

    @pytest.mark.parametrize("data", [{}, {"x": "flat"}, {"x": [None]}])
    @pytest.mark.parametrize(
        "ts", [math.nan, math.inf, -math.inf, True, None, "1.5", Number(1), 2**53, 10**400]
    )
    def test_a_time_that_is_no_number_is_named(self, ts: Any, data: dict[str, Any]) -> None:
        with pytest.raises(InvalidEvent) as caught:
            event_with(data, ts=ts)
        assert caught.value.field == "ts"
        with pytest.raises(InvalidEvent, match="ts"):  # As a run writes it, by the server's clock.
            encode_event_of(event_author("t", "r"), ts, "chat", {}, 1000)

    def test_a_whole_second_is_a_time(self) -> None:
        assert decode_event(event_frame("user", 1, event_with({}, ts=3))).ts == 3.0

    def test_a_boolean_stays_one_and_the_largest_integers_are_kept(self) -> None:
        data = {"yes": True, "no": False, "most": MAX_INT, "least": -MAX_INT}
        assert decode_event(event_frame("user", 1, event_with(data))).data == data
        assert b'"yes":true,"no":false' in event_with(data)

    @pytest.mark.parametrize("name", ["", "Upper", "1x", "a b", "x" * 65, "chat\n", 3, None, ["x"]])
    def test_a_bad_type_is_named(self, name: Any) -> None:
        with pytest.raises(InvalidEvent) as caught:
            event_with({}, type=name)
        assert caught.value.field == "type"

    @pytest.mark.parametrize("field", ["thread", "run"])
    @pytest.mark.parametrize("value", ["", "é", "a\n", "x" * 129, 3])
    def test_a_bad_id_is_named(self, field: str, value: Any) -> None:
        with pytest.raises(InvalidEvent) as caught:
            event_with({}, **{field: value})
        assert caught.value.field == field

    def test_size_and_limit_are_named(self) -> None:
        size = len(event_with({"x": "y" * 100}))
        assert event_with({"x": "y" * 100}, max_bytes=size)
        with pytest.raises(InvalidEvent, match=rf"{size} bytes.* {size - 1}"):
            event_with({"x": "y" * 100}, max_bytes=size - 1)

    def test_depth_is_bounded_also_in_a_cycle(self) -> None:
        assert event_with({"x": nested(MAX_DEPTH - 1)})
        cycle: dict[str, Any] = {}
        cycle["x"] = cycle
        for data in ({"x": nested(MAX_DEPTH)}, {"x": nested(2000)}, cycle):
            with pytest.raises(InvalidEvent, match="64 levels"):
                event_with(data)

    def test_what_the_app_returns_is_checked_alike(self) -> None:
        assert encode_json({"a": (1, None)}, field="result", max_bytes=100) == b'{"a":[1,null]}'
        assert encode_json(5, field="result", max_bytes=100) == b"5"
        for value, field in (({"a": math.nan}, "result.a"), ("x" * 100, "result"), (nested(65), "result")):
            with pytest.raises(InvalidEvent) as caught:
                encode_json(value, field=field if field == "result" else "result", max_bytes=100)
            assert caught.value.field == field
        with pytest.raises(InvalidEvent):
            encode(Reply("r", "ok", result={"a": math.nan}))

    def test_what_has_one_json_form_is_written_in_it(self) -> None:
        key = uuid.UUID(int=1)
        body = event_with({"tuple": (1, None), "uuid": key, "enum": Colour.RED, "text": "null"})
        assert orjson.loads(body)["data"] == {
            "tuple": [1, None],
            "uuid": str(key),
            "enum": "red",
            "text": "null",
        }

    def test_instances_of_attrs_classes_are_told_wherever_they_stand(self) -> None:
        due = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
        body = event_with({"tasks": [Task("a", due), {"next": Task("b")}], "at": Position("e", 7)})
        told = [{"name": "a", "due": due.isoformat()}, {"next": {"name": "b", "due": None}}]
        assert orjson.loads(body)["data"] == {"tasks": told, "at": ["e", 7]}
        assert encode_json(Task("b"), field="result", max_bytes=100) == b'{"name":"b","due":null}'

    @pytest.mark.parametrize("depth", [1, MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH + 10])
    def test_what_is_wrong_within_an_instance_is_found(self, depth: int) -> None:
        with pytest.raises(InvalidEvent, match=r"data\.x\.due: nan is not JSON"):
            event_with({"x": Task("a", math.nan)})
        with pytest.raises(InvalidEvent, match=r"data\.x\.due: a object is not JSON"):
            event_with({"x": Task("a", object())})
        if depth < MAX_DEPTH - 1:
            assert event_with({"x": Task("a", nested(depth))})
        else:
            with pytest.raises(InvalidEvent, match="64 levels"):
                event_with({"x": Task("a", nested(depth))})

    @given(st.dictionaries(st.text(), json_values | st.floats() | st.integers() | st.binary(), max_size=5))
    def test_data_comes_back_equal_or_is_refused(self, data: dict[str, Any]) -> None:
        """Round trip equal, or InvalidEvent; never a changed value."""
        try:
            body = event_with(data)
        except InvalidEvent:
            return
        assert decode_event(event_frame("user", 1, body)).data == data


class TestDigest:
    @given(objects, st.randoms(use_true_random=False))
    def test_the_order_of_keys_does_not_count(self, data: dict[str, Any], random: Any) -> None:
        """A permutation of the keys has the same 16 bytes."""
        items = list(data.items())
        random.shuffle(items)
        assert digest("chat", "t", dict(items)) == digest("chat", "t", data)
        assert len(digest("chat", "t", data)) == 16

    def test_everything_else_does(self) -> None:
        bodies: list[tuple[str, str | None, dict[str, Any]]] = [
            ("chat", None, {}),
            ("chat", "t", {}),
            ("other", None, {}),
            ("chat", None, {"a": 1}),
            ("chat", None, {"a": "1"}),
            ("chat", None, {"a": None}),
            ("chat", None, {"a": True}),
        ]
        of_runs = [digest("chat", None, {}, run=run) for run in ("r1", "r2")]
        assert len({*(digest(*body) for body in bodies), *of_runs}) == len(bodies) + len(of_runs)

    def test_a_send_is_hidden_where_it_holds_a_token(self) -> None:
        assert "secret" not in repr(Hello("c", token="secret"))
        assert "{}" in repr(Send("i", "t", {}))


@given(
    thread=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=128),
    run=st.none() | st.just("thread"),
    ts=st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 2**40),
    data=objects,
)
def test_the_thread_of_an_event_is_known_without_decoding_it(
    thread: str | None, run: str | None, ts: float, data: dict[str, Any]
) -> None:
    body = encode_event(ts=ts, type="chat", data=data, thread=thread, run=run, max_bytes=LIMIT)
    assert event_thread(body) == thread
    assert event_thread(b'{"first_seq":17,%b' % body[1:]) == thread


def test_of_the_types_that_were_seen_a_bounded_number_is_remembered() -> None:
    for n in range(5000):
        body = encode_event(ts=0.0, type=f"own.t{n}", data={}, max_bytes=100)
        assert orjson.loads(body)["type"] == f"own.t{n}"
        assert len(_type_fields) <= 4096
    assert b'"type":"own.t1"' in encode_event(ts=0.0, type="own.t1", data={}, max_bytes=100)
