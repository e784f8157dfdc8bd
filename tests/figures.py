"""Figures that tests report: a table at the end of the run, and what `nox -s faults` is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

import pytest

__all__ = ["FIGURE", "Figure", "Progress", "Row", "figures", "table"]

Figure: TypeAlias = Callable[[str, str, object], None]
"""Takes the ids of the rows, what was measured, and the figure."""

Progress: TypeAlias = Callable[[str], None]
"""Says on the terminal how far a step has come that takes more than some seconds; most of it goes unsaid."""

Row: TypeAlias = tuple[str, str, str]
"""The ids of the rows, what was measured, and the figure."""

FIGURE: Final = "figure"
"""The name of a test's property that is a `Row`."""


def figures(reports: Iterable[object]) -> list[Row]:
    """The rows of each test that has ended, whatever came of it."""
    return [
        tuple(value)
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
        for name, value in report.user_properties
        if name == FIGURE
    ]


def table(rows: list[Row]) -> list[str]:
    """The lines of a Markdown table."""
    head = ("row", "what", "figure")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(3)]
    lines = [head, tuple("-" * width for width in widths), *sorted(rows)]
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    ]
