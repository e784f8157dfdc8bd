from collections.abc import Callable
from pathlib import Path

from wsrecover.streams.memory import open_memory
from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import Store
from wsrecover.testing.stores import check_store


async def test_memory_keeps_the_store_contract() -> None:
    async def open_store(name: str, clock: Callable[[], float]) -> Store:
        return await open_memory(clock=clock)

    await check_store(open_store, durable=False)


async def test_sqlite_keeps_the_store_contract(tmp_path: Path) -> None:
    async def open_store(name: str, clock: Callable[[], float]) -> Store:
        return await open_sqlite(tmp_path / f"{name}.db", clock=clock)

    await check_store(open_store, durable=True)
