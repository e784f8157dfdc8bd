"""What a thread's events add up to: conversation, tool calls, runs, open requests, the app's documents.

`reduce(context, event) -> context` is pure, and the same on the server and on a client: whoever has the
context as of a seq and the events after it has what the whole log makes. An event that makes no sense here (a
piece of an unknown message, a patch that does not apply) changes nothing, nor does a type outside `TYPES`.

A token costs what the token costs, however long its message or the conversation.

A context has a bound, and loses what is old to keep it. A message that grows makes room at the very character
for which there is none, so that it makes no difference in which pieces the text came.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import attrs
import orjson

from wsrecover.errors import InvalidEvent

from .encode import Logged
from .events import TERMINAL, Event
from .patch import patched
from .persistent import Text
from .thread import (
    EMPTY,
    Context,
    Item,
    Message,
    Request,
    RunState,
    ToolCall,
    grow,
    parse,
    put,
    put_document,
    without,
)
from .utf16 import between, units

__all__ = [
    "CONTEXT_BYTES",
    "EMPTY",
    "KEPT_BYTES",
    "NO_THREAD",
    "TYPES",
    "Context",
    "Message",
    "Request",
    "RunState",
    "ToolCall",
    "concerning",
    "parse",
    "reduce",
]

NO_THREAD: Final = ""
"""The name of the context of events without a thread; no thread can have it."""

CONTEXT_BYTES: Final = 1024 * 1024
"""Bytes of a context in JSON; one that grows beyond loses its oldest messages, tool calls and ended runs."""

KEPT_BYTES: Final = CONTEXT_BYTES * 7 // 8
"""What it is cut down to then: not at each event anew."""


def reduce(context: Context, event: Event) -> Context:
    """The context after `event`, which may be merged, and may begin with what is in the context already."""
    handler = _HANDLERS.get(event.type)
    if handler is None:
        return context
    reduced = handler(context, event)
    return reduced if reduced.size <= CONTEXT_BYTES else _truncated(reduced)


def concerning(events: Iterable[Logged]) -> list[Logged]:
    """Those that may make a difference; cheaper than to decode them."""
    match = _CONCERNING.match
    return [(seq, body) for seq, body in events if match(body)]


def _truncated(context: Context) -> Context:
    return _cut(context, (*context.over(), *context.going_on()))


def _roomier(context: Context, message: str) -> Context:
    """The context without what is over, as far as needed, but with the message that is to grow."""
    return _cut(context, [item for item in context.over() if (item.shelf, item.id) != ("messages", message)])


def _cut(context: Context, leaving: Iterable[Item]) -> Context:
    for item in leaving:
        if context.size <= KEPT_BYTES:
            break
        context = without(context, item)
    return attrs.evolve(context, truncated=True)


def _text(event: Event, name: str) -> str | None:
    value = event.data.get(name)
    return value if isinstance(value, str) else None


def _number(event: Event, name: str) -> float | None:
    value = event.data.get(name)
    return value if type(value) in (int, float) else None


def _rest(event: Event, *known: str) -> dict[str, Any] | None:
    return {key: value for key, value in event.data.items() if key not in known} or None


def _started(context: Context, event: Event) -> Context:
    name = _text(event, "message_id")
    if name is None or context.messages.get(name) is not None:
        return context
    role = _text(event, "role") or "assistant"
    message = Message(id=name, role=role, text=Text(), complete=False, seq=event.first, run=event.run)
    return put(context, message)


def _delta(context: Context, event: Event) -> Context:
    name, text, offset = _text(event, "message_id"), _text(event, "text"), event.data.get("offset")
    if name is None or text is None or type(offset) is not int:
        return context
    message = context.messages.get(name)
    if message is None and offset == 0:
        context = _started(context, event)
        message = context.messages[name]
        if context.size >= CONTEXT_BYTES:
            context = _roomier(context, name)
            if context.size > CONTEXT_BYTES:
                return without(context, message)
    if message is None or message.complete or not 0 <= offset <= message.text.units:
        return context
    known = message.text.units - offset
    if known:
        whole = units(text)
        text = between(text, known, whole)
        if units(text) != max(whole - known, 0):
            return context  # What is known ends within a character of it: it is of another text.
    if not text:
        return context
    size = _size(text)
    if context.size + size > CONTEXT_BYTES:
        return _squeezed(context, message, text)
    return grow(context, message, text, size)


def _size(text: str) -> int:
    return len(orjson.dumps(text)) - 2


def _squeezed(context: Context, message: Message, text: str) -> Context:
    """The context with as much of `text` behind `message` as there is room for, or can be made.

    What does not fit then is left to `message_completed`, as is all that follows: it comes behind a hole.
    """
    while text:
        room = CONTEXT_BYTES - context.size
        fits = max(0, bisect_right(range(len(text) + 1), room, key=lambda n: _size(text[:n])) - 1)
        if fits:
            context = grow(context, message, text[:fits], _size(text[:fits]))
            message, text = context.messages[message.id], text[fits:]
            continue
        context = _roomier(context, message.id)
        if context.size + _size(text[0]) > CONTEXT_BYTES:
            break
    return context


def _completed(context: Context, event: Event) -> Context:
    name, text = _text(event, "message_id"), _text(event, "text")
    if name is None or text is None:
        return context
    ended = _ended(context, event, name, text)
    if ended.size < CONTEXT_BYTES:  # Even where it was a byte longer before: "false" instead of "true".
        return ended
    whole = attrs.evolve(event, data={**event.data, "offset": 0})
    return _ended(_delta(context, whole), event, name, text)


def _ended(context: Context, event: Event, name: str, text: str) -> Context:
    context = _started(context, event)
    message = context.messages[name]
    if message.complete:
        return context
    rest = _rest(event, "message_id", "text", "role")
    return put(context, attrs.evolve(message, text=Text(text), complete=True, data=rest))


def _said(context: Context, event: Event) -> Context:
    """What a person said, who gave it no id."""
    text = Text(_text(event, "text") or "")
    name = f"{event.type}.{event.seq}"
    message = Message(
        id=name, role="user", text=text, complete=True, seq=event.seq, data=_rest(event, "text")
    )
    return put(context, message)


def _tool_executing(context: Context, event: Event) -> Context:
    name, tool = _text(event, "tool_call_id"), _text(event, "tool")
    if name is None or tool is None:
        return context
    given = event.data.get("input")
    call = ToolCall(id=name, tool=tool, input=given, status="executing", seq=event.seq, run=event.run)
    return put(context, call)


def _tool_ended(context: Context, event: Event) -> Context:
    call = context.tools.get(_text(event, "tool_call_id") or "")
    if call is None or call.status != "executing":
        return context
    duration = _number(event, "duration")
    if event.type == "tool_failed":
        return put(
            context, attrs.evolve(call, status="failed", error=event.data.get("error"), duration=duration)
        )
    output = event.data.get("output")
    return put(context, attrs.evolve(call, status="completed", output=output, duration=duration))


def _agent_started(context: Context, event: Event) -> Context:
    agent = _text(event, "agent")
    if event.run is None or agent is None or context.runs.get(event.run) is not None:
        return context
    run = RunState(id=event.run, agent=agent, status="running", started=event.ts, seq=event.seq)
    return put(context, run)


def _agent_completed(context: Context, event: Event) -> Context:
    if event.run is None:
        return context
    for ask in [ask for ask in context.requests.values() if ask.run == event.run]:
        context = without(context, ask)  # Nobody waits for the answer any more.
    run, status = context.runs.get(event.run), _text(event, "status")
    if run is None or run.ended is not None or status is None:
        return context
    result, error = event.data.get("result"), event.data.get("error")
    ended = attrs.evolve(run, status=status, ended=event.ts, seq=event.seq, result=result, error=error)
    return put(context, ended)


def _requested(context: Context, event: Event) -> Context:
    name, data = _text(event, "request_id"), event.data
    if name is None:
        return context
    ask = Request(
        id=name,
        prompt=data.get("prompt"),
        seq=event.seq,
        run=event.run,
        schema=data.get("schema"),
        expires_at=_number(event, "expires_at"),
    )
    return put(context, ask)


def _resolved(context: Context, event: Event) -> Context:
    ask = context.requests.get(_text(event, "request_id") or "")
    return context if ask is None else without(context, ask)


def _patched(context: Context, event: Event) -> Context:
    target = _text(event, "target")
    if target not in ("memory", "workflow"):
        return context
    try:
        document = patched(getattr(context, target), event.data.get("patch"))
    except InvalidEvent:
        return context
    return put_document(context, target, document)


_HANDLERS: Final[Mapping[str, Callable[[Context, Event], Context]]] = {
    "agent_started": _agent_started,
    TERMINAL: _agent_completed,
    "tool_executing": _tool_executing,
    "tool_completed": _tool_ended,
    "tool_failed": _tool_ended,
    "message_started": _started,
    "message_delta": _delta,
    "message_completed": _completed,
    "input_requested": _requested,
    "input_resolved": _resolved,
    "state_patch": _patched,
    "user_message": _said,
    "chat": _said,
}

TYPES: Final = frozenset(_HANDLERS)
"""The types of event that make a difference to a context."""

_CONCERNING: Final = re.compile(rb'\{"ts":[^,]+,"type":"(?:%b)"' % "|".join(sorted(TYPES)).encode())
