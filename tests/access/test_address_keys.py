"""What counts as one address."""

from __future__ import annotations

import pytest

from wsrecover.access.addresses import Addresses
from wsrecover.config import Limits


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1:1000", "192.0.2.1:2000", True),
        ("192.0.2.1:1000", "192.0.2.2:1000", False),
        ("[2001:db8::1]:1000", "[2001:db8::ffff:1]:1000", True),
        ("[2001:db8:0:0:1::]:1", "[2001:db8::2]:1", True),
        ("[2001:db8::1]:1000", "[2001:db8:0:1::1]:1000", False),
        ("[fe80::1%eth0]:1", "[fe80::2%eth0]:1", True),
        ("memory:1", "memory:2", True),
    ],
)
async def test_an_address_is_one_whatever_its_port_and_of_ipv6_its_first_half(
    first: str, second: str, same: bool
) -> None:
    addresses = Addresses(Limits(address_handshakes=1))
    assert addresses.enter(first) == 0.0
    assert (addresses.enter(second) is None) is same
    addresses.leave(second)
    addresses.leave(first)
    assert len(addresses) == 0
    assert addresses.enter(second) == 0.0
