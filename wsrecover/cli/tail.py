"""`wsrecover tail`: follow a user's events."""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import orjson
import trio
from cyclopts import Parameter

from wsrecover.client import Changed, Ephemeral, Event, Gap, Item, Position, connect
from wsrecover.errors import TokenError, WsrecoverError
from wsrecover.logs import printable
from wsrecover.protocol.fields import MAX_THREADS, is_id
from wsrecover.protocol.frames import StreamInfo

from . import interrupts
from .exits import OK, USAGE, Failure, reader_left, token_refused, why_not, write_out
from .options import DEFAULT_URL, TokenFile, TokenText, Url, command_line, naming_source, token_source
from .talk import check_reachable

__all__ = ["tail"]

SHOWN_CHARS: Final = 100
"""Characters of an event's data in the lines for a reader."""

READER_CHECK: Final = 0.5
"""Seconds from one look at whether anybody still reads stdout to the next: only a write would notice."""


def tail(
    *,
    since: Annotated[
        str | None,
        Parameter(help="Go on after this position: EPOCH.SEQ, or a SEQ. [default: what comes from now on]"),
    ] = None,
    thread: Annotated[
        tuple[str, ...],
        Parameter(negative=(), show_default=False, help="Only this thread; may be given several times."),
    ] = (),
    json: Annotated[
        bool,
        Parameter(negative=(), show_default=False, help="One JSON object per line, with its position as id."),
    ] = False,
    url: Url = DEFAULT_URL,
    token: TokenText = None,
    token_file: TokenFile = None,
) -> int:
    """Follow a user's events over every drop, until Ctrl-C."""
    position, after = _since(since)
    _check_threads(thread)
    follower = _Follower(as_json=json, after=after, url=url)
    source = token_source(token, token_file)
    options: dict[str, Any] = {
        "token": source,
        "from_": "live" if since is None else "start",
        "threads": thread or None,
        "positions": {"user": position} if position else None,
    }
    try:
        with naming_source(source, token):
            interrupts.run(follower.run, options)
    except BaseException as error:
        if follower.at is not None and not reader_left(error):
            error.add_note(f"Go on with: {_again(follower.at, url, token_file, thread, as_json=json)}")
        raise
    return OK


def _again(at: str, url: str, token_file: Path | None, threads: tuple[str, ...], *, as_json: bool) -> str:
    """The command that goes on at a position. A token that was given as text is not shown."""
    words: list[str | os.PathLike[str]] = ["wsrecover", "tail"]
    if url != DEFAULT_URL:
        words += ("--url", url)
    if token_file is not None:
        words += ("--token-file", token_file)
    for thread in threads:
        words += ("--thread", thread)
    if as_json:
        words.append("--json")
    return command_line(*words, "--since", at)


def _since(text: str | None) -> tuple[Position | None, int | None]:
    """The position to resume from, or the seq up to which nothing is shown."""
    if text is None:
        return None, None
    epoch, _, seq = text.rpartition(".")
    if not (seq.isascii() and seq.isdigit()) or not (epoch == "" or is_id(epoch)):
        raise Failure(
            f"--since is {text!r}; accepted: EPOCH.SEQ as `tail --json` shows it as id, or a SEQ", USAGE
        )
    return (Position(epoch, int(seq)), None) if epoch else (None, int(seq))


def _check_threads(threads: tuple[str, ...]) -> None:
    for thread in threads:
        if not is_id(thread):
            raise Failure(f"--thread is {thread!r}; accepted: 1 to 128 printable ASCII characters", USAGE)
    if len(threads) > MAX_THREADS:
        raise Failure(f"--thread is given {len(threads)} times; accepted: at most {MAX_THREADS}", USAGE)


class _Follower:
    """Shows what comes, and remembers where it is."""

    def __init__(self, *, as_json: bool, after: int | None, url: str) -> None:
        self._as_json = as_json
        self._after = after
        self._skip = 0
        self._url = url
        self._status = "connecting"
        self._told: set[str] = set()
        self.at: str | None = None
        """The position of the last event that was shown."""

    async def run(self, options: dict[str, Any]) -> None:
        """Follow until cancelled, until another try has no point, or until nobody reads any more."""
        await check_reachable(self._url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_reader)
            await self._follow(options)
            nursery.cancel_scope.cancel()

    async def _follow(self, options: dict[str, Any]) -> None:
        hooks: dict[str, Any] = {"on_status": self._tell_status, "on_error": self._tell_error}
        async with connect(self._url, **hooks, **options) as session:
            if not self._as_json:
                who = session.principal
                sys.stderr.write(f"following {who.user} of {who.tenant} at {self._url}\n")
            if self._after is not None:
                self._begin_after(self._after, session.streams["user"])
            async for item in session:
                if isinstance(item, Event) and item.stream == "user":
                    if item.seq > self._skip:
                        at = f"{session.position['user'].epoch}.{item.seq}"
                        self._show(item, at)
                        self.at = at
                    continue
                if isinstance(item, Changed) and item.stream == "user" and item.reason != "trimmed":
                    self._skip = 0  # The seq was one of another history.
                self._show(item, None)

    def _begin_after(self, seq: int, state: StreamInfo) -> None:
        """Compare the seq with the log, as the server does with a position: without an epoch it is none."""
        first = state.from_
        if seq > state.head:
            held, position = Position(state.epoch, seq), Position(state.epoch, first - 1)
            self._show(Changed("user", "ahead", held, position), None)
        else:
            self._skip = seq
            if seq < first - 1:
                self._show(Gap("user", "trimmed", from_=seq + 1, to=first - 1), None)

    def _show(self, item: Item, at: str | None) -> None:
        line = _json_line(item, at) if self._as_json else _text_line(item)
        write_out(f"{line}\n")

    def _tell_status(self, status: str) -> None:
        if status == "waiting" and self._status == "live":
            sys.stderr.write("wsrecover: the connection is lost, trying again\n")
            self._status = "waiting"
        elif status == "live":
            if self._status == "waiting":
                sys.stderr.write("wsrecover: connected again\n")
            self._status = "live"
            self._told.clear()

    def _tell_error(self, error: WsrecoverError) -> None:
        """Say each reason once. A token that the server refuses is asked for again, and ends it soon."""
        if self._status == "live" or (token_refused(error) and not isinstance(error, TokenError)):
            return
        why = printable(why_not(error))
        if why not in self._told:
            self._told.add(why)
            sys.stderr.write(f"wsrecover: no connection yet ({why}); trying again\n")


async def _watch_reader() -> None:
    """Raise `BrokenPipeError` once the reader of stdout is gone, as the next write would."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    while True:
        if any(what & (select.POLLERR | select.POLLHUP) for _, what in poll.poll(0)):
            raise BrokenPipeError("nobody reads stdout")
        await trio.sleep(READER_CHECK)


def _json_line(item: Item, at: str | None) -> str:
    fields = attrs.asdict(item, filter=lambda _, value: value is not None)
    named = {name.removesuffix("_"): value for name, value in fields.items()}
    return orjson.dumps({"op": type(item).__name__.lower(), **({"id": at} if at else {}), **named}).decode()


def _why_anew(item: Changed) -> str:
    match item.reason:
        case "epoch_changed":
            return "its log is another one than before"
        case "ahead":
            return f"its log does not reach to event {item.held.seq}"
        case "trimmed":
            return "those before are gone"
        case _:
            return item.reason


def _text_line(item: Item) -> str:
    match item:
        case Event() | Ephemeral():
            clock = time.strftime("%H:%M:%S", time.localtime(item.ts))
            where = str(item.seq) if isinstance(item, Event) else "-"
            place = "" if item.stream == "user" else f"{item.stream} "
            thread = f"[{item.thread}] " if item.thread else ""
            data = orjson.dumps(item.data).decode()
            shown = data if len(data) <= SHOWN_CHARS else f"{data[: SHOWN_CHARS - 1]}…"
            return f"{clock} {place}{where:>6} {item.type:<18} {thread}{printable(shown)}"
        case Gap():
            return (
                f"-- events {item.from_ or '?'} to {item.to or '?'} of {item.stream} are gone: {item.reason}"
            )
        case Changed():
            return f"-- {item.stream} is shown from event {item.position.seq + 1} on: {_why_anew(item)}"
        case _:
            return f"-- {type(item).__name__.lower()} of {item.stream}"
