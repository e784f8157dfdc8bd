"""Settings of the interpreter, and so of the whole process, that a server needs while it runs."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Final

__all__ = ["GC_THRESHOLDS", "SWITCH_INTERVAL", "tuned"]

SWITCH_INTERVAL: Final = 0.001
"""Seconds: with the default of 5 ms the store's thread waits that long for a busy loop at every commit."""

GC_THRESHOLDS: Final = (50_000, 20, 50)
"""One commit of 1,000 events makes 15,000 objects and drops most of them again. With Python's default, a look
for cycles every 700, that search was a third of all CPU per event."""

_lock = Lock()  # Each thread may have a loop of its own, with a server in it.
_servers = 0
_before = ExitStack()


@contextmanager
def tuned() -> Iterator[None]:
    """Have these settings within. The last to leave puts back what was there before the first came."""
    global _servers  # noqa: PLW0603  One count for the process, whose settings these are.
    with _lock:
        if _servers == 0:
            _before.callback(sys.setswitchinterval, sys.getswitchinterval())
            _before.callback(gc.set_threshold, *gc.get_threshold())
            sys.setswitchinterval(SWITCH_INTERVAL)
            gc.set_threshold(*GC_THRESHOLDS)
        _servers += 1
    try:
        yield
    finally:
        with _lock:
            _servers -= 1
            if _servers == 0:
                _before.close()
