"""`wsrecover demo`: what it shows, and the exit code by which it says whether the proof holds."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsrecover.cli.demo import demo
from wsrecover.cli.exits import FAILED, OK
from wsrecover.demo.proof import Sight
from wsrecover.demo.view import PipedConsole, watching
from wsrecover.protocol.cursor import Step

if TYPE_CHECKING:
    from .conftest import Cli

EXACT = {"duplicates": "0", "missing": "0", "reordered": "0", "altered": "0"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "text.md"
    file.write_text("# A title\n\n" + "The quick brown fox jumps over the lazy dog. " * 20)
    return file


def table(text: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, value in re.findall(r"│([^│]*)│([^│]*)│", text)}


def test_it_ends_with_0_and_a_table_of_what_it_counted(cli: Cli, file: Path) -> None:
    said = cli.run("demo", str(file), "--cuts", "4", "--seed", "7").stdout
    assert said.startswith("seed 7\n")
    rows = table(said)
    assert rows.items() >= EXACT.items()
    assert rows["cuts"] == "4"
    assert rows["published"] == rows["delivered"]
    assert int(rows["published"]) > 15
    assert set(rows) - set(EXACT) == {
        "published",
        "delivered",
        "cuts",
        "resumes",
        "gone from the log while away",
        "state found after that",
        "longest outage",
        "time",
    }
    assert "4 of 4 cuts" in said, "its progress, line by line where there is no terminal"
    assert "word for word" in said


def test_it_ends_with_1_and_says_why_where_a_client_is_not_exact(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # It sets up the log of its process, for good: the loggers keep what they were first used with.
    monkeypatch.setattr("wsrecover.cli.demo.configure", lambda config: None)
    assert demo(file, cuts=0, seed=7) == OK
    monkeypatch.setattr("wsrecover.protocol.receiver.step", lambda last, first, seq: Step.NEW)
    capsys.readouterr()
    assert demo(file, cuts=5, seed=7) == FAILED
    said = capsys.readouterr().out
    duplicates = table(said)["duplicates"]
    assert int(duplicates) > 0
    assert f"FAILED: {duplicates} duplicates" in said
    assert "--seed 7" in said


def test_it_shows_a_files_name_as_it_is(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrecover.cli.demo.configure", lambda config: None)
    named = file.rename(file.with_name("[red]x[bold]:smile:\x1b[2J.md"))
    assert demo(named, cuts=0, seed=7) == OK
    assert r"[red]x[bold]:smile:\x1b[2J.md" in capsys.readouterr().out


def test_on_a_terminal_its_progress_is_live() -> None:
    screen = io.StringIO()
    with watching(PipedConsole(file=screen, force_terminal=True, width=100), 8) as watch:
        watch(Sight(cuts=3, delivered=42, status="replaying"))
    shown = screen.getvalue()
    assert "3/8" in shown
    assert "replaying" in shown
    assert "42 events delivered" in shown
