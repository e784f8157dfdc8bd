"""The fields of a command's data, taken strictly: `CommandError("invalid")` names a wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wsrecover.access.principal import name_problem
from wsrecover.errors import CommandError, InvalidEvent
from wsrecover.protocol import codec
from wsrecover.protocol.fields import MAX_ID, is_id
from wsrecover.protocol.schema import Schema, fitted
from wsrecover.streams.store import Entry, StreamKey

__all__ = ["entry_of", "name_field", "object_field", "text_field"]


def text_field(data: Mapping[str, Any], name: str, *, path: str, required: bool = True) -> str:
    """A non-empty text; the empty one where it is absent and not required."""
    value = data.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or not value:
        problem = "must be a non-empty text" if name in data else "is missing"
        raise CommandError("invalid", problem, field=f"{path}.{name}")
    return value


def object_field(data: Mapping[str, Any], name: str, *, path: str) -> dict[str, Any]:
    """An object; the empty one where it is absent."""
    value = data.get(name, {})
    if not isinstance(value, dict):
        raise CommandError("invalid", "must be an object", field=f"{path}.{name}")
    return value


def name_field(data: Mapping[str, Any], name: str, *, path: str, required: bool = True) -> str:
    """The name of a user or tenant: a text as `text_field` takes it, held to what a token could say."""
    text = text_field(data, name, path=path, required=required)
    if text and (problem := name_problem(text)):
        raise CommandError("invalid", problem, field=f"{path}.{name}")
    return text


def entry_of(
    event: object,
    key: StreamKey,
    *,
    path: str,
    now: float,
    max_bytes: int,
    schemas: Mapping[str, Schema[Any]],
) -> Entry:
    """An event of `publish`, {type, data, thread?, run?, id?}, held to what is registered for it, encoded for
    the stream `key`."""
    if not isinstance(event, dict):
        raise CommandError("invalid", "must be an object", field=path)
    optional = {
        name: text_field(event, name, path=path, required=False) or None for name in ("thread", "run", "id")
    }
    for name, value in optional.items():
        if value is not None and not is_id(value):
            raise CommandError(
                "invalid", f"must be 1 to {MAX_ID} printable ASCII characters", field=f"{path}.{name}"
            )
    if "data" not in event:
        raise CommandError("invalid", "is missing", field=f"{path}.data")
    kind, data = text_field(event, "type", path=path), object_field(event, "data", path=path)
    try:
        data = fitted(kind, data, schemas)
        body = codec.encode_event(
            ts=now, type=kind, data=data, thread=optional["thread"], run=optional["run"], max_bytes=max_bytes
        )
    except InvalidEvent as error:
        raise CommandError("invalid", error.problem, field=f"{path}.{error.field}") from error
    digest = codec.digest(kind, optional["thread"], data, run=optional["run"])
    return Entry(key, body, now, optional["thread"], optional["id"], digest)
