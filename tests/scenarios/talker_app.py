"""The app of the server processes that the scenarios start: `--app talker_app:app`."""

from __future__ import annotations

import os
import time
from typing import Any

import attrs
import structlog
import trio

import wsrecover

log = structlog.get_logger(__name__)
app = wsrecover.App()


@app.agent("talker")
async def talker(run: wsrecover.Run) -> None:
    """Emits the values `<tag>-0`, `<tag>-1` … as fast as the store takes them, `count` of them, and stays."""
    for number in range(run.input["count"]):
        await run.emit("app.value", {"value": f"{run.input['tag']}-{number}"})
        if number % 8 == 7:
            await run.flush()
    await run.flush()
    await trio.sleep_forever()


@attrs.frozen
class Trace:
    """Where the command leaves its trace."""

    path: str


@app.command("leave_trace")
async def leave_trace(_: wsrecover.Command, trace: Trace) -> None:
    """Adds a line to the file, says so, and stays."""
    async with await trio.open_file(trace.path, "a") as file:
        await file.write("ran\n")
    log.info("trace_left")
    await trio.sleep_forever()


hoarded: list[int] = []


@attrs.frozen
class Hoard:
    """How many descriptors the app keeps open."""

    count: int


@app.command("hoard")
async def hoard(_: wsrecover.Command, wanted: Hoard) -> dict[str, Any]:
    """Opens descriptors, or closes them, until the app has so many or there are no more."""
    while len(hoarded) > wanted.count:
        os.close(hoarded.pop())
    while len(hoarded) < wanted.count:
        try:
            hoarded.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            break
    await trio.lowlevel.checkpoint()
    return {"held": len(hoarded), "cpu": time.process_time()}
