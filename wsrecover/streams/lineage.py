"""Whose log a stream's is: which positions it can go on from."""

from __future__ import annotations

from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import From, StreamInfo
from wsrecover.protocol.resume import judge, make_epoch

from .store import Store, StreamState

__all__ = ["Lineage"]


class Lineage:
    """The incarnation of one stream, and from which seq on each generation of the store wrote to it.

    `epoch` is that of this generation; empty until it is loaded.
    """

    __slots__ = ("_incarnation", "_is_marked", "_marks", "_store", "_told", "epoch")

    def __init__(self, store: Store) -> None:
        self.epoch = ""
        self._is_marked = False
        self._store = store
        self._incarnation = ""
        self._marks: tuple[tuple[str, int], ...] = ()
        self._told: dict[From, StreamInfo] = {}

    def load(self, state: StreamState) -> None:
        """Take what the store said; what was learnt while it was asked stands."""
        generation = self._store.generation
        self._told.clear()
        self._incarnation = state.incarnation
        self.epoch = make_epoch(state.incarnation, generation)
        told = any(writer == generation for writer, _ in state.marks)
        self._marks = state.marks if told else (*state.marks, *self._marks)
        self._is_marked = self._is_marked or told

    def mark(self, first: int) -> None:
        """This generation writes, if not before, from the seq `first` on."""
        if self._is_marked:
            return
        self._is_marked = True
        self._marks = (*self._marks, (self._store.generation, first))

    def judge(self, position: Position | None, begin: From, *, oldest: int, head: int) -> StreamInfo:
        """Whether who is at `position` may go on from there, and where it begins otherwise; for `welcome`."""
        if position is None:
            known = self._told.get(begin)
            if known is not None and known.head == head and known.oldest == oldest:
                return known
        verdict = judge(
            position,
            incarnation=self._incarnation,
            lineage=self._store.lineage,
            marks=self._marks,
            oldest=oldest,
            head=head,
            begin=begin,
        )
        info = StreamInfo(
            epoch=self.epoch,
            head=head,
            oldest=oldest,
            from_=verdict.from_seq,
            resumed=verdict.resumed,
            reason=verdict.reason,
        )
        if position is None:
            self._told[begin] = info
        return info
