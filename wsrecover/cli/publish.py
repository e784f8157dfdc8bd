"""`wsrecover publish`: an event for a user."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from .options import DEFAULT_URL, AnswerTimeout, CommandId, TokenFile, TokenText, Url, json_object
from .talk import Command, call

__all__ = ["publish"]


def publish(
    user: Annotated[str, Parameter(help="A user of the token's tenant, connected or not.")],
    kind: Annotated[str, Parameter(name="type", help="The event's type, such as notice or invoice_ready.")],
    data: Annotated[str, Parameter(help='A JSON object, such as {"text": "hello"}.')] = "{}",
    /,
    *,
    thread: Annotated[str | None, Parameter(help="The thread that it belongs to.")] = None,
    command_id: CommandId = None,
    timeout: AnswerTimeout = None,
    url: Url = DEFAULT_URL,
    token: TokenText = None,
    token_file: TokenFile = None,
) -> int:
    """Log an event for a user, durably, and print its position. The token needs the role `service`."""
    event: dict[str, Any] = {"type": kind, "data": json_object(data, "data")}
    if thread is not None:
        event["thread"] = thread
    command = Command("publish", {"user": user, "events": [event]}, None, command_id)
    return call(command, url, token, token_file, timeout)
