"""What erasing a user means for the SQLite file, for who reads it meanwhile, and where it is interrupted."""

from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from wsrecover.errors import StoreFailed, StoreUnavailable
from wsrecover.streams import sqlite_erase
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.sqlite_read import read_page
from wsrecover.streams.store import Entry, Retention, StreamKey, Unit, UserRevocation

ANN = StreamKey("user", "tenant", "ann")
BEN = StreamKey("user", "tenant", "ben")
REVOKED = UserRevocation("tenant", "ann", 1.0)
CANARY = "canary of ann"


def unit(key: StreamKey, *bodies: str) -> Unit:
    return Unit(tuple(Entry(key, body.encode(), 1000.0) for body in bodies))


def traces(folder: Path) -> int:
    return sum(file.read_bytes().count(CANARY.encode()) for file in folder.iterdir())


def found(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What the file says, by a connection of its own: the store's belong to its threads."""
    reader = apsw.Connection(str(folder / "log.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return reader.execute(query).fetchall()
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("options", "synchronous"), [({}, 2), ({"synchronous": "NORMAL"}, 1)], ids=["FULL by default", "NORMAL"]
)
async def test_the_settings_of_the_connection_are_in_force(
    tmp_path: Path, options: dict[str, Any], synchronous: int
) -> None:
    store = await open_sqlite(tmp_path / "log.db", **options)
    db = store._log._db
    names = ("journal_mode", "synchronous", "wal_autocheckpoint", "page_size", "cell_size_check")
    assert [db.pragma(name) for name in names] == ["wal", synchronous, 2048, 8192, 1]
    await store.aclose()


async def test_what_another_process_still_reads_is_purged_later(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "log.db")
    await store.commit([unit(ANN, *[CANARY] * 100), unit(BEN, "x")])
    reader = apsw.Connection(str(tmp_path / "log.db"), flags=apsw.SQLITE_OPEN_READONLY)
    rows = reader.execute("SELECT * FROM event")
    assert next(rows)
    await store.erase(REVOKED)
    with pytest.raises(StoreUnavailable):
        await store.purge()
    assert traces(tmp_path)
    assert await store.commit([unit(BEN, "y")])  # Others do not suffer.
    rows.close()
    reader.close()
    await store.purge()
    assert traces(tmp_path) == 0
    await store.aclose()


async def test_an_erasing_that_was_cut_off_is_ended_by_the_next_opening(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "log.db")
    store._writes._idle = lambda: False  # Nothing is swept.
    for _ in range(20):
        await store.commit([unit(ANN, *[CANARY] * 100), unit(BEN, *["x"] * 100)])
    await store.erase(REVOKED)
    await store.aclose()
    assert traces(tmp_path)
    store = await open_sqlite(tmp_path / "log.db")
    await store.purge()
    assert traces(tmp_path) == 0
    assert (await store.load(BEN)).head == 2000
    assert store._log._physical == store._log._alive == 2000
    await store.aclose()
    store = await open_sqlite(tmp_path / "log.db")
    scopes = found(tmp_path, "SELECT scope FROM stream ORDER BY scope")
    assert scopes == [("user",)]
    await store.aclose()


async def test_what_retention_trimmed_before_is_purged_too(tmp_path: Path) -> None:
    team = StreamKey("tenant", "tenant")
    store = await open_sqlite(tmp_path / "log.db")
    for _ in range(100):
        await store.commit([unit(ANN, CANARY), unit(team, *"abcdefgh")])
    await store.retain({team: Retention(events=1)}, now=1000.0)
    await store.erase(REVOKED)
    await store.purge()
    assert traces(tmp_path) == 0
    rows = found(tmp_path, "SELECT stream, count(*) FROM event GROUP BY stream")
    assert len(rows) == 1
    await store.aclose()


async def test_who_reads_a_stream_while_it_is_erased_finds_it_empty(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "log.db")
    await store.commit([unit(ANN, "a", "b")])
    head = store._log.heads[ANN]
    await store.erase(REVOKED)
    await store.purge()
    await store.commit([unit(BEN, "x", "y")])
    assert read_page(store._reader, head, 0, upto=2, max_events=9, max_bytes=99) == []
    await store.aclose()


async def test_an_erasing_that_is_rolled_back_leaves_all_as_it_was(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "log.db")
    await store.commit([unit(ANN, "a", "b")])
    before = await store.load(ANN)
    log = store._log

    def erase_and_fail() -> None:
        log.erase(REVOKED)
        raise ValueError("the disk, say")

    with pytest.raises(StoreUnavailable):
        await store._writes.call(erase_and_fail)
    assert await store.load(ANN) == before
    await store.commit([unit(ANN, "c")])
    found = await store.read(ANN, 0, upto=3, max_events=9, max_bytes=99)
    assert [entry.body for entry in found] == [b"a", b"b", b"c"]
    await store.purge()
    await store.aclose()


async def test_commits_go_on_while_rows_are_purged(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "log.db")
    for _ in range(20):
        await store.commit([unit(ANN, *[CANARY] * 500), unit(BEN, *["x"] * 500)])
    await store.erase(REVOKED)
    done = False

    async def purge() -> None:
        nonlocal done
        await store.purge()
        done = True

    commits = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(purge)
        while not done:
            await store.commit([unit(BEN, "y")])
            commits += 1
    assert (await store.load(BEN)).head == 10_000 + commits
    assert traces(tmp_path) == 0
    await store.aclose()


async def test_a_file_that_is_too_large_to_be_written_anew_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_sqlite(tmp_path / "log.db")
    await store.commit([unit(ANN, CANARY), unit(BEN, *["x"] * 5_000)])
    monkeypatch.setattr(sqlite_erase, "VACUUM_SECONDS", -1.0)
    await store.erase(REVOKED)
    with pytest.raises(StoreUnavailable, match="interrupt"):
        await store.purge()
    assert (await store.load(ANN)).head == 0
    await store.commit([unit(BEN, "y")])
    monkeypatch.setattr(sqlite_erase, "VACUUM_SECONDS", 10.0)
    await store.purge()
    assert traces(tmp_path) == 0
    assert (await store.load(BEN)).head == 5_001
    await store.aclose()


async def test_who_waits_for_the_purge_of_a_store_that_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_sqlite(tmp_path / "log.db")
    await store.commit([unit(ANN, CANARY)])
    store._writes._idle = lambda: False  # A sweep that takes long.
    await store.erase(REVOKED)

    def break_off(_: float) -> None:
        raise apsw.IOError("disk I/O error")

    monkeypatch.setattr(store._log.known, "forget_revocations", break_off)

    async def fail() -> None:
        await wait_all_tasks_blocked()
        await store.commit([unit(BEN, "x")])  # Behind the asking for the purge.
        with pytest.raises(StoreFailed):
            await store.forget_revocations(before=0.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        with trio.fail_after(10), pytest.raises(StoreFailed):
            await store.purge()
    await store.aclose()
