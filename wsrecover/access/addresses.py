"""What one network address may do before anybody knows who is there."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

import trio

from wsrecover.config import Limits

from .limits import Buckets, Rate, moment
from .proxies import HEADER, Proxies

__all__ = ["Addresses"]


class Addresses:
    """Connects in a second, and connections at once that have not said who they are, of each address.

    Of IPv6 a /64 counts as one address: that much anybody is given. A connection that one of the `proxies`
    forwards counts for whoever it is forwarded for.
    """

    def __init__(self, limits: Limits, proxies: Sequence[str] = ()) -> None:
        self._proxies = Proxies(proxies)
        self._most = limits.address_handshakes
        self._connects = Buckets(Rate(limits.address_connects_per_second, limits.address_connects_burst))
        self._unknown: dict[str, int] = {}

    def forwards(self, peer: str) -> bool:
        """Whether `peer` is a proxy, and its request says whose connection it is."""
        return self._proxies.trusts(peer)

    def client(self, peer: str, headers: Mapping[str, str]) -> str:
        """Whose connection it is that the proxy `peer` forwards; `host:port` like any peer."""
        return self._proxies.client(peer, headers.get(HEADER, ""))

    def enter(self, peer: str) -> float | None:
        """Note a connection from `peer`, an address as `host:port`, which must `leave` in any case.

        0.0, or the seconds after which it would be welcome; None where its address has too many already.
        """
        key = _key(peer)
        unknown = self._unknown[key] = self._unknown.get(key, 0) + 1
        if unknown > self._most:
            return None
        return self._connects.take(key, moment(trio.current_time()))

    def stay(self, peer: str) -> None:
        """Note that a connection which leaves the handshake is still unknown; it must `leave` once more."""
        key = _key(peer)
        self._unknown[key] = self._unknown.get(key, 0) + 1

    def leave(self, peer: str) -> None:
        """Note that a connection is known, or gone."""
        key = _key(peer)
        if left := self._unknown.pop(key) - 1:
            self._unknown[key] = left

    def __len__(self) -> int:
        """The connections of which nobody knows yet whose they are."""
        return sum(self._unknown.values())


def _key(peer: str) -> str:
    host = peer.rpartition(":")[0]
    if not host.startswith("["):
        return host
    try:
        address = ipaddress.IPv6Address(host[1:-1].partition("%")[0])
    except ValueError:
        return host
    return str(ipaddress.IPv6Network((address, 64), strict=False))
