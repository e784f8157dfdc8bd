"""Which pages may connect: exact origins, and the three choices beside them."""

from __future__ import annotations

import pytest

from wsrecover.access.origins import is_allowed
from wsrecover.config import Origins
from wsrecover.errors import ConfigError

HOST = "app.example"


@pytest.mark.parametrize(
    ("origin", "host", "tls", "allowed"),
    [
        ("https://app.example", HOST, False, True),
        ("http://app.example", HOST, False, True),
        ("https://app.example", HOST, True, True),
        ("http://app.example", HOST, True, False),
        ("https://app.example", "APP.example", True, True),
        ("https://app.example", "app.example:443", True, True),
        ("http://app.example", "app.example:80", False, True),
        ("http://app.example", "app.example:443", False, False),
        ("http://localhost:8765", "localhost:8765", False, True),
        ("http://localhost:3000", "localhost:8765", False, False),
        ("http://localhost", "localhost:8765", False, False),
        ("http://[::1]:8765", "[::1]:8765", False, True),
        ("http://[::1]:8765", "[::2]:8765", False, False),
    ],
)
def test_by_default_pages_of_the_same_host_and_port(origin: str, host: str, tls: bool, allowed: bool) -> None:
    assert is_allowed(Origins(), origin, host, tls=tls) is allowed
    assert not is_allowed(Origins(same_host=False), origin, host, tls=tls)


@pytest.mark.parametrize(
    "odd",
    [
        "https://app.example/",
        "https://APP.example",
        "HTTPS://app.example",
        "https://app.example:443x",
        "https://app.example:",
        "https://u@app.example",
        "https://app.example.",
        "app.example",
        "//app.example",
        "https://app.example https://app.example",
        "",
    ],
)
def test_what_no_browser_sends_is_of_no_host(odd: str) -> None:
    assert not is_allowed(Origins(), odd, HOST, tls=False)


def test_null_and_missing_are_choices_of_their_own() -> None:
    for choice in (False, True):
        assert is_allowed(Origins(null=choice), "null", HOST, tls=False) is choice
        assert is_allowed(Origins(missing=choice), None, HOST, tls=False) is choice
    assert not is_allowed(Origins(same_host=True, missing=True), "null", "null", tls=False)


@pytest.mark.parametrize(
    "entry",
    ["https://app.example", "http://localhost:3000", "chrome-extension://abcdef", "capacitor://localhost"],
)
def test_a_listed_one_is_taken_exactly(entry: str) -> None:
    rules = Origins(allowed=(entry,))
    assert is_allowed(rules, entry, HOST + ":1", tls=True)
    for other in (entry + "x", "x" + entry, entry.upper(), entry + "/", entry[:-1]):
        assert not is_allowed(rules, other, HOST + ":1", tls=True)


@pytest.mark.parametrize(
    "entry",
    [
        "*",
        "null",
        "",
        "app.example",
        "https://",
        "https://app.example/",
        "https://*.example",
        "https://App.example",
        "https://app.example:443",
        "http://app.example:80",
        "https://app.example:",
        "https://app.example:x",
        "https://u@app.example",
        "https://app.example https://b.example",
        "https://ä.example",
        7,
    ],
)
def test_an_entry_that_could_never_match_is_refused_by_name(entry: object) -> None:
    with pytest.raises(ConfigError, match=r"^origins\.allowed: holds ") as caught:
        Origins(allowed=(entry,))  # type: ignore[arg-type]  # the point of the test
    assert "https://app.example" in caught.value.accepted
