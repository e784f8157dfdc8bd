"""A hello in a URL means what the frame means, and is held to the same rules."""

from __future__ import annotations

import json
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from strategies import CLIENT

from wsrecover.errors import FrameError
from wsrecover.protocol.codec import decode_hello, encode
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import Hello

LIMIT = 1 << 20


class TestTheHelloInAUrl:
    def test_it_is_the_frame_of_the_same_fields(self) -> None:
        parameters = {
            "client": "c-1",
            "from": "start",
            "resume": '{"user":["e",7]}',
            "part": '{"user":[8,65536]}',
            "threads": '["t1","t2"]',
            "fresh": '["t2"]',
        }
        assert decode_hello(parameters, max_bytes=LIMIT) == Hello(
            "c-1",
            resume={"user": Position("e", 7)},
            part={"user": (8, 65536)},
            threads=("t1", "t2"),
            fresh=("t2",),
            from_="start",
        )

    @given(CLIENT["hello"])
    def test_what_a_frame_can_say_it_can_say(self, hello: Any) -> None:
        """The fields of any hello, as parameters, decode to it; only the token has no place in a URL."""
        hello = attrs.evolve(hello, token=None)
        fields = orjson.loads(encode(hello))
        parameters = {
            name: value if isinstance(value, str) else orjson.dumps(value).decode()
            for name, value in fields.items()
        }
        assert decode_hello(parameters, max_bytes=LIMIT) == hello

    def test_a_client_is_enough_and_what_is_no_field_of_it_is_ignored(self) -> None:
        parameters = {"client": "c", "op": "send", "token": "secret", "later": "{", "from_": "start"}
        assert decode_hello(parameters, max_bytes=LIMIT) == Hello("c")

    @pytest.mark.parametrize(
        ("parameters", "code", "field"),
        [
            ({}, "invalid", "client"),
            ({"client": ""}, "invalid", "client"),
            ({"client": "é"}, "invalid", "client"),
            ({"from": ""}, "invalid", "from"),
            ({"from": "end"}, "invalid", "from"),
            ({"from": '"start"'}, "invalid", "from"),
            ({"resume": ""}, "malformed", "resume"),
            ({"resume": "user"}, "malformed", "resume"),
            ({"resume": "null"}, "invalid", "resume"),
            ({"resume": '{"user":["e","7"]}'}, "invalid", "resume.user[1]"),
            ({"resume": '{"user":["e",1],"user":["e",2]}'}, "malformed", "resume"),
            ({"part": '{"user":[1,NaN]}'}, "malformed", "part"),
            ({"part": '{"user":[1,9007199254740992]}'}, "malformed", "part"),
            ({"threads": '["\\ud800"]'}, "malformed", "threads"),
            ({"threads": '["\ud800"]'}, "malformed", "threads"),
            ({"threads": "t1"}, "malformed", "threads"),
            ({"fresh": "[" * 100_000}, "malformed", "fresh"),
            ({"fresh": json.dumps(["t"] * 101)}, "invalid", "fresh"),
        ],
    )
    def test_the_parameter_that_is_wrong_is_named(
        self, parameters: dict[str, str], code: str, field: str
    ) -> None:
        client = {} if field == "client" else {"client": "c"}
        with pytest.raises(FrameError) as caught:
            decode_hello({**client, **parameters}, max_bytes=LIMIT)
        assert (caught.value.code, caught.value.field, caught.value.close) == (code, field, None)
        assert caught.value.message.startswith(f"{field}: ")

    def test_each_parameter_is_bounded(self) -> None:
        threads = json.dumps(["x" * 20])
        assert decode_hello({"client": "c", "threads": threads}, max_bytes=len(threads))
        with pytest.raises(FrameError) as caught:
            decode_hello({"client": "c", "threads": threads}, max_bytes=len(threads) - 1)
        assert (caught.value.code, caught.value.field) == ("too_large", "threads")
