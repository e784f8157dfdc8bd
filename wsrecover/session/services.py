"""What every session needs and none of them owns: the parts of the process, handed in by the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs

from wsrecover.access.addresses import Addresses
from wsrecover.access.authenticator import Authenticator
from wsrecover.access.revocations import Revocations
from wsrecover.agents.alarms import Alarms
from wsrecover.agents.app import App
from wsrecover.config import Config
from wsrecover.protocol.frames import Drain
from wsrecover.streams.journal import Journal
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import Store

from .mishaps import Mishaps
from .presence import Presence
from .pressure import Pressure
from .quota import Quotas
from .receipts import Receipts

__all__ = ["Services"]


@attrs.frozen
class Services:
    """The parts of one server process. `clock` gives unix seconds; deadlines use trio's clock.

    `counts` are totals since the start, by name: `session.started` and `.ended`; of connections
    `resume.<outcome>` and `closed.<code>`; of replays `replayed` (events), `replay.paced` and `snapshots`; of
    commands `commands.<status>` as they were answered, and `refused.<code>` of those, `auth` and
    `follow` too, that a limit refused before; `ephemeral.sent` and `.shed`; for want of memory `shed.tails`
    and `shed.contexts` (bytes), `shed.connects` and `shed.resumes`.
    """

    app: App
    config: Config
    store: Store
    streams: Streams
    journal: Journal
    authenticator: Authenticator
    clock: Callable[[], float]
    quotas: Quotas
    revocations: Revocations = attrs.field(factory=Revocations)
    alarms: Alarms = attrs.field(factory=Alarms)
    addresses: Addresses = attrs.field(init=False)
    counts: Counter[str] = attrs.field(factory=Counter)
    mishaps: Mishaps = attrs.field(factory=Mishaps)
    presence: Presence = attrs.field(factory=Presence)
    receipts: Receipts = attrs.field(
        default=attrs.Factory(lambda services: Receipts(services.presence), takes_self=True)
    )

    pressure: Pressure = attrs.field(
        default=attrs.Factory(lambda services: services.quotas.pressure, takes_self=True)
    )

    @addresses.default
    def _addresses(self) -> Addresses:
        return Addresses(self.config.limits, self.config.trusted_proxies)

    def note(self, kind: str) -> None:
        """Count an error of this kind (see `Mishaps`)."""
        self.mishaps.note(kind, self.clock())

    def note_refusal(self, code: str) -> None:
        """Count a command that a limit refuses with this code."""
        self.counts[f"refused.{code}"] += 1
        self.note(f"command.{code}")

    @property
    def farewell(self) -> Drain:
        """What clients are told when the server stops."""
        timeouts = self.config.timeouts
        return Drain(retry_after=timeouts.drain_retry_after, jitter=timeouts.drain_jitter)
