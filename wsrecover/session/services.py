"""What every session needs and none of them owns: the parts of the process, handed in once by the composition root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import attrs

from ..access.tokens import TokenVerifier
from ..agents.app import App
from ..config import Config
from ..streams.journal import Journal
from ..streams.store import Store
from ..streams.stream import Streams

__all__ = ["Services"]


@attrs.frozen
class Services:
    """The parts of one server process. `clock` gives unix seconds; deadlines use trio's clock.

    `counts` are totals since the start, by name: `resume.<outcome>`, `closed.<code>`, `session.<state>`,
    `replayed`, `commands.<status>`.
    """

    app: App
    config: Config
    store: Store
    streams: Streams
    journal: Journal
    verifier: TokenVerifier
    clock: Callable[[], float]
    counts: Counter[str] = attrs.field(factory=Counter)
