"""Fault S7: an old backup is restored and written on, while clients hold positions of the future it lost.

::

    the log       1 2 3 4 5 6 7 8 9     `lost n`
    its backup    1 2 3 4 5             made after 5
    restored      1 2 3 4 5 6 7 …       `other n`: other events under seqs that clients hold already
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import apsw
import pytest
import trio
from serving import Stop, serve_until

from wsrecover import connect
from wsrecover.client import Changed, Event, Position
from wsrecover.testing import LocalServer, local_server

BACKED_UP: Final = 5
HEAD: Final = 9

Verdict: TypeAlias = dict[str, Any]
"""What `welcome` says of the user stream."""


async def publish(local: LocalServer, text: str, first: int, last: int) -> Position:
    """Log the events `first` to `last`, which say `text`; the position of the last one."""
    for n in range(first, last + 1):
        position = await local.server.publish("acme", "ada", "noted", {"text": f"{text} {n}"})
        assert position.seq == n
    return position


async def resume(local: LocalServer, position: Position) -> tuple[Verdict, list[str]]:
    """What a client that comes from `position` is told, and the texts of all that it is sent."""
    async with local.peer(resume={"user": [position.epoch, position.seq]}, **{"from": "start"}) as peer:
        welcome, *frames = await peer.until("live")
    verdict: Verdict = welcome["streams"]["user"]
    return verdict, [frame["data"]["text"] for frame in frames if frame["op"] == "event"]


def texts(kind: str, first: int, last: int) -> list[str]:
    return [f"{kind} {n}" for n in range(first, last + 1)]


KEPT: Final = texts("kept", 1, BACKED_UP)

Loss: TypeAlias = tuple[Path, Position, Position]
"""The restored file, and the positions that clients held at the backup and at the head that it lost."""


async def lose_after_a_copy_of_the_stopped_server(folder: Path) -> Loss:
    """Stopped, copied, started again: what was lost is of a later opening than the backup."""
    live, backup = folder / "live.db", folder / "backup.db"
    async with local_server(store=f"sqlite:{live}") as local:
        at_backup = await publish(local, "kept", 1, BACKED_UP)
    shutil.copy(live, backup)
    async with local_server(store=f"sqlite:{live}") as local:
        at_head = await publish(local, "lost", BACKED_UP + 1, HEAD)
    return backup, at_backup, at_head


async def lose_after_a_copy_of_the_running_server(folder: Path) -> Loss:
    """Copied while it served: backup and lost future are of one opening, and only the seq tells."""
    live, backup = folder / "live.db", folder / "backup.db"
    async with local_server(store=f"sqlite:{live}") as local:
        at_backup = await publish(local, "kept", 1, BACKED_UP)
        await trio.to_thread.run_sync(copy_under_way, live, backup)
        at_head = await publish(local, "lost", BACKED_UP + 1, HEAD)
    return backup, at_backup, at_head


def copy_under_way(live: Path, backup: Path) -> None:
    """SQLite's own online backup, as an operator makes it."""
    source = apsw.Connection(str(live), flags=apsw.SQLITE_OPEN_READONLY)
    target = apsw.Connection(str(backup))
    with target.backup("main", source, "main") as copy:
        copy.step()
    target.close()
    source.close()


@pytest.mark.parametrize(
    ("lose", "at_once"),
    [
        (lose_after_a_copy_of_the_stopped_server, "epoch_changed"),
        (lose_after_a_copy_of_the_running_server, "ahead"),
    ],
)
async def test_fault_s7_a_position_of_the_lost_future_is_never_taken_for_one_of_the_restored_log(
    tmp_path: Path, lose: Callable[[Path], Awaitable[Loss]], at_once: str
) -> None:
    backup, at_backup, at_head = await lose(tmp_path)
    store = f"sqlite:{backup}"
    lost = [Position(at_head.epoch, seq) for seq in range(BACKED_UP + 1, HEAD + 1)]
    async with local_server(store=store) as local:
        for position in lost:
            verdict, given = await resume(local, position)
            assert (verdict["resumed"], verdict["reason"], verdict["from"]) == (False, at_once, 1)
            assert given == KEPT
        # Up to the lost head, at it, and past it: the same seqs are other events now.
        for head in range(BACKED_UP + 1, HEAD + 3):
            await publish(local, "other", head, head)
            written = texts("other", BACKED_UP + 1, head)
            for position in lost:
                verdict, given = await resume(local, position)
                assert (verdict["resumed"], verdict["reason"]) == (False, "epoch_changed")
                assert given == KEPT + written
            verdict, given = await resume(local, at_backup)
            assert verdict["resumed"], "what this client holds is true of the restored log"
            assert given == written
    async with local_server(store=store) as local:
        for position in lost:
            verdict, _ = await resume(local, position)
            assert (verdict["resumed"], verdict["reason"]) == (False, "epoch_changed"), "nor after a restart"


@pytest.mark.parametrize("head", [BACKED_UP, HEAD + 1])
async def test_fault_s7_a_client_that_stays_tells_its_app_that_another_history_goes_on(
    tmp_path: Path, nursery: trio.Nursery, head: int
) -> None:
    live, backup = tmp_path / "live.db", tmp_path / "backup.db"
    async with local_server(store=f"sqlite:{live}") as local:
        await publish(local, "kept", 1, BACKED_UP)
    shutil.copy(live, backup)
    stop = Stop()
    local = await nursery.start(serve_until, stop, None, f"sqlite:{live}")
    port = local.server.addresses[0][1]
    with trio.fail_after(30):
        async with connect(local.url, token=local.token, from_="start", rng=lambda: 0.02) as session:
            await publish(local, "lost", BACKED_UP + 1, HEAD)
            before = [await anext(session) for _ in range(HEAD)]
            lost = session.received["user"]
            await stop()
            if head > BACKED_UP:  # Written on where this client does not look, before it is back.
                async with local_server(store=f"sqlite:{backup}") as local:
                    await publish(local, "other", BACKED_UP + 1, head)
            await nursery.start(serve_until, Stop(), None, f"sqlite:{backup}", port)
            changed = await anext(session)
            after = [await anext(session) for _ in range(head)]
            assert session.received["user"].seq == head
    nursery.cancel_scope.cancel()
    assert [item.data["text"] for item in before if isinstance(item, Event)] == KEPT + texts("lost", 6, HEAD)
    assert isinstance(changed, Changed)
    assert (changed.reason, changed.held, changed.position.seq) == ("epoch_changed", lost, 0)
    assert [item.data["text"] for item in after if isinstance(item, Event)] == KEPT + texts("other", 6, head)
