"""Values that share what they have in common with those that they were made from.

Each of them never changes, as far as anybody can see. So whoever holds an old one still has it, and making a
new one costs what is new, not what there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Protocol, TypeVar

from .utf16 import units

__all__ = ["Map", "Text"]


class _Placed(Protocol):
    @property
    def seq(self) -> int: ...


V = TypeVar("V", bound=_Placed)

_BUCKETS: Final = 64
"""A change copies one bucket of so many: of 10,000 entries about 160."""


class Map(Mapping[str, V]):
    """From text to values, in the order of their `seq`; a look-up costs the same however many there are."""

    __slots__ = ("_buckets", "_count")

    def __init__(self, buckets: tuple[dict[str, V], ...] = ({},) * _BUCKETS, count: int = 0) -> None:
        self._buckets = buckets
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        placed = [(value.seq, key) for bucket in self._buckets for key, value in bucket.items()]
        return iter([key for _, key in sorted(placed)])

    def __getitem__(self, key: str) -> V:
        return self._buckets[hash(key) % _BUCKETS][key]

    def __repr__(self) -> str:
        return f"Map({dict(self)!r})"

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
    """Text that grows at its end, equal to the `str` that it is. `units` is its length in UTF-16 units."""

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

    def __repr__(self) -> str:
        return f"Text({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, (Text, str)) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def plus(self, text: str) -> Text:
        """This and `text` behind it. Costs what `text` costs, unless somebody else went on from here."""
        pieces = self._pieces if len(self._pieces) == self._count else self._pieces[: self._count]
        pieces.append(text)
        longer = Text.__new__(Text)
        longer._pieces = pieces  # noqa: SLF001  # Its own class.
        longer._count = self._count + 1  # noqa: SLF001
        longer.units = self.units + units(text)
        return longer
