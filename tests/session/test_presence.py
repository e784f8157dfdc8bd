"""Who is here, and who waits for somebody to come."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.session.presence import Member, Presence
from wsrecover.streams.stream import Stream


@attrs.define(eq=False)
class Connection:
    member: Member
    streams: Mapping[str, Stream]


async def test_who_waits_again_beside_another_whose_time_is_up_too_is_told(mock_clock: MockClock) -> None:
    presence, met = Presence(), list[int]()

    async def wait_twice(number: int) -> None:
        with trio.move_on_after(1):
            await presence.wait_arrival("acme", "ada")
        await presence.wait_arrival("acme", "ada")
        met.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait_twice, number)
        await wait_all_tasks_blocked()
        mock_clock.jump(2)
        await wait_all_tasks_blocked()
        presence.arrive(Connection(Member("acme", "ada", "tab"), {}))
        await wait_all_tasks_blocked()
        assert sorted(met) == [0, 1, 2]
        nursery.cancel_scope.cancel()
