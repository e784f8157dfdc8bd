"""Schemas: what fits comes back equal, what does not is named by its path, what has no place is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import enum
import json
import math
import uuid
from typing import Any, ClassVar, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import json_values, scalars, texts

from wsrecover.errors import ConfigError, InvalidEvent, Misfit
from wsrecover.protocol.codec import encode_json
from wsrecover.protocol.fields import MAX_DEPTH, MAX_INT
from wsrecover.protocol.schema import Schema, fitted, plain


class Colour(enum.Enum):
    RED = "red"
    TWO = 2


@attrs.frozen
class Item:
    name: str
    price: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))
    from_: str = attrs.field(default="here")

    @from_.validator
    def _known(self, attribute: attrs.Attribute[str], value: str) -> None:
        if value == "nowhere":
            raise ValueError("must be somewhere")


@attrs.frozen
class Order:
    items: list[Item]
    count: int = 0
    paid: bool = False
    placed: dt.datetime | None = None
    day: dt.date | None = None
    raw: bytes = b""
    colour: Colour = Colour.RED
    size: Literal["s", 1, True] = "s"
    pair: tuple[int, str] = (0, "")
    marks: tuple[str, ...] = ()
    by_name: dict[str, Item] = attrs.field(factory=dict)
    ref: uuid.UUID | None = None
    note: Any = None
    best: Item | None = None


OPEN = Schema(Order, name="order")
CLOSED = Schema(Order, name="order", closed=True)

# Of a zone whose clocks were set back Python holds that hour equal to no other zone's.
offsets = st.integers(-1439, 1439).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
items = st.builds(Item, texts, st.floats(0, 1e9), texts)
orders = st.builds(
    Order,
    items=st.lists(items, max_size=3),
    count=st.integers(-MAX_INT, MAX_INT),
    paid=st.booleans(),
    placed=st.none() | st.datetimes(timezones=offsets),
    day=st.none() | st.dates(),
    raw=st.binary(max_size=20),
    colour=st.sampled_from(Colour),
    size=st.sampled_from(["s", 1, True]),
    pair=st.tuples(st.integers(-9, 9), texts),
    marks=st.lists(texts, max_size=3).map(tuple),
    by_name=st.dictionaries(texts, items, max_size=3),
    ref=st.none() | st.uuids(),
    note=json_values,
    best=st.none() | items,
)


@given(orders)
def test_what_goes_out_as_json_comes_back_equal(order: Order) -> None:
    wire = json.loads(encode_json(plain(order, "data"), field="data", max_bytes=1 << 20))
    for schema in (OPEN, CLOSED):
        assert schema.structure(wire, "data") == order


def test_what_has_defaults_may_be_left_out() -> None:
    assert OPEN.structure({"items": []}, "data") == Order([])


def test_a_field_named_for_a_reserved_word_has_its_own_name_on_the_wire() -> None:
    assert plain(Item("a", 1.0, "there"), "data") == {"name": "a", "price": 1.0, "from": "there"}


MISFITS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "data.items", "is missing"),
    ({"items": None}, "data.items", "must be an array"),
    ({"items": (1,)}, "data.items", "must be an array"),
    ({"items": [{"name": "a"}, {"name": "b", "price": "1"}]}, "data.items[1].price", "a finite number"),
    ({"items": [{"name": "a", "price": True}]}, "data.items[0].price", "a finite number"),
    ({"items": [{"name": "a", "price": math.nan}]}, "data.items[0].price", "a finite number"),
    ({"items": [{"name": "a", "price": 10**400}]}, "data.items[0].price", "a finite number"),
    ({"items": [{"name": "a", "price": -1}]}, "data.items[0].price", ">= 0"),
    ({"items": [{"name": "a", "from": "nowhere"}]}, "data.items[0].from", "must be somewhere"),
    ({"items": [{"name": 7}]}, "data.items[0].name", "must be a string"),
    ({"items": ["a"]}, "data.items[0]", "must be an object"),
    ({"items": [], "count": 1.0}, "data.count", "must be an integer"),
    ({"items": [], "count": True}, "data.count", "must be an integer"),
    ({"items": [], "paid": 1}, "data.paid", "must be true or false"),
    ({"items": [], "placed": "2026-01-31T12:00:00"}, "data.placed", "with an offset"),
    ({"items": [], "placed": 1.5}, "data.placed", "with an offset"),
    ({"items": [], "day": "31.1.2026"}, "data.day", "a date"),
    ({"items": [], "raw": "a"}, "data.raw", "base64"),
    ({"items": [], "raw": "é=="}, "data.raw", "base64"),
    ({"items": [], "colour": "blue"}, "data.colour", "one of red, 2"),
    ({"items": [], "colour": 2.0}, "data.colour", "one of red, 2"),
    ({"items": [], "colour": []}, "data.colour", "one of red, 2"),
    ({"items": [], "size": 1.0}, "data.size", "one of s, 1, True"),
    ({"items": [], "size": {}}, "data.size", "one of s, 1, True"),
    ({"items": [], "pair": [1]}, "data.pair", "an array of 2"),
    ({"items": [], "pair": [1, 2]}, "data.pair[1]", "must be a string"),
    ({"items": [], "marks": ["a", 1]}, "data.marks[1]", "must be a string"),
    ({"items": [], "by_name": {"k": {"name": 1}}}, "data.by_name.k.name", "must be a string"),
    ({"items": [], "by_name": []}, "data.by_name", "must be an object"),
    ({"items": [], "by_name": {None: 1}}, "data.by_name.None", "must be an object"),
    ({"items": [], "ref": "nobody"}, "data.ref", "a UUID"),
    ({"items": [], "best": 3}, "data.best", "must be an object"),
]


@pytest.mark.parametrize(("data", "field", "problem"), MISFITS)
def test_a_misfit_is_named_by_its_path(data: dict[str, Any], field: str, problem: str) -> None:
    for schema in (OPEN, CLOSED):
        with pytest.raises(Misfit) as caught:
            schema.structure(data, "data")
        assert caught.value.field == field
        assert problem in caught.value.problem


@pytest.mark.parametrize("data", [None, [], "x", 1])
def test_what_is_no_object_at_all_is_a_misfit_of_the_whole(data: object) -> None:
    with pytest.raises(Misfit, match="data: must be an object"):
        OPEN.structure(data, "data")


def test_a_field_more_is_a_misfit_of_a_closed_schema_alone() -> None:
    for data, field in (
        ({"items": [], "colur": "red"}, "data.colur"),
        ({"items": [{"name": "a", "nam": 1}]}, "data.items[0].nam"),
        ({"items": [], 7: 1, "x" * 50: 2}, "data.7"),
    ):
        OPEN.structure(data, "data")
        with pytest.raises(Misfit, match="is not a field of") as caught:
            CLOSED.structure(data, "data")
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("validator", "words"),
    [
        (attrs.validators.in_(["a"]), "'name' must be in ['a'] (got 'xxx"),
        (attrs.validators.matches_re("a+"), "'name' must match regex 'a+' ('xxx"),
        (attrs.validators.max_len(3), "Length of 'name' must be <= 3"),
    ],
)
def test_of_what_a_validator_says_the_words_are_told(validator: Any, words: str) -> None:
    @attrs.frozen
    class Named:
        name: str = attrs.field(validator=validator)

    with pytest.raises(Misfit) as caught:
        Schema(Named, name="named").structure({"name": "x" * 1000}, "data")
    assert caught.value.field == "data.name"
    assert caught.value.problem.startswith(words)
    assert len(caught.value.problem) <= 200


def test_a_bug_in_a_validator_is_no_misfit() -> None:
    def look_up(*_: object) -> None:
        raise KeyError("a bug")

    @attrs.frozen
    class Buggy:
        name: str = attrs.field(validator=look_up)

    with pytest.raises(KeyError, match="a bug"):
        Schema(Buggy, name="buggy").structure({"name": "a"}, "data")


@given(json_values)
def test_whatever_json_comes_there_is_no_other_error(value: object) -> None:
    for schema in (OPEN, CLOSED, Schema(bool, name="x"), Schema(list[Item], name="x")):
        for data in (value, {"items": [], "best": value}, {"items": [], "pair": value, "size": value}):
            with contextlib.suppress(Misfit):
                schema.structure(data, "data")


@pytest.mark.parametrize(
    ("kind", "good", "bad", "field"),
    [
        (bool, True, 1, "answer"),
        (str, "yes", None, "answer"),
        (list[int], [1, 2], [1, "2"], "answer[1]"),
        (Literal["yes", "no"], "yes", "maybe", "answer"),
        (int | None, None, "x", "answer"),
        (Colour, "red", "blue", "answer"),
    ],
)
def test_any_supported_type_is_a_schema(kind: Any, good: object, bad: object, field: str) -> None:
    schema: Schema[Any] = Schema(kind, name="answer")
    assert plain(schema.structure(good, "answer"), "answer") == good
    with pytest.raises(Misfit) as caught:
        schema.structure(bad, "answer")
    assert caught.value.field == field


def test_the_description_is_json_schema() -> None:
    item = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "price": {"type": "number"}, "from": {"type": "string"}},
        "required": ["name"],
    }
    described = OPEN.description
    assert described["type"] == "object"
    assert described["required"] == ["items"]
    assert described["properties"] == {
        "items": {"type": "array", "items": item},
        "count": {"type": "integer"},
        "paid": {"type": "boolean"},
        "placed": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
        "day": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "raw": {"type": "string", "contentEncoding": "base64"},
        "colour": {"enum": ["red", 2]},
        "size": {"enum": ["s", 1, True]},
        "pair": {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "minItems": 2,
            "maxItems": 2,
        },
        "marks": {"type": "array", "items": {"type": "string"}},
        "by_name": {"type": "object", "additionalProperties": item},
        "ref": {"anyOf": [{"type": "string", "format": "uuid"}, {"type": "null"}]},
        "note": {},
        "best": {"anyOf": [item, {"type": "null"}]},
    }


@attrs.define
class Tree:
    children: list[Tree]


@attrs.define
class Lost:
    x: NoSuchName  # type: ignore[name-defined]  # noqa: F821  # That is the test.


@dataclasses.dataclass
class Data:
    x: int


@attrs.define
class Holding:
    inner: Data


@pytest.mark.parametrize(
    "kind",
    [Tree, Lost, Data, Holding, object, set[int], int | str, dict[int, str], complex, list[Data], tuple],
)
def test_a_type_that_has_no_place_in_json_is_refused_where_it_is_registered(kind: Any) -> None:
    with pytest.raises(ConfigError, match="thing"):
        Schema(kind, name="thing")


def test_a_wrong_type_is_named_with_its_field() -> None:
    with pytest.raises(ConfigError, match=r"thing\.inner: is of the type"):
        Schema(Holding, name="thing")


class TestAnEvent:
    schemas: ClassVar = {"order": CLOSED}

    def test_of_another_type_is_left_as_it_is(self) -> None:
        data = {"x": object()}
        assert fitted("other", data, self.schemas) is data

    def test_of_a_registered_type_comes_as_json(self) -> None:
        moment = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
        order = {"items": (Item("a"),), "placed": moment, "raw": b"hi"}
        assert fitted("order", order, self.schemas) == {
            "items": [{"name": "a", "price": 0.0, "from": "here"}],
            "placed": "2026-01-31T12:00:00+00:00",
            "raw": "aGk=",
        }

    def test_may_be_an_instance_of_a_class_of_any_type(self) -> None:
        assert fitted("other", Item("a"), {}) == {"name": "a", "price": 0.0, "from": "here"}
        assert fitted("order", Order([Item("a")]), self.schemas)["items"][0]["name"] == "a"

    @pytest.mark.parametrize(
        ("data", "field"),
        [
            ({"items": [], "more": 1}, "data.more"),
            (Order([Item("a")], placed=dt.datetime(2026, 1, 31)), "data.placed"),  # noqa: DTZ001  # That is the test.
            (Order(items=[3]), "data.items[0]"),  # type: ignore[list-item]  # attrs does not check it
            ([], "data"),
            (None, "data"),
        ],
    )
    def test_that_does_not_fit_is_refused(self, data: object, field: str) -> None:
        with pytest.raises(InvalidEvent) as caught:
            fitted("order", data, self.schemas)
        assert caught.value.field == field

    def test_that_holds_itself_is_refused(self) -> None:
        data: dict[str, Any] = {"items": []}
        data["note"] = data
        with pytest.raises(InvalidEvent, match=f"deeper than {MAX_DEPTH}"):
            fitted("order", data, self.schemas)

    @given(scalars)
    def test_keeps_every_value_that_has_no_rule(self, value: object) -> None:
        assert plain(value, "data") is value
