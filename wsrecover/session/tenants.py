"""What the users of each tenant take up together, so that no tenant starves another."""

from __future__ import annotations

import attrs
import trio

from wsrecover.access.limits import Bucket, Rate, moment

__all__ = ["Tenant", "Tenants"]

_FEW = 16_384
"""Tenants of which none is forgotten: some 250 bytes each."""


@attrs.define(eq=False)
class Tenant:
    """The `connections` and `runs` that a tenant has now, and its rate of `commands`."""

    commands: Bucket
    connections: int = 0
    runs: int = 0

    def is_as_new(self, at: int) -> bool:
        """Whether at the moment `at` it has nothing and may do all: forgetting it changes nothing."""
        return not (self.connections or self.runs) and self.commands.is_full(at)


class Tenants:
    """All tenants there are, found by name. One that has a connection or a run stays the same object.

    Time is trio's, as in their users' quotas; it is looked at only where there are many.
    """

    def __init__(self, commands: Rate, few: int = _FEW) -> None:
        self._rate = commands
        self._few = self._most = few
        self._tenants: dict[str, Tenant] = {}

    def of(self, name: str) -> Tenant:
        """The tenant of this name."""
        tenant = self._tenants.get(name)
        if tenant is None:
            if len(self._tenants) >= self._most:
                self._forget()
            tenant = self._tenants[name] = Tenant(Bucket(self._rate))
        return tenant

    def __len__(self) -> int:
        return len(self._tenants)

    def _forget(self) -> None:
        """Keep those that are not as new, and look again when there are twice as many."""
        at = moment(trio.current_time())
        self._tenants = {name: one for name, one in self._tenants.items() if not one.is_as_new(at)}
        self._most = max(self._few, 2 * len(self._tenants))
