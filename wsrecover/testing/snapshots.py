"""The part of the Store contract that is about snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from wsrecover.config import Retention
from wsrecover.streams.store import (
    Answer,
    AnswerKey,
    NewSnapshot,
    StoredContext,
    StoredSnapshot,
    StreamKey,
    Unit,
)

from .subject import ANN, BEN, START, TEAM, Subject, confirm, expect, logged, unit

__all__ = ["SNAPSHOT_CHECKS", "SNAPSHOT_CHECKS_DURABLE"]


def stored(text: str, at: float = START) -> StoredContext:
    """A context that says `text`."""
    return StoredContext(text.encode(), at)


def snapshot(key: StreamKey, seq: int, changed: Mapping[str, StoredContext | None]) -> Unit:
    """A unit that stores a snapshot and nothing else."""
    return Unit(snapshots=(NewSnapshot(key, seq, changed),))


async def _a_snapshot_takes_over_what_changed(subject: Subject) -> None:
    async with subject.opened() as store:
        expect(await store.snapshot(ANN), StoredSnapshot(0, {}), "a stream without a snapshot")
        await store.commit([unit(ANN, *"abcde"), snapshot(ANN, 3, {"t": stored("one"), "": stored("none")})])
        expect(
            await store.snapshot(ANN), StoredSnapshot(3, {"t": stored("one"), "": stored("none")}), "first"
        )
        expect(await store.snapshot(BEN), StoredSnapshot(0, {}), "another stream")
        later = {"t": None, "u": stored("two", START + 5)}
        await store.commit([snapshot(ANN, 4, later)])
        second = StoredSnapshot(4, {"": stored("none"), "u": stored("two", START + 5)})
        expect(await store.snapshot(ANN), second, "one that changes some")
        await store.commit([snapshot(ANN, 3, {"u": None})])
        expect(await store.snapshot(ANN), second, "after one that is older")
        await store.commit([snapshot(ANN, 4, {"u": None}), snapshot(ANN, 3, {"": None})])
        expect(
            await store.snapshot(ANN), StoredSnapshot(4, {"": stored("none")}), "after one of the same seq"
        )
        await store.commit([snapshot(ANN, 6, {"a": stored("x")}), snapshot(ANN, 5, {"a": None})])
        confirm("a" in (await store.snapshot(ANN)).contexts, "an older one in a batch changes nothing")


async def _the_oldest_context_of_each_is_told(subject: Subject) -> None:
    async with subject.opened() as store:
        expect(await store.oldest_contexts([ANN, BEN]), {}, "streams that nobody wrote")
        contexts = {"t": stored("one", START + 7), "u": stored("two", START + 5)}
        await store.commit([unit(ANN, *"ab"), unit(BEN, "a"), snapshot(ANN, 2, contexts)])
        expect(await store.oldest_contexts([BEN, ANN, TEAM]), {ANN: START + 5}, "one with contexts")
        expect(await store.oldest_contexts([BEN]), {}, "one that was not asked for")
        await store.commit([snapshot(ANN, 2, {"u": None}), snapshot(BEN, 1, {"t": stored("x")})])
        expect(await store.oldest_contexts([ANN, BEN]), {ANN: START + 7, BEN: START}, "what is left")


async def _a_snapshot_commits_with_its_unit_or_not_at_all(subject: Subject) -> None:
    async with subject.opened() as store:
        answer = Answer(AnswerKey("tenant", "ann", "c1"), b"d", subject.now)
        both = Unit(answers=(answer,), snapshots=(NewSnapshot(ANN, 2, {"t": stored("one")}),))
        again = Unit(answers=(answer,), snapshots=(NewSnapshot(ANN, 3, {"t": stored("two")}),))
        await store.commit([unit(ANN, *"abc"), both, again])
        expect(
            await store.snapshot(ANN), StoredSnapshot(2, {"t": stored("one")}), "a unit that was not applied"
        )


async def _nothing_is_trimmed_that_no_snapshot_covers(subject: Subject) -> None:
    tight, old = Retention(events=2), Retention(age=1.0)
    async with subject.opened() as store:
        await store.commit([unit(ANN, *"abcdefgh"), unit(TEAM, *"abcdefgh")])
        retained = await store.retain({ANN: tight, TEAM: tight}, now=START)
        expect((retained.oldest, retained.held), ({TEAM: 7}, (ANN,)), "a user without a snapshot")
        await store.commit([snapshot(ANN, 3, {})])
        retained = await store.retain({ANN: tight}, now=START)
        expect((retained.oldest, retained.held), ({ANN: 4}, (ANN,)), "a user with one that is behind")
        expect(await logged(store, ANN), list("defgh"), "what is left then")
        retained = await store.retain({ANN: tight}, now=START)
        expect((retained.oldest, retained.held), ({}, (ANN,)), "the same again")
        await store.commit([snapshot(ANN, 7, {})])
        retained = await store.retain({ANN: tight}, now=START)
        expect((retained.oldest, retained.held), ({ANN: 7}, ()), "a user with one that is far enough")
        retained = await store.retain({ANN: old}, now=START + 9)
        expect((retained.oldest, retained.held), ({ANN: 8}, (ANN,)), "by age")
        await store.commit([snapshot(ANN, 8, {})])
        retained = await store.retain({ANN: old}, now=START + 9)
        expect((retained.oldest, retained.held), ({ANN: 9}, ()), "by age, all covered")
        await store.commit([unit(ANN, "i", ts=START + 9)])
        expect(await logged(store, ANN), ["i"], "what comes after")


async def _snapshots_are_there_after_a_restart(subject: Subject) -> None:
    async with subject.opened() as store:
        await store.commit([unit(ANN, *"abc"), snapshot(ANN, 2, {"t": stored("one")})])
    async with subject.opened() as store:
        expect(await store.snapshot(ANN), StoredSnapshot(2, {"t": stored("one")}), "the snapshot")
        retained = await store.retain({ANN: Retention(events=1)}, now=START)
        expect(retained.oldest, {ANN: 3}, "a trim that it covers")


SNAPSHOT_CHECKS: Final = (
    _a_snapshot_takes_over_what_changed,
    _the_oldest_context_of_each_is_told,
    _a_snapshot_commits_with_its_unit_or_not_at_all,
    _nothing_is_trimmed_that_no_snapshot_covers,
)
SNAPSHOT_CHECKS_DURABLE: Final = (_snapshots_are_there_after_a_restart,)
