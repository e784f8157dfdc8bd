"""An agent that works step by step as the test says."""

from __future__ import annotations

from typing import Any

import attrs
import trio

from wsrecover.agents import App, Command, Run


@attrs.frozen
class Note:
    """The data of the stage's own command."""

    text: str
    stars: list[int] = attrs.field(factory=list)


class Stage:
    """Runs of the agent `worker` that do what the test tells them, one step at a time.

    A step is the name of an event to emit, or `finish`, `fail`; a run takes the next one that the test puts.
    Runs of `asker` ask once and return what they heard. The app's own command `note` emits `note_taken` with
    what it was sent, and returns the text's length.
    """

    def __init__(self) -> None:
        self.app = App()
        self.app.agent("worker")(self._work)
        self.app.agent("asker")(self._ask)
        self.app.command("note")(self._note)
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

    async def _ask(self, run: Run) -> dict[str, Any]:
        return {"heard": await run.ask("And now?")}

    async def _note(self, command: Command, note: Note) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        command.emit("note_taken", note)
        return {"length": len(note.text)}

    def tell(self, *steps: str) -> None:
        """Let the runs take these steps."""
        for step in steps:
            self._steps.send_nowait(step)


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def seqs(events: list[dict[str, Any]]) -> list[int]:
    return [event["seq"] for event in events]
