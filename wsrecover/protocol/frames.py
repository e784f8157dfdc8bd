"""Every frame of both directions, as attrs classes. `op` is the frame's name on the wire.

Fields are those of SPEC.md, which says what each means; a test holds the two against each other.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, TypeAlias

import attrs

from .cursor import Position
from .events import Event
from .fields import Id, Seconds, Seq, StreamName, ThreadIds

__all__ = [
    "ALWAYS",
    "CLIENT_FRAMES",
    "COMMANDS",
    "ERROR_CODES",
    "SERVER_FRAMES",
    "SUBPROTOCOL",
    "VERSION",
    "Ack",
    "Auth",
    "AuthRequired",
    "Bye",
    "ClientFrame",
    "Drain",
    "Ephemeral",
    "ErrorBody",
    "ErrorFrame",
    "Event",
    "Follow",
    "From",
    "Gap",
    "Hello",
    "Live",
    "Part",
    "Ping",
    "Pong",
    "PrincipalInfo",
    "Reply",
    "ResumeReason",
    "RunInfo",
    "Send",
    "ServerFrame",
    "Skip",
    "Snapshot",
    "StreamInfo",
    "Streams",
    "Welcome",
]

VERSION: Final = 1
SUBPROTOCOL: Final = "wsrecover.v1"

COMMANDS: Final = frozenset(
    {"start_agent", "cancel_run", "respond", "user_message", "chat", "publish", "broadcast", "receipt"}
)
"""The types of `send` that the protocol itself defines; others are the app's own."""

ERROR_CODES: Final = frozenset(
    {
        "malformed",
        "unknown_op",
        "unknown_type",
        "invalid",
        "too_large",
        "not_found",
        "forbidden",
        "rate_limited",
        "overloaded",
        "id_conflict",
        "expired",
        "outcome_unknown",
        "already_resolved",
        "store_unavailable",
        "internal",
    }
)

ALWAYS: Final = "always"
"""Metadata of a field that is on the wire even where it holds its default; other defaults are left out."""

From: TypeAlias = Literal["snapshot", "start", "live"]
ResumeReason: TypeAlias = Literal["new", "epoch_changed", "trimmed", "ahead"]


@attrs.frozen
class Hello:
    """Who connects and where it is. `client` is one per tab or device."""

    op: ClassVar[str] = "hello"
    client: Id
    token: str | None = attrs.field(default=None, repr=False)
    resume: dict[StreamName, Position] = attrs.field(factory=dict)
    part: dict[StreamName, tuple[Seq, Seq]] = attrs.field(factory=dict)
    threads: ThreadIds | None = None
    fresh: ThreadIds = ()
    from_: From = "snapshot"


@attrs.frozen
class Ack:
    """Processed up to, per stream."""

    op: ClassVar[str] = "ack"
    pos: dict[StreamName, Seq]


@attrs.frozen
class Send:
    """A command. `age` is the seconds since it was first tried."""

    op: ClassVar[str] = "send"
    id: Id
    type: Id
    data: dict[str, Any]
    thread: Id | None = None
    age: Seconds | None = None


@attrs.frozen
class Follow:
    """Replaces the filter of the user stream; None follows every thread."""

    op: ClassVar[str] = "follow"
    id: Id
    threads: ThreadIds | None


@attrs.frozen
class Auth:
    """A fresh token for the connection as it stands."""

    op: ClassVar[str] = "auth"
    id: Id
    token: str = attrs.field(repr=False)


@attrs.frozen
class Ping:
    """Either side may ask whether the other is there."""

    op: ClassVar[str] = "ping"


@attrs.frozen
class Pong:
    """The answer to a ping."""

    op: ClassVar[str] = "pong"


@attrs.frozen
class Bye:
    """The client leaves for good; the server closes with 1000."""

    op: ClassVar[str] = "bye"


@attrs.frozen
class PrincipalInfo:
    """Who the token speaks for, as told to the client."""

    tenant: str
    user: str
    roles: tuple[str, ...] = attrs.field(default=(), metadata={ALWAYS: True})
    tier: str | None = None


@attrs.frozen
class StreamInfo:
    """Where a stream stands and the first seq that will follow (`from_`).

    `reason` is a `ResumeReason`; a later server may know more of them, so a client takes any.
    """

    epoch: str
    head: Seq
    oldest: Seq
    from_: Seq
    resumed: bool
    reason: str | None = None


@attrs.frozen
class RunInfo:
    """A run under way."""

    run: Id
    agent: str
    status: str
    thread: Id | None = None


@attrs.frozen
class Welcome:
    """The first frame of every connection. `heartbeat` and `token_expires_in` are in seconds."""

    op: ClassVar[str] = "welcome"
    protocol: int
    connection: Id
    principal: PrincipalInfo
    streams: dict[StreamName, StreamInfo]
    heartbeat: Seconds
    limits: dict[str, Any]
    token_expires_in: float
    runs: tuple[RunInfo, ...] = attrs.field(default=(), metadata={ALWAYS: True})


@attrs.frozen
class Streams:
    """Entitlements changed while connected."""

    op: ClassVar[str] = "streams"
    added: dict[StreamName, StreamInfo]
    removed: tuple[StreamName, ...]


@attrs.frozen
class Part:
    """A piece, base64 in `bytes`, of the encoded event `seq`, or of what `of` names; it has `total` bytes."""

    op: ClassVar[str] = "part"
    stream: StreamName
    seq: Seq
    offset: Seq
    total: Seq
    bytes: str = attrs.field(repr=False)
    of: str | None = None


@attrs.frozen
class Snapshot:
    """The context of some threads as of `seq`."""

    op: ClassVar[str] = "snapshot"
    stream: StreamName
    seq: Seq
    threads: dict[str, Any]
    more: bool = False


@attrs.frozen
class Live:
    """The replay that this connection asked for is done."""

    op: ClassVar[str] = "live"
    stream: StreamName
    seq: Seq


@attrs.frozen
class Skip:
    """What was not sent up to `to` was filtered out."""

    op: ClassVar[str] = "skip"
    stream: StreamName
    to: Seq


@attrs.frozen
class Gap:
    """Events `from_..to` are gone."""

    op: ClassVar[str] = "gap"
    stream: StreamName
    reason: str
    from_: Seq | None = None
    to: Seq | None = None


@attrs.frozen
class ErrorBody:
    """Why a command was refused. `retry_after` is in seconds."""

    code: str
    message: str
    field: str | None = None
    retry_after: Seconds | None = None


@attrs.frozen
class Reply:
    """The answer to a command."""

    op: ClassVar[str] = "reply"
    id: Id
    status: Literal["ok", "duplicate", "error"]
    result: dict[str, Any] | None = None
    error: ErrorBody | None = None


@attrs.frozen
class Ephemeral:
    """Like an event, but not logged; may be dropped under pressure."""

    op: ClassVar[str] = "ephemeral"
    stream: StreamName
    ts: float
    type: str
    data: dict[str, Any]
    thread: Id | None = None
    run: Id | None = None


@attrs.frozen
class AuthRequired:
    """The token expires in so many seconds."""

    op: ClassVar[str] = "auth_required"
    expires_in: float


@attrs.frozen
class Drain:
    """Reconnect after `retry_after` plus a random part of `jitter`, both in seconds."""

    op: ClassVar[str] = "drain"
    retry_after: Seconds
    jitter: Seconds


@attrs.frozen
class ErrorFrame:
    """About a frame, or just before a close. `ref` is the id of what was refused."""

    op: ClassVar[str] = "error"
    code: str
    message: str
    field: str | None = None
    ref: Id | None = None
    retry_after: Seconds | None = None


ClientFrame: TypeAlias = Hello | Ack | Send | Follow | Auth | Ping | Pong | Bye
ServerFrame: TypeAlias = (
    Welcome
    | Streams
    | Event
    | Part
    | Snapshot
    | Live
    | Skip
    | Gap
    | Reply
    | Ephemeral
    | AuthRequired
    | Drain
    | ErrorFrame
    | Ping
    | Pong
)

CLIENT_FRAMES: Final[dict[str, type[ClientFrame]]] = {
    frame.op: frame for frame in (Hello, Ack, Send, Follow, Auth, Ping, Pong, Bye)
}
SERVER_FRAMES: Final[dict[str, type[ServerFrame]]] = {
    frame.op: frame
    for frame in (
        Welcome,
        Streams,
        Event,
        Part,
        Snapshot,
        Live,
        Skip,
        Gap,
        Reply,
        Ephemeral,
        AuthRequired,
        Drain,
        ErrorFrame,
        Ping,
        Pong,
    )
}
