"""How a connection begins: all in the URL (one round trip), or a `hello` where it would not fit there."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from wsrecover.errors import ConfigError
from wsrecover.protocol.codec import encode
from wsrecover.protocol.frames import Hello

__all__ = ["CONNECT_PATH", "check_url", "entry"]

CONNECT_PATH: Final = "/v1/connect"

MAX_QUERY: Final = 4096
"""Characters: with a token of the greatest size beside it, a request's head still fits the usual 16 KiB."""


def check_url(url: str) -> str:
    """`url` with the path filled in where there is none. Raises `ConfigError`."""
    accepted = "ws://host[:port] or wss://host[:port], without user, query and fragment"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ConfigError("url", f"is no URL: {error}", accepted) from error
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError("url", "is no WebSocket URL", accepted)
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError("url", "has a user, a query or a fragment", accepted)
    path = CONNECT_PATH if parts.path in ("", "/") else parts.path
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def entry(url: str, hello: Hello) -> tuple[str, bytes | None]:
    """The URL to open and the first message to send, or None where the URL says it all."""
    query = _query(hello)
    if len(query) > MAX_QUERY:
        return url, encode(hello)
    return f"{url}?{query}", None


def _query(hello: Hello) -> str:
    values: dict[str, Any] = {}
    if hello.resume:
        values["resume"] = {name: [place.epoch, place.seq] for name, place in hello.resume.items()}
    if hello.part:
        values["part"] = hello.part
    if hello.threads is not None:
        values["threads"] = hello.threads
    if hello.fresh:
        values["fresh"] = hello.fresh
    texts = {"client": hello.client, **{name: _json(value) for name, value in values.items()}}
    if hello.from_ != "snapshot":
        texts["from"] = hello.from_
    return "&".join(f"{name}={quote(text, safe='')}" for name, text in texts.items())


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
