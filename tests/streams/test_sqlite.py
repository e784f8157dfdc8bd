"""What only SQLite can do or suffer; what all stores have in common is in test_store_contract.py."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import apsw
import pytest
import trio
import trio.testing

import wsrecover
from wsrecover.errors import (
    StoreClosed,
    StoreCorrupt,
    StoreFailed,
    StoreLocked,
    StoreMismatch,
    StoreUnavailable,
)
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.resume import make_epoch
from wsrecover.streams import sqlite_log
from wsrecover.streams.registry import Streams
from wsrecover.streams.sqlite import SQLiteStore, open_sqlite
from wsrecover.streams.sqlite_read import PAGE
from wsrecover.streams.store import (
    ANSWER_WINDOW,
    Answer,
    AnswerKey,
    Applied,
    Entry,
    NewSnapshot,
    Outcome,
    Retention,
    Store,
    StoredSnapshot,
    StreamKey,
    Unit,
    UserRevocation,
)

ANN = StreamKey("user", "tenant", "ann")
BEN = StreamKey("user", "tenant", "ben")

KNOWN = ("answer", "event_id")


def unit(key: StreamKey, *bodies: str) -> Unit:
    return Unit(tuple(Entry(key, body.encode(), 1000.0) for body in bodies))


async def logged(store: Store, key: StreamKey) -> list[str]:
    state = await store.load(key)
    entries = await store.read(key, 0, upto=state.head, max_events=100_000, max_bytes=1 << 30)
    assert [entry.seq for entry in entries] == list(range(state.oldest, state.head + 1))
    return [entry.body.decode() for entry in entries]


def child(script: str, *arguments: object) -> "subprocess.Popen[str]":
    """Another process with its own store."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(wsrecover.__file__).parents[1])},
    )


class TestOpening:
    async def test_the_file_is_its_owners_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        store = await open_sqlite(path)
        await store.commit([unit(ANN, "a")])
        files = [tmp_path / name for name in ("store.db", "store.db-wal", "store.db-shm", "store.db-lock")]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        await store.aclose()

    async def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="nowhere does not exist"):
            await open_sqlite(tmp_path / "nowhere" / "store.db")

    async def test_another_schema_is_refused_and_both_versions_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        await (await open_sqlite(path)).aclose()
        with apsw.Connection(str(path)) as other:
            other.pragma("user_version", 7)
        other.close()
        with pytest.raises(
            StoreMismatch, match=r"with schema 7; this version knows 0x77735276 with schema 4"
        ):
            await open_sqlite(path)

    async def test_a_file_of_an_earlier_schema_is_brought_up_to_date(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        answer = Answer(AnswerKey("acme", "ann", "c1"), b"d", 1000.0, b"{}")
        store = await open_sqlite(path, clock=lambda: 1000.0)
        await store.commit([Unit(answers=(answer,))])
        before = await store.answer(answer.key)
        await store.aclose()
        with apsw.Connection(str(path)) as older:
            older.execute(
                "ALTER TABLE answer DROP COLUMN status;"
                " ALTER TABLE stream DROP COLUMN snapshot; DROP TABLE context; DROP TABLE revocation"
            )
            older.pragma("user_version", 1)
        older.close()
        for _ in range(2):
            store = await open_sqlite(path, clock=lambda: 1000.0)
            assert await store.answer(answer.key) == before == (answer, ())
            assert await store.snapshot(ANN) == StoredSnapshot(0, {})
            assert await store.revocations() == []
            await store.aclose()

    async def test_a_file_of_another_program_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        other = apsw.Connection(str(path))
        other.execute("CREATE TABLE theirs(x); INSERT INTO theirs VALUES (1)")
        other.close()
        before = path.read_bytes()
        with pytest.raises(StoreMismatch):
            await open_sqlite(path)
        assert path.read_bytes() == before

    async def test_what_is_no_database_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        path.write_bytes(b"not a database, but long enough to look like one" * 100)
        with pytest.raises(StoreCorrupt, match=r"store\.db"):
            await open_sqlite(path)

    async def test_a_second_opening_is_refused_until_the_first_is_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        store = await open_sqlite(path)
        with pytest.raises(StoreLocked, match=r"store\.db"):
            await open_sqlite(path)
        await store.aclose()
        await (await open_sqlite(path)).aclose()

    async def test_the_lock_holds_by_whatever_link_the_file_is_reached(self, tmp_path: Path) -> None:
        path, link = tmp_path / "store.db", tmp_path / "link.db"
        store = await open_sqlite(path)
        link.symlink_to(path)
        with pytest.raises(StoreLocked, match=r"store\.db"):
            await open_sqlite(link)
        await store.aclose()
        store = await open_sqlite(link)
        with pytest.raises(StoreLocked):
            await open_sqlite(path)
        await store.aclose()

    async def test_links_in_a_circle_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        path.symlink_to(path)
        with pytest.raises(StoreUnavailable, match=r"store\.db"):
            await open_sqlite(path)

    async def test_who_lost_the_lock_writes_no_more(self, tmp_path: Path) -> None:
        path, lock = tmp_path / "store.db", tmp_path / "store.db-lock"
        store = await open_sqlite(path)
        await store.commit([unit(ANN, "a")])
        lock.unlink()
        other = await open_sqlite(path)  # The second process that was let in.
        with pytest.raises(StoreUnavailable, match="another file"):
            await store.commit([unit(ANN, "lost")])
        await store.aclose()
        await other.commit([unit(ANN, "b")])
        assert await logged(other, ANN) == ["a", "b"]
        await other.aclose()

    async def test_who_lost_all_but_the_file_does_not_overwrite_another(self, tmp_path: Path) -> None:
        """Its write-ahead log and its lock taken for leftovers, and removed: closing would write over b."""
        path = tmp_path / "store.db"
        store = await open_sqlite(path)
        await store.commit([unit(ANN, "a")])
        for suffix in ("-wal", "-shm", "-lock"):
            path.with_name(f"store.db{suffix}").unlink()
        script = """
            import sys, trio
            from wsrecover.streams.sqlite import open_sqlite
            from wsrecover.streams.store import Entry, StreamKey, Unit

            async def main():
                store = await open_sqlite(sys.argv[1])
                await store.commit([Unit((Entry(StreamKey("user", "tenant", "ann"), b"b", 1000.0),))])
                await store.aclose()

            trio.run(main)
        """
        with child(script, path) as other:
            assert other.wait() == 0
        with pytest.raises(StoreUnavailable):
            await store.commit([unit(ANN, "lost")])
        await store.aclose()
        again = await open_sqlite(path)
        assert await logged(again, ANN) == ["b"]
        await again.aclose()

    async def test_threads_that_the_program_never_gets_back_hold_up_neither_opening_nor_closing(
        self, tmp_path: Path
    ) -> None:
        limiter = trio.to_thread.current_default_thread_limiter()
        stuck = [object() for _ in range(int(limiter.available_tokens))]
        for one in stuck:
            limiter.acquire_on_behalf_of_nowait(one)
        try:
            with trio.fail_after(20):
                store = await open_sqlite(tmp_path / "store.db")
                await store.commit([unit(ANN, "a")])
                await store.aclose()
        finally:
            for one in stuck:
                limiter.release_on_behalf_of(one)

    async def test_the_lock_holds_across_processes_and_ends_with_kill_9(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        script = """
            import sys, trio
            from wsrecover.streams.sqlite import open_sqlite

            async def main():
                await open_sqlite(sys.argv[1])
                print("open", flush=True)
                await trio.sleep_forever()

            trio.run(main)
        """
        with child(script, path) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "open\n"
            with pytest.raises(StoreLocked):
                await open_sqlite(path)
            other.kill()
        await (await open_sqlite(path)).aclose()


WRITER = """
import sys, trio
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import Entry, StreamKey, Unit

async def main():
    store = await open_sqlite(sys.argv[1])
    keys = [StreamKey("user", "tenant", name) for name in ("ann", "ben")]
    head = (await store.load(keys[0])).head
    while True:
        bodies = [b"%d" % (head + n) for n in (1, 2, 3)]
        await store.commit([Unit(tuple(Entry(key, body, 1000.0) for key in keys for body in bodies))])
        head += 3
        print(head, flush=True)

trio.run(main)
"""


class TestCrashes:
    async def test_kill_9_in_mid_commit_loses_nothing_that_was_acknowledged(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        for rounds in (5, 17, 40):
            with child(WRITER, path) as writer:
                assert writer.stdout is not None
                for _ in range(rounds):
                    writer.stdout.readline()
                writer.send_signal(signal.SIGKILL)
                acknowledged = [int(line) for line in writer.stdout.read().split()]
            store = await open_sqlite(path)
            ann, ben = await logged(store, ANN), await logged(store, BEN)
            assert ann == ben == [str(number) for number in range(1, len(ann) + 1)]
            assert len(ann) % 3 == 0
            assert len(ann) >= max(acknowledged, default=3 * rounds)
            await store.aclose()

    @pytest.mark.interpreted
    async def test_a_trimmed_stream_keeps_its_head_over_a_crash(self, tmp_path: Path) -> None:
        script = """
            import os, sys, trio
            from wsrecover.streams import sqlite_log
            from wsrecover.streams.sqlite import open_sqlite
            from wsrecover.streams.store import Entry, NewSnapshot, Retention, StreamKey, Unit

            sqlite_log.HEADS_EVERY = 2000
            sweep, left = sqlite_log.SQLiteLog.sweep, []

            def noted(log):
                more = sweep(log)
                if not more:
                    left.append(log._db.execute("SELECT count(*) FROM event").get)
                return more

            sqlite_log.SQLiteLog.sweep = noted

            async def main():
                store = await open_sqlite(sys.argv[1])
                ann = StreamKey("user", "tenant", "ann")
                for count in (2500, 500):  # The head is written with the first, not with the second.
                    await store.commit([Unit(tuple(Entry(ann, b"x", 1000.0) for _ in range(count)))])
                await store.commit([Unit(snapshots=(NewSnapshot(ann, 3000, {}),))])
                left[:] = [3000]
                await store.retain({ann: Retention(age=1.0)}, now=5000.0)
                with trio.fail_after(30):
                    while left[-1] == 3000:  # In another thread.
                        await trio.sleep(0.001)
                assert left[-1] == 500, left
                os.kill(os.getpid(), 9)

            trio.run(main)
        """
        with child(script, tmp_path / "store.db") as writer:
            assert writer.wait() == -signal.SIGKILL
        store = await open_sqlite(tmp_path / "store.db")
        state = await store.load(ANN)
        assert (state.head, state.oldest) == (3000, 3001)
        await store.aclose()

    async def test_a_failed_write_stops_the_store_until_it_is_opened_again(self, tmp_path: Path) -> None:
        """The file may not grow (RLIMIT_FSIZE), which SQLite sees as EFBIG: an I/O error, not a full disk."""
        script = """
            import resource, signal, sys, trio
            from wsrecover.errors import StoreFailed
            from wsrecover.streams.sqlite import open_sqlite
            from wsrecover.streams.store import Entry, StreamKey, Unit

            async def main():
                store = await open_sqlite(sys.argv[1])
                ann = StreamKey("user", "tenant", "ann")
                await store.commit([Unit((Entry(ann, b"first", 1.0),))])
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
                for limit in (256 * 1024, soft):
                    try:
                        await store.commit([Unit((Entry(ann, b"x" * 1_000_000, 1.0),))])
                    except StoreFailed:
                        print("failed", store.statistics().healthy, flush=True)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                print([entry.body for entry in await store.read(ann, 0, upto=9, max_events=9, max_bytes=99)])

            trio.run(main)
        """
        with child(script, tmp_path / "store.db") as writer:
            assert writer.stdout is not None
            assert writer.stdout.read().splitlines() == ["failed False", "failed False", "[b'first']"]
        store = await open_sqlite(tmp_path / "store.db")
        assert await logged(store, ANN) == ["first"]
        await store.commit([unit(ANN, "second")])
        await store.aclose()


class TestTroubleThatHeals:
    async def test_a_full_disk_refuses_commits_serves_reads_and_heals(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path / "store.db")
        await store.commit([unit(ANN, "a")])
        database = store._log._db
        pages = database.pragma("page_count")
        database.pragma("max_page_count", pages + 2)
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="full"):
                await store.commit([unit(ANN, "lost" * 10_000), unit(BEN, "lost")])
            assert not store.statistics().healthy
            assert await logged(store, ANN) == ["a"]
        database.pragma("max_page_count", 1 << 30)
        await store.commit([unit(ANN, "b"), unit(BEN, "c")])
        assert (await logged(store, ANN), await logged(store, BEN)) == (["a", "b"], ["c"])
        assert (await store.load(BEN)).marks == ((store.generation, 1),)
        assert store.statistics().healthy
        await store.aclose()

    async def test_a_file_that_was_moved_away_refuses_commits_until_it_is_back(self, tmp_path: Path) -> None:
        path, away = tmp_path / "store.db", tmp_path / "away.db"
        store = await open_sqlite(path)
        await store.commit([unit(ANN, "a")])
        path.rename(away)
        with pytest.raises(StoreUnavailable, match=r"store\.db"):
            await store.commit([unit(ANN, "lost")])
        path.write_bytes(b"")
        with pytest.raises(StoreUnavailable, match="another file"):
            await store.commit([unit(ANN, "lost")])
        away.rename(path)
        await store.commit([unit(ANN, "b")])
        await store.aclose()
        store = await open_sqlite(path)
        assert await logged(store, ANN) == ["a", "b"]
        await store.aclose()

    async def test_a_removed_write_ahead_log_takes_nothing_more_and_is_saved_by_closing(
        self, tmp_path: Path
    ) -> None:
        path, wal = tmp_path / "store.db", tmp_path / "store.db-wal"
        store = await open_sqlite(path)
        await store.commit([unit(ANN, "a")])
        wal.unlink()
        with pytest.raises(StoreUnavailable, match=r"store\.db-wal: No such file"):
            await store.commit([unit(ANN, "lost")])
        assert not store.statistics().healthy
        await store.aclose()
        store = await open_sqlite(path)
        assert await logged(store, ANN) == ["a"]
        await store.aclose()

    async def test_a_write_that_never_ends_fails_the_store(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path / "store.db", timeout=0.2)
        await store.load(ANN)
        blocker = apsw.Connection(str(tmp_path / "store.db"))
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailed, match="longer than"):
            await store.commit([unit(ANN, "a")])
        blocker.close()
        store._timeout = 300.0
        with pytest.raises(StoreClosed, match="longer than"):
            await store.commit([unit(ANN, "b")])
        await store.aclose()

    async def test_a_commit_that_was_handed_over_gives_its_outcome_though_cancelled(
        self, tmp_path: Path
    ) -> None:
        store = await open_sqlite(tmp_path / "store.db")
        blocker = apsw.Connection(str(tmp_path / "store.db"))
        blocker.execute("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = []

        async def cancel() -> None:
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            blocker.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            outcomes = await store.commit([unit(ANN, "a")])
        assert [type(outcome) for outcome in outcomes] == [Applied]
        assert await logged(store, ANN) == ["a"]
        await store.aclose()

    @pytest.mark.interpreted
    @pytest.mark.parametrize("thread", ["\ud800", 7])
    async def test_what_sqlite_cannot_hold_is_refused_and_harms_nobody_later(
        self, tmp_path: Path, thread: str
    ) -> None:
        store = await open_sqlite(tmp_path / "store.db")
        event = Entry(ANN, b"{}", 1000.0, thread, digest="not bytes", id="e1")  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable):
            await store.commit([unit(ANN, "a"), Unit((event,))])
        await store.commit([unit(ANN, "b")])
        assert await logged(store, ANN) == ["b"]
        await store.aclose()


class TestCorruption:
    @pytest.mark.parametrize("column", ["body = zeroblob(length(body))", "seq = seq + 1", "prev = row"])
    async def test_what_is_not_what_was_written_is_refused_in_words(
        self, tmp_path: Path, column: str
    ) -> None:
        path = tmp_path / "store.db"
        store = await open_sqlite(path)
        await store.commit([unit(ANN, *map(str, range(200)))])
        await store.aclose()
        with apsw.Connection(str(path)) as other:
            other.execute(f"UPDATE event SET {column} WHERE row = 100")
        other.close()
        store = await open_sqlite(path)
        with pytest.raises(StoreCorrupt, match="stream"):
            await logged(store, ANN)
        page = await store.read(ANN, 150, upto=200, max_events=100, max_bytes=999)
        assert len(page) == 50
        await store.aclose()

    async def test_rows_that_do_not_follow_each_other_are_refused_at_the_opening(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "store.db"
        with child(WRITER, path) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            writer.kill()
        with apsw.Connection(str(path)) as other:
            other.execute("DELETE FROM event WHERE row = 2")
        other.close()
        with pytest.raises(StoreCorrupt, match="does not follow"):
            await open_sqlite(path)


async def test_positions_of_a_lost_future_are_refused_at_once_and_for_ever(tmp_path: Path) -> None:
    """A backup is restored and written on: the history that clients saw and the one in the file part ways."""
    path, backup = tmp_path / "store.db", tmp_path / "backup.db"
    store = await open_sqlite(path)
    await store.commit([unit(ANN, *"abc")])
    lost_epoch = make_epoch((await store.load(ANN)).incarnation, store.generation)
    await store.aclose()
    shutil.copy(path, backup)

    store = await open_sqlite(path)
    await store.commit([unit(ANN, *"def")])
    lost = make_epoch((await store.load(ANN)).incarnation, store.generation)
    await store.aclose()
    shutil.copy(backup, path)

    store = await open_sqlite(path)
    stream = await Streams(store).open(ANN)
    assert stream.judge(Position(lost_epoch, 3), "start").resumed
    assert not stream.judge(Position(lost, 5), "start").resumed
    other = unit(ANN, *"uvwxyz")
    await store.commit([other])
    stream.extend(list(other.entries))
    assert stream.head == 9
    assert stream.judge(Position(lost, 5), "start").reason == "epoch_changed"
    assert stream.judge(Position(lost_epoch, 3), "start").resumed
    assert not stream.judge(Position(lost_epoch, 4), "start").resumed
    await store.aclose()


class TestShape:
    async def test_no_statement_of_the_hot_path_scans_or_sorts_a_table(self, tmp_path: Path) -> None:
        """Streams that grow in step stay cheap: rows go to the table's end, a read seeks by rowid."""
        store = await open_sqlite(tmp_path / "store.db")
        values = dict.fromkeys(("stream", "last", "head", "newest", "first", "max_bytes", "always"), 1)
        plan = [row[3] for row in store._reader.execute("EXPLAIN QUERY PLAN " + PAGE, values)]
        touching = [step for step in plan if "event" in step or "landmark" in step]
        assert touching
        assert all("USING INTEGER PRIMARY KEY" in step or "INDEX landmark" in step for step in touching), plan
        indexes = [
            name
            for (name,) in store._reader.execute(
                "SELECT sql FROM sqlite_schema WHERE tbl_name='event' AND type='index'"
            )
        ]
        assert indexes == ["CREATE INDEX landmark ON event(stream, seq) WHERE (seq + stream) % 64 = 0"]
        await store.aclose()

    async def test_answers_and_ids_beyond_the_window_do_not_pile_up_though_no_stream_grows(
        self, tmp_path: Path
    ) -> None:
        now = 1.8e9
        store = await open_sqlite(tmp_path / "store.db", clock=lambda: now, synchronous="OFF")

        def one(name: str) -> Unit:
            answers = (Answer(AnswerKey("tenant", "ann", name), b"d", now, b"{}"),)
            return Unit((Entry(ANN, b"{}", now, id=name, digest=b"d"),), answers)

        kept = []
        for second in range(0, 4 * int(ANSWER_WINDOW), 30):
            await store.commit([one(f"{second}.{number}") for number in range(100)])
            now += 30
            kept.append([store._reader.execute(f"SELECT count(*) FROM {table}").get for table in KNOWN])
        assert max(map(max, kept)) <= 100 * (ANSWER_WINDOW / 30 + 3)
        now += ANSWER_WINDOW
        for _ in range(10):
            await store.retain({}, now=now)
        assert [store._reader.execute(f"SELECT count(*) FROM {table}").get for table in KNOWN] == [0, 0]
        await store.aclose()

    async def test_reads_that_nobody_waits_for_any_more_are_not_made(self, tmp_path: Path) -> None:
        store = await open_sqlite(tmp_path / "store.db")
        await store.commit([unit(ANN, "a")])
        made: list[str] = []
        begun, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            begun.set()
            go_on.wait(20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store._reads.call, hold)
            await trio.to_thread.run_sync(begun.wait)
            with trio.move_on_after(0):
                await store._reads.call(lambda: made.append("abandoned"))
            nursery.start_soon(store._reads.call, lambda: made.append("wanted"))
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert made == ["wanted"]
        await store.aclose()

    @pytest.mark.interpreted
    async def test_heads_are_written_now_and_then_and_rows_that_were_trimmed_go(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_log, "HEADS_EVERY", 2000)
        store = await open_sqlite(tmp_path / "store.db")
        for _ in range(30):
            await store.commit([unit(ANN, *"x" * 100), unit(BEN, *"y" * 100)])
            head = (await store.load(ANN)).head
            await store.commit([Unit(snapshots=(NewSnapshot(ANN, head, {}),))])
            await store.retain({ANN: Retention(events=50)}, now=1000.0)
        await swept(store, below=4100)
        assert (len(await logged(store, ANN)), len(await logged(store, BEN))) == (50, 3000)
        await store.aclose()
        store = await open_sqlite(tmp_path / "store.db")
        assert (len(await logged(store, ANN)), len(await logged(store, BEN))) == (50, 3000)
        await store.commit([unit(ANN, "z")])
        assert (await store.load(ANN)).head == 3001
        await store.aclose()

    @pytest.mark.interpreted
    async def test_written_heads_are_the_tips_whatever_failed_or_was_erased(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_log, "HEADS_EVERY", 7)
        monkeypatch.setattr(sqlite_log, "_MAX_HEADS", 3)
        chance = random.Random(7)
        keys = [StreamKey("user", "tenant", name) for name in "abcde"]
        model: dict[StreamKey, list[str]] = {key: [] for key in keys}
        store = await open_sqlite(tmp_path / "store.db")
        log, written = store._log, 0
        for step in range(300):
            chosen = [(chance.choice(keys), f"{step}.{n}") for n in range(chance.randrange(1, 4))]
            units = [unit(key, body) for key, body in chosen]
            match chance.choice(["commit"] * 6 + ["fail", "erase"]):
                case "commit":
                    await store.commit(units)
                    for key, body in chosen:
                        model[key].append(body)
                case "fail":
                    bad = Entry(chance.choice(keys), b"{}", 1000.0, "\ud800")
                    with pytest.raises(StoreUnavailable):
                        await store.commit([*units, Unit((bad,))])
                case "erase":
                    await store.erase(UserRevocation("tenant", chosen[0][0].name, 1000.0))
                    model[chosen[0][0]] = []
            assert sorted(head.key for head in log._dirty) == sorted(
                head.key for head in log.heads.values() if head.dirty
            )
            if log._as_of == log._row and log.heads:
                written += 1
                told = dict(await store._reads.call(lambda: [*store._reader.execute(TIPS)]))
                for head in log.heads.values():
                    assert told[head.id] == ",".join(map(str, head.tip))
        assert written > 20
        for key in keys:
            assert await logged(store, key) == model[key]
        await store.aclose()


TIPS = "SELECT id, head || ',' || last_row || ',' || total FROM stream"


async def swept(store: SQLiteStore, *, below: int) -> None:
    """Wait until the table has fewer than `below` rows."""
    with trio.fail_after(20):
        while True:
            rows = await store._reads.call(lambda: store._reader.execute("SELECT count(*) FROM event").get)
            if rows < below:
                return
