"""Snapshots on their way to one connection: at the beginning of its stream, and where its filter changes.

::

    first page, or a gap:    the cursor jumps to it          ── snapshot ──  events after it
    threads newly followed:  events up to it, old filter     ── snapshot ──  events after it, new filter
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs
import orjson

from wsrecover.protocol.codec import encode, parts, snapshot_frame
from wsrecover.protocol.context import EMPTY, NO_THREAD, Context
from wsrecover.protocol.frames import Hello, Reply, StreamInfo

from .contexts import Snapshot
from .replay import Filter

__all__ = ["MAX_SWITCHES", "SnapshotFrames", "Switch", "first_switch"]

MAX_SWITCHES: Final = 8
"""Changes of the filter that wait for their snapshots; more are refused."""


def _passes(thread: str, chosen: Filter) -> bool:
    return chosen is None or thread in chosen


@attrs.frozen
class Switch:
    """From the filter `before` to `after`, with a snapshot of what is new. `first`: of all there is.

    `ref` is the id of the `follow` that asks for it.
    """

    before: Filter
    after: Filter
    first: bool = False
    ref: str | None = None

    @property
    def is_silent(self) -> bool:
        """Whether nothing is new."""
        wider = self.before is None or (self.after is not None and self.after <= self.before)
        return wider and not self.first

    def threads(self, snapshot: Snapshot) -> Iterator[tuple[str, Context]]:
        """What is to be told: of threads that are named, also that there is nothing."""
        for name, context in snapshot.contexts.items():
            if self.first:
                told = name == NO_THREAD or _passes(name, self.after)
            else:
                told = name != NO_THREAD and _passes(name, self.after) and not _passes(name, self.before)
            if told:
                yield name, context
        if not self.first:
            for name in sorted((self.after or frozenset()) - (self.before or frozenset())):
                if name not in snapshot.contexts:
                    yield name, EMPTY


def first_switch(hello: Hello, info: StreamInfo) -> Switch | None:
    """What a connection is told of the user's stream, `info`, before its events; None: there is no need."""
    chosen = None if hello.threads is None else frozenset(hello.threads)
    if not info.resumed:
        needed = hello.from_ == "snapshot" and info.from_ > 1
        return Switch(chosen, chosen, first=True) if needed else None
    if chosen is None or chosen.isdisjoint(hello.fresh):
        return None
    return Switch(chosen.difference(hello.fresh), chosen)


class SnapshotFrames:
    """The frames of a snapshot as of `seq`, each made when it is asked for."""

    def __init__(self, stream: str, switch: Switch, snapshot: Snapshot, *, part_bytes: int) -> None:
        self.seq = snapshot.seq
        self._stream = stream
        self._switch = switch
        self._part_bytes = part_bytes
        self._frames = self._make(snapshot)

    def next_frame(self) -> bytes | None:
        """The next frame; None once there are no more."""
        return next(self._frames, None)

    def _make(self, snapshot: Snapshot) -> Iterator[bytes]:
        if not self._switch.is_silent:
            yield from self._pages(snapshot)
        if self._switch.ref is not None:
            yield encode(Reply(self._switch.ref, "ok", result={"seq": self.seq}))

    def _pages(self, snapshot: Snapshot) -> Iterator[bytes]:
        page: dict[str, bytes] = {}
        size = 0
        for name, context in self._switch.threads(snapshot):
            encoded = orjson.dumps(context.json())
            if page and size + len(encoded) > self._part_bytes:
                yield from self._frame(page, more=True)
                page, size = {}, 0
            page[name] = encoded
            size += len(encoded) + len(name)
        yield from self._frame(page, more=False)

    def _frame(self, page: dict[str, bytes], *, more: bool) -> Iterator[bytes]:
        frame = snapshot_frame(self._stream, self.seq, page, more=more)
        if len(frame) <= self._part_bytes:
            yield frame
        else:
            yield from parts(self._stream, self.seq, frame, part_bytes=self._part_bytes, of="snapshot")
