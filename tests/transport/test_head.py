"""Request heads that nobody should send never take long, and never raise anything but HeadError."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import unquote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrecover.transport.head import MAX_HEADERS, HeadError, parse_headers, parse_query, parse_request

HEAD = b"GET /v1/connect?client=a%20b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_a_head_error(data: bytes) -> None:
    for head in (data, HEAD + data, HEAD[:20] + data + HEAD[20:]):
        with suppress(HeadError):
            request = parse_request(head, "peer")
            assert request.path.startswith("/")
            assert all("\r" not in value and "\n" not in value for value in request.headers.values())


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@given(st.dictionaries(TEXT.filter(bool), TEXT, max_size=8))
def test_a_query_that_was_encoded_decodes_to_itself(fields: dict[str, str]) -> None:
    assert parse_query(urlencode(fields)) == fields


RAW = st.sampled_from(["=", "4", "1", "_", "~", "+", "#", "%3d", "%3D", "%25", "%0A", "%e2%82%ac"])


@given(st.lists(RAW, max_size=12).map("".join))
def test_whatever_stands_beside_an_escape_stays_as_it_is(text: str) -> None:
    assert parse_query(f"a={text}") == {"a": unquote_plus(text)}


def test_list_valued_headers_are_joined_and_names_have_no_case() -> None:
    _, headers = parse_headers(b"x\r\nUpgrade: a\r\nuPGRADE:\t b ,, c \t")
    assert headers["UPGRADE"] == "a, b ,, c"
    assert headers.tokens("upgrade") == ("a", "b", "c")
    assert headers.get("absent") is None
    assert headers.lower == {"upgrade": "a, b ,, c"}


def test_a_field_without_a_value_is_an_empty_one() -> None:
    assert parse_query("flag&a=1&b=") == {"flag": "", "a": "1", "b": ""}


@pytest.mark.parametrize("name", ["Host", "Origin", "Authorization", "Sec-WebSocket-Key"])
def test_a_single_valued_header_given_twice_is_refused(name: str) -> None:
    with pytest.raises(HeadError, match="given twice"):
        parse_headers(f"x\r\n{name}: a\r\n{name.upper()}: a".encode())


def test_headers_are_counted() -> None:
    parse_headers(b"x" + b"\r\na: b" * MAX_HEADERS)
    with pytest.raises(HeadError) as error:
        parse_headers(b"x" + b"\r\na: b" * (MAX_HEADERS + 1))
    assert error.value.status == 431
