"""What one network address may do before anybody knows who is there."""

from __future__ import annotations

import ipaddress
from collections import Counter
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
        self._unknown: Counter[str] = Counter()

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
        self._unknown[key] += 1
        if self._unknown[key] > self._most:
            return None
        return self._connects.take(key, moment(trio.current_time()))

    def stay(self, peer: str) -> None:
        """Note that a connection which leaves the handshake is still unknown; it must `leave` once more."""
        self._unknown[_key(peer)] += 1

    def leave(self, peer: str) -> None:
        """Note that a connection is known, or gone."""
        key = _key(peer)
        self._unknown[key] -= 1
        if not self._unknown[key]:
            del self._unknown[key]

    def __len__(self) -> int:
        """The connections of which nobody knows yet whose they are."""
        return self._unknown.total()


def _key(peer: str) -> str:
    host = peer.rpartition(":")[0]
    if not host.startswith("["):
        return host
    try:
        address = ipaddress.IPv6Address(host[1:-1].partition("%")[0])
    except ValueError:
        return host
    return str(ipaddress.IPv6Network((address, 64), strict=False))
