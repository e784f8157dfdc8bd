"""Whose connection a proxy forwards, and whom nobody believes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsrecover.access.proxies import MAX_HOPS, Proxies

OURS = Proxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])
PROXY = "10.0.0.1:5000"


@pytest.mark.parametrize(
    ("peer", "trusted"),
    [
        ("10.0.0.1:5000", True),
        ("192.0.2.7:1", True),
        ("[fd00::1]:5000", True),
        ("11.0.0.1:5000", False),
        ("192.0.2.8:1", False),
        ("[fe80::1]:5000", False),
        ("memory:1", False),
        ("", False),
    ],
)
def test_a_proxy_is_known_by_its_network(peer: str, trusted: bool) -> None:
    assert OURS.trusts(peer) is trusted
    assert not Proxies([]).trusts(peer)


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.9", "203.0.113.9:0"),
        ("203.0.113.9:4711", "203.0.113.9:4711"),
        ("2001:db8::1", "[2001:db8::1]:0"),
        ("[2001:db8::1]", "[2001:db8::1]:0"),
        ("[2001:DB8:0::1]:80", "[2001:db8::1]:80"),
        ("::ffff:203.0.113.9", "203.0.113.9:0"),
        # What stands before the last address that is not ours, the client may have written itself.
        ("6.6.6.6, 203.0.113.9", "203.0.113.9:0"),
        ("6.6.6.6,203.0.113.9 , 10.9.9.9,\t192.0.2.7", "203.0.113.9:0"),
        ("10.0.0.2, 203.0.113.9", "203.0.113.9:0"),
        ("' OR 1=1, 203.0.113.9", "203.0.113.9:0"),
        ("203.0.113.9, ::ffff:10.2.3.4", "203.0.113.9:0"),
        # All of them ours: the first is who began.
        ("10.0.0.3, 10.0.0.2", "10.0.0.3:0"),
        # Nothing, or nothing that is an address: the proxy next to it is all that is known.
        ("", PROXY),
        (",", PROXY),
        ("unknown", PROXY),
        ("203.0.113.9, unknown", PROXY),
        ("203.0.113.9, unknown, 10.0.0.2", "10.0.0.2:0"),
        ("203.0.113.9,", PROXY),
        ("203.0.113.256", PROXY),
        ("203.0.113.09", PROXY),
        ("0x7f.1", PROXY),
        ("2130706433", PROXY),
        ("203.0.113.9:", PROXY),
        ("203.0.113.9:65536", PROXY),
        ("203.0.113.9:-1", PROXY),
        ("203.0.113.9:80:80", PROXY),
        ("[203.0.113.9", PROXY),
        ("[2001:db8::1]80", PROXY),
        ("fe80::1%eth0", PROXY),
        ("203.0.113.0/24", PROXY),
        ("for=203.0.113.9", PROXY),
        ('"203.0.113.9"', PROXY),
    ],
)
def test_the_client_is_the_last_that_is_not_ours(forwarded: str, client: str) -> None:
    assert OURS.client(PROXY, forwarded) == client


ADDRESSES = st.ip_addresses().map(str)
LINES = st.lists(ADDRESSES | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)).map(
    ",".join
)


@given(LINES)
def test_what_a_client_writes_never_shows_behind_what_our_proxy_appends(line: str) -> None:
    assert OURS.client(PROXY, f"{line}, 203.0.113.9") == "203.0.113.9:0"


@given(LINES)
def test_whatever_is_written_the_answer_is_an_address_with_a_port(line: str) -> None:
    client = OURS.client(PROXY, line)
    assert OURS.client(PROXY, client) == client
    assert client.rpartition(":")[2].isdigit()


def test_a_long_line_is_not_walked_to_its_end() -> None:
    line = ", ".join(["203.0.113.9", *["10.0.0.2"] * MAX_HOPS])
    assert OURS.client(PROXY, line) == "10.0.0.2:0"
    assert OURS.client(PROXY, line.removesuffix(", 10.0.0.2")) == "203.0.113.9:0"
