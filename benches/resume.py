"""Coming back: 1,000 clients connect at once, and resume at once with 20 missed events of 300 bytes each.

What is told is the server's CPU per client, from the TCP accept until all that it missed and `live` was read.
Their users' streams are in memory, as after an outage of seconds; "a user's first" opens session and stream.
A token that was verified before is remembered; "a new token" each is what a refresh storm costs.

Beside it stands the floor, a bare `send()` of one event's frame: it tells how fast the machine is meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from _floor import Floor
from _harness import (
    ENVELOPE_BYTES,
    Figure,
    Remote,
    cpu,
    emit_rounds,
    event_data,
    options,
    progress,
    running_server,
    show,
    start_runs,
    token,
)
from _load import EVENT, LIVE, Fleet, upgrade

EVENT_BYTES: Final = 300
MISSED: Final = 20
TARGET: Final = 250.0

_POSITION: Final = re.compile(rb'"epoch":"([^"]+)","head":(\d+)')

Positions = dict[str, tuple[str, int]]


class Bench:
    """Clients of a server, and where each of them is."""

    def __init__(self, remote: Remote, clients: int) -> None:
        self.remote = remote
        self.users = [f"user{number}" for number in range(clients)]
        self.clients = Fleet()

    def connect(self, requests: Sequence[bytes], events: int) -> float:
        """Connect them all and read `events` each; microseconds of CPU per client."""
        before = self.remote.call(cpu)
        self.clients.connect(self.remote.address, requests)
        self.clients.read_whole(LIVE)
        used = float(self.remote.call(cpu) - before) / len(requests) / 1000
        seen = sum(text.count(EVENT) for text in self.clients.received.values())
        if seen != events * len(requests):
            raise RuntimeError(f"{seen} events came, not {events} for each of {len(requests)} clients")
        return used

    def positions(self) -> Positions:
        """Where each user's stream was when its client was welcomed."""
        found = {}
        for user, text in zip(self.users, self.clients.received.values(), strict=True):
            match = _POSITION.search(text)
            if match is None:
                raise RuntimeError(f"no welcome in {text!r}")
            found[user] = (match[1].decode(), int(match[2]))
        return found

    def leave(self) -> None:
        """All clients vanish."""
        self.clients.close()
        self.remote.wait_connections(0)

    def plain(self, tokens: Callable[[str], str]) -> tuple[float, Positions]:
        """All connect and miss nothing."""
        used = self.connect([upgrade(tokens(user), f"client-{user}") for user in self.users], 0)
        at = self.positions()
        self.leave()
        return used, at

    def resume(self, at: Positions, tokens: Callable[[str], str]) -> float:
        """All come back after `MISSED` events each."""
        self.remote.call(emit_rounds, 1, event_data(EVENT_BYTES), MISSED)
        requests = [upgrade(tokens(user), f"client-{user}", {"user": at[user]}) for user in self.users]
        used = self.connect(requests, MISSED)
        self.leave()
        return used

    def strangers(self, round_number: int) -> float:
        """As many users that the server has never seen."""
        users = [f"stranger{round_number}.{number}" for number in range(len(self.users))]
        used = self.connect([upgrade(token(user), "client") for user in users], 0)
        self.leave()
        return used


def main() -> None:
    given = options(__doc__ or "", clients=1000, repeat=5)
    floor = Figure("floor: bare send() of one event")
    first, plain = Figure("connect, a user's first"), Figure("connect")
    resumed, renewed = Figure(f"resume, {MISSED} missed"), Figure(f"resume, {MISSED} missed, a new token")
    with running_server(given) as remote, progress("resume", given.repeat) as advance:
        bench = Bench(remote, given.clients)
        bare = Floor(remote, given.clients)
        known = {user: token(user) for user in bench.users}
        bench.plain(known.__getitem__)
        remote.call(start_runs, "passive", bench.users, {})
        for number in range(given.repeat):
            floor.values.append(bare.measure(bytes(EVENT_BYTES + ENVELOPE_BYTES)))
            used, at = bench.plain(known.__getitem__)
            plain.values.append(used)
            resumed.values.append(bench.resume(at, known.__getitem__))
            _, at = bench.plain(known.__getitem__)
            renewed.values.append(bench.resume(at, partial(token, token_id=f"id{number}")))
            first.values.append(bench.strangers(number))
            advance()
    show(
        f"resume, {given.clients} clients at once, events of {EVENT_BYTES} bytes, {given.store}",
        "µs CPU per client",
        [floor, plain, resumed, renewed, first],
        [f"target: resume ≤ {TARGET:.0f} µs in a quiet run"],
    )


if __name__ == "__main__":
    main()
