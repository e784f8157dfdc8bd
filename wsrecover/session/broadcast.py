"""To many at once: one append that all who are entitled follow, and a receipt of who has acknowledged it."""

from __future__ import annotations

import secrets

import attrs

from wsrecover.access.principal import label_problem, name_problem
from wsrecover.agents.arguments import check_text
from wsrecover.errors import InvalidEvent
from wsrecover.protocol.codec import encode_event
from wsrecover.protocol.schema import fitted
from wsrecover.streams.store import Answer, Applied, Entry, Outcome, StreamKey, Unit

from .receipts import Receipt
from .services import Services

__all__ = ["Broadcast", "audience"]


def audience(to: str, tenant: str | None) -> StreamKey:
    """The stream that `to` names: `all`, or of a tenant `tenant`, `tier:<name>`, `role:<name>`.

    Raises `InvalidEvent`, which names the field.
    """
    check_text("to", to)
    scope, colon, name = to.partition(":")
    if to not in ("all", "tenant") and not (colon and scope in ("tier", "role")):
        raise InvalidEvent("to", "must be all, tenant, tier:<name> or role:<name>")
    if to == "all":
        if tenant is not None:
            raise InvalidEvent("tenant", "must be absent: all is everybody's")
        return StreamKey("all")
    if tenant is None:
        raise InvalidEvent("tenant", f"is missing: what is for {to!r} goes to the users of one tenant")
    _check("tenant", name_problem(tenant))
    if to == "tenant":
        return StreamKey("tenant", tenant)
    _check("to", label_problem(name))
    return StreamKey("tier" if scope == "tier" else "role", tenant, name)


def _check(field: str, problem: str | None) -> None:
    """Hold names to what a token could say: any others would be nobody's."""
    if problem is not None:
        raise InvalidEvent(field, problem)


@attrs.define(eq=False)
class Broadcast:
    """One broadcast on its way. Made, it is encoded: `InvalidEvent` is raised then."""

    services: Services
    key: StreamKey
    entry: Entry
    timeout: float
    id: str = attrs.field(factory=lambda: secrets.token_hex(16))
    receipt: Receipt = attrs.field(init=False)

    @classmethod
    def of(
        cls,
        services: Services,
        key: StreamKey,
        type: str,
        data: object,
        *,
        timeout: float | None = None,
    ) -> Broadcast:
        """A broadcast to those who follow `key`, its receipt kept for `timeout` seconds (None: as set)."""
        config, now = services.config, services.clock()
        fit = fitted(type, data, services.app.events)
        body = encode_event(ts=now, type=type, data=fit, max_bytes=config.limits.event_bytes)
        return cls(
            services, key, Entry(key, body, now), config.timeouts.receipt if timeout is None else timeout
        )

    async def commit(self, answer: Answer | None = None) -> Outcome:
        """Log it, together with a command's answer; then there is a `receipt`, unless the answer was known.

        Raises and may be cancelled as `Journal.commit`.
        """
        unit = Unit((self.entry,), () if answer is None else (answer,))
        return await self.services.journal.commit(unit, then=self._committed)

    def _committed(self, outcome: Outcome) -> None:
        # In the step of the commit: later the connections are others, and an ack may have come already.
        if isinstance(outcome, Applied):
            self.receipt = self.services.receipts.open(self.id, self.key, self.entry.position, self.timeout)
