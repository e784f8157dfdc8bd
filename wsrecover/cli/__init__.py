"""The command line. Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""

from .main import main

__all__ = ["main"]
