"""What users and tenants may still take up: by tier, over all connections of a user."""

from __future__ import annotations

from functools import cache
from typing import Final

import trio

from wsrecover.access.limits import Bucket, Rate, moment
from wsrecover.access.principal import Principal
from wsrecover.config import Config, Retention, Tier
from wsrecover.errors import CommandError
from wsrecover.logger import get_logger
from wsrecover.streams.store import StreamKey

from .paging import Pages
from .pressure import Pressure
from .tenants import Tenant, Tenants

__all__ = ["Quota", "Quotas"]

log = get_logger(__name__)

_REMEMBERED: Final = 100_000
"""Users whose tier is known although they are not here: some bytes each."""

_UNKNOWN: Final = 100
"""Names of tiers that nobody configured, each of which is logged once."""

CHANGE: Final = 64
"""Of what may be replayed at once so large a part is small change."""

CONNECTIONS_RETRY_AFTER: Final = 5.0
"""Seconds: a tab is closed by hand, or by its heartbeat."""


def _now() -> int:
    return moment(trio.current_time())


class Quotas:
    """The quotas of all tenants, and the tier of each user as its last token named it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        per_second = config.limits.tenant_commands_per_second
        self.tenants = Tenants(Rate(per_second, 2 * per_second))
        self.pages = Pages(config.limits.replay_pages)
        self.pressure = Pressure(config.limits.memory_bytes)
        self._tiers: dict[StreamKey, Tier] = {}
        self._unknown_tiers: set[str] = set()
        self._retention_of = cache(config.retention_of)  # Made once per tier, since it is checked like any.
        ages, threads = zip(*map(config.contexts_of, (config.tier, *config.tiers.values())), strict=True)
        self._longest = max(ages), max(threads)

    def tier_of(self, user: StreamKey) -> Tier:
        """The user's tier; the one of users without, until a token has told it."""
        return self._tiers.get(user, self.config.tier)

    def tell_tier(self, user: StreamKey, name: str | None) -> Tier:
        """The tier that a token of the user names."""
        tier = self.config.tier_of(name)
        if name is not None and self.config.tiers and name not in self.config.tiers:
            self._note_unknown(name, user)
        self._tiers.pop(user, None)
        self._tiers[user] = tier
        if len(self._tiers) > _REMEMBERED:
            del self._tiers[next(iter(self._tiers))]
        return tier

    def _note_unknown(self, name: str, user: StreamKey) -> None:
        if name not in self._unknown_tiers and len(self._unknown_tiers) < _UNKNOWN:
            self._unknown_tiers.add(name)
            log.warning("unknown_tier", tier=name, tenant=user.tenant, user=user.name, held_to="[tier]")

    def retention(self, key: StreamKey) -> Retention:
        """How much of a stream is kept.

        Of a user whose tier no token told since the start as much as of any: what is trimmed is gone.
        """
        if key.scope != "user":
            return self.config.retention_broadcast
        tier = self._tiers.get(key)
        return self.config.retention if tier is None else self._retention_of(tier)

    def contexts(self, user: StreamKey) -> tuple[float, int]:
        """See `Config.contexts_of`; of a user whose tier no token told since the start what the most generous
        tier says, for what is forgotten is gone."""
        tier = self._tiers.get(user)
        return self._longest if tier is None else self.config.contexts_of(tier)

    def context_age(self, user: StreamKey) -> float:
        """The seconds of `contexts`."""
        return self.contexts(user)[0]


class _Allowance:
    """What a user may still replay, in bytes. A part of the burst is small change: of that, and it is what a
    client missed in seconds, the bucket is only told once it is spent."""

    __slots__ = ("_bucket", "_change", "_most")

    def __init__(self, rate: Rate) -> None:
        self._change = 0
        self._most = rate.burst // CHANGE
        self._bucket = Bucket(Rate(rate.per_second, rate.burst - self._most))

    def change(self, rate: Rate) -> None:
        """Another rate from now on."""
        self._most = rate.burst // CHANGE
        self._bucket.change(Rate(rate.per_second, rate.burst - self._most), _now())

    def take(self, size: int) -> float:
        """See `Quota.take_replay`."""
        if not size:
            return self._bucket.wait(_now(), 0)
        due = self._change + size
        if due > self._most:
            if wait := self._bucket.take(_now(), due):
                return wait
            due = 0
        self._change = due
        return 0.0

    def settle(self, size: int) -> None:
        """See `Quota.settle_replay`."""
        due = self._change + size
        if not 0 <= due <= self._most:
            self._bucket.spend(_now(), due)
            due = 0
        self._change = due


class Quota:
    """What one user may still take up. Time is trio's, for it never goes back."""

    def __init__(self, quotas: Quotas, user: StreamKey) -> None:
        self._quotas = quotas
        self._user = user
        self._limits = quotas.config.limits
        self.tier = quotas.tier_of(user)
        self._commands = Bucket(self._commands_rate())
        self._bytes = Bucket(self._bytes_rate())
        self._replay: _Allowance | None = None
        self._tenant = quotas.tenants.of(user.tenant)

    @property
    def pages(self) -> Pages:
        """The line of all who replay from the store."""
        return self._quotas.pages

    @property
    def pressure(self) -> Pressure:
        """What the process has left of its memory."""
        return self._quotas.pressure

    def adopt(self, principal: Principal) -> None:
        """Go by the tier that the principal's token names; what was taken stays taken."""
        tier = self._quotas.tell_tier(self._user, principal.tier)
        if tier is not self.tier:
            self.tier = tier
            at = _now()
            self._commands.change(self._commands_rate(), at)
            self._bytes.change(self._bytes_rate(), at)
            if self._replay is not None:
                self._replay.change(self._replay_rate())

    def _commands_rate(self) -> Rate:
        return Rate(self.tier.commands_per_second, self.tier.commands_burst)

    def _bytes_rate(self) -> Rate:
        return Rate(self.tier.bytes_per_second, max(self.tier.bytes_burst, self._limits.message_bytes))

    def _replay_rate(self) -> Rate:
        per_minute, limits = self.tier.replay_bytes_per_minute, self._limits
        largest = max(limits.page_bytes, limits.event_bytes)
        # It must be had in one go, beside a full measure of change and what is set apart for that.
        return Rate(per_minute // 60, max(per_minute, largest + largest * 2 // (CHANGE - 2) + 1))

    def take_replay(self, size: int) -> float:
        """Note `size` bytes that are about to be replayed. 0.0: they may be. Else nothing is noted, and it is
        the seconds until they may; of 0 bytes, until what was overdrawn is there again.
        """
        if self._replay is None:
            self._replay = _Allowance(self._replay_rate())
        return self._replay.take(size)

    def settle_replay(self, size: int) -> None:
        """Note `size` bytes more than were taken, whether there is room or not; below 0: so many less."""
        if self._replay is None:
            self._replay = _Allowance(self._replay_rate())
        self._replay.settle(size)

    def take_message(self, message: str | bytes, at: int) -> float:
        """Note a message that came in at the moment `at`; the seconds until there is room for it, 0.0 where
        there is."""
        plain = isinstance(message, bytes) or message.isascii()
        return self._bytes.take(at, len(message) if plain else len(str(message).encode()))

    def take_command(self, at: int, wait: float, *, repeat: bool) -> None:
        """Note a command in a message that came in at the moment `at`, with room for it in `wait` seconds.

        Its connection must have been added. Raises `CommandError("rate_limited")` where there is no room now,
        or where it is one command too many; what the tenant's rate alone refuses has counted for the user.

        A repeat has as much room again as there may be commands unanswered: a client that comes back asks
        what became of them, and a refusal would leave it in doubt.
        """
        if wait:
            most = self.tier.bytes_per_second
            raise CommandError("rate_limited", f"at most {most} bytes in a second", retry_after=wait)
        beyond = 2 * self._limits.commands_in_flight if repeat else 0
        if wait := self._commands.take(at, beyond=beyond):
            most = self.tier.commands_per_second
            raise CommandError("rate_limited", f"at most {most} commands in a second", retry_after=wait)
        if wait := self._tenant.commands.take(at, beyond=beyond):
            raise CommandError("rate_limited", "the tenant sends too many commands", retry_after=wait)

    def add_connection(self, of_user: int, *, replaces: bool) -> None:
        """Note a connection beside `of_user` others; one that replaces another is never one too many.

        Raises `CommandError("overloaded")` where it is.
        """
        most, tenant = self.tier.connections, self._current_tenant()
        problem = None
        if of_user >= most:
            problem = f"this user has {most} connections, the limit"
        elif tenant.connections >= self._limits.tenant_connections:
            problem = "the tenant has as many connections as it may"
        if problem is not None and not replaces:
            raise CommandError("overloaded", problem, retry_after=CONNECTIONS_RETRY_AFTER)
        tenant.connections += 1

    def drop_connection(self) -> None:
        """Note the end of a connection that was added."""
        self._tenant.connections -= 1

    def add_run(self, of_user: int) -> None:
        """Note a run beside `of_user` others. Raises `CommandError("overloaded")` where that is too many."""
        most, tenant = self.tier.runs, self._current_tenant()
        if of_user >= most:
            raise CommandError("overloaded", f"{most} runs are under way, the limit", retry_after=1.0)
        if tenant.runs >= self._limits.tenant_runs:
            raise CommandError("overloaded", "the tenant has as many runs as it may", retry_after=1.0)
        tenant.runs += 1

    def drop_run(self) -> None:
        """Note the end of a run that was added."""
        self._tenant.runs -= 1

    def _current_tenant(self) -> Tenant:
        """While nothing is noted for a tenant it may be forgotten, and another has taken its place."""
        self._tenant = self._quotas.tenants.of(self._user.tenant)
        return self._tenant
