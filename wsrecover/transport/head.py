"""The head of an HTTP/1.1 message, parsed strictly and within bounds (RFC 9112; RFC 9110, section 5).

Only what a WebSocket handshake needs: one start line and headers, each `name: value`, ASCII, CRLF, unfolded.
"""

from __future__ import annotations

import functools
import re
from binascii import a2b_qp
from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, overload

import attrs

__all__ = ["MAX_HEADERS", "HeadError", "Headers", "Request", "parse_headers", "parse_query", "parse_request"]

MAX_HEADERS: Final = 100
MAX_QUERY_FIELDS: Final = 32

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ODD_BYTE: Final = re.compile(r"[^\t -~]")
_TARGET: Final = re.compile(r"/[!$-~]*")  # origin-form, visible ASCII, no quote and no fragment
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")

_NO_FIELD: Final = "header: not `name: value`"

_T = TypeVar("_T")

_SINGLE: Final = frozenset(
    {
        "authorization",
        "content-length",
        "content-type",
        "host",
        "origin",
        "retry-after",
        "sec-websocket-accept",
        "sec-websocket-key",
        "sec-websocket-version",
        "transfer-encoding",
        "user-agent",
    }
)


class HeadError(Exception):
    """The head breaks the rules; `status` is the HTTP status that says so, 400 or 431."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem


class Headers(Mapping[str, str]):
    """Headers by name, whatever its case. Several of one list-valued name are joined with commas.

    `lower` are the same by lower-case name alone, as one look-up: a handshake takes a dozen.
    """

    __slots__ = ("lower",)

    def __init__(self, values: dict[str, str]) -> None:
        """`values` by lower-case name."""
        self.lower = values

    def __getitem__(self, name: str) -> str:
        return self.lower[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self.lower)

    def __len__(self) -> int:
        return len(self.lower)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self.lower

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, /, default: str | _T) -> str | _T: ...
    def get(self, name: str, /, default: str | _T | None = None) -> str | _T | None:
        """The header, or `default`. Not the inherited one, for which what is missing is an exception."""
        return self.lower.get(name.lower(), default)

    def names(self, name: str, token: str) -> bool:
        """Whether `token` is a member, in any case, of a comma-separated header. Both in lower case."""
        value = self.lower.get(name, "").lower()
        return value == token or token in (part.strip(" \t") for part in value.split(","))

    def tokens(self, name: str) -> tuple[str, ...]:
        """The members of a comma-separated header, `name` in lower case, in order, without the empty ones."""
        value = self.lower.get(name, "")
        return tuple([item for part in value.split(",") if (item := part.strip(" \t"))])


@attrs.frozen
class Request:
    """What a client asked for. `path` is as sent, `query` is decoded, `peer` is its address as `host:port`;
    `subprotocols` are those offered, in the client's order.

    Headers and query may hold secrets and stay out of its repr, and the subprotocols with them.
    """

    method: str
    path: str
    query: Mapping[str, str] = attrs.field(repr=False)
    headers: Headers = attrs.field(repr=False)
    peer: str
    subprotocols: tuple[str, ...] = attrs.field(init=False, repr=False)

    @subprotocols.default
    def _subprotocols(self) -> tuple[str, ...]:
        return self.headers.tokens("sec-websocket-protocol")


def parse_request(head: bytes, peer: str) -> Request:
    """The request whose head, without the empty line that ends it, is `head`. Raises HeadError."""
    line, headers = parse_headers(head)
    parts = line.split(" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or parts[2] != "HTTP/1.1":
        raise HeadError(400, "request line: not `METHOD /path HTTP/1.1`")
    if not _TARGET.fullmatch(parts[1]):
        raise HeadError(400, "request target: not an absolute path of visible ASCII")
    if "host" not in headers.lower:
        raise HeadError(400, "Host: missing")
    path, _, query = parts[1].partition("?")
    return Request(parts[0], path, parse_query(query), headers, peer)


def parse_headers(head: bytes) -> tuple[str, Headers]:
    """The start line and the headers of a head without the empty line that ends it. Raises HeadError."""
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        raise HeadError(400, "head: not ASCII") from None
    lines = text.split("\r\n")
    if not (whole := "".join(lines)).isprintable() and _ODD_BYTE.search(whole):
        raise HeadError(400, "head: control characters, or line ends other than CRLF")
    start = lines.pop(0)
    if len(lines) > MAX_HEADERS:
        raise HeadError(431, f"head: more than {MAX_HEADERS} headers")
    values: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise HeadError(400, _NO_FIELD)
        name, value = _field_name(name), value.strip(" \t")
        if name in values:
            if name in _SINGLE:
                raise HeadError(400, f"{name}: given twice")
            value = f"{values[name]}, {value}"
        values[name] = value
    return start, Headers(values)


@functools.lru_cache(maxsize=64)
def _field_name(name: str) -> str:
    """The name in lower case. All clients send the same few. Raises HeadError."""
    if not _TOKEN.fullmatch(name):
        raise HeadError(400, _NO_FIELD)
    return name.lower()


def parse_query(query: str) -> dict[str, str]:
    """The fields of a query string, percent-decoded as UTF-8, `+` as a space. Raises HeadError (400).

    A field without `=` is an empty one. Escapes must be whole, and no name may be empty or come twice.
    """
    if not query:
        return {}
    fields = query.split("&")
    if len(fields) > MAX_QUERY_FIELDS:
        raise HeadError(400, f"query: more than {MAX_QUERY_FIELDS} fields")
    values: dict[str, str] = {}
    for field in fields:
        name, _, value = field.partition("=")
        if "%" in field or "+" in field:
            name, value = _unquote(name), _unquote(value)
        if not name:
            raise HeadError(400, "query: a field has no name")
        if name in values:
            raise HeadError(400, f"query: {name[:40]!a} is given twice")
        values[name] = value
    return values


def _unquote(text: str) -> str:
    text = text.replace("+", " ")
    if "%" not in text:
        return text
    if _BAD_ESCAPE.search(text):
        raise HeadError(400, "query: a broken percent escape")
    try:
        # Quoted-printable is the same with another sign, and C reads it at a tenth of urllib's time.
        return a2b_qp(text.replace("=", "=3D").replace("%", "=").encode()).decode()
    except UnicodeDecodeError:
        raise HeadError(400, "query: a percent escape is not UTF-8") from None
