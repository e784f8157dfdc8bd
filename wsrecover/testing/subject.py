"""What the checks of the Store contract are made of: a store of their own, and words to hold it to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Protocol

import trio

from wsrecover.streams.store import (
    Entry,
    Store,
    StreamKey,
    Unit,
)

__all__ = [
    "ALL",
    "ANN",
    "BEN",
    "START",
    "TEAM",
    "OpenStore",
    "Subject",
    "confirm",
    "entries",
    "expect",
    "logged",
    "named",
    "seqs",
    "unit",
]

ANN: Final = StreamKey("user", "tenant", "ann")
BEN: Final = StreamKey("user", "tenant", "ben")
TEAM: Final = StreamKey("tenant", "tenant")
ALL: Final = StreamKey("all")
START: Final = 1_700_000_000.0


class OpenStore(Protocol):
    """Opens the store called `name`: empty the first time, and later as it was left, if it is durable."""

    def __call__(self, name: str, clock: Callable[[], float]) -> Awaitable[Store]:
        """`clock` gives unix seconds, and is the only one that the store may use."""


class Subject:
    """One store under test, and the time that it is told."""

    def __init__(self, open_store: OpenStore, name: str) -> None:
        self._open_store = open_store
        self._name = name
        self.now = START

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        """The store, open for a while."""
        store = await self._open_store(self._name, lambda: self.now)
        try:
            yield store
        finally:
            with trio.move_on_after(10, shield=True):
                await store.aclose()


def expect(found: object, wanted: object, what: str) -> None:
    """Raise `AssertionError` unless they are equal."""
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, wanted {wanted!r}")


def entries(key: StreamKey, *bodies: str, ts: float = START) -> tuple[Entry, ...]:
    """Entries of one stream with these bodies."""
    return tuple(Entry(key, body.encode(), ts) for body in bodies)


def named(key: StreamKey, name: str, body: str = "") -> Entry:
    """An entry with the id `name`."""
    return Entry(key, (body or name).encode(), START, id=name, digest=body.encode())


def unit(key: StreamKey, *bodies: str, ts: float = START) -> Unit:
    """A unit that appends events to one stream."""
    return Unit(entries(key, *bodies, ts=ts))


async def logged(store: Store, key: StreamKey) -> list[str]:
    """The bodies of all that is kept in a stream; they must be contiguous up to its head."""
    state = await store.load(key)
    found = await store.read(key, 0, upto=state.head, max_events=100_000, max_bytes=1 << 30)
    expect([entry.seq for entry in found], list(range(state.oldest, state.head + 1)), f"seqs of {key!r}")
    return [entry.body.decode() for entry in found]


def confirm(found: object, what: str) -> None:
    """Raise `AssertionError` unless it holds."""
    if not found:
        raise AssertionError(f"not so: {what}")


def seqs(*units: Unit) -> list[int]:
    """The seqs of all their entries."""
    return [entry.seq for unit in units for entry in unit.entries]
