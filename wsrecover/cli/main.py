"""The commands of `wsrecover`, and the way in."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Final, NoReturn

from cyclopts import App

from wsrecover.compiled import COMPILED
from wsrecover.demo.view import PipedConsole

from . import demo, dev, publish, send, serve, tail, token
from .exits import fill_streams, finish

__all__ = ["commands", "main"]

commands: Final = App(
    name="wsrecover",
    help="A WebSocket server for AI agents whose events survive every dropped connection.",
    version=lambda: version("wsrecover") + (" (compiled)" if COMPILED else ""),
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    console=PipedConsole(),
)
for _command in (serve.serve, dev.dev, token.token, tail.tail):
    commands.command(_command)
# Of arguments that may be left out, the line that cyclopts makes says [ARGS].
commands.command(send.send, usage="Usage: wsrecover send [OPTIONS] TYPE [DATA]")
commands.command(publish.publish, usage="Usage: wsrecover publish [OPTIONS] USER TYPE [DATA]")
commands.command(demo.demo, usage="Usage: wsrecover demo [OPTIONS] [FILE]")


def main() -> NoReturn:
    """Run the command that the process's arguments name, and exit with its code."""
    fill_streams()
    sys.exit(finish(lambda: commands(exit_on_error=False, print_error=False) or 0))
