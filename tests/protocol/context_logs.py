"""Strategies for logs of one thread: what agents emit, and what makes no sense to a context."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from strategies import json_values, objects, texts

from wsrecover.protocol.events import Event
from wsrecover.protocol.utf16 import units

names = st.sampled_from(["a", "b", "c"])
"""Few, so that they meet."""

words = st.text(st.sampled_from('ab é€𝄞\n"\\\u2028'), min_size=1, max_size=5)
pointers = st.sampled_from(["", "/a", "/b", "/a/b", "/a/0", "/a/-", "/~1", "/a/b/c"])
operations = st.builds(
    lambda op, path, origin, value: {"op": op, "path": path, "from": origin, "value": value},
    st.sampled_from(["add", "remove", "replace", "move", "copy", "test"]),
    pointers,
    pointers,
    json_values,
)
patches = st.lists(operations | json_values, max_size=3) | json_values

plain: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = [
    st.tuples(st.just(kind), st.fixed_dictionaries(required, optional=optional))
    for kind, required, optional in (
        ("agent_started", {"agent": texts}, {"input": objects}),
        ("agent_completed", {"status": texts}, {"result": objects, "error": objects}),
        ("tool_executing", {"tool_call_id": names, "tool": texts}, {"input": json_values}),
        ("tool_completed", {"tool_call_id": names}, {"output": json_values, "duration": st.floats(0, 9)}),
        ("tool_failed", {"tool_call_id": names}, {"error": json_values}),
        ("message_started", {"message_id": names}, {"role": texts}),
        ("message_completed", {"message_id": names, "text": texts}, {"interrupted": st.just(True)}),
        ("input_requested", {"request_id": names}, {"prompt": texts, "schema": objects}),
        ("input_resolved", {"request_id": names}, {"answer": json_values}),
        ("state_patch", {"target": st.sampled_from(["memory", "workflow", "x"]), "patch": patches}, {}),
        ("user_message", {"text": texts}, {"parts": json_values}),
        ("chat", {}, {"text": texts | st.booleans()}),
    )
]
senseless = st.tuples(
    st.sampled_from(["message_delta", "message_completed", "tool_completed", "state_patch", "app.x"]), objects
)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """A log with contiguous seqs. Deltas mostly follow on each other."""
    reached: dict[str, int] = {}
    log: list[Event] = []
    for seq in range(1, draw(st.integers(0, 30)) + 1):
        kind, data = draw(st.one_of(*plain, senseless, st.just(("delta", {}))))
        if kind == "delta":
            name, text = draw(names), draw(words)
            offset = reached.get(name, 0) + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))
            reached[name] = offset + units(text)
            kind, data = "message_delta", {"message_id": name, "offset": offset, "text": text}
        log.append(Event("user", seq, float(seq), kind, data, "t", draw(st.none() | names)))
    return log


@st.composite
def talks(draw: st.DrawFn) -> list[Event]:
    """A log of deltas that follow on each other, with other events between some."""
    log: list[Event] = []
    reached: dict[str, int] = {}
    name = "a"
    for text in draw(st.lists(words, max_size=20)):
        name = draw(st.sampled_from([name, name, name, "a", "b"]))
        if draw(st.integers(0, 5)) == 0:
            log.append(Event("user", len(log) + 1, 1.0, "user_message", {"text": text}))
        data = {"message_id": name, "offset": reached.get(name, 0), "text": text}
        reached[name] = reached.get(name, 0) + units(text)
        log.append(Event("user", len(log) + 1, 1.0, "message_delta", data, run="r"))
    return log


def merged(log: list[Event], begins: list[bool]) -> list[Event]:
    """`log` with adjacent deltas of one message made one, where `begins` does not say that another begins."""
    out: list[Event] = []
    for event, fresh in zip(log, begins, strict=True):
        last = out[-1] if out else None
        if (
            not fresh
            and last is not None
            and last.type == event.type == "message_delta"
            and last.data["message_id"] == event.data["message_id"]
        ):
            data = {**last.data, "text": last.data["text"] + event.data["text"]}
            out[-1] = Event("user", event.seq, 1.0, event.type, data, run="r", first_seq=last.first)
        else:
            out.append(event)
    return out
