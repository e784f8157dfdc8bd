"""What a plain client is told of each frame, and what its words become."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from strategies import garbage, objects, server_frames

from wsrecover.errors import FrameError
from wsrecover.protocol.codec import decode_client, decode_plain, encode, event_frame, parts
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import Send, ServerFrame
from wsrecover.protocol.plain import Outward, parse_id

WELCOME = {"op": "welcome", "streams": {"user": {"epoch": "e-1", "from": 8, "resumed": True}}}
EVENT = {
    "op": "event",
    "stream": "user",
    "seq": 8,
    "ts": 1.5,
    "type": "chat",
    "data": {"n": 1},
    "thread": "t",
}
PLAIN_EVENT = {"id": "e-1.8", "type": "chat", "data": {"n": 1}, "thread": "t", "ts": 1.5}


def welcomed(**state: Any) -> tuple[Outward, list[dict[str, Any]]]:
    words = Outward()
    streams = {"user": {**WELCOME["streams"]["user"], **state}}  # type: ignore[index]  # it is a dict
    return words, words.tell({"op": "welcome", "streams": streams})


def test_an_event_has_its_position_as_id() -> None:
    words, told = welcomed()
    assert told == []
    assert words.tell(EVENT) == [PLAIN_EVENT]
    assert words.tell({**EVENT, "first_seq": 5, "seq": 9}) == [{**PLAIN_EVENT, "id": "e-1.9"}]


@pytest.mark.parametrize("reason", ["ahead", "epoch_changed"])
def test_a_refused_id_is_a_gap_up_to_where_it_goes_on(reason: str) -> None:
    _, told = welcomed(resumed=False, reason=reason)
    assert told == [{"type": "gap", "reason": reason, "id": "e-1.7"}]


def test_what_was_trimmed_is_one_gap() -> None:
    words, told = welcomed(resumed=False, reason="trimmed")
    assert told == []
    gap = {"op": "gap", "stream": "user", "reason": "trimmed", "from": 3, "to": 7}
    assert words.tell(gap) == [{"type": "gap", "reason": "trimmed", "id": "e-1.7"}]


def test_who_begins_is_told_where() -> None:
    assert welcomed(resumed=False, reason="new")[1] == [{"type": "welcome", "id": "e-1.7"}]


def test_broadcasts_are_told_once_their_replay_is_over_and_have_no_id() -> None:
    words, _ = welcomed()
    broadcast = {**EVENT, "stream": "all"}
    assert words.tell(broadcast) == []
    assert words.tell({"op": "live", "stream": "all", "seq": 8}) == []
    assert words.tell(broadcast) == [{name: PLAIN_EVENT[name] for name in ("type", "data", "thread", "ts")}]
    assert words.tell({"op": "gap", "stream": "all", "reason": "trimmed", "to": 9}) == []


def test_parts_are_told_as_the_event_that_they_make() -> None:
    words, _ = welcomed()
    frame = event_frame("user", 8, orjson.dumps({"ts": 1.5, "type": "chat", "data": {"pad": "x" * 100}}))
    told = [words.tell(orjson.loads(part)) for part in parts("user", 8, frame, part_bytes=40)]
    assert told[:-1] == [[]] * (len(told) - 1)
    assert told[-1] == [{"id": "e-1.8", "type": "chat", "data": {"pad": "x" * 100}, "ts": 1.5}]


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (
            {"op": "gap", "stream": "user", "reason": "trimmed", "from": 3, "to": 7},
            {"reason": "trimmed", "id": "e-1.7"},
        ),
        ({"op": "gap", "stream": "user", "reason": "lost"}, {"reason": "lost"}),
        ({"op": "reply", "id": "x", "status": "ok", "result": {"seq": 3}}, None),
        ({"op": "error", "code": "invalid", "message": "no", "field": "type"}, None),
        ({"op": "drain", "retry_after": 1, "jitter": 5}, None),
        ({"op": "auth_required", "expires_in": 60}, None),
    ],
)
def test_a_word_of_the_server_has_its_name_as_type_and_no_time(
    frame: dict[str, Any], told: dict[str, Any] | None
) -> None:
    words, _ = welcomed()
    rest = {name: value for name, value in frame.items() if name != "op"} if told is None else told
    assert words.tell(frame) == [{"type": frame["op"], **rest}]


@given(server_frames)
def test_every_frame_is_told_or_passed_over(frame: ServerFrame) -> None:
    words, _ = welcomed()
    if frame.op not in ("welcome", "part"):
        for word in words.tell(orjson.loads(encode(frame))):
            assert "op" not in word
            assert isinstance(word["type"], str)


@given(objects)
def test_what_is_said_is_a_send(said: dict[str, Any]) -> None:
    ours = decode_plain(orjson.dumps(said).decode(), "fresh", max_bytes=1 << 20)
    same = decode_client(orjson.dumps({"id": "fresh", **said, "op": "send"}).decode(), max_bytes=1 << 20)
    assert repr(ours) == repr(same)


def test_an_id_of_the_clients_own_stays() -> None:
    message = '{"type":"chat","data":{"a":1},"id":"mine","thread":"t"}'
    assert decode_plain(message, "fresh", max_bytes=1000) == [Send("mine", "chat", {"a": 1}, "t")]


@given(garbage)
def test_what_is_no_object_is_refused_as_a_whole(message: str) -> None:
    if not message.lstrip().startswith("{"):
        with pytest.raises(FrameError) as refused:
            decode_plain(message, "fresh", max_bytes=1000)
        assert refused.value.ref is None
    with pytest.raises(FrameError) as closed:
        decode_plain(message.encode("utf-8", "replace"), "fresh", max_bytes=1000)
    assert closed.value.close == 4502


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ('[{"op":"follow","id":"f1","threads":["t1"]}]', "a message is one JSON object, a command"),
        ('[{"type":"chat","data":{}}]', "a message is one JSON object, a command"),
        ('{"type":"chat","data":{},"data":{}}', "duplicate keys in an object"),
        ("x" * 1001, "a message of more than 1000 bytes"),
    ],
)
def test_what_is_wrong_with_a_message_is_told(message: str, problem: str) -> None:
    with pytest.raises(FrameError, match=f"^{problem}$"):
        decode_plain(message, "fresh", max_bytes=1000)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("9007199254740992", "an integer beyond ±(2^53-1)"),
        ("1e999", "a number too large for a double"),
        ('"\\ud800"', "a lone surrogate in a string"),
        ("[" * 70 + "]" * 70, "nested deeper than 64 levels"),
    ],
)
def test_what_is_wrong_with_a_command_is_told_with_its_id(value: str, problem: str) -> None:
    message = f'{{"id":"a1","type":"chat","data":{{"n":{value}}}}}'
    (error,) = decode_plain(message, "fresh", max_bytes=1000)
    assert isinstance(error, FrameError)
    assert (error.code, error.message, error.field, error.ref) == ("malformed", problem, None, "a1")


def test_ids_are_read_back() -> None:
    assert parse_id("in.car-nation.12") == Position("in.car-nation", 12)


@pytest.mark.parametrize(
    "text", ["", "7", "e.", ".7", "e.-1", "e.+1", "e.1.5x", "e.٣", "e.9007199254740992", "é.1"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(FrameError, match="since"):
        parse_id(text)
