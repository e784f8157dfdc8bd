"""A stream's key is a str to be looked up by, and names its stream by the characters of its parts alone."""

from __future__ import annotations

import copy
import enum
import pickle
from pathlib import Path

import pytest

from wsrecover.streams.sqlite import open_sqlite
from wsrecover.streams.store import StreamKey
from wsrecover.testing.subject import logged, unit

ADA = StreamKey("user", "acme", "ada")


class Tenant(str, enum.Enum):  # noqa: UP042  Its __str__ tells another text than its characters.
    ACME = "acme"


class Masked(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "***"


def test_names_count_by_their_characters() -> None:
    assert StreamKey("user", Tenant.ACME, Masked("ada")) == ADA
    assert StreamKey("user", "acme", Masked("ben")) != StreamKey("user", "acme", Masked("ada"))


async def test_a_name_that_tells_another_text_is_the_same_stream(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "store.db")
    await store.commit([unit(ADA, "a"), unit(StreamKey("user", Tenant.ACME, Masked("ada")), "b")])
    assert await logged(store, ADA) == ["a", "b"]
    await store.aclose()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda key: pickle.loads(pickle.dumps(key))])
def test_a_copy_is_the_same_key(copied) -> None:
    assert copied(ADA) == ADA
    assert copied(ADA).parts == ("user", "acme", "ada")


def test_keys_are_ordered_as_their_parts() -> None:
    parts = [
        ("user", "a", "b"),
        ("user", "a", ""),
        ("user", "a b", "a"),
        ("tier", "a", "c"),
        ("user", "", "z"),
    ]
    assert [key.parts for key in sorted(StreamKey(*one) for one in parts)] == sorted(parts)


def test_it_says_what_it_names() -> None:
    assert repr(ADA) == "StreamKey('user', 'acme', 'ada')"
