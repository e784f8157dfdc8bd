"""What a commit appended to a stream goes to its followers as one WebSocket message."""

from __future__ import annotations

import pytest

from wsrecover.session.replay import live_message
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.registry import Streams
from wsrecover.streams.store import Entry, StreamKey
from wsrecover.transport.framing import payloads

ANN = StreamKey("user", "acme", "ann")
FRAMES = {
    3: b'{"op":"event","stream":"user","seq":3,"ts":1.0,"type":"x"}',
    4: b'{"op":"event","stream":"user","seq":4,"ts":2.0,"type":"y"}',
}
ENTRIES = [
    Entry(ANN, b'{"ts":1.0,"type":"x"}', 1.0, seq=3),
    Entry(ANN, b'{"ts":2.0,"type":"y"}', 2.0, seq=4),
]


@pytest.mark.parametrize(
    ("count", "message"), [(1, FRAMES[3]), (2, b"[%b,%b]" % (FRAMES[3], FRAMES[4]))], ids=["one", "two"]
)
async def test_it_is_one_object_or_an_array(count: int, message: bytes) -> None:
    stream = await Streams(MemoryStore()).open(ANN)
    assert list(payloads(live_message(stream, ENTRIES[:count]))) == [message]
