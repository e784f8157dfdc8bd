"""Figures that tests report: a table at the end of the run, and what `nox -s faults` is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import pytest

__all__ = ["FIGURES", "Figure", "Progress", "table"]

Figure: TypeAlias = Callable[[str, str, object], None]
"""Takes the ids of the rows, what was measured, and the figure."""

Progress: TypeAlias = Callable[[str], None]
"""Says on the terminal how far a step has come that takes more than some seconds; most of it goes unsaid."""

FIGURES: Final = pytest.StashKey[list[tuple[str, str, str]]]()


def table(rows: list[tuple[str, str, str]]) -> list[str]:
    """The lines of a Markdown table."""
    head = ("row", "what", "figure")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
    lines = [head, tuple("-" * width for width in widths), *sorted(rows)]
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
