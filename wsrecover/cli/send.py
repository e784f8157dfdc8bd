"""`wsrecover send`: one command."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .options import DEFAULT_URL, AnswerTimeout, CommandId, TokenFile, TokenText, Url, json_object
from .talk import Command, call

__all__ = ["send"]


def send(
    kind: Annotated[
        str,
        Parameter(
            name="type",
            help="start_agent, cancel_run, respond, user_message, chat, publish, broadcast, receipt, "
            "or one of the app's own.",
        ),
    ],
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
    """Send a command and print its result as JSON. It takes effect once, over however many drops."""
    command = Command(kind, json_object(data, "data"), thread, command_id)
    return call(command, url, token, token_file, timeout)
