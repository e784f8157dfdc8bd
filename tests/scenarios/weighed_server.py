"""`wsrecover serve` with a command, `weighed`, that tells how much it held for its users at most, in bytes.

`held` is what there was, weighed a hundred times in a second; `told` what `statistics` said of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final, Never

import attrs
import trio

import wsrecover
from wsrecover.session.shedding import weigh

PAUSE: Final = 0.01

app = wsrecover.App()
most = {"held": 0, "told": 0}


@attrs.frozen
class Nothing:
    """The command needs no data."""


@app.command("weighed")
async def weighed(_: wsrecover.Command, __: Nothing) -> dict[str, Any]:
    """The most since the start."""
    await trio.lowlevel.checkpoint()
    return dict(most)


async def watch(server: wsrecover.Server) -> Never:
    while True:
        now = {
            "held": (await weigh(server.registry, server._services)).total,
            "told": server.statistics().memory.weights.total,
        }
        for name, size in now.items():
            most[name] = max(most[name], size)
        await trio.sleep(PAUSE)


async def main() -> None:
    parser = argparse.ArgumentParser()
    for option in ("port", "store", "log-format", "secret-file", "config"):
        parser.add_argument(f"--{option}", required=True, type=int if option == "port" else str)
    given = vars(parser.parse_args())
    config = wsrecover.load_config(Path(given.pop("config"))).evolve(**given)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, await nursery.start(wsrecover.serve, app, config))


if __name__ == "__main__":
    trio.run(main)
