"""The journal, over memory and over SQLite, which fails as users make it fail: its file is moved away."""

import contextlib
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from wsrecover.errors import RunBroken, StoreClosed, StoreFailed, StoreUnavailable
from wsrecover.streams.journal import Journal
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.registry import Streams
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import (
    Applied,
    Conflict,
    Entry,
    NewSnapshot,
    Outcome,
    Retention,
    Store,
    StoredContext,
    StreamKey,
    Unit,
)
from wsrecover.streams.stream import Stream

ANN = StreamKey("user", "tenant", "ann")
BEN = StreamKey("user", "tenant", "ben")
TEAM = StreamKey("tenant", "tenant")


class Watched(Entry):
    """One that can be referred to weakly, which costs memory in a tail."""


class HeldStore(MemoryStore):
    """A memory store whose commits wait while it is held, and fail while it is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False
        self.batches: list[int] = []
        self.open = trio.Event()
        self.open.set()

    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        await self.open.wait()
        if self.gone:
            raise StoreUnavailable("gone")
        self.batches.append(len(units))
        return await super().commit(units)


class Bench:
    """A store that can be taken away and given back, with a journal over it."""

    def __init__(self, store: Store, take: Callable[[], object], give: Callable[[], object]) -> None:
        self.store = store
        self.take = take
        self.give = give
        self.streams = Streams(store)

    def journal(self, **limits: int) -> Journal:
        bounds = {"max_units": 1000, "max_bytes": 1 << 20, **limits}
        return Journal(
            self.store, self.streams, **bounds, retention=lambda _: Retention(), clock=lambda: 1000.0
        )


@pytest.fixture(params=["memory", "sqlite"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "memory":
        held = HeldStore()
        yield Bench(held, lambda: setattr(held, "gone", True), lambda: setattr(held, "gone", False))
        return
    path, away = tmp_path / "store.db", tmp_path / "away.db"
    store = await open_sqlite(path)
    yield Bench(store, lambda: path.rename(away), lambda: away.rename(path))
    await store.aclose()


def unit(key: StreamKey, *bodies: str) -> Unit:
    return Unit(tuple(Entry(key, body.encode(), 1000.0) for body in bodies))


@contextlib.asynccontextmanager
async def running(journal: Journal) -> AsyncIterator[None]:
    with trio.fail_after(300):  # Some wait for the disk hundreds of times.
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            yield
            await journal.aclose()


async def logged(store: Store, key: StreamKey) -> list[str]:
    head = (await store.load(key)).head
    entries = await store.read(key, 0, upto=head, max_events=10_000, max_bytes=1 << 30)
    return [entry.body.decode() for entry in entries]


class Recorder:
    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []

    def flush(self) -> None:
        pass

    def deliver(self, stream: Stream, entries: Sequence[Entry]) -> bool:
        self.batches.append([entry.body for entry in entries])
        return True

    def lag(self, stream: Stream, after: int) -> None:
        raise AssertionError(f"lags after {after}")


class Broken:
    """A follower that fails, and fails again when it is told to lag."""

    def flush(self) -> None:
        pass

    def deliver(self, stream: Stream, entries: Sequence[Entry]) -> bool:
        raise ArithmeticError("deliver")

    def lag(self, stream: Stream, after: int) -> None:
        raise ArithmeticError("lag")


class TestCommitting:
    async def test_what_was_written_is_logged_in_order_and_then_delivered(self, bench: Bench) -> None:
        journal = bench.journal()
        stream = await bench.streams.open(ANN)
        follower = Recorder()
        stream.join(follower, 0)
        async with running(journal):
            writer = journal.writer()
            for number in range(50):
                await writer.write(unit(ANN, f"{number}"))
            await writer.flush()
            assert [body for batch in follower.batches for body in batch] == [b"%d" % n for n in range(50)]
        assert await logged(bench.store, ANN) == [str(number) for number in range(50)]

    async def test_a_tick_of_many_authors_is_one_commit_and_one_batch_per_stream(self, bench: Bench) -> None:
        journal = bench.journal()
        stream = await bench.streams.open(ANN)
        follower = Recorder()
        stream.join(follower, 0)
        before = bench.store.statistics().commits
        async with running(journal):
            writers = [journal.writer() for _ in range(20)]
            for writer in writers:
                writer.write_nowait(unit(ANN, "a"))
                writer.write_nowait(unit(BEN, "b"))
            await writers[-1].flush()
            assert [len(batch) for batch in follower.batches] == [20]
            assert bench.store.statistics().commits == before + 1
            assert journal.statistics().committed == 40
            assert journal.statistics().units == 0

    async def test_commit_gives_the_outcome(self, bench: Bench) -> None:
        journal = bench.journal()
        named = Entry(ANN, b"a", 1000.0, id="e1", digest=b"1")
        clash = Entry(ANN, b"b", 1000.0, id="e1", digest=b"2")
        async with running(journal):
            assert await journal.commit(Unit((named,))) == Applied()
            assert named.seq == 1
            assert await journal.writer().commit(Unit((clash,))) == Conflict("e1")

    async def test_a_repeated_event_is_delivered_once(self, bench: Bench) -> None:
        journal = bench.journal()
        stream = await bench.streams.open(ANN)
        follower = Recorder()
        stream.join(follower, 0)
        async with running(journal):
            first, again = (Entry(ANN, b"a", 1000.0, id="e1") for _ in range(2))
            await journal.commit(Unit((first,)))
            outcome = await journal.commit(Unit((Entry(ANN, b"b", 1000.0), again, Entry(ANN, b"c", 1000.0))))
        assert outcome == Applied(repeats=(1,))
        assert again.position == first.position
        assert follower.batches == [[b"a"], [b"b", b"c"]]

    async def test_closing_commits_what_was_accepted_and_takes_no_more(self, bench: Bench) -> None:
        journal = bench.journal()
        writer = journal.writer()
        async with running(journal):
            for number in range(10):
                writer.write_nowait(unit(ANN, f"{number}"))
        assert len(await logged(bench.store, ANN)) == 10
        with pytest.raises(RunBroken):
            await writer.write(unit(ANN, "late"))
        with pytest.raises(StoreFailed):
            await journal.commit(unit(ANN, "late"))


class TestFailures:
    async def test_a_failed_commit_breaks_its_writers_and_leaves_no_hole(self, bench: Bench) -> None:
        journal = bench.journal()
        async with running(journal):
            writer, other = journal.writer(), journal.writer()
            await writer.commit(unit(ANN, "kept"))
            bench.take()
            writer.write_nowait(unit(ANN, "lost"))
            with pytest.raises(RunBroken) as caught:
                await writer.flush()
            assert isinstance(caught.value.__cause__, StoreUnavailable)
            bench.give()
            with pytest.raises(RunBroken):
                writer.write_nowait(unit(ANN, "refused"))
            with pytest.raises(RunBroken):
                await writer.commit(unit(ANN, "refused"))
            await other.commit(unit(ANN, "after"))
        assert await logged(bench.store, ANN) == ["kept", "after"]
        assert bench.store.statistics().healthy

    async def test_an_unacknowledged_command_took_no_effect(self, bench: Bench) -> None:
        journal = bench.journal()
        async with running(journal):
            bench.take()
            with pytest.raises(StoreUnavailable):
                await journal.commit(unit(ANN, "a"))
            bench.give()
            await journal.commit(unit(ANN, "b"))
        assert await logged(bench.store, ANN) == ["b"]

    async def test_the_last_unit_of_a_broken_writer_is_retried_until_the_store_heals(
        self, bench: Bench
    ) -> None:
        journal = bench.journal()
        async with running(journal):
            writer = journal.writer()
            bench.take()
            writer.write_nowait(unit(ANN, "lost"))
            with pytest.raises(RunBroken):
                await writer.flush()

            def delays() -> object:
                yield 0.0
                yield 0.0
                bench.give()
                yield 0.0

            outcome = await writer.finish(unit(ANN, "the end"), retry=delays())  # type: ignore[arg-type]
            assert isinstance(outcome, Applied)
        assert await logged(bench.store, ANN) == ["the end"]

    async def test_what_a_writer_queued_behind_a_failing_batch_is_refused(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal()
        async with running(journal):
            writer, other = journal.writer(), journal.writer()
            store.open = trio.Event()
            writer.write_nowait(unit(ANN, "lost"))
            await trio.testing.wait_all_tasks_blocked()
            writer.write_nowait(unit(ANN, "behind"))
            other.write_nowait(unit(ANN, "other"))
            store.gone = True
            held = store.open
            store.open = trio.Event()
            held.set()
            await trio.testing.wait_all_tasks_blocked()
            store.gone = False
            store.open.set()
            await other.flush()
            with pytest.raises(RunBroken):
                await writer.flush()
            assert journal.statistics().units == 0
        assert await logged(store, ANN) == ["other"]

    async def test_of_what_many_appended_only_that_of_broken_writers_is_refused(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal()
        async with running(journal):
            writer, other = journal.writer(), journal.writer()
            store.open = trio.Event()
            writer.append_nowait(Entry(ANN, b"lost", 1.0))
            await trio.testing.wait_all_tasks_blocked()
            for body in (b"1", b"2"):
                writer.append_nowait(Entry(ANN, b"behind", 1.0))
                other.append_nowait(Entry(ANN, body, 1.0))
            store.gone = True
            held = store.open
            store.open = trio.Event()
            held.set()
            await trio.testing.wait_all_tasks_blocked()
            store.gone = False
            store.open.set()
            await other.flush()
            with pytest.raises(RunBroken):
                await writer.flush()
            known = journal.statistics()
            assert (known.units, known.bytes, known.committed) == (0, 0, 2)
        assert await logged(store, ANN) == ["1", "2"]

    async def test_what_many_appended_fails_for_all_of_them(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal()
        async with running(journal):
            writers = [journal.writer() for _ in range(3)]
            store.gone = True
            for writer in writers:
                writer.append_nowait(Entry(ANN, b"lost", 1.0))
            for writer in writers:
                with pytest.raises(RunBroken):
                    await writer.flush()
            assert journal.statistics().units == 0

    async def test_what_is_appended_and_what_is_written_keep_their_order(self, bench: Bench) -> None:
        journal = bench.journal()
        async with running(journal):
            writer = journal.writer()
            for number in range(0, 9, 3):
                writer.append_nowait(Entry(ANN, b"%d" % number, 1.0))
                writer.append_nowait(Entry(ANN, b"%d" % (number + 1), 1.0))
                writer.write_nowait(unit(ANN, f"{number + 2}"))
            await writer.flush()
            assert journal.statistics().committed == 9
        assert await logged(bench.store, ANN) == [str(number) for number in range(9)]

    async def test_an_id_that_is_refused_takes_nothing_else_with_it(self, bench: Bench) -> None:
        journal = bench.journal()
        async with running(journal):
            writer = journal.writer()
            for body, digest in ((b"1", b"a"), (b"2", b"b")):
                writer.append_nowait(Entry(ANN, body, 1.0, id="same", digest=digest))
                writer.append_nowait(Entry(ANN, b"other", 1.0))
            await writer.flush()
        assert await logged(bench.store, ANN) == ["1", "other", "other"]

    @pytest.mark.interpreted
    async def test_a_settled_batch_is_not_held_by_those_who_wrote_it(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path / "store.db")
        journal = Bench(store, int, int).journal()
        async with running(journal):
            writers = [journal.writer() for _ in range(2)]
            entry = Watched(ANN, b"{}", 1.0)
            writers[0].append_nowait(entry)
            writers[1].append_nowait(Entry(ANN, b"{}", 1.0))
            await writers[1].flush()
            await store.load(BEN)  # By then the store's thread has let go of the commit before.
            gone = weakref.ref(entry)
            del entry
            gc.collect()
            assert gone() is None
        await store.aclose()

    async def test_who_waits_behind_a_refused_unit_gets_the_outcome(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal()
        outcomes: list[Outcome] = []

        async def commit() -> None:
            outcomes.append(await journal.commit(unit(ANN, "other")))

        async with running(journal), trio.open_nursery() as nursery:
            writer = journal.writer()
            store.open = trio.Event()
            writer.write_nowait(unit(ANN, "lost"))
            await trio.testing.wait_all_tasks_blocked()
            writer.write_nowait(unit(ANN, "behind"))
            nursery.start_soon(commit)
            await trio.testing.wait_all_tasks_blocked()
            store.gone = True
            held = store.open
            store.open = trio.Event()
            held.set()
            await trio.testing.wait_all_tasks_blocked()
            store.gone = False
            store.open.set()
        assert outcomes == [Applied()]
        assert await logged(store, ANN) == ["other"]

    async def test_a_follower_that_fails_and_fails_again_disturbs_neither_journal_nor_others(
        self, bench: Bench
    ) -> None:
        journal = bench.journal()
        stream = await bench.streams.open(ANN)
        recorder = Recorder()
        for follower in (Broken(), recorder, Broken()):
            stream.join(follower, 0)
        async with running(journal):
            assert await journal.commit(unit(ANN, "a")) == Applied()
            assert await journal.commit(unit(ANN, "b")) == Applied()
        assert recorder.batches == [[b"a"], [b"b"]]
        assert stream.live == {recorder}

    @pytest.mark.interpreted
    async def test_what_was_committed_is_told_also_where_handing_it_on_fails(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = bench.journal()

        def fail(_: object) -> None:
            raise ArithmeticError("a bug")

        monkeypatch.setattr(bench.streams, "extend", fail)
        outcomes: list[Outcome] = []

        async def commit() -> None:
            outcomes.append(await journal.commit(unit(ANN, "a")))

        with trio.fail_after(20):
            async with trio.open_nursery() as authors:
                authors.start_soon(commit)
                with pytest.raises(ExceptionGroup) as caught:
                    await journal.run()
        assert caught.group_contains(ArithmeticError)
        assert outcomes == [Applied()]
        assert await logged(bench.store, ANN) == ["a"]
        with pytest.raises(StoreFailed):
            await journal.commit(unit(ANN, "b"))

    async def test_closing_a_journal_that_was_cancelled_does_not_wait(self, bench: Bench) -> None:
        journal = bench.journal()
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            await journal.aclose()

    async def test_when_the_journal_is_cancelled_nobody_waits_for_it(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal(max_units=2)
        failed: list[type[Exception]] = []

        async def commit() -> None:
            try:
                await journal.commit(unit(ANN, "a"))
            except StoreFailed as error:
                failed.append(type(error))

        store.open = trio.Event()
        async with trio.open_nursery() as authors:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(journal.run)
                    authors.start_soon(commit)
                    await trio.testing.wait_all_tasks_blocked()
                    authors.start_soon(commit)
                    authors.start_soon(commit)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
        assert Counter(failed) == {StoreFailed: 1, StoreClosed: 2}, "one was on its way to the disk"


class TestBounds:
    async def test_writers_wait_for_room_in_count_and_bytes(self) -> None:
        for limits, body in (({"max_units": 4}, "a"), ({"max_bytes": 4000}, "a" * 1000)):
            store = HeldStore()
            journal = Bench(store, int, int).journal(**limits)
            store.open = trio.Event()
            async with running(journal), trio.open_nursery() as nursery:
                writer = journal.writer()
                for _ in range(4):
                    writer.write_nowait(unit(ANN, body))
                with pytest.raises(trio.WouldBlock):
                    writer.write_nowait(unit(ANN, body))
                nursery.start_soon(writer.write, unit(ANN, body))
                await trio.testing.wait_all_tasks_blocked()
                assert journal.statistics().units == 4
                assert journal.statistics().waiting == 1
                store.open.set()
            assert len(await logged(store, ANN)) == 5

    async def test_a_unit_above_the_limit_in_bytes_goes_alone(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal(max_bytes=10)
        async with running(journal):
            writer = journal.writer()
            await writer.write(unit(ANN, "a" * 100))
            await writer.write(unit(ANN, "b"))
            await writer.flush()
        assert store.batches == [1, 1]

    async def test_room_is_given_in_the_order_of_asking(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal(max_bytes=1000)
        store.open = trio.Event()
        async with running(journal), trio.open_nursery() as nursery:
            writer = journal.writer()
            writer.write_nowait(unit(ANN, "a" * 900))
            for body in ("b" * 1000, "c", "d"):
                nursery.start_soon(journal.writer().write, unit(ANN, body))
                await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.WouldBlock):
                writer.write_nowait(unit(ANN, "e"))
            store.open.set()
        # The big one was not overtaken; "c" and "d" were admitted together, and tasks run in any order.
        first, second, *others = [body[0] for body in await logged(store, ANN)]
        assert (first, second, sorted(others)) == ("a", "b", ["c", "d"])


class TestCancellation:
    async def test_cancelled_while_it_waits_for_room_nothing_happens(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal(max_units=1)
        store.open = trio.Event()
        async with running(journal):
            writer = journal.writer()
            writer.write_nowait(unit(ANN, "a"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.write, unit(ANN, "never"))
                nursery.start_soon(journal.commit, unit(ANN, "never"))
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            store.open.set()
            await writer.commit(unit(ANN, "b"))
        assert await logged(store, ANN) == ["a", "b"]

    async def test_cancelled_once_queued_it_takes_effect_and_nothing_is_held(self) -> None:
        store = HeldStore()
        journal = Bench(store, int, int).journal()
        store.open = trio.Event()
        async with running(journal):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(journal.commit, unit(ANN, "a"))
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            store.open.set()
        assert await logged(store, ANN) == ["a"]
        assert journal.statistics().units == 0


def covering(journal: Journal, store: Store, asked: list[list[StreamKey]]) -> None:
    """Have the journal's snapshots made, empty ones; `asked` gets the keys of each time."""

    async def snapshots(keys: Sequence[StreamKey], stored: bool) -> None:
        if not stored:
            return
        asked.append(list(keys))
        for key in keys:
            head = (await store.load(key)).head
            await journal.commit(Unit(snapshots=(NewSnapshot(key, head, {}),)))

    journal.make_snapshots_with(snapshots)


class TestRetention:
    async def test_a_stream_that_grew_is_trimmed_and_the_stream_in_memory_knows(self, bench: Bench) -> None:
        limit = Retention(events=32, bytes=1 << 20, age=1e6)
        journal = Journal(
            bench.store,
            bench.streams,
            max_units=100,
            max_bytes=1 << 20,
            retention=lambda _: limit,
            clock=lambda: 1000.0,
        )
        covering(journal, bench.store, [])
        stream = await bench.streams.open(ANN)
        async with running(journal):
            writer = journal.writer()
            for number in range(100):
                await writer.commit(unit(ANN, f"{number}"))
            while stream.oldest < 67:
                await trio.lowlevel.checkpoint()
        assert stream.head + 1 - stream.oldest <= 34

    @pytest.mark.parametrize(("size", "kept"), [(200, 1 << 15), (20_000, 1 << 18)])
    async def test_a_stream_that_grew_in_bytes_is_trimmed(self, bench: Bench, size: int, kept: int) -> None:
        limit = Retention(events=10_000, bytes=kept, age=1e6)
        journal = Journal(
            bench.store,
            bench.streams,
            max_units=100,
            max_bytes=1 << 20,
            retention=lambda _: limit,
            clock=lambda: 1000.0,
        )
        stream = await bench.streams.open(TEAM)
        async with running(journal):
            writer = journal.writer()
            for _ in range(2 * kept // size):
                await writer.commit(unit(TEAM, "x" * size))
                while (stream.head + 1 - stream.oldest) * size > kept * 17 // 16 + size:
                    await trio.lowlevel.checkpoint()
        assert stream.oldest > 1

    async def test_events_go_by_age_without_any_traffic(self, autojump_clock: trio.testing.MockClock) -> None:
        store = MemoryStore(clock=lambda: 0.0)
        streams = Streams(store)
        now = 1000.0
        journal = Journal(
            store,
            streams,
            max_units=100,
            max_bytes=1 << 20,
            retention=lambda _: Retention(age=60.0),
            clock=lambda: now,
            sweep_interval=30.0,
        )
        covering(journal, store, asked := [])
        await store.commit([unit(ANN, "old")])
        stream = await streams.open(ANN)
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            await trio.sleep(31)
            assert stream.oldest == 1
            assert asked == []  # Nothing is to be trimmed, and nothing to be stored for it.
            now += 61
            await trio.sleep(31)
            assert stream.oldest == 2
            assert asked == [[ANN]]
            await journal.aclose()

    async def test_a_snapshot_is_asked_for_where_a_context_has_become_too_old_for_its_user(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        now = 1000.0
        store = MemoryStore(clock=lambda: now)
        journal = Journal(
            store,
            Streams(store),
            max_units=100,
            max_bytes=1 << 20,
            retention=lambda _: Retention(age=1e9),
            context_age=lambda key: {ANN: 60.0, BEN: 90.0}[key],
            clock=lambda: now,
            sweep_interval=30.0,
        )
        covering(journal, store, asked := [])
        context = {"t": StoredContext(b"{}", now)}
        await store.commit([Unit(snapshots=(NewSnapshot(key, 0, context),)) for key in (ANN, BEN)])
        await store.commit([unit(TEAM, "a")])
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            await trio.sleep(1)
            for seconds, keys in ((60, []), (1, [[ANN]]), (29, [[ANN]]), (1, [[ANN, BEN]])):
                now += seconds
                asked.clear()
                await trio.sleep(30)
                assert asked == keys
            await journal.aclose()

    @pytest.mark.parametrize("bench", ["memory"], indirect=True)  # No thread: idle is known.
    async def test_a_users_stream_gets_a_snapshot_each_so_many_events(self, bench: Bench) -> None:
        journal = bench.journal(snapshot_events=10)
        covering(journal, bench.store, asked := [])
        async with running(journal):
            writer = journal.writer()
            for number in range(35):
                await writer.commit(unit(ANN, f"{number}"))
                await writer.commit(unit(TEAM, f"{number}"))
                await trio.testing.wait_all_tasks_blocked()
        assert asked == [[ANN]] * 3
        assert (await bench.store.snapshot(ANN)).seq == 30

    @pytest.mark.parametrize("bench", ["memory"], indirect=True)  # No thread: idle is known.
    async def test_what_grows_is_reduced_often_and_stored_now_and_then(self, bench: Bench) -> None:
        journal = bench.journal(snapshot_events=600)
        asked: list[tuple[int, bool]] = []

        async def snapshots(keys: Sequence[StreamKey], store: bool) -> None:
            assert keys == [ANN]
            asked.append((journal.statistics().committed * 50, store))

        journal.make_snapshots_with(snapshots)
        async with running(journal):
            writer = journal.writer()
            for _ in range(28):
                await writer.commit(unit(ANN, *["x"] * 50))
                await trio.testing.wait_all_tasks_blocked()
        stored = {600, 1200}
        assert asked == [(events, events in stored) for events in range(200, 1401, 200)]

    async def test_a_log_without_snapshots_is_kept(self, bench: Bench) -> None:
        limit = Retention(events=32, bytes=1 << 20, age=1e6)
        journal = Journal(
            bench.store,
            bench.streams,
            max_units=100,
            max_bytes=1 << 20,
            retention=lambda _: limit,
            clock=lambda: 1000.0,
        )
        async with running(journal):
            writer = journal.writer()
            for number in range(100):
                await writer.commit(unit(ANN, f"{number}"))
                await writer.commit(unit(TEAM, f"{number}"))
            while (await bench.store.load(TEAM)).oldest < 67:
                await trio.lowlevel.checkpoint()
        assert (await bench.store.load(ANN)).oldest == 1


async def test_a_journal_that_is_closed_makes_no_more_snapshots() -> None:
    store = HeldStore()
    bench = Bench(store, lambda: None, lambda: None)
    journal = Journal(
        store,
        bench.streams,
        max_units=1000,
        max_bytes=1 << 20,
        retention=lambda _: Retention(events=16),
        clock=lambda: 1000.0,
    )
    asked, closing, refused = trio.Event(), trio.Event(), []

    async def snapshots(keys: Sequence[StreamKey], store: bool) -> None:
        asked.set()
        await closing.wait()
        try:
            await journal.commit(unit(ANN, "snapshot"))
        except StoreFailed as error:
            refused.append(error)

    journal.make_snapshots_with(snapshots)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(journal.run)
            await journal.commit(unit(ANN, "1"))
            await asked.wait()
            store.open = trio.Event()
            nursery.start_soon(journal.commit, unit(ANN, "2"))
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(journal.aclose)
            await trio.testing.wait_all_tasks_blocked()
            closing.set()
            await trio.testing.wait_all_tasks_blocked()
            store.open.set()
    assert not refused
