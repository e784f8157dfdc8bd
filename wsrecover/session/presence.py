"""Who is connected to this process, and what each follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import trio

from wsrecover.streams.store import StreamKey
from wsrecover.streams.stream import Stream

__all__ = ["Member", "Presence", "Present"]


class Member(NamedTuple):
    """A client as it is known over all of its connections."""

    tenant: str
    user: str
    client: str


class Present(Protocol):
    """A connection that was welcomed."""

    @property
    def member(self) -> Member:
        """Whose connection it is."""

    @property
    def streams(self) -> Mapping[str, Stream]:
        """What it follows now, by wire name."""


class Presence:
    """The connections that were welcomed and are not about to end, one for each member at most."""

    def __init__(self) -> None:
        self._present: dict[Member, Present] = {}
        self._awaited: dict[tuple[str, str], trio.lowlevel.ParkingLot] = {}

    def arrive(self, connection: Present) -> None:
        """It was welcomed."""
        member = connection.member
        self._present[member] = connection
        if self._awaited:
            waiting = self._awaited.get((member.tenant, member.user))
            if waiting is not None:
                waiting.unpark_all()

    def leave(self, connection: Present) -> None:
        """It ends; nothing happens where its client has a newer one by now."""
        if self._present.get(connection.member) is connection:
            del self._present[connection.member]

    def follows(self, member: Member, key: StreamKey) -> bool:
        """Whether a client is connected and follows this stream."""
        connection = self._present.get(member)
        return connection is not None and _follows(connection, key.wire_name, key)

    def following(self, key: StreamKey) -> set[Member]:
        """The clients that are connected and follow this stream."""
        if key.scope == "all":  # As everybody does: thousands at once, in a step that nobody else can enter.
            return set(self._present)
        name = key.wire_name
        return {member for member, one in self._present.items() if _follows(one, name, key)}

    async def wait_arrival(self, tenant: str, user: str) -> None:
        """Wait until a connection of this user is welcomed, from now on. Cancelling is safe."""
        place = (tenant, user)
        waiting = self._awaited.setdefault(place, trio.lowlevel.ParkingLot())
        try:
            await waiting.park()
        finally:
            # Of several who end in one step, an earlier one may be back already, and wait in a newer place.
            if not waiting and self._awaited.get(place) is waiting:
                del self._awaited[place]


def _follows(connection: Present, name: str, key: StreamKey) -> bool:
    stream = connection.streams.get(name)
    return stream is not None and stream.key == key
