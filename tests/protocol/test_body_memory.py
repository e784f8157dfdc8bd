"""An event's body stays in memory as long as its stream's tail, whose budget counts its length."""

from __future__ import annotations

import tracemalloc

from wsrecover.protocol.codec import encode_event


def test_a_body_holds_little_more_memory_than_its_bytes() -> None:
    data = {"text": "x" * 200}
    tracemalloc.start()
    try:
        bodies = [encode_event(ts=1.0, type="note", data=data, max_bytes=4096) for _ in range(100)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * sum(map(len, bodies))
