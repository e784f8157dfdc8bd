"""What goes through the codec comes back equal, and whatever else comes in gives one typed error."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    CLIENT,
    SERVER,
    client_frames,
    event_types,
    events,
    garbage,
    json_values,
    objects,
    optional_ids,
    server_frames,
    stream_names,
    times,
    wild_objects,
)

from wsrecover.errors import FrameError
from wsrecover.protocol.codec import (
    decode_client,
    decode_event,
    decode_server,
    encode,
    encode_event,
    event_frame,
    join,
    parts,
)
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.events import Event
from wsrecover.protocol.fields import MAX_DEPTH, MAX_FRAMES, MAX_INT, MAX_STREAMS, MAX_THREADS
from wsrecover.protocol.frames import (
    CLIENT_FRAMES,
    SERVER_FRAMES,
    Ack,
    ClientFrame,
    Hello,
    Part,
    Ping,
    Send,
    ServerFrame,
)
from wsrecover.protocol.receiver import Receiver

LIMIT = 1 << 20


def from_client(message: str | bytes) -> list[ClientFrame | FrameError]:
    return decode_client(message, max_bytes=LIMIT)


def refusal(message: str | bytes, *, max_bytes: int = LIMIT) -> FrameError:
    """The one error that `message` gives, raised or in its place."""
    try:
        (frame,) = decode_client(message, max_bytes=max_bytes)
    except FrameError as exc:
        return exc
    assert isinstance(frame, FrameError), frame
    return frame


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class TestRoundTrips:
    def test_every_frame_has_its_strategy(self) -> None:
        assert (set(CLIENT), set(SERVER)) == (set(CLIENT_FRAMES), set(SERVER_FRAMES))

    @pytest.mark.parametrize("op", CLIENT_FRAMES)
    @settings(max_examples=30)
    @given(st.data())
    def test_a_clients_frame_comes_back_equal(self, op: str, data: st.DataObject) -> None:
        """decode(encode(frame)) == frame."""
        frame = data.draw(CLIENT[op])
        assert from_client(encode(frame).decode()) == [frame]

    @pytest.mark.parametrize("op", SERVER_FRAMES)
    @settings(max_examples=30)
    @given(st.data())
    def test_a_servers_frame_comes_back_equal(self, op: str, data: st.DataObject) -> None:
        """decode(encode(frame)) == frame, from text and from bytes."""
        frame = data.draw(SERVER[op])
        encoded = encode(frame)
        assert decode_server(encoded) == decode_server(encoded.decode()) == [frame]

    @given(st.lists(client_frames, min_size=1, max_size=5), st.lists(server_frames, min_size=1, max_size=5))
    def test_joined_frames_come_back_in_order(
        self, sent: list[ClientFrame], answered: list[ServerFrame]
    ) -> None:
        """decode(join(frames)) == frames."""
        assert from_client(join([encode(frame) for frame in sent]).decode()) == sent
        assert decode_server(join([encode(frame) for frame in answered])) == answered

    @given(stream_names, st.integers(1, MAX_INT), times, event_types, objects, optional_ids, optional_ids)
    def test_an_event_comes_back_equal(
        self,
        stream: str,
        seq: int,
        ts: float,
        name: str,
        data: dict[str, Any],
        thread: str | None,
        run: str | None,
    ) -> None:
        """decode(event_frame(stream, seq, encode_event(…))) is the event."""
        body = encode_event(ts=ts, type=name, data=data, thread=thread, run=run, max_bytes=LIMIT)
        expected = Event(stream, seq, ts, name, data, thread, run)
        assert decode_event(event_frame(stream, seq, body)) == expected
        assert orjson.loads(event_frame(stream, seq, body)) == orjson.loads(encode(expected))

    @given(events, st.integers(1, 200), st.data())
    def test_parts_from_any_offset_make_the_event(self, event: Event, size: int, data: st.DataObject) -> None:
        """What lies before the offset and the parts from it on are the encoded frame."""
        frame = encode(event)
        offset = data.draw(st.integers(0, len(frame) - 1))
        receiver = Receiver({event.stream: Position("e", event.seq - 1)})
        received: list[Any] = []
        for piece in [
            *list(parts(event.stream, event.seq, frame, part_bytes=offset or 1))[: 1 if offset else 0],
            *parts(event.stream, event.seq, frame, part_bytes=size, offset=offset),
        ]:
            (part,) = decode_server(piece)
            assert isinstance(part, Part)
            assert part.total == len(frame)
            received += receiver.receive(part)
        assert received == [event]

    def test_parts_begin_at_the_offset(self) -> None:
        """What a client holds already is not sent again."""
        offsets = [
            orjson.loads(part)["offset"] for part in parts("user", 1, b"x" * 82, part_bytes=40, offset=30)
        ]
        assert offsets == [30, 70]

    @pytest.mark.parametrize("offset", [-1, 82, 10**9])
    def test_parts_from_outside_the_frame_start_it_over(self, offset: int) -> None:
        frame = b"x" * 82
        assert list(parts("user", 1, frame, part_bytes=40, offset=offset)) == list(
            parts("user", 1, frame, part_bytes=40)
        )


class TestGarbage:
    @given(garbage | wild_objects.map(json.dumps) | json_values.map(json.dumps))
    @example("[" * 200_000)
    def test_any_text_gives_frames_or_one_typed_error(self, text: str) -> None:
        """Only FrameError, ever; and what decodes as frames is known ones."""
        for decode in (from_client, decode_server):
            try:
                frames = decode(text)
            except FrameError:
                continue
            known = {FrameError, *CLIENT_FRAMES.values(), *SERVER_FRAMES.values()}
            assert {type(frame) for frame in frames} <= known

    @given(st.binary(max_size=100))
    def test_any_bytes_give_frames_or_one_typed_error(self, data: bytes) -> None:
        """Only FrameError, ever."""
        for decode in (decode_server, decode_event):
            try:
                decode(data)
            except FrameError:
                continue

    @given(client_frames | server_frames, st.data())
    def test_a_truncated_frame_is_no_frame(self, frame: Any, data: st.DataObject) -> None:
        """No proper prefix of a frame decodes."""
        encoded = encode(frame)
        cut = encoded[: data.draw(st.integers(0, len(encoded) - 1))]
        with pytest.raises(FrameError):
            decode_server(cut)
        with pytest.raises(FrameError):
            from_client(cut.decode(errors="replace"))

    @given(client_frames, st.sampled_from(["x", "{}", "]", ",", "\x00", "null"]))
    def test_trailing_text_is_refused(self, frame: ClientFrame, tail: str) -> None:
        """A frame and more is no frame."""
        assert refusal(encode(frame).decode() + tail).code == "malformed"


class TestStrictness:
    @pytest.mark.parametrize(
        ("message", "code", "field"),
        [
            ('{"op":"ack","pos":{"user":"3"}}', "invalid", "pos.user"),
            ('{"op":"ack","pos":{"user":true}}', "invalid", "pos.user"),
            ('{"op":"ack","pos":{"user":1.0}}', "invalid", "pos.user"),
            ('{"op":"ack","pos":{"user":-1}}', "invalid", "pos.user"),
            ('{"op":"ack","pos":[]}', "invalid", "pos"),
            ('{"op":"ack"}', "invalid", "pos"),
            ('{"op":"ack","pos":{"":1}}', "invalid", "pos."),
            ('{"op":"hello","client":""}', "invalid", "client"),
            ('{"op":"hello","client":"é"}', "invalid", "client"),
            ('{"op":"hello","client":"a\\nb"}', "invalid", "client"),
            ('{"op":"hello","client":"c","resume":{"user":["e"]}}', "invalid", "resume.user"),
            ('{"op":"hello","client":"c","resume":{"user":["e",-1]}}', "invalid", "resume.user[1]"),
            ('{"op":"hello","client":"c","part":{"user":[1,"2"]}}', "invalid", "part.user[1]"),
            ('{"op":"hello","client":"c","threads":"abc"}', "invalid", "threads"),
            ('{"op":"hello","client":"c","threads":["a",1]}', "invalid", "threads[1]"),
            ('{"op":"hello","client":"c","from":"end"}', "invalid", "from"),
            ('{"op":"send","id":"i","type":"x","data":{},"age":-1}', "invalid", "age"),
            ('{"op":"send","id":"i","type":"x","data":[]}', "invalid", "data"),
            ('{"op":"nope"}', "unknown_op", "op"),
            ('{"op":3}', "malformed", "op"),
            ('{"id":"x"}', "malformed", "op"),
            ("3", "malformed", None),
            ("[3]", "malformed", None),
            ("[]", "malformed", None),
            ('{"op":"ping","op":"ping"}', "malformed", None),
            ('{"op":"ping","x":NaN}', "malformed", None),
            ('{"op":"ping","x":-Infinity}', "malformed", None),
            ('{"op":"ping","x":1e999}', "malformed", None),
            ('{"op":"ping","x":9007199254740992}', "malformed", None),
            ('{"op":"ping","x":' + "9" * 5000 + "}", "malformed", None),
            ('{"op":"ping","x":"\\ud800"}', "malformed", None),
            ('{"op":"ping","\\ud800":1}', "malformed", None),
            ('{"op":"ping","x":"\ud800"}', "malformed", None),
            ("[" * 100_000, "malformed", None),
        ],
    )
    def test_what_is_wrong_is_named(self, message: str, code: str, field: str | None) -> None:
        error = refusal(message)
        assert (error.code, error.field, error.close) == (code, field, None)

    def test_a_binary_message_must_be_followed_by_4502(self) -> None:
        assert refusal(b'{"op":"ping"}').close == 4502

    @pytest.mark.parametrize(("text", "fits"), [("x", True), ("é", False)])
    def test_the_size_limit_counts_bytes(self, text: str, *, fits: bool) -> None:
        message = json.dumps({"op": "ping", "x": text}, ensure_ascii=False)
        if fits:
            assert decode_client(message, max_bytes=len(message)) == [Ping()]
        else:
            assert refusal(message, max_bytes=len(message)).code == "too_large"

    def test_depth_counts_up_to_its_limit(self) -> None:
        assert from_client(json.dumps({"op": "ping", "x": nested(MAX_DEPTH - 1)})) == [Ping()]
        assert refusal(json.dumps({"op": "ping", "x": nested(MAX_DEPTH)})).code == "malformed"

    def test_bad_frames_leave_the_others_of_their_message(self) -> None:
        message = '[{"op":"ping"},{"op":"send","id":"s1","data":{}},{"op":"ack","pos":{"user":1}}]'
        first, bad, last = from_client(message)
        assert (first, last) == (Ping(), Ack({"user": 1}))
        assert isinstance(bad, FrameError)
        assert (bad.code, bad.field, bad.ref) == ("invalid", "type", "s1")

    @pytest.mark.parametrize("text", ['"\\ud83d"', "9007199254740993", "1e999", "[" * 64 + "]" * 64])
    def test_a_value_that_json_has_and_this_protocol_has_not_spoils_its_own_frame(self, text: str) -> None:
        frame = '{"op":"send","id":"%s","type":"x","data":{"text":%s}}'
        first, bad, last = from_client(f"[{frame % ('s0', 0)},{frame % ('s1', text)},{frame % ('s2', 0)}]")
        assert [one.id for one in (first, last) if isinstance(one, Send)] == ["s0", "s2"]
        assert isinstance(bad, FrameError)
        assert (bad.code, bad.ref, bad.close) == ("malformed", "s1", None)

    def test_counts_are_bounded(self) -> None:
        frame = '{"op":"ping"}'
        assert len(from_client(f"[{','.join([frame] * MAX_FRAMES)}]")) == MAX_FRAMES
        assert refusal(f"[{','.join([frame] * (MAX_FRAMES + 1))}]").code == "malformed"
        many = {f"role:{number}": 1 for number in range(MAX_STREAMS + 1)}
        assert refusal(encode(Ack(many)).decode()).field == "pos"
        threads = tuple(f"t{number}" for number in range(MAX_THREADS + 1))
        assert refusal(encode(Hello("c", threads=threads)).decode()).field == "threads"

    def test_unknown_fields_and_a_servers_unknown_ops_are_ignored(self) -> None:
        assert from_client('{"op":"ping","later":[1]}') == [Ping()]
        assert decode_server('[{"op":"later"},{"op":"ping","x":1}]') == [Ping()]

    def test_an_error_repeats_little_of_what_was_sent(self) -> None:
        long = "x" * 60_000
        for message in (json.dumps({"op": long}), json.dumps({"op": "ack", "pos": {long: 1}})):
            error = refusal(message)
            assert len(error.message) + len(error.field or "") < 300

    def test_an_event_that_covers_nothing_is_refused(self) -> None:
        event = {"op": "event", "stream": "user", "seq": 3, "ts": 1, "type": "chat", "data": {}}
        for extra in ({"first_seq": 4}, {"first_seq": 0}, {"seq": 0}):
            with pytest.raises(FrameError):
                decode_server(orjson.dumps({**event, **extra}))
