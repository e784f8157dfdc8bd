"""Where a connection stands in each of its streams: where it began, and what its peer has processed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs

from wsrecover.access.principal import Principal
from wsrecover.errors import FrameError
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import Ack, From, Hello, StreamInfo, Streams
from wsrecover.protocol.resume import held_part
from wsrecover.streams.stream import Stream

from .delivery import Delivery
from .entitled import entitled
from .presence import Member
from .services import Services

__all__ = ["Following", "Start"]


@attrs.frozen
class Start:
    """From where each stream is sent: how it is told, the seq before it, what is held of the next event.

    `gaps` are the first and the last event that a peer missed for good.
    """

    infos: dict[str, StreamInfo]
    after: dict[str, int]
    held: dict[str, tuple[int, int]]
    gaps: dict[str, tuple[int, int]]


class Following:
    """One connection's place in its streams. `processed` are the positions that its peer has acknowledged."""

    __slots__ = ("_broadcasts_from", "_delivery", "_member", "_services", "processed")

    def __init__(self, services: Services, member: Member, delivery: Delivery) -> None:
        self.processed: dict[str, int] = {}
        self._broadcasts_from: From = "start"
        self._services = services
        self._member = member
        self._delivery = delivery

    def start(self, hello: Hello, streams: Mapping[str, Stream]) -> Start:
        """Judge the positions of `hello`."""
        infos: dict[str, StreamInfo] = {}
        after: dict[str, int] = {}
        held: dict[str, tuple[int, int]] = {}
        gaps: dict[str, tuple[int, int]] = {}
        if hello.from_ == "live":  # Else, as broadcasts have no snapshots, these begin at their oldest.
            self._broadcasts_from = "live"
        for name, stream in streams.items():
            position = hello.resume.get(name)
            from_ = hello.from_ if name == "user" else self._broadcasts_from
            info = infos[name] = self._judge(stream, position, from_)
            after[name] = info.from_ - 1
            if position is not None:
                if (part := held_part(hello, name, info)) is not None:
                    held[name] = part
                if info.reason == "trimmed":
                    gaps[name] = (position.seq + 1, stream.oldest - 1)
        self._services.counts[f"resume.{infos['user'].reason or 'resumed'}"] += 1
        return Start(infos, after, held, gaps)

    def _judge(self, stream: Stream, position: Position | None, from_: From) -> StreamInfo:
        info = stream.judge(position, from_)
        if not info.resumed and self._services.receipts:
            self.missed(stream, 1, info.from_ - 1)
        return info

    def missed(self, stream: Stream, first: int, last: int) -> None:
        """Note what the peer will never be sent."""
        self._services.receipts.miss(stream.key, self._member, first, last)

    def acknowledge(self, ack: Ack) -> Iterator[FrameError]:
        """Take over what the peer has processed; what is wrong with it."""
        receipts = self._services.receipts
        for name, seq in ack.pos.items():
            sent = self._delivery.position(name)
            if sent is None or seq > sent:
                problem = "no such stream" if sent is None else f"{seq} was not sent yet, only up to {sent}"
                yield FrameError("invalid", problem, field=f"pos.{name}")
            elif seq > (before := self.processed.get(name, 0)):
                self.processed[name] = seq
                if receipts:
                    receipts.acknowledge(self._delivery.streams[name].key, self._member, before, seq)

    def leave(self, principal: Principal) -> None:
        """Cut what the peer is not entitled to any more, before it is sent another event of it."""
        keys = frozenset(entitled(principal))
        followed = self._delivery.streams
        kept = {name: stream for name, stream in followed.items() if stream.key in keys}
        removed = tuple(name for name in followed if name not in kept)
        if removed:
            for name in removed:
                self.processed.pop(name, None)
            self._delivery.follow(kept, {}, Streams({}, removed))

    def join(self, streams: Mapping[str, Stream]) -> None:
        """Follow `streams`: those that are new like those that `hello` gave no position of."""
        added = {
            name: self._judge(stream, None, self._broadcasts_from)
            for name, stream in streams.items()
            if name not in self._delivery.streams
        }
        if added:
            after = {name: info.from_ - 1 for name, info in added.items()}
            self._delivery.follow(streams, after, Streams(added, ()))
