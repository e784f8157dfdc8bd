"""The part of the Store contract that is about revocations, and erasing a user."""

from __future__ import annotations

from typing import Final

from wsrecover.protocol.resume import make_epoch
from wsrecover.streams.store import (
    APPLIED,
    Answer,
    AnswerKey,
    NewSnapshot,
    RunRecord,
    Store,
    StoredContext,
    StoredSnapshot,
    StreamKey,
    StreamState,
    TokenRevocation,
    Unit,
    UserRevocation,
)

from .subject import ALL, ANN, BEN, START, Subject, confirm, entries, expect, logged, named, seqs, unit

__all__ = ["REVOKING_CHECKS", "REVOKING_CHECKS_DURABLE"]

NAMESAKE: Final = StreamKey("user", "other tenant", "ann")
REVOKED: Final = UserRevocation("tenant", "ann", START + 1)


def _asked(key: StreamKey) -> Answer:
    return Answer(AnswerKey(key.tenant, key.name, "c1"), b"d", START, b'{"secret":1}')


def _run(key: StreamKey) -> RunRecord:
    return RunRecord(f"run of {key.name} in {key.tenant}", key.tenant, key.name, "agent", START)


async def _revocations_are_kept_the_last_of_each(subject: Subject) -> None:
    async with subject.opened() as store:
        expect(await store.revocations(), [], "what was revoked")
        user, token = UserRevocation("t", "ann", START), TokenRevocation("t", "ann", START)
        other = UserRevocation("other", "ann", START)
        await store.commit([Unit(revocations=(user, token)), Unit(revocations=(other,))])
        again = UserRevocation("t", "ann", START + 1)
        await store.commit([Unit(revocations=(again,))])
        found = sorted(await store.revocations(), key=repr)
        expect(found, sorted([again, token, other], key=repr), "what was revoked")


async def _fill(store: Store) -> None:
    """The same for three users."""
    context = {"t": StoredContext(b"{}", START)}
    for key in (ANN, BEN, NAMESAKE):
        both = (named(key, "e1"), *entries(key, "a", "b"))
        await store.commit([Unit(both, (_asked(key),), (_run(key),))])
        await store.commit([Unit(snapshots=(NewSnapshot(key, 2, context),)), unit(ALL, key.name)])


async def _check_others(store: Store) -> None:
    for key in (BEN, NAMESAKE):
        expect(await logged(store, key), ["e1", "a", "b"], f"what the stream of {key!r} holds")
        confirm(await store.answer(_asked(key).key), f"an answer to {key!r}")
        expect((await store.snapshot(key)).seq, 2, f"the snapshot of {key!r}")
        repeated = Unit((named(key, "e1"),))
        await store.commit([repeated])
        expect(seqs(repeated), [1], f"the id of an event of {key!r}")
    expect(await logged(store, ALL), ["ann", "ben", "ann"], "what was broadcast")
    expect(await store.runs(), [_run(BEN), _run(NAMESAKE)], "the runs")


async def _check_erased(store: Store, before: StreamState) -> None:
    """That nothing of ann's is there."""
    state = await store.load(ANN)
    expect((state.head, state.oldest, state.marks), (0, 1, ()), "the state of an erased stream")
    confirm(state.incarnation != before.incarnation, "it has another incarnation")
    expect(await store.read(ANN, 0, upto=3, max_events=9, max_bytes=99), [], "its events")
    expect(await store.snapshot(ANN), StoredSnapshot(0, {}), "its snapshot")
    expect(await store.oldest_contexts([ANN]), {}, "its contexts")
    expect(await store.answer(_asked(ANN).key), None, "an answer to its user")
    expect(await store.revocations(), [REVOKED], "what was revoked")


async def _an_erased_user_is_nobody(subject: Subject) -> None:
    async with subject.opened() as store:
        await _fill(store)
        before = await store.load(ANN)
        await store.erase(REVOKED)
        await _check_erased(store, before)
        await _check_others(store)
        await store.purge()
        expect(set(await store.keys()), {ANN, BEN, NAMESAKE, ALL}, "the streams")
        await _check_erased(store, before)
        await _check_others(store)


async def _an_erased_user_begins_anew(subject: Subject) -> None:
    async with subject.opened() as store:
        await _fill(store)
        old = make_epoch((await store.load(ANN)).incarnation, store.generation)
        await store.erase(REVOKED)
        again = Unit(
            (named(ANN, "e1", "other"), *entries(ANN, "new")), (Answer(_asked(ANN).key, b"x", START),)
        )
        expect(await store.commit([again]), [APPLIED], "ids that the erased one had used")
        expect(seqs(again), [1, 2], "the seqs of the new stream")
        confirm(again.entries[0].epoch != old, "they are of another epoch")
        late = NewSnapshot(ANN, 3, {"t": StoredContext(b"old", START)}, old)
        await store.commit([Unit(snapshots=(late,))])
        expect(await store.snapshot(ANN), StoredSnapshot(0, {}), "after a snapshot of what was erased")
        own = NewSnapshot(ANN, 2, {"t": StoredContext(b"new", START)}, again.entries[0].epoch)
        await store.commit([Unit(snapshots=(own,))])
        confirm("t" in (await store.snapshot(ANN)).contexts, "one of the new stream counts")
        await store.purge()
        expect(await logged(store, ANN), ["other", "new"], "the new stream, once the old one is purged")
        await store.erase(REVOKED)
        expect(await logged(store, ANN), [], "after it is erased once more")
        await store.commit([unit(ANN, "third")])
        await store.purge()
        expect(await logged(store, ANN), ["third"], "the third stream")


async def _somebody_unknown_may_be_erased(subject: Subject) -> None:
    async with subject.opened() as store:
        await store.purge()
        await store.erase(REVOKED)
        await store.purge()
        expect(await store.revocations(), [REVOKED], "what was revoked")
        await store.commit([unit(ANN, "a")])
        expect(await logged(store, ANN), ["a"], "what comes later")


async def _old_revocations_are_forgotten(subject: Subject) -> None:
    async with subject.opened() as store:
        old, edge = UserRevocation("t", "ann", START - 1), TokenRevocation("t", "j1", START)
        await store.commit([Unit(revocations=(old, edge))])
        await store.forget_revocations(before=START)
        expect(await store.revocations(), [edge], "what is not older")


async def _what_was_erased_stays_so_after_a_restart(subject: Subject) -> None:
    for purged in (False, True):
        async with subject.opened() as store:
            if not purged:
                await _fill(store)
            before = await store.load(ANN)
            await store.erase(REVOKED)
            if purged:
                await store.purge()
        async with subject.opened() as store:
            await _check_erased(store, before)
            await _check_others(store)
            await store.purge()
            await _check_others(store)
            fresh = await store.load(ANN)
        async with subject.opened() as store:
            expect(await store.load(ANN), fresh, "the new stream")
            await _check_others(store)


REVOKING_CHECKS: Final = (
    _revocations_are_kept_the_last_of_each,
    _an_erased_user_is_nobody,
    _an_erased_user_begins_anew,
    _somebody_unknown_may_be_erased,
    _old_revocations_are_forgotten,
)
REVOKING_CHECKS_DURABLE: Final = (_what_was_erased_stays_so_after_a_restart,)
