"""The agent of `wsrecover dev` and `demo`: it reads a file with tools that really run, then recites it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

from wsrecover.agents.app import App
from wsrecover.agents.parts import ToolScope
from wsrecover.agents.run import Run

__all__ = ["AGENT", "count", "demo_app", "outline", "readme", "search", "sections", "tokens"]

AGENT: Final = "reader"

MESSAGE_CHARS: Final = 32 * 1024
"""The most that one message holds: its last event carries the whole text, and an event has a limit."""

LISTED: Final = 20
"""Headings and hits that a tool tells at most."""

READING_PACE: Final = 0.02
"""Seconds from token to token where nobody asks for another pace: about as a model would."""


Account: TypeAlias = Callable[[str], object]
"""Is told the type of an event that was made."""


def readme() -> Path:
    """The README: of the installed package, or of the checkout that it runs from."""
    installed = Path(str(files("wsrecover.demo"))) / "README.md"
    return installed if installed.is_file() else Path(__file__).parents[2] / "README.md"


async def _at_a_readers_pace() -> None:
    await trio.sleep(READING_PACE)


def demo_app(
    path: Path | None = None,
    *,
    pace: Callable[[], Awaitable[object]] = _at_a_readers_pace,
    again: Callable[[], bool] = lambda: False,
    account: Account = lambda _: None,
) -> App:
    """An app with the one agent, `reader`, that works on the UTF-8 text file at `path`; None: the README.

    `pace` is awaited after each token. At the end of the file `again` says whether to read it once more.
    `account` is told the type of each event that the agent makes, but for the pieces of its messages: how
    many of those there are is the run's affair. A run's input may have a `term` to search for.
    """
    app = App()
    file = path or readme()

    @app.agent(AGENT)
    async def reader(run: Run) -> dict[str, Any]:
        account("agent_started")
        term = str(run.input.get("term", "the"))
        await _think(run, f"I am asked to read {file.name} and to look for {term!r}", account)
        async with _tool(run, "read_file", {"file": file.name}, account) as tool:
            text = (await trio.Path(file).read_bytes()).decode("utf-8")
            await tool.complete({"characters": len(text)})
        for work, given in ((count, {}), (outline, {}), (search, {"term": term})):
            async with _tool(run, work.__name__, given, account) as tool:
                await tool.complete(await trio.to_thread.run_sync(partial(work, text, **given)))
        times = 0
        while times == 0 or again():
            times += 1
            await _think(run, f"Reciting it, time {times}", account)
            await _recite(run, text, pace, account)
        account("agent_completed")
        return {**count(text), "times": times}

    return app


async def _think(run: Run, text: str, account: Account) -> None:
    await run.think(text)
    account("agent_thinking")


@asynccontextmanager
async def _tool(run: Run, name: str, given: dict[str, Any], account: Account) -> AsyncIterator[ToolScope]:
    async with run.tool(name, given) as tool:
        account("tool_executing")
        yield tool
    account("tool_completed")


async def _recite(run: Run, text: str, pace: Callable[[], Awaitable[object]], account: Account) -> None:
    for section in sections(text):
        async with run.message() as message:
            account("message_started")
            for token in tokens(section):
                await message.text(token)
                await pace()
        account("message_completed")


def count(text: str) -> dict[str, Any]:
    """How much text it is."""
    return {"lines": len(text.splitlines()), "words": len(text.split()), "characters": len(text)}


def outline(text: str) -> dict[str, Any]:
    """The headings of a Markdown text; code blocks have none."""
    headings, in_code = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code and (heading := re.match(r"(#{1,6}) +(.*)", line)):
            headings.append({"level": len(heading[1]), "title": heading[2]})
    return {"headings": headings[:LISTED], "total": len(headings)}


def search(text: str, term: str) -> dict[str, Any]:
    """The lines that contain a term, in whatever case."""
    wanted = term.casefold()
    lines = [number for number, line in enumerate(text.splitlines(), 1) if wanted in line.casefold()]
    return {"lines": lines[:LISTED], "total": len(lines)}


def sections(text: str) -> Iterator[str]:
    """The text, cut into what fits one message; joined they are the text."""
    for start in range(0, max(len(text), 1), MESSAGE_CHARS):
        yield text[start : start + MESSAGE_CHARS]


def tokens(text: str) -> Iterator[str]:
    """Words with the space before them, as a model streams them; joined they are the text."""
    for token in re.finditer(r"\s*\S+|\s+", text):
        yield token[0]
