"""Opening a session: its settings, and the task that keeps it connected for a block."""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from wsrecover.errors import ConfigError, WsrecoverError
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.fields import MAX_INT, is_id
from wsrecover.protocol.frames import From
from wsrecover.protocol.receiver import Receiver
from wsrecover.transport import open_socket

from .contexts import Contexts
from .deaf import Deaf
from .entry import check_url
from .following import Following, check_threads
from .inbox import Inbox
from .keeper import Keeper, OpenSocket, Route, new_client_id
from .outbox import Outbox
from .progress import Progress
from .session import ClientSession
from .shared import Shared
from .status import Status, StatusBoard
from .tokens import Token, TokenSource

__all__ = ["BUFFER_BYTES", "BUFFER_ITEMS", "connect"]

BUFFER_ITEMS: Final = 1_000
"""Items that wait for the app: a replay's pages arrive while it handles the former ones."""

BUFFER_BYTES: Final = 4 * 1024 * 1024
"""The same in bytes of the messages that brought them."""


@asynccontextmanager
async def connect(
    url: str,
    *,
    token: Token,
    client_id: str | None = None,
    # What to follow
    events: bool = True,
    positions: Mapping[str, Position | Sequence[Any]] | None = None,
    threads: Sequence[str] | None = None,
    from_: From = "snapshot",
    # Timeouts
    connect_timeout: float = 10.0,
    give_up_after: float | None = None,
    # Limits
    buffer_items: int = BUFFER_ITEMS,
    buffer_bytes: int = BUFFER_BYTES,
    # Hooks
    on_status: Callable[[Status], object] | None = None,
    on_error: Callable[[WsrecoverError], object] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    dial: OpenSocket = open_socket,
    rng: Callable[[], float] = random.random,
) -> AsyncIterator[ClientSession]:
    """A session with the server at `url` (`ws://host:port`), for the block; entered once it is connected.

    It keeps itself connected: it reconnects, resumes where it was and repeats what was not answered.

    `token` is a JWT, or a function (sync or async) that gives a fresh one; only with a function does the
    session outlive the token. `client_id` (random by default) is one per tab or device: a newer connection
    with the same one replaces this one. `positions` are `session.position` as the app kept it with its own
    state, each also as its epoch and seq in a list; `from_` says where to begin in the user's stream without:
    `"snapshot"`, `"start"` or `"live"`. `threads` restricts the user's stream.

    `events=False` is for a program that only sends. What comes in is dropped: it is neither handed out nor
    acknowledged, no positions are kept, and each connection asks for as little as there is. So iterating and
    `follow` raise `ConfigError` at once, and a broadcast's receipt counts this client as `pending` until it
    disconnects. Without it iterate, all the time: see `ClientSession`.

    `connect_timeout` (seconds) bounds each try, and each call of the token function. `give_up_after` (seconds
    without a connection; None: never) ends the session with its last error. `on_status` is called with each
    change of `session.status`, `on_error` with why it is about to be `waiting`, also before the block is
    entered. `dial` opens the WebSocket, `rng` gives the jitter.

    Raises `ConfigError` for a wrong argument, or a function that gives no token the first time, and
    `WsrecoverError` under asyncio. Where there is no point in another try, or `give_up_after` is over:
    `TokenError`, `HandshakeRefused`, `ConnectionClosed`, `TooLarge` or another `TransportError`, such as for
    a certificate that is not trusted (only the first time: later it may be about to be renewed). Once
    entered, the same errors come out of the iteration and of the calls that wait.

    Leaving the block says `bye`; cancelled, the connection just ends.
    """
    patience = math.inf if give_up_after is None else give_up_after
    _check("more than 0 s", connect_timeout=connect_timeout, give_up_after=patience)
    _check("1 or more", buffer_items=buffer_items, buffer_bytes=buffer_bytes)
    if not events:
        from_, threads = _nothing(positions, threads, from_)
    route = Route(
        url=check_url(url),
        client=_client(client_id),
        from_=from_,
        ssl_context=ssl_context,
        connect_timeout=connect_timeout,
        give_up_after=patience,
        dial=dial,
    )
    kept, chosen = _positions({} if positions is None else positions), check_threads(threads)
    tokens = TokenSource(token, timeout=connect_timeout)
    board = StatusBoard(on_status, on_error)
    shared = _shared(kept, chosen, from_, buffer_items, buffer_bytes, tokens=tokens, board=board, rng=rng)
    if not events:
        _deafen(shared)
    async with _kept(Keeper(route, shared), shared) as session:
        yield session


def _shared(
    kept: Mapping[str, Position],
    threads: tuple[str, ...] | None,
    from_: From,
    buffer_items: int,
    buffer_bytes: int,
    *,
    tokens: TokenSource,
    board: StatusBoard,
    rng: Callable[[], float],
) -> Shared:
    progress, contexts = Progress(kept), Contexts()
    inbox = Inbox(progress, contexts, max_items=buffer_items, max_bytes=buffer_bytes)
    return Shared(
        receiver=Receiver(kept, snapshots=from_ == "snapshot"),
        progress=progress,
        inbox=inbox,
        outbox=Outbox(inbox.poke),
        tokens=tokens,
        board=board,
        rng=rng,
        following=Following(threads, inbox.poke),
        contexts=contexts,
    )


def _nothing(positions: object, threads: Sequence[str] | None, from_: From) -> tuple[From, tuple[str, ...]]:
    """The `from_` and the `threads` of who wants no events: what is new, and of that no thread."""
    if positions is not None or threads is not None or from_ != "snapshot":
        raise ConfigError("events", "is False beside positions, threads or from_", "True, or none of these")
    return "live", ()


def _deafen(shared: Shared) -> None:
    """Let nothing that comes in reach the app, which said that it wants no events."""
    error = ConfigError("events", "is False", "True, to iterate over the session or to follow threads")
    shared.receiver = Deaf()
    shared.inbox.end(error)
    shared.following.end(error)


@asynccontextmanager
async def _kept(keeper: Keeper, shared: Shared) -> AsyncIterator[ClientSession]:
    if not trio.lowlevel.in_trio_run():
        raise WsrecoverError("connect needs trio, not asyncio: use it within trio.run")
    session = ClientSession(keeper, shared)
    # An error of the block comes out as it is, not in a group with the nursery's.
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        try:
            await session.opened()
            yield session
        except Exception as error:  # noqa: BLE001 - raised again below
            failure = error
        finally:
            await keeper.leave()
    if failure is not None:
        raise failure


def _check(accepted: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(name, f"is {value}", accepted)


def _positions(given: Mapping[str, Position | Sequence[Any]]) -> dict[str, Position]:
    if not isinstance(given, Mapping):
        raise ConfigError("positions", f"is a {type(given).__name__}", "positions by the streams' names")
    kept = {}
    for name, place in given.items():
        match place:
            case Position(epoch, seq) | [epoch, seq] if is_id(epoch) and _is_seq(seq):
                kept[name] = Position(epoch, seq)
            case _:
                raise ConfigError(f"positions.{name}", f"is {place!r}", "a Position, or its epoch and seq")
    return kept


def _is_seq(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INT


def _client(client_id: str | None) -> str:
    if client_id is None:
        return new_client_id()
    if not is_id(client_id):
        raise ConfigError("client_id", "is not an id", "1 to 128 printable ASCII characters")
    return client_id
