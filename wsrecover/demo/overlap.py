"""A way to connect that claims less than the client has, so that the server repeats some events on the wire.

A server may repeat what it is not sure of; ours has no need to, so without this the client's dedupe would
have nothing to do in the demo, and nobody would see it fail.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import orjson

from wsrecover.transport import ClientSocket, open_socket

__all__ = ["OVERLAP", "dial_overlapping"]

OVERLAP: Final = 3
"""Events that each resume claims not to have, though the client has them."""


def dial_overlapping(url: str, **options: Any) -> AbstractAsyncContextManager[ClientSocket]:
    """`open_socket`, with each position of the URL's `resume` set back by up to `OVERLAP` events."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if "resume" in query:
        claimed = {
            stream: [epoch, max(0, seq - OVERLAP)]
            for stream, (epoch, seq) in orjson.loads(query["resume"]).items()
        }
        query["resume"] = orjson.dumps(claimed).decode()
    return open_socket(urlunsplit(parts._replace(query=urlencode(query))), **options)
