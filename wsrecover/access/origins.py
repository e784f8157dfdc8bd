"""Which pages may connect (RFC 6455, section 10.2), by their origin (RFC 6454, section 6.2)."""

from __future__ import annotations

import re
from typing import Final

from wsrecover.config import Origins

__all__ = ["is_allowed"]

_ORIGIN: Final = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?")
_HOST: Final = re.compile(r"([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_PORTS: Final = {"http": "80", "https": "443"}


def is_allowed(rules: Origins, origin: str | None, host: str, *, tls: bool) -> bool:
    """Whether a page from `origin` may connect to `host`, which is the request's Host header.

    A browser sends its origin in one form only, in lower case and without the default port, so that what is
    listed is compared as it is. `tls`: the server itself speaks TLS, where a page from `http://` is another
    site; behind a proxy that does, both are the same host.
    """
    if origin is None:
        return rules.missing
    if origin == "null":
        return rules.null
    return origin in rules.allowed or (rules.same_host and _same_host(origin, host, tls=tls))


def _same_host(origin: str, host: str, *, tls: bool) -> bool:
    page, here = _ORIGIN.fullmatch(origin), _HOST.fullmatch(host)
    if page is None or here is None or (tls and page[1] != "https"):
        return False
    default = _PORTS[page[1]]
    return page[2] == here[1].lower() and (page[3] or default) == (here[2] or default)
