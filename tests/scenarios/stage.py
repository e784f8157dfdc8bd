"""An agent that works step by step as the test says."""

from __future__ import annotations

from typing import Any

import trio

from wsrecover.agents import App, Run


class Stage:
    """Runs of the agent `worker` that do what the test tells them, one step at a time.

    A step is the name of an event to emit, or `finish`, `fail`; a run takes the next one that the test puts.
    """

    def __init__(self) -> None:
        self.app = App()
        self.app.agent("worker")(self._work)
        self._steps, self._taken = trio.open_memory_channel[str](1000)

    async def _work(self, run: Run) -> dict[str, Any]:
        count = 0
        async for step in self._taken:
            match step:
                case "finish":
                    break
                case "fail":
                    raise RuntimeError("told to")
                case "think":
                    await run.think(f"thought {count}")
                case "tool":
                    async with run.tool("search", {"q": count}) as tool:
                        await tool.complete({"hits": count})
                case _:
                    await run.emit(step, {"n": count})
            count += 1
        return {"steps": count}

    def tell(self, *steps: str) -> None:
        """Let the runs take these steps."""
        for step in steps:
            self._steps.send_nowait(step)


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def seqs(events: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events]
