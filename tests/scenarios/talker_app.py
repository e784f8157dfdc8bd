"""The app of the server processes that the scenarios start: `--app talker_app:app`."""

from __future__ import annotations

import attrs
import trio

import wsrecover

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
    """Adds a line to the file and stays."""
    async with await trio.open_file(trace.path, "a") as file:
        await file.write("ran\n")
    await trio.sleep_forever()
