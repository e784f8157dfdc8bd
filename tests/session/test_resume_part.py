"""An event that was cut off in mid-way goes on only where the bytes that the client holds are of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wsrecover.testing import LocalServer, local_server

SIZE = 100_000


async def answer(local: LocalServer, **hello: Any) -> tuple[bool, int]:
    """Whether the position is accepted, and at which offset the first part begins."""
    async with local.peer(**{"from": "start", **hello}) as peer:
        resumed = (await peer.frame())["streams"]["user"]["resumed"]
        return resumed, (await peer.until("part"))[-1]["offset"]


async def epoch(local: LocalServer) -> str:
    async with local.peer(**{"from": "start"}) as peer:
        return (await peer.frame())["streams"]["user"]["epoch"]


@pytest.mark.parametrize(
    ("resume", "held", "begin"),
    [(0, [1, 65_536], 65_536), (0, [2, 65_536], 0), (7, [1, 65_536], 0), (None, [1, 5], 0)],
)
async def test_it_goes_on_where_the_position_before_it_is_accepted(
    resume: int | None, held: list[int], begin: int
) -> None:
    async with local_server() as local:
        await local.server.publish("acme", "ada", "noted", {"pad": "x" * SIZE})
        position = {} if resume is None else {"resume": {"user": [await epoch(local), resume]}}
        assert await answer(local, **position, part={"user": held}) == (resume == 0, begin)


async def test_it_starts_over_after_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(store=store) as local:
        await local.server.publish("acme", "ada", "noted", {"pad": "x" * SIZE})
        before = await epoch(local)
    async with local_server(store=store) as local:
        answered = await answer(local, resume={"user": [before, 0]}, part={"user": [1, 65_536]})
    assert answered == (True, 0)
