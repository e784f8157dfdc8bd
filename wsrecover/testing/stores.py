"""The Store contract as a check that every back end is run through, ours and yours."""

from __future__ import annotations

from typing import Final

import attrs
import trio

from wsrecover.errors import StoreFailed
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.resume import make_epoch
from wsrecover.streams.store import (
    ANSWER_WINDOW,
    APPLIED,
    Answer,
    AnswerKey,
    Applied,
    Conflict,
    Duplicate,
    Entry,
    NewSnapshot,
    Retention,
    RunRecord,
    StreamKey,
    Unit,
    UserRevocation,
)

from .revoking import REVOKING_CHECKS, REVOKING_CHECKS_DURABLE
from .snapshots import SNAPSHOT_CHECKS, SNAPSHOT_CHECKS_DURABLE
from .subject import (
    ALL,
    ANN,
    BEN,
    START,
    TEAM,
    OpenStore,
    Subject,
    confirm,
    entries,
    expect,
    logged,
    named,
    seqs,
    unit,
)

__all__ = ["OpenStore", "check_store"]


async def check_store(open_store: OpenStore, *, durable: bool) -> None:
    """Run a store through the whole contract, each part against a fresh store.

    `open_store` is called with a new name for each part; and again, where `durable`,
    after the store was closed. Raises `AssertionError`, or an error that the contract does not allow.
    """
    for check in (*_CHECKS, *(_DURABLE if durable else ())):
        with trio.fail_after(60):
            await check(Subject(open_store, check.__name__.strip("_")))


async def _appends_are_contiguous_and_kept_in_order(subject: Subject) -> None:
    async with subject.opened() as store:
        units = [unit(ANN, "a", "b"), unit(BEN, "x"), unit(ANN, "c")]
        expect(await store.commit(units), [APPLIED] * 3, "the outcomes")
        expect(seqs(*units), [1, 2, 1, 3], "the seqs that were given")
        epoch = make_epoch((await store.load(ANN)).incarnation, store.generation)
        expect(units[2].positions, (Position(epoch, 3),), "the position of the third")
        expect(await logged(store, ANN), ["a", "b", "c"], "what ann's stream holds")
        expect(await logged(store, BEN), ["x"], "what ben's stream holds")
        await store.commit([Unit((Entry(ANN, b"d", START, thread="t1"),))])
        found = await store.read(ANN, 3, upto=4, max_events=9, max_bytes=99)
        (entry,) = found
        expect((entry.key, entry.ts, entry.thread), (ANN, START, "t1"), "an event of a thread")
        answer = Answer(AnswerKey("tenant", "ben", "c1"), b"d", START)
        mixed = [unit(BEN, "y"), Unit(entries(BEN, "z"), (answer,)), unit(BEN, "w")]
        expect(await store.commit(mixed), [APPLIED] * 3, "the outcomes of units of several kinds")
        expect(await logged(store, BEN), ["x", "y", "z", "w"], "their order")
        expect(await store.commit([]), [], "the outcomes of no units")


async def _a_stream_has_its_identity_before_its_first_event(subject: Subject) -> None:
    async with subject.opened() as store:
        state = await store.load(ANN)
        expect((state.head, state.oldest, state.marks), (0, 1, ()), "an empty stream's state")
        other = await store.load(BEN)
        confirm(state.incarnation != other.incarnation, "two streams differ")
        await store.commit([unit(ANN, "a")])
        after = await store.load(ANN)
        expect(after.incarnation, state.incarnation, "the incarnation once it was written")
        expect(after.marks, ((store.generation, 1),), "who wrote which seqs first")
        expect(store.lineage[-1], store.generation, "the last of the lineage")


async def _reads_come_in_pages(subject: Subject) -> None:
    async with subject.opened() as store:
        bodies = [f"{number:04}" for number in range(1, 701)]
        for start in range(0, 700, 70):
            await store.commit([unit(ANN, *bodies[start : start + 70]), unit(BEN, "x" * 1000)])
        for after in (0, 1, 62, 63, 64, 65, 400, 698, 699, 700):
            for max_events in (1, 5, 64, 300, 1000):
                page = await store.read(ANN, after, upto=700, max_events=max_events, max_bytes=1 << 20)
                wanted = bodies[after : after + max_events]
                expect([entry.body.decode() for entry in page], wanted, f"{max_events} after {after}")
                expect([entry.seq for entry in page][:1], [after + 1] if wanted else [], "its first seq")
        page = await store.read(ANN, 10, upto=14, max_events=100, max_bytes=1 << 20)
        expect([entry.seq for entry in page], [11, 12, 13, 14], "a read up to 14")
        for max_bytes, count in ((0, 1), (3, 1), (4, 1), (8, 2), (1203, 300), (1204, 301)):
            page = await store.read(ANN, 300, upto=700, max_events=1000, max_bytes=max_bytes)
            expect(len(page), count, f"events that fit {max_bytes} bytes")


async def _a_unit_takes_effect_whole_or_not_at_all(subject: Subject) -> None:
    async with subject.opened() as store:
        several = Unit((*entries(ANN, "a"), named(BEN, "e1", "first"), *entries(ALL, "z")))
        expect(await store.commit([several]), [APPLIED], "the outcome")
        expect(await logged(store, ALL), ["z"], "the last of three streams")
        answer = Answer(AnswerKey("tenant", "ann", "c1"), b"d", subject.now)
        run = RunRecord("r1", "tenant", "ann", "agent", START)
        refused = Unit((*entries(ANN, "b"), named(BEN, "e1", "other")), (answer,), (run,))
        outcomes = await store.commit([unit(ANN, "c"), refused, unit(ANN, "d")])
        expect(outcomes[1], Conflict("e1"), "a unit with a used event id")
        expect(await logged(store, ANN), ["a", "c", "d"], "what is left of it")
        expect(await logged(store, BEN), ["first"], "the other stream")
        expect(await store.answer(answer.key), None, "its answer")
        expect(await store.runs(), [], "its run")


async def _answers_are_given_once(subject: Subject) -> None:
    async with subject.opened() as store:
        key = AnswerKey("tenant", "ann", "c1")

        def ask() -> Unit:
            return Unit(entries(ANN, "a", "b"), (Answer(key, b"d", subject.now, b"{}"),))

        first = ask()
        other = Unit(entries(ANN, "x"), (Answer(key, b"e", subject.now),))
        outcome, again, clash = await store.commit([first, ask(), other])
        expect(outcome, APPLIED, "the first's outcome")
        positions = first.positions
        expect([position.seq for position in positions], [1, 2], "positions of the first")
        expect(again, Duplicate(b"{}", positions), "the same in one batch")
        expect(clash, Conflict("c1"), "another body in one batch")
        expect(await store.commit([ask(), other]), [again, clash], "both in another batch")
        expect(await store.answer(key), (first.answers[0], positions), "the answer that is kept")
        stranger = AnswerKey("other tenant", "ann", "c1")
        expect(await store.answer(stranger), None, "the same id of another tenant")
        expect(await logged(store, ANN), ["a", "b"], "what was logged")
        replaced = Answer(key, b"d", subject.now, b'{"done":true}')
        guard = Answer(AnswerKey("tenant", "ann", "c2"), b"g", subject.now)
        await store.commit([Unit(answers=(guard, replaced))])
        expect(await store.answer(key), (replaced, ()), "an answer that is not the unit's first")


async def _what_was_accepted_is_answered_once(subject: Subject) -> None:
    key = AnswerKey("tenant", "ann", "c1")
    accepted = Answer(key, b"d", START, status="accepted")
    done, failed = Answer(key, b"d", START + 1, b"{}"), Answer(key, b"d", START + 1, b"{}", "error")
    async with subject.opened() as store:
        await store.commit([Unit(answers=(accepted,))])
        expect(await store.answer(key), (accepted, ()), "what was accepted")
        again = Unit(entries(ANN, "x"), (accepted,))
        other = Unit(entries(ANN, "x"), (Answer(key, b"e", START, b"{}"),))
        outcomes = await store.commit([again, other])
        expect(
            outcomes, [Duplicate(None, (), "accepted"), Conflict("c1")], "what comes again, and another body"
        )
        answer = Unit(entries(ANN, "a"), (done,))
        first, second, late = await store.commit([answer, Unit(answers=(done,)), Unit(answers=(failed,))])
        expect(first, APPLIED, "its answer")
        expect([second, late], [Duplicate(b"{}", answer.positions)] * 2, "what comes after its answer")
        expect(await store.commit([again]), [second], "what comes again after its answer")
        expect(await store.answer(key), (done, answer.positions), "the answer that is kept")
        expect(await logged(store, ANN), ["a"], "what was logged")
        refused = AnswerKey("tenant", "ann", "c2")
        both = attrs.evolve(accepted, key=refused), attrs.evolve(failed, key=refused)
        for answer_ in both:
            expect(await store.commit([Unit(answers=(answer_,))]), [APPLIED], "what ends it")
        expect(await store.commit([Unit(answers=both[:1])]), [Duplicate(b"{}", (), "error")], "an error")


async def _answers_and_event_ids_last_for_the_window(subject: Subject) -> None:
    async with subject.opened() as store:
        key = AnswerKey("tenant", "ann", "c1")

        def ask() -> Unit:
            return Unit(entries(ANN, "a"), (Answer(key, b"d", subject.now),))

        def name() -> Unit:
            return Unit((named(BEN, "e1", "x"),))

        await store.commit([ask(), name()])
        subject.now += ANSWER_WINDOW - 1
        repeated, known = await store.commit([ask(), name()])
        confirm(isinstance(repeated, Duplicate), "a repeat within the window is a duplicate")
        expect(known, Applied(repeats=(0,)), "the outcome of a known entry")
        await store.retain({}, now=subject.now)
        confirm(await store.answer(key), "an answer is kept throughout the window")
        subject.now += 1
        expect(await store.answer(key), None, "an answer beyond the window")
        unknown = name()
        expect(await store.commit([ask(), unknown]), [APPLIED] * 2, "repeats beyond the window")
        expect(await logged(store, BEN), ["x", "x"], "an entry's id beyond the window")
        expect(seqs(unknown), [2], "its new seq")
        subject.now += ANSWER_WINDOW
        await store.retain({}, now=subject.now)
        subject.now = START
        expect(await store.answer(key), None, "an answer that was cleared away")


async def _events_with_an_id_are_appended_once(subject: Subject) -> None:
    async with subject.opened() as store:
        first = Unit((named(ANN, "e1"), *entries(ANN, "plain"), named(ANN, "e1")))
        expect(await store.commit([first]), [Applied(repeats=(2,))], "a repeat within one unit")
        expect(seqs(first), [1, 2, 1], "seqs within one unit")
        again, elsewhere = Unit((named(ANN, "e2"), named(ANN, "e1"))), Unit((named(BEN, "e1"),))
        outcomes = await store.commit([again, elsewhere])
        expect(outcomes, [Applied(repeats=(1,)), APPLIED], "a repeat, and the same id in another stream")
        expect(seqs(again, elsewhere), [3, 1, 1], "their seqs")
        expect(again.positions[1], first.positions[0], "the first one's position")
        expect(await logged(store, ANN), ["e1", "plain", "e2"], "what was logged")
        clash = Unit((named(ANN, "e3", "x"), named(ANN, "e3", "y")))
        expect(await store.commit([clash]), [Conflict("e3")], "in one unit")
        expect(await logged(store, ANN), ["e1", "plain", "e2"], "after a conflict with itself")


async def _runs_are_kept_until_they_end(subject: Subject) -> None:
    async with subject.opened() as store:
        first = RunRecord("r1", "tenant", "ann", "agent", START, "thread")
        second = RunRecord("r2", "tenant", "ben", "agent", START + 1)
        await store.commit([Unit(runs_started=(first, second))])
        expect(await store.runs(), [first, second], "the runs under way")
        await store.commit([Unit(runs_ended=("r1", "unknown"))])
        expect(await store.runs(), [second], "the runs under way after one ended")


async def _streams_are_trimmed_from_the_front(subject: Subject) -> None:
    wide = Retention(events=1000, bytes=1 << 30, age=1e9)
    async with subject.opened() as store:
        bodies = [f"{number:04}" for number in range(1, 301)]
        for index in range(0, 300, 30):
            await store.commit(
                [unit(TEAM, *bodies[index : index + 30], ts=START + index), unit(BEN, "x" * 99)]
            )
        expect((await store.retain({TEAM: wide, ALL: wide}, now=START)).oldest, {}, "a trim under the limits")
        tight = Retention(events=290, bytes=1 << 30, age=1e9)
        expect((await store.retain({TEAM: tight}, now=START)).oldest, {TEAM: 11}, "by count")
        tight = Retention(events=1000, bytes=4 * 257, age=1e9)
        expect((await store.retain({TEAM: tight}, now=START)).oldest, {TEAM: 44}, "by bytes")
        tight = Retention(events=1000, bytes=1 << 30, age=10.0)
        expect((await store.retain({TEAM: tight}, now=START + 190)).oldest, {TEAM: 181}, "by age")
        expect(await logged(store, TEAM), bodies[180:], "what is left")
        page = await store.read(TEAM, 3, upto=300, max_events=2, max_bytes=1 << 20)
        expect([entry.seq for entry in page], [181, 182], "a read that begins before the oldest")
        least = Retention(events=1, bytes=1024, age=1e9)
        big = "x" * 2000
        await store.commit([unit(TEAM, big, ts=START + 300)])
        expect((await store.retain({TEAM: least}, now=START)).oldest, {TEAM: 301}, "down to the newest")
        expect(await logged(store, TEAM), [big], "the newest, which only goes by age")
        expect((await store.retain({TEAM: tight}, now=START + 1e6)).oldest, {TEAM: 302}, "all of it by age")
        expect(await store.read(TEAM, 0, upto=301, max_events=9, max_bytes=99), [], "a read of nothing")
        await store.commit([unit(TEAM, "new", ts=START + 1e6)])
        expect(await logged(store, TEAM), ["new"], "what comes after")
        expect((await store.load(TEAM)).head, 302, "the head after it")
        expect(len(await logged(store, BEN)), 10, "another stream")


async def _streams_are_listed_in_pages(subject: Subject) -> None:
    async with subject.opened() as store:
        keys = sorted([ALL, *(StreamKey("user", f"t{number % 3}", f"u{number}") for number in range(9))])
        for key in keys:
            await store.load(key)
        found: list[StreamKey] = []
        while page := await store.keys(after=found[-1] if found else None, limit=4):
            confirm(len(page) <= 4, "a page keeps to its limit")
            found += page
        expect(found, keys, "the streams")


async def _a_cancelled_commit_is_whole_or_absent(subject: Subject) -> None:
    async with subject.opened() as store:
        for ticks in range(6):
            key = StreamKey("user", "tenant", f"cancelled after {ticks}")
            both = Unit((*entries(key, "a", "b"), *entries(ALL, key.name)))
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.commit, [both])
                    for _ in range(ticks):
                        await trio.lowlevel.cancel_shielded_checkpoint()
                    scope.cancel()
            found = await logged(store, key)
            confirm(found in ([], ["a", "b"]), f"{found} is whole or absent after {ticks} ticks")
            everywhere = key.name in await logged(store, ALL)
            expect(everywhere, bool(found), f"whether both streams agree after {ticks} ticks")


async def _commits_and_reads_do_not_disturb_each_other(subject: Subject) -> None:
    async with subject.opened() as store:
        writers, rounds = 10, 8
        done = 0

        async def write(name: int) -> None:
            nonlocal done
            for turn in range(rounds):
                await store.commit([unit(ALL, f"{name}.{turn}.0", f"{name}.{turn}.1")])
            done += 1

        async def read() -> None:
            seen: list[str] = []
            while done < writers:
                found = await logged(store, ALL)
                expect(found[: len(seen)], seen, "what was read before")
                seen = found

        async with trio.open_nursery() as nursery:
            for name in range(writers):
                nursery.start_soon(write, name)
            nursery.start_soon(read)
        found = await logged(store, ALL)
        expect(len(found), 2 * writers * rounds, "events of all writers")
        for first, second in zip(found[::2], found[1::2], strict=True):
            expect((first[-2:], second), (".0", first[:-1] + "1"), "neighbours of one unit")
        for name in range(writers):
            turns = [body for body in found if body.startswith(f"{name}.")]
            expect(turns, sorted(turns), f"the order of writer {name}")


async def _a_closed_store_says_so(subject: Subject) -> None:
    async with subject.opened() as store:
        await store.aclose()
        try:
            await store.commit([unit(ANN, "a")])
        except StoreFailed:
            return
        raise AssertionError("a closed store took a commit")


async def _what_was_committed_is_there_after_a_restart(subject: Subject) -> None:
    key = AnswerKey("tenant", "ann", "c1")
    ask = Unit((named(ANN, "e1"), *entries(ANN, "b", "c")), (Answer(key, b"d", START, b"{}"),))
    run = RunRecord("r1", "tenant", "ann", "agent", START)
    accepted = Answer(AnswerKey("tenant", "ann", "c2"), b"d", START, status="accepted")
    revoked = UserRevocation("tenant", "ann", START)
    async with subject.opened() as store:
        await store.commit([ask, Unit(runs_started=(run,)), Unit(answers=(accepted,))])
        await store.commit([Unit(snapshots=(NewSnapshot(ANN, 3, {}),)), Unit(revocations=(revoked,))])
        await store.retain({ANN: Retention(events=2)}, now=START)
        before = await store.load(ANN)
        empty = await store.load(BEN)
        lineage = store.lineage
    async with subject.opened() as store:
        expect(store.lineage, (*lineage, store.generation), "the lineage")
        expect(await store.load(ANN), before, "the stream")
        expect((await store.load(BEN)).incarnation, empty.incarnation, "a stream without events")
        expect(await logged(store, ANN), ["b", "c"], "its events")
        expect(await store.runs(), [run], "the runs")
        expect(await store.revocations(), [revoked], "what was revoked")
        repeated = Unit((named(ANN, "e1"),))
        outcomes = await store.commit([Unit(answers=ask.answers), repeated])
        expect(outcomes[0], Duplicate(b"{}", ask.positions), "a repeated command")
        expect(await store.answer(accepted.key), (accepted, ()), "a command that was accepted")
        expect(repeated.positions, ask.positions[:1], "a repeated entry")
        await store.commit([unit(ANN, "d")])
        marks = (await store.load(ANN)).marks
        expect(marks, ((lineage[-1], 1), (store.generation, 4)), "who wrote which seqs first")


_CHECKS: Final = (
    _appends_are_contiguous_and_kept_in_order,
    _a_stream_has_its_identity_before_its_first_event,
    _reads_come_in_pages,
    _a_unit_takes_effect_whole_or_not_at_all,
    _answers_are_given_once,
    _what_was_accepted_is_answered_once,
    _answers_and_event_ids_last_for_the_window,
    _events_with_an_id_are_appended_once,
    _runs_are_kept_until_they_end,
    _streams_are_trimmed_from_the_front,
    _streams_are_listed_in_pages,
    _a_cancelled_commit_is_whole_or_absent,
    _commits_and_reads_do_not_disturb_each_other,
    _a_closed_store_says_so,
    *SNAPSHOT_CHECKS,
    *REVOKING_CHECKS,
)
_DURABLE: Final = (
    _what_was_committed_is_there_after_a_restart,
    *SNAPSHOT_CHECKS_DURABLE,
    *REVOKING_CHECKS_DURABLE,
)
