"""SPEC.md and the code say the same, and every example in it is one."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import pytest

from wsrecover.protocol import closecodes, fields, plain
from wsrecover.protocol.codec import decode_client, decode_server, encode
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.events import CRITICAL, TYPES
from wsrecover.protocol.frames import (
    CLIENT_FRAMES,
    COMMANDS,
    ERROR_CODES,
    SERVER_FRAMES,
    SUBPROTOCOL,
    ErrorBody,
    PrincipalInfo,
    ResumeReason,
    RunInfo,
    StreamInfo,
)
from wsrecover.protocol.persistent import Text
from wsrecover.protocol.receiver import Receiver
from wsrecover.protocol.thread import Context, Message, Request, RunState, ToolCall

SPEC = (Path(fields.__file__).parent / "SPEC.md").read_text()
OBJECTS = {"state": StreamInfo, "principal": PrincipalInfo, "run": RunInfo, "error": ErrorBody}

TYPE_NAMES: list[tuple[Any, str]] = [
    (fields.Id, "id"),
    (fields.StreamName, "stream"),
    (fields.Seq, "seq"),
    (fields.Seconds, "seconds"),
    (fields.ThreadIds, "[id]"),
    (Position, "position"),
    (dict[str, Any], "object"),
    (tuple[fields.Seq, fields.Seq], "[seq, offset]"),
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "text"),
    *((cls, name) for name, cls in OBJECTS.items()),
]


def section(heading: str) -> str:
    """What stands under `heading`, up to the next heading of any level."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", SPEC, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    return match[1]


def table(heading: str) -> list[list[str]]:
    """The cells of the table under `heading`, without its head."""
    rows = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def word(cell: str) -> str:
    return cell.strip("`")


def examples(kind: str) -> list[str]:
    blocks = re.findall(rf"^```json {kind}\n(.*?)^```", SPEC, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def documented(heading: str) -> dict[str, dict[str, tuple[bool, str]]]:
    """Per op or object, its fields: whether required, and the name of the type."""
    found: dict[str, dict[str, tuple[bool, str]]] = {}
    name = ""
    for first, field, presence, kind, *_ in table(heading):
        name = word(first) or name
        entry = found.setdefault(name, {})
        if field:
            assert presence in {"required", "optional"}, (name, field)
            entry[word(field)] = (presence == "required", kind)
    return found


def type_name(kind: Any) -> str:
    """How SPEC.md calls a type."""
    for known, name in TYPE_NAMES:
        if kind == known:
            return name
    args = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "text"
    if typing.get_origin(kind) is dict:
        return f"{{stream: {type_name(args[1])}}}"
    if typing.get_origin(kind) is tuple:
        return f"[{type_name(args[0])}]"
    assert type(None) in args, kind
    return type_name(args[0])


def coded(cls: type) -> dict[str, tuple[bool, str]]:
    """The same of a class."""
    kinds = typing.get_type_hints(cls, include_extras=True)
    return {
        field.name.rstrip("_"): (
            field.default is attrs.NOTHING or "always" in field.metadata,
            type_name(kinds[field.name]),
        )
        for field in attrs.fields(cls)
    }


@pytest.mark.parametrize(
    ("heading", "classes"),
    [
        ("Client to server", CLIENT_FRAMES),
        ("Server to client", SERVER_FRAMES),
        ("Objects within frames", OBJECTS),
    ],
)
def test_the_frames_are_those_of_the_code(heading: str, classes: dict[str, type]) -> None:
    expected = {op: coded(cls) for op, cls in classes.items()}
    if "follow" in expected:
        expected["follow"]["threads"] = (True, "[id] or null")
    assert documented(heading) == expected


def test_the_bounds_are_those_of_the_code() -> None:
    assert {word(row[0]): int(row[1]) for row in table("Bounds")} == {
        name: getattr(fields, name)
        for name in fields.__all__
        if name.startswith("MAX_") and name != "MAX_INT"
    }
    assert f"±(2^{(fields.MAX_INT + 1).bit_length() - 1}-1)" in SPEC


def test_the_types_are_those_of_the_code() -> None:
    named = {row[0] for row in table("Types")}
    used = {
        kind
        for part in (CLIENT_FRAMES, SERVER_FRAMES)
        for cls in part.values()
        for _, kind in coded(cls).values()
    }
    simple = {kind for kind in used if kind.isalpha()} - set(OBJECTS) - {"boolean", "integer"}
    assert simple | {"position"} == named
    wire = {row[0]: row[1] for row in table("Types")}
    assert f"1 to {fields.MAX_ID} " in wire["id"]
    assert f"1 to {fields.MAX_STREAM_NAME} " in wire["stream"]
    assert f"0 to 2^{(fields.MAX_INT + 1).bit_length() - 1}-1" in wire["seq"]


def test_the_error_codes_are_those_of_the_code() -> None:
    codes = [word(row[0]) for row in table("Error codes")]
    assert len(codes) == len(set(codes))
    assert set(codes) == ERROR_CODES


def test_the_close_codes_are_those_of_the_code() -> None:
    rows = {
        int(code): (word(name), word(action), word(after.removeprefix("in ")) or None)
        for code, name, action, after, _ in table("Close codes")
    }
    assert rows == {
        code.value: (code.name, rule.action, rule.retry_after) for code, rule in closecodes.RULES.items()
    }
    assert set(closecodes.RULES) == set(closecodes.CloseCode)
    assert f"at most {closecodes.MAX_REASON_BYTES} bytes" in section("Close codes")


@pytest.mark.parametrize(
    ("code", "action"),
    [
        *((code.value, rule.action) for code, rule in closecodes.RULES.items()),
        (4499, "reconnect"),
        (4504, "stop"),
        (4999, "stop"),
        (3000, "reconnect"),
        (1015, "reconnect"),
    ],
)
def test_every_close_code_says_what_to_do(code: int, action: str) -> None:
    assert closecodes.after(code) == action


def test_the_event_types_are_those_of_the_code() -> None:
    rows = {word(name): critical for name, critical, _ in table("Event types")}
    assert set(rows) == TYPES
    assert {name for name, critical in rows.items() if critical == "yes"} == CRITICAL
    assert set(rows.values()) == {"yes", ""}


def test_the_reasons_of_a_refused_resume_are_named() -> None:
    (reason,) = [row for row in table("Objects within frames") if word(row[1]) == "reason"]
    for name in typing.get_args(ResumeReason):
        assert f"`{name}`" in reason[4]


def test_the_subprotocol_is_named() -> None:
    assert f"`{SUBPROTOCOL}`" in section("Messages")


@pytest.mark.parametrize("line", examples("client"))
def test_an_example_of_a_client_decodes_and_is_encoded_alike(line: str) -> None:
    frames = decode_client(line, max_bytes=65536)
    said = json.loads(line)
    assert [json.loads(encode(frame)) for frame in frames] == (said if isinstance(said, list) else [said])  # type: ignore[arg-type]  # a FrameError fails here


@pytest.mark.parametrize("line", examples("server"))
def test_an_example_of_a_server_decodes_and_is_encoded_alike(line: str) -> None:
    frames = decode_server(line)
    said = json.loads(line)
    assert [json.loads(encode(frame)) for frame in frames] == (said if isinstance(said, list) else [said])


def test_there_are_examples_of_both_sides() -> None:
    assert len(examples("client")) > 5
    assert len(examples("server")) > 5


def test_the_plain_words_are_those_of_the_code() -> None:
    assert f"`{plain.PLAIN}`" in section("Plain mode")
    rows = {
        word(row[0]): [word(name).rstrip("?") for name in row[1].split(", ")] for row in table("Plain mode")
    }
    ours = {"welcome": rows.pop("welcome"), "gap": rows.pop("gap")}
    assert ours == {"welcome": ["id"], "gap": ["reason", "id"]}
    assert rows == {name: list(fields) for name, fields in plain.WORDS.items()}
    for line in examples("plain"):
        said = json.loads(line)
        assert ("ts" in said) == (said["type"] not in {*rows, *ours})
        assert set(said) - {"type"} <= {*plain.EVENT, "id", "reason", *rows.get(said["type"], [])}


def test_the_example_of_parts_makes_the_event_that_it_names() -> None:
    receiver = Receiver({"user": Position("e", 2)})
    frames = [frame for line in examples("parts") for frame in decode_server(line)]
    (event,) = [item for frame in frames for item in receiver.receive(frame)]
    (said,) = re.findall(r"For example the frame `([^`]*)`", section("Parts"))
    assert [event] == decode_server(said)


def test_the_example_of_the_url_is_encoded_as_said() -> None:
    text = section("The hello in the URL")
    (said,) = re.findall(r"With `resume` `([^`]*)`", text)
    (written,) = re.findall(r"resume=(\S*) HTTP", text)
    assert quote(said, safe="") == written
    client = CLIENT_FRAMES["hello"]
    parameters = {word(row[0]) for row in table("The hello in the URL")}
    assert parameters == {field.name.rstrip("_") for field in attrs.fields(client)} - {"token"}


def test_the_commands_are_those_of_the_code() -> None:
    assert {word(row[0]) for row in table("Commands")} - {"any other"} == COMMANDS


def test_the_contexts_are_those_of_the_code() -> None:
    """A field that is not always there has a question mark, and none is left out."""
    least = {
        "messages": Message(id="m", role="user", text=Text("t"), complete=True, seq=1),
        "tools": ToolCall(id="c", tool="search", input={}, status="executing", seq=1),
        "runs": RunState(id="r", agent="a", status="running", started=1.0, seq=1),
        "requests": Request(id="q", prompt="?", seq=1),
    }
    most = {
        "messages": attrs.evolve(least["messages"], run="r", data={"n": 1}),
        "tools": attrs.evolve(
            least["tools"], status="completed", output=1, error={"code": "c"}, duration=1.0, run="r"
        ),
        "runs": attrs.evolve(least["runs"], ended=2.0, result=1, error={"code": "c"}),
        "requests": attrs.evolve(least["requests"], schema={}, expires_at=2.0, run="r"),
    }
    rows = {tuple(map(word, first.split(", "))): said for first, said in table("Contexts")}
    listed = {name: re.findall(r"`(\w+\??)`", said) for (name, *_), said in rows.items() if name in least}
    statuses = {"executing", "completed", "failed", "running", "agent_completed"}
    for name, item in most.items():
        always = set(least[name].json())
        keyed = {"request_id"} if name == "requests" else set()
        expected = {field if field in always else f"{field}?" for field in item.json()} | keyed
        assert set(listed[name]) - statuses == expected, name
    everything = Context(truncated=True).json()
    assert {each.rstrip("?") for names in rows for each in names} == set(everything)
    assert ("truncated?",) in rows
    assert set(everything) - set(Context().json()) == {"truncated"}
