"""What the connections of one session have in common, over all of them."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from wsrecover.errors import WsrecoverError
from wsrecover.protocol.frames import Welcome
from wsrecover.protocol.receiver import Receiver

from .contexts import Contexts
from .deaf import Deaf
from .following import Following
from .inbox import Inbox
from .outbox import Outbox
from .progress import Progress
from .status import StatusBoard
from .tokens import TokenSource

__all__ = ["Shared"]


@attrs.define(kw_only=True)
class Shared:
    """`welcome` is the last one; `last_error` says why there is no connection, or why the last one ended."""

    receiver: Receiver | Deaf
    progress: Progress
    inbox: Inbox
    outbox: Outbox
    tokens: TokenSource
    board: StatusBoard
    rng: Callable[[], float]
    following: Following
    contexts: Contexts
    welcome: Welcome | None = None
    last_error: WsrecoverError | None = None
