"""`wsrecover demo`: the proof that a newcomer runs."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from wsrecover.config import Config
from wsrecover.demo.proof import Plan, prove
from wsrecover.demo.view import PipedConsole, show_report, watching
from wsrecover.logs import configure

from . import interrupts
from .exits import FAILED, OK
from .options import whole

__all__ = ["demo"]


def demo(
    file: Annotated[Path | None, Parameter(help="Text file to work on. [default: the README]")] = None,
    /,
    *,
    cuts: Annotated[int, Parameter(converter=whole, help="How often the connection is cut.")] = 25,
    seed: Annotated[
        int | None,
        Parameter(converter=whole, help="Makes the same cuts again. [default: a random one, printed]"),
    ] = None,
    store: Annotated[
        str | None, Parameter(help="Where the log is kept, as sqlite:FILE. [default: a temporary folder]")
    ] = None,
) -> int:
    """Cut a client off again and again while an agent works, and prove that nothing was lost.

    Exits with 0 only if duplicates, missing and reordered events are all 0 and the text arrived whole.
    """
    plan = Plan(file=file, cuts=cuts, seed=secrets.randbelow(2**32) if seed is None else seed, store=store)
    configure(Config(store="memory", log_level="error"))
    console = PipedConsole(file=sys.stdout, highlight=False)
    console.print(f"seed {plan.seed}")
    with watching(console, plan.cuts) as watch:
        report = interrupts.run(prove, plan, watch)
    show_report(console, report)
    return OK if report.proven else FAILED
