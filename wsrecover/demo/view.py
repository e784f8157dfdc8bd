"""What the demo shows: live on a terminal, as plain lines elsewhere, and the table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from wsrecover.logs import printable

from .away import Absence
from .proof import Report, Sight

__all__ = ["PipedConsole", "show_report", "watching"]

PLAIN_LINES = 5
"""Lines of progress where the output is no terminal."""


class PipedConsole(Console):
    """A console that leaves it to its caller what to do when its reader is gone."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise `BrokenPipeError`, where rich would exit with 1 from within a task."""
        raise BrokenPipeError("nobody reads the console")


@contextmanager
def watching(console: Console, cuts: int) -> Iterator[Callable[[Sight], None]]:
    """A function to call with each new sight of the demo while it runs."""
    if not console.is_terminal:
        yield _plain_lines(console, cuts)
        return
    columns = (
        TextColumn("cuts"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]:<10}"),
        TextColumn("{task.fields[delivered]:>5} events delivered"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("cuts", total=cuts, status="", delivered=0)

        def show(sight: Sight) -> None:
            progress.update(task, completed=sight.cuts, status=sight.status, delivered=sight.delivered)

        yield show


def _plain_lines(console: Console, cuts: int) -> Callable[[Sight], None]:
    told = 0

    def show(sight: Sight) -> None:
        nonlocal told
        reached = sight.cuts * PLAIN_LINES // max(cuts, 1)
        if reached > told:
            told = reached
            console.print(f"{sight.cuts} of {cuts} cuts, {sight.delivered} events delivered")

    return show


def show_report(console: Console, report: Report) -> None:
    """The table, and one line that says what it means."""
    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    verdict = report.verdict
    for name, value in (
        ("published", verdict.published),
        ("delivered", verdict.delivered),
        ("duplicates", verdict.duplicates),
        ("missing", verdict.missing),
        ("reordered", verdict.reordered),
        ("altered", verdict.altered),
        ("cuts", report.cuts),
        ("resumes", report.resumes),
        ("gone from the log while away", report.absence.events),
        ("state found after that", _found(report.absence)),
        ("longest outage", f"{report.longest_outage * 1000:.0f} ms"),
        ("time", f"{report.seconds:.1f} s"),
    ):
        table.add_row(name, str(value))
    console.print(table)
    if report.proven:
        name = printable(report.file.name)
        said = Text(f"Exactly once and in order: the client put {name} together, word for word.")
    else:
        why = f": {'; '.join(report.faults)}. Try again with --seed {report.seed}."
        said = Text.assemble(("FAILED", "bold red"), why)
    console.print(said)  # A `str` would be read as markup, the name in it too.


def _found(absence: Absence) -> str:
    if absence.late:
        return "none"
    return "equal" if absence.equal else "another"
