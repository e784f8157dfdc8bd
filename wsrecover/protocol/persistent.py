"""Values that share what they have in common with those that they were made from.

Each of them never changes, as far as anybody can see. So whoever holds an old one still has it, and making a
new one costs what is new, not what there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from .utf16 import units

__all__ = ["Map", "Text"]

V = TypeVar("V")

_BUCKETS: Final = 64
"""A change copies one bucket of so many: of 10,000 entries about 160."""


class Map(Generic[V]):
    """From text to values, in no order."""

    __slots__ = ("_buckets", "_count")

    def __init__(self, buckets: tuple[dict[str, V], ...] = ({},) * _BUCKETS, count: int = 0) -> None:
        self._buckets = buckets
        self._count = count

    def __len__(self) -> int:
        return self._count

    def get(self, key: str) -> V | None:
        """The value at `key`, if there is one."""
        return self._buckets[hash(key) % _BUCKETS].get(key)

    def values(self) -> Iterator[V]:
        """All values."""
        for bucket in self._buckets:
            yield from bucket.values()

    def put(self, key: str, value: V) -> Map[V]:
        """The same with `value` at `key`."""
        place = hash(key) % _BUCKETS
        bucket = {**self._buckets[place], key: value}
        return self._with(place, bucket)

    def without(self, key: str) -> Map[V]:
        """The same without `key`."""
        place = hash(key) % _BUCKETS
        bucket = {name: value for name, value in self._buckets[place].items() if name != key}
        return self._with(place, bucket)

    def _with(self, place: int, bucket: dict[str, V]) -> Map[V]:
        buckets = self._buckets
        count = self._count + len(bucket) - len(buckets[place])
        return Map((*buckets[:place], bucket, *buckets[place + 1 :]), count)


class Text:
    """Text that grows at its end. `units` is its length in UTF-16 units."""

    __slots__ = ("_count", "_pieces", "units")

    def __init__(self, text: str = "") -> None:
        self._pieces = [text]
        self._count = 1
        self.units = units(text)

    def __str__(self) -> str:
        if self._count > 1:
            self._pieces = ["".join(self._pieces[: self._count])]
            self._count = 1
        return self._pieces[0]

    def plus(self, text: str) -> Text:
        """This and `text` behind it. Costs what `text` costs, unless somebody else went on from here."""
        pieces = self._pieces if len(self._pieces) == self._count else self._pieces[: self._count]
        pieces.append(text)
        longer = Text.__new__(Text)
        longer._pieces = pieces  # noqa: SLF001  # Its own class.
        longer._count = self._count + 1  # noqa: SLF001
        longer.units = self.units + units(text)
        return longer
