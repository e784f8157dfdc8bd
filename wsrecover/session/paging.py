"""Whose turn it is to read a page from the store: so many at once, and who asked first comes first.

Without it a thousand who replay are read for in one go and woken together, and nobody is sent anything live
until the last of their pages has been turned into frames.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Self

__all__ = ["Pages", "Place"]


class Pages:
    """The line of all replays of the process. Synchronous: who waits is called when it is its turn."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._line: OrderedDict[Place, None] = OrderedDict()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._line)

    def ask(self, call: Callable[[], object]) -> Place:
        """A place in the line; `call` is called once it has its turn, unless that is now."""
        place = Place(self, call)
        if self._free > 0:
            self._free -= 1
            place.has_turn = True
        else:
            self._line[place] = None
        return place

    def leave(self, place: Place) -> None:
        """Make room: for the next one, if it was `place`'s turn."""
        if not place.has_turn:
            del self._line[place]
        elif self._line:
            first, _ = self._line.popitem(last=False)
            first.has_turn = True
            first.call()
        else:
            self._free += 1


class Place:
    """One who waits for its turn, or has it until it leaves. As a context it leaves at the end."""

    __slots__ = ("_pages", "call", "has_turn")

    def __init__(self, pages: Pages, call: Callable[[], object]) -> None:
        self._pages = pages
        self.call = call
        self.has_turn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pages.leave(self)
