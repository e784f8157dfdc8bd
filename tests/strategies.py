"""Hypothesis strategies for what travels on the wire: strict JSON, every frame, raw garbage."""

from __future__ import annotations

import string
from typing import Any

from hypothesis import strategies as st

from wsrecover.protocol.cursor import Position
from wsrecover.protocol.events import TYPES
from wsrecover.protocol.fields import MAX_INT
from wsrecover.protocol.frames import (
    Ack,
    Auth,
    AuthRequired,
    Bye,
    ClientFrame,
    Drain,
    Ephemeral,
    ErrorBody,
    ErrorFrame,
    Event,
    Follow,
    Gap,
    Hello,
    Live,
    Part,
    Ping,
    Pong,
    PrincipalInfo,
    Reply,
    RunInfo,
    Send,
    ServerFrame,
    Skip,
    Snapshot,
    StreamInfo,
    Streams,
    Welcome,
)

PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F))

texts = st.text(max_size=20)
ids = st.text(PRINTABLE, min_size=1, max_size=128)
seqs = st.integers(0, MAX_INT)
seconds = st.floats(0, 1e9, allow_nan=False)
times = st.floats(allow_nan=False, allow_infinity=False)
stream_names = st.sampled_from(["user", "all", "tenant", "tier:mid"]) | st.builds(
    "role:{}".format, st.text(min_size=1, max_size=20)
)
positions = st.builds(Position, ids, seqs)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_INT, MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts, json_values, max_size=4)
event_types = st.sampled_from(sorted(TYPES)) | st.from_regex(r"[a-z][a-z0-9_.]{0,63}", fullmatch=True)
optional_ids = st.none() | ids


def by_stream(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(stream_names, values, max_size=4)


def tuples_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(values, max_size=4).map(tuple)


begins = st.sampled_from(["snapshot", "start", "live"])
stream_infos = st.builds(StreamInfo, texts, seqs, seqs, seqs, st.booleans(), st.none() | texts)
error_bodies = st.builds(ErrorBody, texts, texts, st.none() | texts, st.none() | seconds)
events = st.builds(
    Event, stream_names, st.integers(1, MAX_INT), times, event_types, objects, optional_ids, optional_ids
)
merged_events = st.builds(
    lambda first, more, data: Event("user", first + more, 1.5, "message_delta", data, first_seq=first),
    st.integers(1, 2**40),
    st.integers(0, 1000),
    objects,
)

CLIENT: dict[str, st.SearchStrategy[ClientFrame]] = {
    "hello": st.builds(
        Hello,
        client=ids,
        token=st.none() | texts,
        resume=by_stream(positions),
        part=by_stream(st.tuples(seqs, seqs)),
        threads=st.none() | tuples_of(ids),
        fresh=tuples_of(ids),
        from_=begins,
    ),
    "ack": st.builds(Ack, by_stream(seqs)),
    "send": st.builds(Send, ids, ids, objects, optional_ids, st.none() | seconds),
    "follow": st.builds(Follow, ids, st.none() | tuples_of(ids)),
    "auth": st.builds(Auth, ids, texts),
    "ping": st.just(Ping()),
    "pong": st.just(Pong()),
    "bye": st.just(Bye()),
}

principals = st.builds(PrincipalInfo, texts, texts, tuples_of(texts), st.none() | texts)
runs = st.builds(RunInfo, ids, texts, texts, optional_ids)
statuses = st.sampled_from(["ok", "duplicate", "error"])

SERVER: dict[str, st.SearchStrategy[ServerFrame]] = {
    "welcome": st.builds(
        Welcome,
        st.just(1),
        ids,
        principals,
        by_stream(stream_infos),
        seconds,
        objects,
        times,
        tuples_of(runs),
    ),
    "streams": st.builds(Streams, by_stream(stream_infos), tuples_of(stream_names)),
    "event": events | merged_events,
    "part": st.builds(Part, stream_names, seqs, seqs, seqs, texts),
    "snapshot": st.builds(Snapshot, stream_names, seqs, objects, st.booleans()),
    "live": st.builds(Live, stream_names, seqs),
    "skip": st.builds(Skip, stream_names, seqs),
    "gap": st.builds(Gap, stream_names, texts, st.none() | seqs, st.none() | seqs),
    "reply": st.builds(Reply, ids, statuses, st.none() | objects, st.none() | error_bodies),
    "ephemeral": st.builds(Ephemeral, stream_names, times, texts, objects, optional_ids, optional_ids),
    "auth_required": st.builds(AuthRequired, times),
    "drain": st.builds(Drain, seconds, seconds),
    "error": st.builds(ErrorFrame, texts, texts, st.none() | texts, optional_ids, st.none() | seconds),
    "ping": st.just(Ping()),
    "pong": st.just(Pong()),
}

client_frames = st.one_of(list(CLIENT.values()))
server_frames = st.one_of(list(SERVER.values()))

wild_numbers = st.sampled_from(
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9007199254740993",
        "-9007199254740992",
        "9" * 5000,
        "1E0400",
        "-0",
    ]
)
wild_strings = st.sampled_from(
    ['"\\ud800"', '"\\uDC00\\ud800"', '"\x00"', '"\ud83d"', '"' + "x" * 300 + '"', "'x'"]
)
wild_shapes = st.sampled_from(
    [
        '{"op":"ping","op":"pong"}',
        "[" * 70 + "]" * 70,
        "[" * 20000,
        '{"a":' * 5000,
        "[]",
        "[" + "1," * 300 + "1]",
        "",
    ]
)
ops = st.sampled_from(
    ["hello", "ack", "send", "follow", "auth", "ping", "bye", "event", "part", "welcome", "gap"]
)
fields = st.sampled_from(
    [
        "op",
        "id",
        "client",
        "resume",
        "part",
        "threads",
        "fresh",
        "from",
        "pos",
        "type",
        "data",
        "age",
        "stream",
        "seq",
    ]
)
wild_objects = st.builds(
    lambda op, rest: {**rest, "op": op},
    ops | json_values,
    st.dictionaries(fields | texts, json_values, max_size=6),
)
"""Objects with the words of the protocol in the wrong places."""

garbage = (
    st.text(string.printable, max_size=60) | st.text(max_size=60) | wild_numbers | wild_strings | wild_shapes
)
