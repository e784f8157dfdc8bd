"""Lives of a log and a client over a lossy link: each event once, in order, or a word that it is gone."""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wsrecover.errors import FrameError
from wsrecover.protocol.codec import (
    decode_client,
    decode_server,
    encode,
    encode_event,
    event_frame,
    join,
    parts,
)
from wsrecover.protocol.events import Event
from wsrecover.protocol.frames import Gap, Hello, Live, PrincipalInfo, StreamInfo, Welcome
from wsrecover.protocol.receiver import Changed, Receiver
from wsrecover.protocol.resume import held_part, judge, make_epoch, parse_epoch

PART_BYTES = 120
TEXTS = ["", "x" * 100, "y" * 500]
INCARNATIONS, GENERATIONS, VALUES = (itertools.count() for _ in range(3))


@attrs.define
class Log:
    """One stream as a store keeps it; a copy of it is a backup."""

    incarnation: str = attrs.field(factory=lambda: f"i{next(INCARNATIONS)}")
    lineage: list[str] = attrs.field(factory=lambda: [f"g{next(GENERATIONS)}"])
    marks: list[tuple[str, int]] = attrs.field(factory=list)
    bodies: list[bytes] = attrs.field(factory=list)
    oldest: int = 1

    @property
    def head(self) -> int:
        return len(self.bodies)

    def append(self, text: str) -> None:
        generation = self.lineage[-1]
        if all(writer != generation for writer, _ in self.marks):
            self.marks.append((generation, self.head + 1))
        data = {"value": next(VALUES), "text": text}
        self.bodies.append(encode_event(ts=1.5, type="chat", data=data, max_bytes=10_000))

    def reopened(self) -> Log:
        return Log(
            self.incarnation,
            [*self.lineage, f"g{next(GENERATIONS)}"],
            list(self.marks),
            list(self.bodies),
            self.oldest,
        )

    def values(self) -> list[int]:
        return [orjson.loads(body)["data"]["value"] for body in self.bodies]


class Connection:
    """The server's side of one connection: a cursor, and the messages that are on their way."""

    def __init__(self, log: Log, hello: bytes) -> None:
        (frame,) = decode_client(hello.decode(), max_bytes=10_000)
        assert isinstance(frame, Hello)
        verdict = judge(
            frame.resume.get("user"),
            incarnation=log.incarnation,
            lineage=log.lineage,
            marks=log.marks,
            oldest=log.oldest,
            head=log.head,
            begin=frame.from_,
        )
        self.info = StreamInfo(
            make_epoch(log.incarnation, log.lineage[-1]),
            log.head,
            log.oldest,
            verdict.from_seq,
            verdict.resumed,
            verdict.reason,
        )
        principal = PrincipalInfo("t", "u")
        self.wire = deque([encode(Welcome(1, "c", principal, {"user": self.info}, 25, {}, 60))])
        self.cursor = verdict.from_seq - 1
        self.held = held_part(frame, "user", self.info)
        self.live = False

    def pump(self, log: Log, count: int, *, joined: bool = False) -> None:
        """Send up to `count` events of what lies after the cursor, large ones in parts."""
        if self.cursor < log.oldest - 1:
            self.wire.append(encode(Gap("user", "trimmed", self.cursor + 1, log.oldest - 1)))
            self.cursor = log.oldest - 1
        batch: list[bytes] = []
        for seq in range(self.cursor + 1, min(self.cursor + count, log.head) + 1):
            frame = event_frame("user", seq, log.bodies[seq - 1])
            if len(frame) <= PART_BYTES:
                batch.append(frame)
            else:
                offset = self.held[1] if self.held is not None and self.held[0] == seq else 0
                batch += parts("user", seq, frame, part_bytes=PART_BYTES, offset=offset)
            self.cursor = seq
        if self.cursor == log.head and not self.live:
            self.live = True
            batch.append(encode(Live("user", self.cursor)))
        self.wire += [join(batch)] if joined and batch else batch


@attrs.define
class Client:
    """What the app has seen: of each history, the values, with None for each that it was told is gone."""

    receiver: Receiver = attrs.field(factory=Receiver)
    seen: list[int | None] = attrs.field(factory=list)

    def take(self, message: bytes) -> None:
        for frame in decode_server(message):
            for item in self.receiver.receive(frame):
                self.note(item)

    def note(self, item: Any) -> None:
        if isinstance(item, Event):
            assert item.seq == len(self.seen) + 1, "an event came twice or out of order"
            self.seen.append(item.data["value"])
        elif isinstance(item, Gap):
            assert item.from_ == len(self.seen) + 1
            assert item.to is not None
            self.seen += [None] * (item.to - len(self.seen))
        elif isinstance(item, Live):
            assert item.seq <= len(self.seen), "told to be level with the log, and is not"
        elif isinstance(item, Changed):
            self.seen = [None] * item.position.seq


class Life(RuleBasedStateMachine):
    """The client's view is a prefix of the log, with nothing missing that it was not told of."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.backup = self.log.reopened()
        self.connection: Connection | None = None
        self.client = Client()
        self.started = False
        self.past: list[int] = []
        self.trimmed = False

    @rule(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=4))
    def publish(self, texts: list[str]) -> None:
        for text in texts:
            self.log.append(text)

    @rule(send=st.integers(0, 6), deliver=st.integers(0, 12), joined=st.booleans())
    def flow(self, send: int, deliver: int, joined: bool = False) -> None:
        """Connected, if need be, the server sends something and some of what is on its way arrives."""
        connection = self.connection or self.connect()
        connection.pump(self.log, send, joined=joined)
        for _ in range(min(deliver, len(connection.wire))):
            self.take(connection.wire.popleft())

    @rule(left=st.integers(1, 8))
    def cut_in_mid_event(self, left: int) -> None:
        """The link breaks while a large event is on its way."""
        self.log.append("z" * 500)
        connection = self.connection or self.connect()
        connection.pump(self.log, self.log.head)
        while len(connection.wire) > left:
            self.take(connection.wire.popleft())
        self.connection = None

    def connect(self) -> Connection:
        receiver = self.client.receiver
        hello = Hello("c", resume=receiver.resume(), part=receiver.part(), from_="start")
        self.connection = Connection(self.log, encode(hello))
        if self.started:
            self.check_verdict(self.connection.info)
        return self.connection

    def check_verdict(self, info: StreamInfo) -> None:
        """A position is gone on from iff the log holds what it stands for, in a history that it can name."""
        past, values = self.past, self.log.values()
        names = parse_epoch(self.client.receiver.resume()["user"].epoch)
        assert names is not None
        known = names[0] == self.log.incarnation and names[1] in self.log.lineage
        true = past == values[: len(past)]
        if info.resumed:
            assert true
            assert len(past) >= self.log.oldest - 1
        elif info.reason == "trimmed":
            assert len(past) < self.log.oldest - 1
        elif info.reason == "ahead":
            assert len(past) > self.log.head
        else:
            assert info.reason == "epoch_changed"
            assert not (known and true), "a history that goes on was called another"

    def take(self, message: bytes) -> None:
        if not self.started:
            (welcome,) = decode_server(message)
            assert isinstance(welcome, Welcome)
            self.client.seen = [None] * (welcome.streams["user"].from_ - 1)
            self.started = True
        try:
            self.client.take(message)
        finally:
            self.past = self.log.values()[: len(self.client.seen)]

    @precondition(lambda self: self.connection is not None)
    @rule(cut=st.floats(0, 1))
    def drop_in_mid_message(self, cut: float) -> None:
        """A WebSocket hands over whole messages: the one that is cut is refused and leaves no trace."""
        assert self.connection is not None
        if self.connection.wire:
            message = self.connection.wire[0]
            before = (self.client.receiver.resume(), self.client.receiver.part())
            try:
                self.client.take(message[: int(cut * (len(message) - 1))])
            except FrameError:
                assert (self.client.receiver.resume(), self.client.receiver.part()) == before
            else:
                raise AssertionError("half a message was taken")
        self.connection = None

    @rule(send=st.integers(1, 6), at=st.integers(1, 8), repeat=st.booleans())
    def disturb(self, send: int, at: int, repeat: bool) -> None:
        """What no WebSocket does, but a faulty server may: a message is lost, or comes again later."""
        connection = self.connection or self.connect()
        connection.pump(self.log, send)
        self.connection, wire = None, connection.wire
        if at < len(wire) and repeat:
            wire.append(wire[-at])
        elif at < len(wire):
            del wire[-at]
        try:
            for message in wire:
                self.take(message)
        except FrameError:
            return

    @rule(keep=st.integers(0, 5))
    def trim(self, keep: int) -> None:
        self.log.oldest = max(self.log.oldest, self.log.head - keep + 1)
        self.trimmed = self.trimmed or self.log.oldest > 1

    @rule(
        fault=st.sampled_from(["restart", "back up", "back up", "restore", "restore", "lose"]),
        beyond=st.sampled_from([None, -1, 0, 1, 5]),
        text=st.sampled_from(TEXTS),
    )
    def go_through(self, fault: str, beyond: int | None = None, text: str = "") -> None:
        """A restart goes on with the store; a backup is written on, perhaps `beyond` what the client has.

        What is lost is one stream of a store that goes on: it begins anew in the same generation.
        """
        if fault == "back up":
            self.backup = self.log.reopened()
            return
        self.connection = None
        if fault == "restart":
            self.log = self.log.reopened()
        elif fault == "restore":
            self.log = self.backup.reopened()
        else:
            self.log = Log(lineage=self.log.lineage)
            self.backup = self.log.reopened()
        while beyond is not None and self.log.head < len(self.past) + beyond:
            self.log.append(text)

    @rule()
    def catch_up(self) -> None:
        """Whatever happened, a quiet link brings the client level with the log, and the view is the log's."""
        connection = self.connection or self.connect()
        connection.pump(self.log, self.log.head)
        for message in connection.wire:
            self.take(message)
        connection.wire.clear()
        values = self.log.values()
        assert len(self.client.seen) == len(values)
        for seen, value in zip(self.client.seen, values, strict=True):
            assert seen in {None, value}
        assert self.trimmed or None not in self.client.seen, "told of a gap where nothing is gone"

    @invariant()
    def received_is_what_was_seen(self) -> None:
        if self.started:
            assert len(self.past) == len(self.client.seen)
            assert self.client.receiver.resume()["user"].seq == len(self.client.seen)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("welcomes", [0, 1])
def test_the_beginning_of_a_lost_event_is_not_gone_on_with(welcomes: int) -> None:
    """The backup goes on at the seq of which the client holds some bytes, with as many of another event;
    the client may have taken over its epoch before it asks for the rest.
    """
    life = Life()
    life.publish(texts=[""])
    life.go_through(fault="back up")
    life.cut_in_mid_event(left=4)
    assert life.client.receiver.part() == {"user": (2, 2 * PART_BYTES)}
    life.go_through(fault="restore", beyond=1, text="y" * 500)
    for _ in range(welcomes):
        life.flow(send=1, deliver=1)
        life.drop_in_mid_message(cut=0.5)
    life.catch_up()


def test_an_event_under_the_seq_of_one_that_was_gone_before_it_was_seen_is_another() -> None:
    """What a client was not sent is part of its past all the same: the backup has another event there."""
    life = Life()
    life.publish(texts=[""])
    life.trim(keep=0)
    life.flow(send=0, deliver=1)
    life.go_through(fault="restore", beyond=0)
    life.catch_up()
    assert life.client.seen == life.log.values()
