"""Who is behind a proxy: the one address in `X-Forwarded-For` that nobody but the proxy can have written.

::

    X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.0.0.7      the TCP peer: 10.0.0.1
                     │        │            └─ ours: look on  └─ ours: look on
                     │        └─ not ours: this is the client, as our own proxy saw it
                     └─ whatever the client liked to say
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final, TypeAlias

__all__ = ["HEADER", "Proxies"]

HEADER: Final = "x-forwarded-for"

MAX_HOPS: Final = 16
"""Proxies of ours that are looked through, one behind the other: more than anybody has."""

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The networks that are believed. Peers are `host:port`, as a socket tells them."""

    def __init__(self, networks: Sequence[str]) -> None:
        """`networks` in CIDR notation. Raises `ValueError`."""
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def trusts(self, peer: str) -> bool:
        """Whether `peer` is one of them."""
        if not self._networks:
            return False
        found = _parse(peer)
        return found is not None and self._is_ours(found[0])

    def client(self, peer: str, forwarded: str) -> str:
        """Whose connection comes by `peer`, one of them, where `forwarded` is the header's value.

        From the last to the first, it is the first that is none of ours. What is no address ends the search:
        the proxy that wrote it is taken for the client, as it is where nothing is said. A port that is not
        told is 0.
        """
        client = peer
        for text in reversed(forwarded.rsplit(",", MAX_HOPS)[-MAX_HOPS:]):
            found = _parse(text.strip(" \t"))
            if found is None:
                break
            address, port = found
            client = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
            if not self._is_ours(address):
                break
        return client

    def _is_ours(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _parse(text: str) -> tuple[_Address, int] | None:
    """An address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`."""
    host, port = text, "0"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if "%" in host or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, int(port)
