"""A thread's context: what its events add up to, as values and in JSON; see `context` for how they do.

Contexts share what did not change. Values that came in events are shared too: whoever holds a context must
not change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal, TypeAlias, TypeVar, cast

import attrs
import orjson

from wsrecover.errors import FrameError

from .persistent import Map, Text

__all__ = [
    "EMPTY",
    "Context",
    "Item",
    "Message",
    "Request",
    "RunState",
    "ToolCall",
    "grow",
    "parse",
    "put",
    "put_document",
    "without",
]

T = TypeVar("T")

ToolStatus: TypeAlias = Literal["executing", "completed", "failed"]

_ENVELOPE: Final = 128
"""Bytes of a context's own keys and brackets, at most."""


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


@attrs.frozen(kw_only=True)
class Message:
    """One message of the conversation; `seq` is where it began.

    `complete` stays false where a run ended in the middle. `data` is what else the event that completed it
    carried; of a `user_message` or `chat`, all but its text.
    """

    shelf: ClassVar = "messages"
    id: str
    role: str
    text: Text
    complete: bool
    seq: int
    run: str | None = None
    data: Mapping[str, Any] | None = None
    size: int = attrs.field(default=0, eq=False, repr=False)

    def json(self) -> dict[str, Any]:
        """As it is on the wire."""
        item = {"message_id": self.id, "role": self.role, "text": str(self.text), "complete": self.complete}
        return {**item, **_given(run=self.run, data=self.data), "seq": self.seq}


@attrs.frozen(kw_only=True)
class ToolCall:
    """One tool call; `seq` is where it began, `duration` in seconds. `output` counts once it is completed."""

    shelf: ClassVar = "tools"
    id: str
    tool: str
    input: Any
    status: ToolStatus
    seq: int
    run: str | None = None
    output: Any = None
    error: Any = None
    duration: float | None = None
    size: int = attrs.field(default=0, eq=False, repr=False)

    def json(self) -> dict[str, Any]:
        """As it is on the wire."""
        item = {"tool_call_id": self.id, "tool": self.tool, "input": self.input}
        ended = {"output": self.output} if self.status == "completed" else {}
        more = _given(error=self.error, duration=self.duration, run=self.run)
        return {**item, **ended, **more, "status": self.status, "seq": self.seq}


@attrs.frozen(kw_only=True)
class RunState:
    """One run; `started` and `ended` are in unix seconds. `seq` is where it ended, or began until then."""

    shelf: ClassVar = "runs"
    id: str
    agent: str
    status: str
    started: float
    seq: int
    ended: float | None = None
    result: Any = None
    error: Any = None
    size: int = attrs.field(default=0, eq=False, repr=False)

    def json(self) -> dict[str, Any]:
        """As it is on the wire."""
        item = {"agent": self.agent, "status": self.status, "started": self.started}
        return {**item, **_given(ended=self.ended, result=self.result, error=self.error), "seq": self.seq}


@attrs.frozen(kw_only=True)
class Request:
    """A question that nobody has answered yet; `expires_at` is in unix seconds."""

    shelf: ClassVar = "requests"
    id: str
    prompt: Any
    seq: int
    run: str | None = None
    schema: Any = None
    expires_at: float | None = None
    size: int = attrs.field(default=0, eq=False, repr=False)

    def json(self) -> dict[str, Any]:
        """As it is on the wire."""
        more = _given(schema=self.schema, expires_at=self.expires_at, run=self.run)
        return {"prompt": self.prompt, **more, "seq": self.seq}


Item: TypeAlias = Message | ToolCall | RunState | Request


@attrs.frozen(eq=False, kw_only=True)
class Context:
    """A thread's context. `size` is about its bytes in JSON, and never less; `truncated`: some of it left."""

    messages: Map[Message] = attrs.field(factory=Map)
    tools: Map[ToolCall] = attrs.field(factory=Map)
    runs: Map[RunState] = attrs.field(factory=Map)
    requests: Map[Request] = attrs.field(factory=Map)
    memory: Mapping[str, Any] = attrs.field(factory=dict)
    workflow: Mapping[str, Any] = attrs.field(factory=dict)
    truncated: bool = False
    size: int = _ENVELOPE

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages in their order."""
        return tuple(self.messages.values())

    def json(self) -> dict[str, Any]:
        """As it is on the wire (SPEC.md, Contexts)."""
        context = {
            "messages": [message.json() for message in self.conversation],
            "tools": [tool.json() for tool in self.tools.values()],
            "runs": {run.id: run.json() for run in self.runs.values()},
            "requests": {ask.id: ask.json() for ask in self.requests.values()},
            "memory": self.memory,
            "workflow": self.workflow,
        }
        return {**context, "truncated": True} if self.truncated else context

    def over(self) -> list[Item]:
        """Messages, tool calls and ended runs, oldest first: what leaves a context that is too large."""
        ended = [run for run in self.runs.values() if run.ended is not None]
        return sorted([*ended, *self.messages.values(), *self.tools.values()], key=_by_seq)

    def going_on(self) -> list[Item]:
        """Runs and requests, oldest first: what leaves it if that is not enough."""
        runs = [run for run in self.runs.values() if run.ended is None]
        return sorted([*runs, *self.requests.values()], key=_by_seq)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and self.json() == other.json()

    __hash__ = None  # type: ignore[assignment]  # What it holds cannot be hashed.


def _by_seq(item: Item) -> int:
    return item.seq


EMPTY: Final = Context()
"""The context of a thread without events."""


def put(context: Context, item: Item) -> Context:
    """The context with `item`, its size measured, in place of what had its id."""
    item = attrs.evolve(item, size=_measure(item))
    shelf = getattr(context, item.shelf)
    old = shelf.get(item.id)
    size = context.size + item.size - (0 if old is None else old.size)
    return attrs.evolve(context, **{item.shelf: shelf.put(item.id, item), "size": size})


def grow(context: Context, message: Message, text: str, size: int) -> Context:
    """The context with `text`, of `size` bytes, behind what `message` says: what happens once per token.

    Made by hand: `attrs.evolve` would add a quarter to what a token costs.
    """
    longer = Message(
        id=message.id,
        role=message.role,
        text=message.text.plus(text),
        complete=message.complete,
        seq=message.seq,
        run=message.run,
        data=message.data,
        size=message.size + size,
    )
    return Context(
        messages=context.messages.put(message.id, longer),
        tools=context.tools,
        runs=context.runs,
        requests=context.requests,
        memory=context.memory,
        workflow=context.workflow,
        truncated=context.truncated,
        size=context.size + size,
    )


def without(context: Context, item: Item) -> Context:
    """The context without `item`, which is in it."""
    shelf = getattr(context, item.shelf).without(item.id)
    return attrs.evolve(context, **{item.shelf: shelf, "size": context.size - item.size})


def put_document(context: Context, target: str, document: Mapping[str, Any]) -> Context:
    """The context with this `memory` or `workflow`."""
    grown = len(orjson.dumps(document)) - len(orjson.dumps(getattr(context, target)))
    changes: dict[str, Any] = {target: document, "size": context.size + grown}
    return attrs.evolve(context, **changes)


def _measure(item: Item) -> int:
    """Bytes of an item in JSON. A message's are its own and those of each piece of its text, however cut."""
    return len(orjson.dumps(item.json())) + len(orjson.dumps(item.id)) + 2


def parse(value: object) -> Context:
    """The context that `Context.json` gave. Raises `FrameError` naming what is wrong."""
    taken = _Fields(value, "context")
    context = EMPTY
    for item in taken.get("messages", list):
        context = put(context, _message(_Fields(item, "messages")))
    for item in taken.get("tools", list):
        context = put(context, _tool(_Fields(item, "tools")))
    for name, item in taken.get("runs", dict).items():
        context = put(context, _run(name, _Fields(item, "runs")))
    for name, item in taken.get("requests", dict).items():
        context = put(context, _request(name, _Fields(item, "requests")))
    context = put_document(context, "memory", taken.get("memory", dict))
    context = put_document(context, "workflow", taken.get("workflow", dict))
    return attrs.evolve(context, truncated=taken.find("truncated", bool) or False)


class _Fields:
    """The fields of an object, taken by type."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise FrameError("invalid", f"{path}: must be an object", field=path)
        self.all = value
        self._path = path

    def find(self, name: str, *kinds: type[T]) -> T | None:
        value = self.all.get(name)
        if value is not None and type(value) not in kinds:
            field = f"{self._path}.{name}"
            raise FrameError("invalid", f"{field}: must be of type {kinds[0].__name__}", field=field)
        return cast("T | None", value)

    def get(self, name: str, *kinds: type[T]) -> T:
        value = self.find(name, *kinds)
        if value is None:
            field = f"{self._path}.{name}"
            raise FrameError("invalid", f"{field}: is missing", field=field)
        return value


def _message(item: _Fields) -> Message:
    return Message(
        id=item.get("message_id", str),
        role=item.get("role", str),
        text=Text(item.get("text", str)),
        complete=item.get("complete", bool),
        seq=item.get("seq", int),
        run=item.find("run", str),
        data=item.find("data", dict),
    )


def _tool(item: _Fields) -> ToolCall:
    status = item.get("status", str)
    if status not in ("executing", "completed", "failed"):
        raise FrameError("invalid", f"tools.status: is {status[:40]!a}", field="tools.status")
    return ToolCall(
        id=item.get("tool_call_id", str),
        tool=item.get("tool", str),
        input=item.all.get("input"),
        status=cast("ToolStatus", status),
        seq=item.get("seq", int),
        run=item.find("run", str),
        output=item.all.get("output"),
        error=item.all.get("error"),
        duration=item.find("duration", float, int),
    )


def _run(name: str, item: _Fields) -> RunState:
    return RunState(
        id=name,
        agent=item.get("agent", str),
        status=item.get("status", str),
        started=item.get("started", float, int),
        seq=item.get("seq", int),
        ended=item.find("ended", float, int),
        result=item.all.get("result"),
        error=item.all.get("error"),
    )


def _request(name: str, item: _Fields) -> Request:
    return Request(
        id=name,
        prompt=item.all.get("prompt"),
        seq=item.get("seq", int),
        run=item.find("run", str),
        schema=item.all.get("schema"),
        expires_at=item.find("expires_at", float, int),
    )
