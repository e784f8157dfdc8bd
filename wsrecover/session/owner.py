"""What may be asked of an owner: by a delivery of its connection, by a connection of its session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVarTuple, Unpack

from wsrecover.access.principal import Principal
from wsrecover.config import Limits, Timeouts
from wsrecover.streams.stream import Stream

from .commands import Commands
from .contexts import Snapshot, UserContexts
from .members import Members
from .quota import Quota
from .runs import Runs
from .services import Services

__all__ = ["Home", "Owner"]

Args = TypeVarTuple("Args")


class Owner(Protocol):
    """The connection, as its delivery sees it."""

    @property
    def limits(self) -> Limits:
        """The limits in force for this connection."""

    @property
    def timeouts(self) -> Timeouts:
        """The timeouts in force for this connection."""

    @property
    def quota(self) -> Quota:
        """What the user may still take up."""

    def start(self, member: Callable[[Unpack[Args]], Awaitable[None]], *args: *Args) -> None:
        """Run a task in the session's nursery."""

    def close(self, code: int, reason: str) -> None:
        """End the connection with a close frame; returns at once."""

    def kill(self) -> None:
        """End the connection without one; returns at once."""

    def missed(self, stream: Stream, first: int, last: int) -> None:
        """Note that these events are gone, and will never be sent."""

    def count(self, name: str, amount: int) -> None:
        """Count what was sent from the log, and the like: see `Services.counts`."""

    async def snapshot(self) -> Snapshot:
        """The contexts of the user's threads. Raises `StoreError`."""


class Home(Protocol):
    """The session, as its connections see it."""

    @property
    def services(self) -> Services:
        """The parts of the process."""

    @property
    def members(self) -> Members:
        """Where the connection starts its tasks."""

    @property
    def commands(self) -> Commands:
        """What takes the user's commands."""

    @property
    def quota(self) -> Quota:
        """What the user may still take up."""

    @property
    def contexts(self) -> UserContexts:
        """The contexts of the user's threads."""

    @property
    def runs(self) -> Runs:
        """The user's runs under way."""

    def streams_now(self, principal: Principal) -> Mapping[str, Stream] | None:
        """The streams that the principal follows, where they are open already."""

    async def open_streams(self, principal: Principal) -> Mapping[str, Stream]:
        """The streams that the principal follows, by wire name.

        Raises `StoreError` and `trio.TooSlowError`; no checkpoint where they are open already.
        """

    def detach(self, client: str, connection: object) -> None:
        """Forget `connection`, unless `client` has a newer one by now."""
