"""A client's duty, rule by rule; test_history drives it through whole lives."""

from __future__ import annotations

import base64
from typing import Any

import attrs
import pytest

from wsrecover.errors import FrameError
from wsrecover.protocol.codec import decode_server, encode, encode_event, event_frame, parts
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.events import Event
from wsrecover.protocol.fields import MAX_TOTAL
from wsrecover.protocol.frames import (
    Ephemeral,
    Gap,
    Live,
    Part,
    Ping,
    PrincipalInfo,
    Skip,
    Snapshot,
    StreamInfo,
    Streams,
    Welcome,
)
from wsrecover.protocol.receiver import Changed, Forgotten, Hole, Receiver


def event(seq: int, *, first: int | None = None, **data: Any) -> Event:
    return Event("user", seq, 1.5, "message_delta" if data else "chat", data, first_seq=first)


def fragment(seq: int, offset: int, text: str, *, first: int | None = None, message: str = "m") -> Event:
    return event(seq, first=first, message_id=message, offset=offset, text=text)


def state(from_: int = 1, *, epoch: str = "e", resumed: bool = True, reason: str | None = None) -> StreamInfo:
    return StreamInfo(epoch, from_, 1, from_, resumed, reason)


def welcome(**streams: StreamInfo) -> Welcome:
    return Welcome(1, "c", PrincipalInfo("t", "u"), streams, 25, {}, 60)


def at(seq: int, **limits: int) -> Receiver:
    return Receiver({"user": Position("e", seq)}, **limits)


def last(receiver: Receiver) -> int:
    return receiver.resume()["user"].seq


def pieces(whole: Event, size: int = 40) -> list[Part]:
    return [
        part
        for piece in parts(whole.stream, whole.seq, encode(whole), part_bytes=size)
        for part in decode_server(piece)
        if isinstance(part, Part)
    ]


class TestWelcome:
    def test_a_first_one_sets_the_position_before_from(self) -> None:
        receiver = Receiver()
        assert receiver.welcome(welcome(user=state(5, resumed=False, reason="new"))) == []
        assert receiver.resume() == {"user": Position("e", 4)}

    def test_an_accepted_resume_takes_over_the_epoch(self) -> None:
        receiver = at(4)
        assert receiver.welcome(welcome(user=state(5, epoch="f"))) == []
        assert receiver.resume() == {"user": Position("f", 4)}

    def test_a_refused_position_is_told(self) -> None:
        receiver = at(4)
        told = receiver.welcome(welcome(user=state(9, epoch="f", resumed=False, reason="trimmed")))
        assert told == [Changed("user", "trimmed", Position("e", 4), Position("f", 8))]
        assert receiver.resume() == {"user": Position("f", 8)}

    def test_what_it_lacks_is_forgotten(self) -> None:
        receiver = at(4)
        assert receiver.receive(welcome()) == [Forgotten("user")]
        assert receiver.resume() == {}

    def test_a_resume_that_skips_is_a_hole(self) -> None:
        with pytest.raises(Hole):
            at(4).welcome(welcome(user=state(6)))

    @pytest.mark.parametrize("whole", [True, False])
    def test_one_that_is_refused_changes_nothing(self, whole: bool) -> None:
        held = {name: Position("e", 4) for name in ("all", "tenant", "user")}
        receiver = Receiver(held)
        changed, hole = state(1, epoch="f", resumed=False, reason="epoch_changed"), state(6)
        added = {"all": changed, "user": hole}
        with pytest.raises(Hole):
            receiver.receive(welcome(**added) if whole else Streams(added, ("tenant",)))
        assert receiver.resume() == held

    def test_streams_come_and_go(self) -> None:
        receiver = at(4)
        assert receiver.receive(
            Streams({"all": state(3, resumed=False, reason="new")}, ("user", "other"))
        ) == [Forgotten("user")]
        assert receiver.resume() == {"all": Position("e", 2)}


class TestEvents:
    def test_the_next_is_given_once(self) -> None:
        receiver = at(4)
        assert receiver.receive(event(5)) == [event(5)]
        assert receiver.receive(event(5)) == []
        assert receiver.receive(event(2)) == []
        assert last(receiver) == 5

    def test_a_hole_raises_and_moves_nothing(self) -> None:
        receiver = at(4)
        with pytest.raises(Hole) as caught:
            receiver.receive(event(6))
        assert (caught.value.stream, caught.value.last, caught.value.first) == ("user", 4, 6)
        assert last(receiver) == 4
        assert receiver.receive(event(5)) == [event(5)]

    def test_a_merged_event_counts_for_all_that_it_covers(self) -> None:
        receiver = at(4)
        merged = fragment(7, 0, "abc", first=5)
        assert receiver.receive(merged) == [merged]
        assert last(receiver) == 7

    @pytest.mark.parametrize(("text", "rest"), [("abcdef", "def"), ("😀bcdef", "cdef")])
    def test_an_overlap_is_cut_at_the_offset_in_utf16_units(self, text: str, rest: str) -> None:
        receiver = at(4)
        receiver.receive(fragment(5, 0, "abc"))
        assert receiver.receive(fragment(8, 0, text, first=4)) == [fragment(8, 3, rest, first=6)]

    def test_an_overlap_of_one_new_event_is_an_ordinary_event(self) -> None:
        receiver = at(4)
        receiver.receive(fragment(5, 0, "abc"))
        assert receiver.receive(fragment(6, 0, "abcd", first=5)) == [fragment(6, 3, "d")]

    def test_a_finished_message_of_which_the_beginning_is_known_comes_whole(self) -> None:
        receiver = at(4)
        receiver.receive(fragment(5, 0, "abc"))
        whole = attrs.evolve(event(7, first=4, message_id="m", text="abcdef"), type="message_completed")
        assert receiver.receive(whole) == [attrs.evolve(whole, first_seq=6)]
        assert last(receiver) == 7

    @pytest.mark.parametrize(
        "odd",
        [
            fragment(7, 0, "abcd", first=5, message="other"),
            fragment(7, 0, "a", first=5),
            fragment(7, 9, "abcd", first=5),
            fragment(7, 0, "ab😀", first=5),
            event(7, first=5, message_id="m", offset="0", text="abcd"),
            event(7, first=5),
        ],
    )
    def test_an_overlap_that_cannot_be_cut_is_a_hole(self, odd: Event) -> None:
        receiver = at(4)
        receiver.receive(fragment(5, 0, "abc"))
        with pytest.raises(Hole):
            receiver.receive(odd)
        assert last(receiver) == 5

    def test_a_stream_that_was_not_announced_is_refused(self) -> None:
        with pytest.raises(FrameError, match="other"):
            at(4).receive(attrs.evolve(event(5), stream="other"))

    def test_what_has_no_position_passes(self) -> None:
        ephemeral = Ephemeral("user", 1.5, "chat", {})
        assert at(4).receive(ephemeral) == [ephemeral]
        assert at(4).receive(Ping()) == []


class TestWhatMovesThePosition:
    @pytest.mark.parametrize(
        "frame",
        [
            Skip("user", 9),
            Gap("user", "trimmed", 5, 9),
            Gap("user", "trimmed", to=9),
            Snapshot("user", 9, {}),
        ],
    )
    def test_forward(self, frame: Any) -> None:
        receiver = at(4)
        assert receiver.receive(frame) == [frame]
        assert last(receiver) == 9

    @pytest.mark.parametrize("frame", [Skip("user", 3), Gap("user", "trimmed", 1, 3)])
    def test_never_back(self, frame: Any) -> None:
        receiver = at(4)
        assert receiver.receive(frame) == []
        assert last(receiver) == 4

    def test_an_old_snapshot_is_given_but_moves_nothing(self) -> None:
        receiver = at(4)
        assert receiver.receive(Snapshot("user", 3, {})) == [Snapshot("user", 3, {})]
        assert last(receiver) == 4

    @pytest.mark.parametrize("frame", [Gap("user", "trimmed", 6, 9), Live("user", 5)])
    def test_what_lies_beyond_the_next_is_a_hole(self, frame: Any) -> None:
        with pytest.raises(Hole):
            at(4).receive(frame)

    def test_live_at_the_position_is_told(self) -> None:
        assert at(4).receive(Live("user", 4)) == [Live("user", 4)]

    def test_after_a_gap_of_unknown_extent_whatever_comes_is_next(self) -> None:
        receiver = at(4)
        assert receiver.receive(Gap("user", "lost")) == [Gap("user", "lost")]
        assert receiver.resume() == {}
        assert receiver.receive(event(20)) == [event(20)]
        assert last(receiver) == 20


class TestParts:
    WHOLE = fragment(5, 0, "x" * 200)

    def test_they_make_the_event_once(self) -> None:
        receiver = at(4)
        received = [item for part in pieces(self.WHOLE) for item in receiver.receive(part)]
        assert received == [self.WHOLE]
        assert receiver.part() == {}
        assert [item for part in pieces(self.WHOLE) for item in receiver.receive(part)] == []
        receiver.receive(pieces(self.WHOLE)[0])
        assert receiver.part() == {}

    def test_what_is_held_is_named_for_the_resume(self) -> None:
        receiver = at(4)
        receiver.receive(pieces(self.WHOLE)[0])
        assert receiver.part() == {"user": (5, 40)}
        assert last(receiver) == 4
        receiver.welcome(welcome(user=state(5)))
        received = [item for part in pieces(self.WHOLE)[1:] for item in receiver.receive(part)]
        assert received == [self.WHOLE]

    def test_another_history_drops_what_is_held(self) -> None:
        receiver = at(4)
        receiver.receive(pieces(self.WHOLE)[0])
        receiver.welcome(welcome(user=state(1, epoch="f", resumed=False, reason="epoch_changed")))
        assert receiver.part() == {}

    def test_another_epoch_drops_what_is_held_though_the_position_is_accepted(self) -> None:
        receiver = at(4)
        first, second, *_ = pieces(self.WHOLE)
        receiver.receive(first)
        receiver.welcome(welcome(user=state(5, epoch="f")))
        assert receiver.part() == {}
        with pytest.raises(FrameError):
            receiver.receive(second)
        other = fragment(5, 0, "y" * 200)
        assert [item for part in pieces(other) for item in receiver.receive(part)] == [other]

    def test_what_is_held_after_a_gap_of_unknown_extent_has_no_position_to_go_with(self) -> None:
        receiver = at(4)
        receiver.receive(Gap("user", "lost"))
        receiver.receive(pieces(self.WHOLE)[0])
        assert (receiver.resume(), receiver.part()) == ({}, {})

    def test_offset_nought_starts_over(self) -> None:
        receiver = at(4)
        first, *rest = pieces(self.WHOLE)
        assert [item for part in [first, first, *rest] for item in receiver.receive(part)] == [self.WHOLE]

    def test_the_whole_event_replaces_its_parts(self) -> None:
        receiver = at(4)
        receiver.receive(pieces(self.WHOLE)[0])
        assert receiver.receive(self.WHOLE) == [self.WHOLE]
        assert receiver.part() == {}

    @pytest.mark.parametrize(
        "changes",
        [{"offset": 41}, {"total": 1000}, {"seq": 6}, {"bytes": "!"}, {"bytes": ""}, {"bytes": "é"}],
    )
    def test_one_that_does_not_follow_is_refused_and_what_is_held_dropped(
        self, changes: dict[str, Any]
    ) -> None:
        receiver = at(4)
        first, second, *_ = pieces(self.WHOLE)
        receiver.receive(first)
        with pytest.raises(FrameError):
            receiver.receive(attrs.evolve(second, **changes))
        assert receiver.part() == {}
        assert [item for part in pieces(self.WHOLE) for item in receiver.receive(part)] == [self.WHOLE]

    def test_more_than_the_total_is_refused(self) -> None:
        with pytest.raises(FrameError):
            at(4).receive(Part("user", 5, 0, 2, base64.b64encode(b"abc").decode()))

    def test_their_total_is_bounded_in_each_stream(self) -> None:
        receiver = Receiver({"user": Position("e", 4), "all": Position("e", 4)})
        for stream in ("user", "all"):
            assert receiver.receive(Part(stream, 5, 0, MAX_TOTAL, "YQ==")) == []
        for of, name in ((None, "event"), ("snapshot", "snapshot")):
            with pytest.raises(FrameError, match=f"{name} 5 of user has 8388609 bytes.* 8388608") as caught:
                receiver.receive(Part("user", 5, 0, MAX_TOTAL + 1, "YQ==", of))
            assert caught.value.code == "too_large"
        assert receiver.part() == {"all": (5, 1)}

    @pytest.mark.parametrize("stream", ["user", "all"])
    def test_what_makes_another_event_is_refused(self, stream: str) -> None:
        frame = event_frame(stream, 6, encode_event(ts=1, type="chat", data={}, max_bytes=1000))
        with pytest.raises(FrameError):
            at(4).receive(Part("user", 5, 0, len(frame), base64.b64encode(frame).decode()))
        with pytest.raises(FrameError):
            at(4).receive(Part("user", 5, 0, 4, base64.b64encode(b"null").decode()))

    def test_an_event_in_parts_can_be_a_hole(self) -> None:
        receiver = at(4)
        *begun, end = pieces(event(6))
        for part in begun:
            assert receiver.receive(part) == []
        with pytest.raises(Hole):
            receiver.receive(end)
        assert last(receiver) == 4
        assert receiver.part() == {}


def asking(seq: int | None = None) -> Receiver:
    """One whose hello asks for a snapshot, at a position or new."""
    return Receiver(None if seq is None else {"user": Position("e", seq)}, snapshots=True)


class TestSnapshots:
    def test_a_position_counts_once_its_snapshot_is_whole(self) -> None:
        receiver = asking()
        assert receiver.welcome(welcome(user=state(6, resumed=False, reason="new"))) == []
        assert receiver.resume() == {}
        page, end = Snapshot("user", 7, {"t": {}}, more=True), Snapshot("user", 7, {"u": {}})
        assert receiver.receive(page) == [page]
        assert receiver.resume() == {}
        assert receiver.receive(end) == [end]
        assert receiver.resume() == {"user": Position("e", 7)}
        assert receiver.receive(event(8)) == [event(8)]

    def test_one_cut_off_before_begins_anew_and_nothing_changed(self) -> None:
        receiver = asking()
        receiver.welcome(welcome(user=state(6, resumed=False, reason="new")))
        receiver.receive(Snapshot("user", 7, {"t": {}}, more=True))
        assert receiver.welcome(welcome(user=state(9, resumed=False, reason="new"))) == []
        assert receiver.resume() == {}

    @pytest.mark.parametrize(("snapshots", "from_"), [(True, 1), (False, 6)])
    def test_none_is_awaited_where_there_is_nothing_or_nobody_asked(
        self, snapshots: bool, from_: int
    ) -> None:
        receiver = Receiver(snapshots=snapshots)
        receiver.welcome(welcome(user=state(from_, resumed=False, reason="new")))
        assert receiver.resume() == {"user": Position("e", from_ - 1)}

    def test_other_streams_have_none(self) -> None:
        receiver = asking()
        receiver.welcome(welcome(all=state(6, resumed=False, reason="new")))
        receiver.receive(Gap("all", "trimmed", 6, 9))
        assert receiver.resume() == {"all": Position("e", 9)}

    def test_behind_a_gap_the_position_waits_for_it(self) -> None:
        receiver = asking(4)
        receiver.welcome(welcome(user=state(5)))
        gap = Gap("user", "trimmed", 5, 9)
        assert receiver.receive(gap) == [gap]
        assert receiver.resume() == {}
        receiver.receive(Snapshot("user", 12, {}))
        assert receiver.resume() == {"user": Position("e", 12)}

    def test_what_was_trimmed_is_told_behind_welcome_though_the_position_is_past_it(self) -> None:
        receiver = asking(4)
        (changed,) = receiver.welcome(welcome(user=state(21, resumed=False, reason="trimmed")))
        assert isinstance(changed, Changed)
        gap = Gap("user", "trimmed", 5, 9)
        assert receiver.receive(gap) == [gap]
        assert receiver.receive(gap) == []

    def test_a_snapshot_of_some_threads_leaves_the_position_good(self) -> None:
        receiver = asking(4)
        receiver.welcome(welcome(user=state(5)))
        receiver.receive(Snapshot("user", 6, {"t": {}}, more=True))
        assert receiver.resume() == {"user": Position("e", 6)}

    def test_a_large_one_comes_in_parts_of_which_none_is_kept_for_the_next_connection(self) -> None:
        receiver = asking()
        receiver.welcome(welcome(user=state(6, resumed=False, reason="new")))
        whole = Snapshot("user", 5, {"t": {"text": "x" * 100}})
        first, *others = (
            part
            for piece in parts("user", 5, encode(whole), part_bytes=40, of="snapshot")
            for part in decode_server(piece)
        )
        assert receiver.receive(first) == []
        assert receiver.part() == {}
        told = [item for part in others for item in receiver.receive(part)]
        assert told == [whole]
        assert receiver.resume() == {"user": Position("e", 5)}

    def test_parts_of_what_it_does_not_know_are_ignored(self) -> None:
        receiver = at(4)
        assert receiver.receive(Part("user", 9, 0, 10, "eA==", of="later")) == []
        assert receiver.part() == {}

    def test_parts_that_make_something_else_are_refused(self) -> None:
        receiver = at(4)
        (piece,) = parts("user", 5, encode(event(5)), part_bytes=4096, of="snapshot")
        (part,) = decode_server(piece)
        with pytest.raises(FrameError, match="do not make a snapshot"):
            receiver.receive(part)
