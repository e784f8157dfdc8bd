"""`wsrecover tail`: follow a user's events."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import attrs
import orjson
import trio
from cyclopts import Parameter

from wsrecover.client import Changed, ClientSession, Ephemeral, Event, Forgotten, Gap, Item, Position, connect
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
        tuple[str, ...],
        Parameter(
            negative=(),
            show_default=False,
            help="Go on after this position in the user's own stream: EPOCH.SEQ, or a SEQ. Of broadcasts "
            "STREAM=EPOCH.SEQ, or STREAM=SEQ, where STREAM is tenant, tier, role:NAME or all. May be given "
            "once for each stream; what is not named is shown from now on.",
        ),
    ] = (),
    thread: Annotated[
        tuple[str, ...],
        Parameter(negative=(), show_default=False, help="This thread, and what has none; may be repeated."),
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
    positions, seqs = _since(since)
    _check_threads(thread)
    follower = _Follower(as_json=json, positions=positions, seqs=seqs, url=url)
    source = token_source(token, token_file)
    options: dict[str, Any] = {
        "token": source,
        "from_": "start" if since else "live",
        "threads": thread or None,
        "positions": positions,
    }
    try:
        with naming_source(source, token):
            interrupts.run(follower.run, options)
    except BaseException as error:
        if follower.at and not reader_left(error):
            error.add_note(f"Go on with: {_again(follower.at, url, token_file, thread, as_json=json)}")
        raise
    return OK


def _again(
    at: Mapping[str, Position], url: str, token_file: Path | None, threads: tuple[str, ...], *, as_json: bool
) -> str:
    """The command that goes on at these positions. A token that was given as text is not shown."""
    words: list[str | os.PathLike[str]] = ["wsrecover", "tail"]
    if url != DEFAULT_URL:
        words += ("--url", url)
    if token_file is not None:
        words += ("--token-file", token_file)
    for thread in threads:
        words += ("--thread", thread)
    if as_json:
        words.append("--json")
    for stream, position in sorted(at.items(), key=lambda place: (place[0] != "user", place[0])):
        place = _id(position) if position.seq else "0"  # Before the first event all histories are the same.
        words += ("--since", place if stream == "user" else f"{stream}={place}")
    return command_line(*words)


def _since(texts: tuple[str, ...]) -> tuple[dict[str, Position], dict[str, int]]:
    """By stream, the positions to resume from, and of others the seqs up to which nothing is shown."""
    positions: dict[str, Position] = {}
    seqs: dict[str, int] = {}
    for text in texts:
        name, equals, place = text.rpartition("=")
        stream = name if equals else "user"
        epoch, _, seq = place.rpartition(".")
        known = stream in ("user", "tenant", "tier", "all") or stream.startswith("role:")
        if not known or not (seq.isascii() and seq.isdigit()) or not (epoch == "" or is_id(epoch)):
            accepted = (
                "EPOCH.SEQ as `tail --json` shows it as id, or a SEQ; of broadcasts behind tenant=, tier=, "
            )
            raise Failure(f"--since is {text!r}; accepted: {accepted}role:NAME= or all=", USAGE)
        if stream in positions or stream in seqs:
            raise Failure(f"--since is given twice for {stream}; accepted: once for each stream", USAGE)
        if epoch:
            positions[stream] = Position(epoch, int(seq))
        else:
            seqs[stream] = int(seq)
    return positions, seqs


def _id(position: Position) -> str:
    return f"{position.epoch}.{position.seq}"


def _check_threads(threads: tuple[str, ...]) -> None:
    for thread in threads:
        if not is_id(thread):
            raise Failure(f"--thread is {thread!r}; accepted: 1 to 128 printable ASCII characters", USAGE)
    if len(threads) > MAX_THREADS:
        raise Failure(f"--thread is given {len(threads)} times; accepted: at most {MAX_THREADS}", USAGE)


class _Follower:
    """Shows what comes, and remembers where it is."""

    def __init__(
        self, *, as_json: bool, positions: Mapping[str, Position], seqs: Mapping[str, int], url: str
    ) -> None:
        self._as_json = as_json
        self._positions = positions
        self._seqs = seqs
        self._skip: dict[str, int] = {}
        self._url = url
        self._status = "connecting"
        self._told: set[str] = set()
        self.at: dict[str, Position] = {}
        """Up to where each stream was shown, for another one to go on."""

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
            self._begin(session.streams)
            try:
                async for item in session:
                    self._take(item, session)
            finally:
                # A role that came meanwhile has a stream of which nothing may have been shown.
                self.at = {**session.processed, **self.at}

    def _begin(self, streams: Mapping[str, StreamInfo]) -> None:
        for name in self._seqs.keys() - streams.keys():
            self._show(Forgotten(name))
        for name, state in streams.items():
            if name in self._seqs:
                self._begin_after(self._seqs[name], name, state)
            elif name not in self._positions:
                self._skip[name] = state.head
            self.at[name] = Position(state.epoch, max(state.from_ - 1, self._skip.get(name, 0)))

    def _begin_after(self, seq: int, stream: str, state: StreamInfo) -> None:
        """Compare the seq with the log, as the server does with a position: without an epoch it is none."""
        first = state.from_
        if seq > state.head:
            held, position = Position(state.epoch, seq), Position(state.epoch, first - 1)
            self._show(Changed(stream, "ahead", held, position))
        else:
            self._skip[stream] = seq
            if seq < first - 1:
                self._show(Gap(stream, "trimmed", from_=seq + 1, to=first - 1))

    def _take(self, item: Item, session: ClientSession) -> None:
        if isinstance(item, Event):
            if item.seq > self._skip.get(item.stream, 0):
                # It includes this event. None: the role was lost since the event came.
                at = session.position.get(item.stream)
                self._show(item, at)
                if at is not None:
                    self.at[item.stream] = at
            return
        self._show(item)
        if isinstance(item, Changed):
            self.at[item.stream] = item.position
            if item.reason != "trimmed":
                self._skip.pop(item.stream, None)  # The seq was one of another history.
        elif isinstance(item, Forgotten):
            self.at.pop(item.stream, None)
            self._skip.pop(item.stream, None)

    def _show(self, item: Item, at: Position | None = None) -> None:
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


def _json_line(item: Item, at: Position | None) -> str:
    fields = attrs.asdict(item, filter=lambda _, value: value is not None)
    named = {name.removesuffix("_"): value for name, value in fields.items()}
    return orjson.dumps(
        {"op": type(item).__name__.lower(), **({"id": _id(at)} if at else {}), **named}
    ).decode()


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
        case Forgotten():
            return f"-- {item.stream} may not be followed"
        case _:
            return f"-- {type(item).__name__.lower()} of {item.stream}"
