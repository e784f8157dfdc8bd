"""`wsrecover tail`: follow a user's events."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any, Final

import attrs
import orjson
import trio
from cyclopts import Parameter

from wsrecover.client import Changed, Ephemeral, Event, Gap, Item, Position, connect

from .exits import OK, USAGE, Failure
from .options import DEFAULT_URL, TokenFile, TokenText, Url, command_line, token_source
from .talk import check_reachable

__all__ = ["tail"]

SHOWN_CHARS: Final = 100
"""Characters of an event's data in the lines for a reader."""


def tail(
    *,
    since: Annotated[
        str | None,
        Parameter(help="Go on after this position: EPOCH.SEQ, or a SEQ. [default: what comes from now on]"),
    ] = None,
    thread: Annotated[tuple[str, ...], Parameter(help="Only this thread; may be given several times.")] = (),
    json: Annotated[
        bool, Parameter(negative=(), help="One JSON object per line, with its position as id.")
    ] = False,
    url: Url = DEFAULT_URL,
    token: TokenText = None,
    token_file: TokenFile = None,
) -> int:
    """Follow a user's events over every drop, until Ctrl-C."""
    position, skip = _since(since)
    follower = _Follower(as_json=json, skip=skip, url=url)
    options: dict[str, Any] = {
        "token": token_source(token, token_file),
        "from_": "live" if since is None else "start",
        "threads": thread or None,
        "positions": {"user": position} if position else None,
    }
    try:
        trio.run(follower.follow, options)
    finally:
        follower.say_where()
    return OK


def _since(text: str | None) -> tuple[Position | None, int]:
    """The position to resume from, and the seq up to which nothing is shown."""
    epoch, _, seq = (text or "0").rpartition(".")
    if not (seq.isascii() and seq.isdigit()):
        raise Failure(
            f"--since is {text!r}; accepted: EPOCH.SEQ as `tail --json` shows it as id, or a SEQ", USAGE
        )
    return (Position(epoch, int(seq)) if epoch else None), int(seq)


class _Follower:
    """Shows what comes, and remembers where it is."""

    def __init__(self, *, as_json: bool, skip: int, url: str) -> None:
        self._line = _json_line if as_json else _text_line
        self._skip = skip
        self._url = url
        self._status = "connecting"
        self._at: str | None = None

    async def follow(self, options: dict[str, Any]) -> None:
        await check_reachable(self._url)
        async with connect(self._url, on_status=self._tell_status, **options) as session:
            async for item in session:
                if not isinstance(item, Event) or item.stream != "user":
                    self._show(item, None)
                elif item.seq > self._skip:
                    self._at = f"{session.received['user'].epoch}.{item.seq}"
                    self._show(item, self._at)

    def _show(self, item: Item, at: str | None) -> None:
        sys.stdout.write(f"{self._line(item, at)}\n")
        sys.stdout.flush()

    def _tell_status(self, status: str) -> None:
        if status == "waiting" and self._status == "live":
            sys.stderr.write("wsrecover: the connection is lost, trying again\n")
            self._status = "waiting"
        elif status == "live":
            if self._status == "waiting":
                sys.stderr.write("wsrecover: connected again\n")
            self._status = "live"

    def say_where(self) -> None:
        if self._at is not None:
            at = () if self._url == DEFAULT_URL else ("--url", self._url)
            sys.stderr.write(f"Go on with: {command_line('wsrecover', 'tail', *at, '--since', self._at)}\n")


def _json_line(item: Item, at: str | None) -> str:
    fields = attrs.asdict(item, filter=lambda _, value: value is not None)
    named = {name.removesuffix("_"): value for name, value in fields.items()}
    return orjson.dumps({"op": type(item).__name__.lower(), **({"id": at} if at else {}), **named}).decode()


def _text_line(item: Item, _: str | None) -> str:
    match item:
        case Event() | Ephemeral():
            clock = time.strftime("%H:%M:%S", time.localtime(item.ts))
            where = str(item.seq) if isinstance(item, Event) else "-"
            place = "" if item.stream == "user" else f"{item.stream} "
            thread = f"[{item.thread}] " if item.thread else ""
            data = orjson.dumps(item.data).decode()
            shown = data if len(data) <= SHOWN_CHARS else f"{data[: SHOWN_CHARS - 1]}…"
            return f"{clock} {place}{where:>6} {item.type:<18} {thread}{shown}"
        case Gap():
            return (
                f"-- events {item.from_ or '?'} to {item.to or '?'} of {item.stream} are gone: {item.reason}"
            )
        case Changed():
            return f"-- {item.stream} begins anew after {item.position.seq}: {item.reason}"
        case _:
            return f"-- {type(item).__name__.lower()} of {item.stream}"
