"""Memory: what an idle connection costs, and what a reader costs that takes nothing while much is sent.

What is told is the growth of the server process's resident memory after a full collection. What the kernel
holds in socket buffers is not in it and stands beside.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from _harness import (
    Figure,
    Remote,
    emit_rounds,
    event_data,
    options,
    rss,
    running_server,
    show,
    start_runs,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

from wsrecover import Limits, Tier

TARGET: Final = 20.0
STALLED: Final = 100
FLOOD: Final = 5000
FLOOD_BYTES: Final = 1024
SETTLE: Final = 0.3
"""Seconds for tasks that end and messages under way."""


def connect(remote: Remote, fleet: Fleet, users: int, per_user: int, prefix: str) -> None:
    """Connections that are idle from `live` on."""
    for number in range(users):
        user = f"{prefix}{number}"
        known = token(user)
        fleet.connect(remote.address, [upgrade(known, f"client{place}") for place in range(per_user)])
    fleet.read(LIVE, users * per_user)
    time.sleep(SETTLE)


def idle(remote: Remote, connections: int, per_user: int, figure: Figure) -> None:
    """The KiB of each of `connections` more."""
    with_others = Fleet()
    before = remote.call(rss)
    prefix = f"idle{per_user}.{len(figure.values)}."
    connect(remote, with_others, connections // per_user, per_user, prefix)
    figure.values.append((remote.call(rss) - before) / connections / 1024)


def kernel_tcp() -> int:
    """Bytes in TCP buffers, of the whole machine."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * 4096
    raise RuntimeError("/proc/net/sockstat tells nothing of TCP")


def stalled(remote: Remote, resident: Figure, kernel: Figure) -> None:
    """One user's readers that all stop while its agent goes on."""
    readers = Fleet()
    connect(remote, readers, 1, STALLED, "stalled")
    data = event_data(FLOOD_BYTES)
    remote.start(start_runs, "passive", ["stalled0"], {})
    readers.read(EVENT, STALLED)
    remote.finish()
    remote.start(emit_rounds, 10, data, 100)
    readers.read(EVENT, 1000 * STALLED)
    remote.finish()
    time.sleep(SETTLE)
    before, buffers = remote.call(rss), kernel_tcp()
    remote.call(emit_rounds, FLOOD // 100, data, 100)
    resident.values.append((remote.call(rss) - before) / STALLED / 1024)
    kernel.values.append((kernel_tcp() - buffers) / STALLED / 1024)
    readers.read(EVENT, FLOOD * STALLED)  # All of it comes nevertheless.
    readers.close()


def main() -> None:
    given = options(__doc__ or "", connections=1000, repeat=3)
    tier = Tier(connections=max(STALLED, 10))
    one, ten = Figure("idle connection, one per session"), Figure("idle connection, ten per session")
    resident, kernel = Figure("stalled reader, resident"), Figure("stalled reader, in the kernel's buffers")
    with running_server(given, tier) as remote:
        idle(remote, 100, 1, Figure("warm-up"))
        for _ in range(given.repeat):
            idle(remote, given.connections, 1, one)
            idle(remote, given.connections, 10, ten)
        stalled(remote, resident, kernel)
    limits = Limits()
    page = (limits.page_bytes + limits.part_bytes) // 1024
    show(
        f"memory, {given.connections} connections a round, {given.store}",
        "KiB each",
        [one, ten, resident, kernel],
        [
            f"target: one per session ≤ {TARGET:.0f} KiB; a stalled reader ≤ a page and a write, {page} KiB",
            f"stalled: {STALLED} readers of one user read nothing of {FLOOD} events of {FLOOD_BYTES} bytes",
            "the kernel's buffers are those of both ends, and most of it the client's",
        ],
    )


if __name__ == "__main__":
    main()
