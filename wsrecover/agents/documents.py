"""What an agent keeps in its thread's context: `run.memory` and `run.workflow`, changed by JSON patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from wsrecover.errors import RunError
from wsrecover.protocol.context import Context
from wsrecover.protocol.patch import patched

from .arguments import check_text
from .runlog import RunLog
from .threads import Threads

__all__ = ["Document", "history"]


def _threads(log: RunLog) -> Threads:
    if log.place.threads is None:
        raise RunError("nobody keeps the context of this run's thread")
    return log.place.threads


async def _read(log: RunLog) -> Context:
    """The context of a run's thread, with all that the run itself has emitted."""
    threads = _threads(log)
    await log.flush()
    return await threads.thread(log.thread)


class Document:
    """A JSON object that belongs to the run's thread, and outlives the run.

    Clients see each change, and find the whole of it in the thread's context. At most 256 KiB. Every method
    raises `StoreError` where the log cannot be read, and what `Run.flush` raises.
    """

    def __init__(self, log: RunLog, target: Literal["memory", "workflow"]) -> None:
        self._log = log
        self._target = target

    async def get(self) -> dict[str, Any]:
        """All of it, as a copy. Cancelling is safe."""
        return _copy(getattr(await _read(self._log), self._target))

    async def patch(self, patch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Apply a JSON Patch (RFC 6902); what the document then is, once that is on stable storage.

        Raises `InvalidEvent` naming the operation (`patch[2]`) where one does not apply: nothing was changed.
        Patches of one user's runs take effect one after the other. Cancelled, it may have taken effect.
        """
        log = self._log
        async with _threads(log).patching:
            # A patch whose run was cancelled while it waited may be on its way yet.
            await log.place.journal.flush()
            document = getattr(await _read(log), self._target)
            changed = patched(document, patch)
            await log.write(log.encode("state_patch", {"target": self._target, "patch": list(patch)}))
            await log.flush()
        return changed

    async def set(self, key: str, value: Any) -> dict[str, Any]:
        """Set one member of the object. As `patch`."""
        check_text("key", key)
        path = "/" + key.replace("~", "~0").replace("/", "~1")  # RFC 6901, section 3.
        return await self.patch([{"op": "add", "path": path, "value": value}])


def _copy(value: Mapping[str, Any]) -> dict[str, Any]:
    copy: dict[str, Any] = orjson.loads(orjson.dumps(value))
    return copy


async def history(log: RunLog) -> list[dict[str, Any]]:
    """The conversation of a run's thread; see `Run.history`."""
    context = await _read(log)
    return [_copy(message.json()) for message in context.conversation]
