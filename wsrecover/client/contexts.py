"""The contexts of the user's threads, as of what the app was handed last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from wsrecover.protocol.context import EMPTY, NO_THREAD, TYPES, Context, parse, reduce
from wsrecover.protocol.frames import Event, Gap, Snapshot
from wsrecover.protocol.receiver import Changed, Item

__all__ = ["Contexts"]

MAX_NEWS: Final = 256
"""Items that wait to be taken in until somebody asks for a context."""


class Contexts:
    """By thread; what has no thread is under the empty name."""

    def __init__(self) -> None:
        self._contexts: dict[str, Context] = {}
        self._news: list[Item] = []
        self._outdated = False

    def note(self, item: Item) -> None:
        """The app is handed `item`. Costs next to nothing until somebody asks."""
        if item.__class__ is Event and item.type not in TYPES:
            return
        self._news.append(item)
        if len(self._news) >= MAX_NEWS:
            self._take_in()

    def current(self) -> Mapping[str, Context]:
        """Each thread's context."""
        self._take_in()
        return self._contexts

    def _take_in(self) -> None:
        for item in self._news:
            match item:
                case Event(stream="user"):
                    name = item.thread or NO_THREAD
                    self._contexts[name] = reduce(self._contexts.get(name, EMPTY), item)
                case Snapshot():
                    self._replace(item)
                case Changed(stream="user"):
                    self._contexts = {}
                case Gap(stream="user"):
                    self._outdated = True
                    self._contexts = {
                        name: attrs.evolve(context, truncated=True)
                        for name, context in self._contexts.items()
                    }
        self._news.clear()

    def _replace(self, snapshot: Snapshot) -> None:
        if self._outdated:
            self._contexts, self._outdated = {}, False
        for name, context in snapshot.threads.items():
            self._contexts[name] = parse(context)
