"""Room in the journal's queue: first come, first served."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from wsrecover.errors import StoreFailed
from wsrecover.streams.room import Room


async def test_nobody_passes_one_who_was_admitted_and_has_not_run_yet(nursery: trio.Nursery) -> None:
    for _ in range(20):
        room, order = Room(1, 1000), list[str]()

        async def enter(name: str, room: Room = room, order: list[str] = order) -> None:
            await room.take(1)
            order.append(name)
            room.give(1, 1)

        await room.take(1)
        nursery.start_soon(enter, "first")
        await wait_all_tasks_blocked()
        room.give(1, 1)
        nursery.start_soon(enter, "second")
        with pytest.raises(trio.WouldBlock):
            room.take_nowait(1)
        await wait_all_tasks_blocked()
        assert order == ["first", "second"]
        assert (room.units, room.bytes, room.waiting) == (0, 0, 0)


async def test_who_waited_behind_an_admitted_one_is_admitted_after_it(nursery: trio.Nursery) -> None:
    room, order = Room(2, 1000), list[int]()

    async def enter(number: int) -> None:
        await room.take(1)
        order.append(number)

    await room.take(1)
    await room.take(1)
    nursery.start_soon(enter, 1)
    await wait_all_tasks_blocked()
    room.give(2, 2)
    nursery.start_soon(enter, 2)
    await wait_all_tasks_blocked()
    assert order == [1, 2]


async def test_closing_it_again_before_those_who_wait_have_run_wakes_them_once() -> None:
    room, refused = Room(1, 1000), list[str]()

    async def enter() -> None:
        with pytest.raises(StoreFailed) as failure:
            await room.take(1)
        refused.append(str(failure.value))

    await room.take(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter)
        await wait_all_tasks_blocked()
        room.close(StoreFailed("first"))
        room.close(StoreFailed("second"))
    assert refused == ["first"]


def test_once_closed_it_admits_nobody_though_there_is_room() -> None:
    room = Room(1, 1000)
    room.close(StoreFailed("closed"))
    with pytest.raises(StoreFailed, match="closed"):
        room.take_nowait(1)
    assert room.units == 0


@pytest.mark.parametrize("enters", [True, False])
async def test_who_comes_is_let_in_without_more_ado_once_nobody_waits_or_enters(enters: bool) -> None:
    room, waiting = Room(1, 1000), trio.CancelScope()
    await room.take(1)

    async def enter() -> None:
        with waiting:
            await room.take(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter)
        await wait_all_tasks_blocked()
        assert room.limit == -1
        if enters:
            room.give(1, 1)
        else:
            waiting.cancel()
    assert (room.limit, room.units) == (1000, 1)
