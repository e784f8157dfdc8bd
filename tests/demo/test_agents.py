"""The demo's tools really work on the text that they are given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from wsrecover.demo.agents import AGENT, count, demo_app, outline, readme, search, sections, tokens
from wsrecover.protocol.events import TERMINAL
from wsrecover.testing import local_server

TEXT = "# One\n\ntwo words\n```\n# not a heading\n```\n## Three #3\nTwo\n"


def test_count_counts() -> None:
    assert count(TEXT) == {"lines": 8, "words": 14, "characters": len(TEXT)}


def test_outline_finds_headings_but_none_in_code() -> None:
    assert outline(TEXT) == {
        "headings": [{"level": 1, "title": "One"}, {"level": 2, "title": "Three #3"}],
        "total": 2,
    }


def test_search_finds_a_term_in_whatever_case() -> None:
    assert search(TEXT, "two") == {"lines": [3, 8], "total": 2}
    assert search(TEXT, "absent") == {"lines": [], "total": 0}


@given(st.text(max_size=200))
def test_the_tokens_of_a_text_make_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


def test_the_sections_of_a_long_text_make_the_text() -> None:
    text = "abcdefg " * 10_000
    parts = list(sections(text))
    assert len(parts) > 1
    assert "".join(parts) == text
    assert list(sections("")) == [""]


def test_the_readme_is_there() -> None:
    assert readme().read_text(encoding="utf-8").startswith("# wsrecover")


async def test_the_agent_uses_its_tools_on_the_file_and_recites_it(tmp_path: Path) -> None:
    file = tmp_path / "text.md"
    file.write_text(TEXT)
    account: Counter[str] = Counter()

    async def at_once() -> None:
        await trio.lowlevel.checkpoint()

    app = demo_app(file, pace=at_once, account=lambda kind: account.update([kind]))
    async with local_server(app) as local, local.peer() as peer:
        await peer.command("start_agent", {"agent": AGENT, "input": {"term": "two"}})
        events = [frame for frame in await peer.until("event", type=TERMINAL) if frame["op"] == "event"]
    used = {
        event["data"]["tool"]: event["data"]["output"]
        for event in events
        if event["type"] == "tool_completed"
    }
    assert used == {
        "read_file": {"characters": len(TEXT)},
        "count": count(TEXT),
        "outline": outline(TEXT),
        "search": search(TEXT, "two"),
    }
    assert [event["data"]["text"] for event in events if event["type"] == "message_completed"] == [TEXT]
    assert account == Counter(event["type"] for event in events if event["type"] != "message_delta")
