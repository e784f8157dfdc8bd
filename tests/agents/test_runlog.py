"""The way of a run's text to the journal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from agents_world import KEY, NOW, Gated
from trio.testing import wait_all_tasks_blocked

from wsrecover.agents.runlog import RunLog
from wsrecover.streams.store import Entry


async def test_text_that_comes_while_other_text_waits_for_room_goes_out_by_itself(
    small_world: Callable[..., Any], gated: Gated, nursery: trio.Nursery
) -> None:
    world = await small_world(max_units=1)
    log = RunLog(world.place, "r1", "t1")
    log.nursery = nursery
    gated.hold()
    world.place.journal.writer().append_nowait(Entry(KEY, b"{}", NOW))
    await log.add_text("m1", 0, "one ", 4)
    await wait_all_tasks_blocked()
    await log.add_text("m1", 4, "two", 3)
    gated.open.set()
    await wait_all_tasks_blocked()
    entries = await gated.read(KEY, 1, upto=9, max_events=9, max_bytes=9999)
    assert [b"one " in entries[0].body, b"two" in entries[-1].body] == [True, True]
