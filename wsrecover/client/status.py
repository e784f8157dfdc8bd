"""Where a session stands, for whoever wants to show it or to wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import trio

from wsrecover.errors import WsrecoverError

__all__ = ["Status", "StatusBoard"]

Status: TypeAlias = Literal["connecting", "replaying", "live", "waiting", "closed"]
"""`connecting`: a try is under way. `replaying`: connected, and catching up. `live`: caught up.
`waiting`: disconnected, and the next try has its time. `closed`: for good."""


class StatusBoard:
    """The current status, told to `on_change` and to the tasks that wait for it; `on_error` is told why."""

    def __init__(
        self,
        on_change: Callable[[Status], object] | None,
        on_error: Callable[[WsrecoverError], object] | None,
    ) -> None:
        self._status: Status = "connecting"
        self._end: WsrecoverError | None = None
        self._on_change = on_change
        self._on_error = on_error
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def status(self) -> Status:
        """The status now."""
        return self._status

    def set(self, status: Status) -> None:
        """Change the status; the same one again tells nobody. `closed` stays."""
        if status == self._status or self._status == "closed":
            return
        self._status = status
        self._lot.unpark_all()
        if self._on_change is not None:
            self._on_change(status)

    def wait_after(self, error: WsrecoverError) -> None:
        """Change to `waiting`, because of `error`."""
        if self._on_error is not None:
            self._on_error(error)
        self.set("waiting")

    def end(self, error: WsrecoverError) -> None:
        """Change to `closed`, because of `error`."""
        self._end = error
        self.set("closed")

    async def wait(self, *wanted: Status) -> Status:
        """Return the status once it is one of `wanted`, at once where it is already. Cancelling is safe.

        Raises what `end` was given where it is `closed` and that is not wanted: it stays so.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._status not in wanted:
            if self._end is not None:
                raise self._end
            await self._lot.park()
        return self._status
