"""A merged replay and the events themselves are the same to a client, wherever it is resumed."""

from __future__ import annotations

from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrecover.protocol import context as contexts
from wsrecover.protocol.coalesce import Coalescer
from wsrecover.protocol.codec import Logged, decode_server, encode_event, event_frame, event_frames
from wsrecover.protocol.context import CONTEXT_BYTES, EMPTY, Context, reduce
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.events import FRAGMENTS, Event
from wsrecover.protocol.receiver import Receiver
from wsrecover.protocol.utf16 import units

LARGE = 1 << 16


def body(kind: str, ts: float = 1.5, run: str | None = "r", thread: str | None = "t", **data: Any) -> bytes:
    return encode_event(ts=ts, type=kind, data=data, thread=thread, run=run, max_bytes=1 << 20)


def delta(offset: int, text: str, message: str = "m", *, kind: str = "message_delta", **more: Any) -> bytes:
    return body(kind, message_id=message, offset=offset, text=text, **more)


def written(*texts: str, message: str = "m") -> list[bytes]:
    """The fragments of a message."""
    return [delta(units("".join(texts[:place])), text, message) for place, text in enumerate(texts)]


def completed(text: str, message: str = "m", **more: Any) -> bytes:
    return body("message_completed", message_id=message, text=text, **more)


def replayed(bodies: list[bytes], *, after: int = 0, frame_bytes: int = LARGE) -> list[bytes]:
    """The frames of a replay of what lies after a position."""
    merging = Coalescer("user", frame_bytes)
    told: list[Logged] = []
    for event in enumerate(bodies[after:], after + 1):
        told += merging.take(event)
    told += merging.rest()
    return event_frames("user", told)


def events_of(frames: list[bytes]) -> list[Event]:
    return [event for frame in frames for event in decode_server(frame) if isinstance(event, Event)]


def plain(bodies: list[bytes], after: int = 0) -> list[Event]:
    return events_of([event_frame("user", seq, one) for seq, one in enumerate(bodies[after:], after + 1)])


def spans(bodies: list[bytes], **how: Any) -> list[tuple[str, int, int]]:
    return [(event.type, event.first, event.seq) for event in events_of(replayed(bodies, **how))]


class TestFragments:
    def test_of_one_message_become_one(self) -> None:
        (event,) = events_of(replayed(written("He", "llo ", "😀", "!")))
        assert (event.first, event.seq, event.thread, event.run) == (1, 4, "t", "r")
        assert event.data == {"message_id": "m", "offset": 0, "text": "Hello 😀!"}

    def test_the_last_ones_time_is_that_of_all(self) -> None:
        bodies = [delta(0, "a", ts=1.5), delta(1, "b", ts=1718000000.123457)]
        assert events_of(replayed(bodies))[0].ts == 1718000000.123457

    def test_of_thought_merge_too(self) -> None:
        bodies = [delta(0, "a", kind="agent_thinking"), delta(1, "b", kind="agent_thinking")]
        assert spans(bodies) == [("agent_thinking", 1, 2)]

    def test_one_alone_stays_as_it_is(self) -> None:
        bodies = [body("chat"), *written("a"), body("chat")]
        assert replayed(bodies) == [event_frame("user", seq, one) for seq, one in enumerate(bodies, 1)]

    @pytest.mark.parametrize(
        "other",
        [
            body("chat"),
            body("agent_thinking", text="a whole thought"),
            delta(1, "b", "another"),
            delta(1, "b", kind="agent_thinking"),
            delta(1, "b", run="another"),
            delta(1, "b", run=None),
            delta(1, "b", thread="another"),
            delta(0, "b"),
            delta(2, "b"),
            delta(1, "b", more=True),
            body("message_delta", message_id="m", offset=1.0, text="b"),
            body("message_delta", message_id="m", offset=1, text=["b"]),
            body("message_delta", message_id="m", text="b"),
            body("app.x", type="message_delta", message_id="m", offset=1, text="b"),
        ],
    )
    def test_of_a_message_do_not_merge_with_anything_else(self, other: bytes) -> None:
        bodies = [delta(0, "a"), other, delta(2, "c")]
        assert [(event.first, event.seq) for event in events_of(replayed(bodies))] == [(1, 1), (2, 2), (3, 3)]
        assert events_of(replayed(bodies)) == plain(bodies)

    def test_are_merged_as_far_as_a_frame_reaches(self) -> None:
        frames = replayed(written(*["ab\n"] * 500), frame_bytes=1024)
        assert all(900 < len(frame) <= 1024 for frame in frames[:-1])
        assert "".join(event.data["text"] for event in events_of(frames)) == "ab\n" * 500


class TestAFinishedMessage:
    def test_stands_for_its_fragments_where_they_are_all_there(self) -> None:
        bodies = [
            body("message_started", message_id="m", role="x"),
            *written("a", "b", "c"),
            completed("abc"),
        ]
        assert spans(bodies) == [("message_started", 1, 1), ("message_completed", 2, 5)]
        assert events_of(replayed(bodies))[1].data == {"message_id": "m", "text": "abc"}

    def test_that_was_interrupted_does_too(self) -> None:
        bodies = [*written("a", "b"), completed("ab", interrupted=True)]
        assert spans(bodies) == [("message_completed", 1, 3)]
        assert events_of(replayed(bodies))[0].data["interrupted"] is True

    @pytest.mark.parametrize(
        ("before", "end"),
        [
            (written("a", "b", "c")[1:], completed("abc")),
            ([delta(5, "a"), delta(6, "b")], completed("ab")),
            (written("a", "b"), completed("abc")),
            (written("a", "b"), completed("ab", "another")),
            (written("a", "b"), completed("ab", run="another")),
            (written("a", "b"), completed("ab", role="x")),
            ([delta(0, "a", kind="agent_thinking"), delta(1, "b", kind="agent_thinking")], completed("ab")),
        ],
    )
    def test_does_not_where_the_client_may_have_some_of_it_or_it_says_something_else(
        self, before: list[bytes], end: bytes
    ) -> None:
        assert spans([*before, end])[-1] == ("message_completed", 3, 3)

    def test_does_not_over_another_event(self) -> None:
        bodies = [delta(0, "a"), body("chat"), delta(1, "b"), completed("ab")]
        assert [(first, seq) for _, first, seq in spans(bodies)] == [(1, 1), (2, 2), (3, 3), (4, 4)]

    def test_stands_for_them_only_within_a_frame(self) -> None:
        sizes = []
        for size in range(700, 1000):
            bodies = [delta(0, "x"), completed("x", pad="y" * size)]
            merged = [frame for frame in replayed(bodies, frame_bytes=1024) if b'"first_seq"' in frame]
            sizes += map(len, merged)
        # Both seqs here have 15 digits less than the longest.
        assert 980 < max(sizes) <= 1024 - 2 * 15

    def test_that_is_too_large_follows_on_its_fragments(self) -> None:
        texts = ["x" * 100] * 30
        told = spans([*written(*texts), completed("".join(texts))], frame_bytes=1024)
        assert told[-1] == ("message_completed", 31, 31)
        assert {kind for kind, _, _ in told[:-1]} == {"message_delta"}


words = st.text(st.sampled_from('ab é€𝄞\n"\\'), min_size=1, max_size=4)


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    """A log of two messages that are written, finished or not, with other events in between."""
    reached: dict[str, str] = {}
    bodies: list[bytes] = []
    for _ in range(draw(st.integers(0, 25))):
        message = draw(st.sampled_from(["m", "m", "m", "n"]))
        text = reached.get(message, "")
        match draw(st.sampled_from(["write"] * 8 + ["finish", "finish", "other", "again", "whole", "whole"])):
            case "write":
                piece = draw(words)
                bodies.append(delta(units(text), piece, message))
                reached[message] = text + piece
            case "whole":
                pieces = draw(st.lists(words, min_size=1, max_size=4))
                message = f"whole {len(bodies)}"
                bodies += [*written(*pieces, message=message), completed("".join(pieces), message)]
            case "again":
                bodies.append(delta(0, draw(words), message))
            case "finish":
                bodies.append(completed(text, message))
            case _:
                bodies.append(body("chat", text="x"))
    return bodies


@attrs.define
class Client:
    """What a client makes of what it is sent."""

    receiver: Receiver = attrs.field(factory=lambda: Receiver({"user": Position("e", 0)}))
    context: Context = EMPTY
    last: int = 0

    def take(self, events: list[Event]) -> None:
        for event in events:
            for item in self.receiver.receive(event):
                assert isinstance(item, Event)
                assert item.first == self.last + 1
                self.last = item.seq
                self.context = reduce(self.context, item)


@given(logs(), st.data(), st.integers(180, 600), st.just(CONTEXT_BYTES) | st.integers(200, 1200))
def test_a_merged_replay_makes_of_any_client_what_the_events_themselves_make(
    bodies: list[bytes], data: st.DataObject, frame_bytes: int, context_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "CONTEXT_BYTES", context_bytes)
        patch.setattr(contexts, "KEPT_BYTES", context_bytes * 7 // 8)
        compare(bodies, data, frame_bytes)


def compare(bodies: list[bytes], data: st.DataObject, frame_bytes: int) -> None:
    """A client that is resumed somewhere, and one that was always there."""
    has = data.draw(st.integers(0, len(bodies)), label="what the client has")
    claims = data.draw(st.integers(0, has), label="where it is resumed")
    whole, resumed = Client(), Client()
    whole.take(plain(bodies))
    resumed.take(plain(bodies)[:has])
    frames = replayed(bodies, after=claims, frame_bytes=frame_bytes)
    resumed.take(events_of(frames))
    assert resumed.receiver.resume() == whole.receiver.resume()
    assert resumed.context == whole.context
    for frame in frames:
        for event in events_of([frame]):
            covered = [orjson.loads(one) for one in bodies[event.first - 1 : event.seq]]
            assert len(covered) == 1 or len(frame) <= frame_bytes
            assert {one["data"].get("message_id") for one in covered} == {event.data.get("message_id")}
            assert {one["type"] for one in covered[:-1]} <= FRAGMENTS
            assert covered[-1]["type"] == event.type
