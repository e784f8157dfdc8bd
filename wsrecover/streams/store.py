"""The Store contract: where streams are kept.

A store holds streams (logs of encoded events), the answers given to commands, and the runs under way. What
belongs together is one `Unit` and takes effect whole or not at all; many units share one commit.

Epochs. An epoch is `<incarnation>-<generation>`. The incarnation is random, made when the stream is first
written or loaded, and persisted before anybody is told. The generation is random, made each time the store is
opened. The store keeps the lineage of its generations and, per stream, the first seq that each generation
wrote: that tells a restart (same history) from a restored backup that has since written other events under
the same seqs.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import attrs

from wsrecover.config import Retention
from wsrecover.protocol.cursor import Position

from .entry import ENTRY_BYTES, Entry
from .key import StreamKey

__all__ = [
    "ANSWER_WINDOW",
    "APPLIED",
    "ENTRY_BYTES",
    "Answer",
    "AnswerKey",
    "AnswerStatus",
    "Applied",
    "Conflict",
    "Duplicate",
    "Entry",
    "NewSnapshot",
    "Outcome",
    "Retained",
    "Retention",
    "Revocation",
    "RunRecord",
    "Store",
    "StoreStatistics",
    "StoredContext",
    "StoredSnapshot",
    "StreamKey",
    "StreamState",
    "TokenRevocation",
    "Unit",
    "UserRevocation",
]

ANSWER_WINDOW: Final = 660.0
"""Seconds for which an answer is kept: the 600 that a client may count on, and a repeat's time on its way."""


@attrs.frozen
class AnswerKey:
    """Who asked, and the id that they gave the command."""

    tenant: str
    user: str
    id: str


AnswerStatus: TypeAlias = Literal["accepted", "ok", "error"]
"""`accepted`: the command was taken, and what it comes to is not known yet."""


@attrs.frozen
class Answer:
    """What a command was answered: a JSON object, or None where the positions say it all.

    `digest` stands for the command's body: another one under the same id is a conflict. `at` is the store's
    time. Of the status "error" the result is the error; "accepted" has none, and is replaced by what follows.
    """

    key: AnswerKey
    digest: bytes
    at: float
    result: bytes | None = None
    status: AnswerStatus = "ok"

    def finishes(self, known: Answer) -> bool:
        """Whether it is the answer to what `known` says was accepted."""
        return known.status == "accepted" != self.status and known.digest == self.digest


@attrs.frozen
class RunRecord:
    """A run under way, as a restart needs it to write the terminal event that its process could not."""

    run: str
    tenant: str
    user: str
    agent: str
    started: float
    thread: str | None = None


@attrs.frozen
class UserRevocation:
    """That the tokens of a user count no more that were issued up to `at` (unix seconds)."""

    tenant: str
    user: str
    at: float


@attrs.frozen
class TokenRevocation:
    """That the token of a tenant with this `jti` counts no more; known at `at` (unix seconds)."""

    tenant: str
    token_id: str
    at: float


Revocation: TypeAlias = UserRevocation | TokenRevocation


@attrs.frozen
class StoredContext:
    """A thread's context, encoded, and the ts of the last event that changed it."""

    body: bytes = attrs.field(repr=False)
    at: float


@attrs.frozen
class StoredSnapshot:
    """The contexts of a stream's threads as of `seq`; 0 where there is no snapshot yet."""

    seq: int
    contexts: Mapping[str, StoredContext]


@attrs.frozen
class NewSnapshot:
    """A stream's contexts as of `seq`: those that may have `changed` since its last snapshot (None: gone).

    `epoch` is the stream's, which `seq` is of: what was reduced from a log that was erased since must not
    come back as the new one's. None: that of now, whatever it is.
    """

    key: StreamKey
    seq: int
    changed: Mapping[str, StoredContext | None]
    epoch: str | None = None


@attrs.define
class Unit:
    """What takes effect together. At most one answer is conditional: see `Store.commit`."""

    entries: tuple[Entry, ...] = ()
    answers: tuple[Answer, ...] = ()
    runs_started: tuple[RunRecord, ...] = ()
    runs_ended: tuple[str, ...] = ()
    snapshots: tuple[NewSnapshot, ...] = ()
    revocations: tuple[Revocation, ...] = ()

    @property
    def positions(self) -> tuple[Position, ...]:
        """Where its entries are, in order, once it took effect."""
        return tuple([entry.position for entry in self.entries])

    @property
    def size(self) -> int:
        """Bytes of all its bodies."""
        size = 0
        for entry in self.entries:
            size += len(entry.body)
        for answer in self.answers:
            size += len(answer.result or b"")
        for snapshot in self.snapshots:
            size += sum(len(context.body) for context in snapshot.changed.values() if context is not None)
        return size

    def is_plain(self) -> bool:
        """Whether it does no more than append entries, of which none can be there already."""
        if self.answers or self.runs_started or self.runs_ended or self.snapshots or self.revocations:
            return False
        for entry in self.entries:  # noqa: SIM110  # A generator costs more than the rest of this.
            if entry.id is not None:
                return False
        return True


@attrs.frozen
class Applied:
    """The unit took effect, and its entries have their seqs and epochs.

    `repeats` are the places of those whose id was known already: they were not appended again, and have the
    first one's position.
    """

    repeats: tuple[int, ...] = ()


APPLIED: Final = Applied()
"""What nearly every unit comes to."""


@attrs.frozen
class Duplicate:
    """Nothing was done: the command was accepted before, or answered with this result and these positions."""

    result: bytes | None
    positions: tuple[Position, ...]
    status: AnswerStatus = "ok"


@attrs.frozen
class Conflict:
    """Nothing was done: `id` was used before with another body."""

    id: str


Outcome: TypeAlias = Applied | Duplicate | Conflict


@attrs.frozen
class StreamState:
    """A stream as the store knows it. `oldest` is head + 1 where nothing is kept.

    `marks` are (generation, first seq it wrote), oldest first, for the generations that wrote to this stream.
    """

    incarnation: str
    head: int
    oldest: int
    marks: tuple[tuple[str, int], ...] = ()


@attrs.frozen
class Retained:
    """The new `oldest` of each stream that was trimmed, and those of which the snapshot held some back."""

    oldest: dict[StreamKey, int]
    held: tuple[StreamKey, ...] = ()


@attrs.frozen
class StoreStatistics:
    """Counts since the store was opened; `healthy` is False while the last commit failed.

    `held` are the bytes of the events that it keeps in this process's memory, 0 for one that keeps them
    elsewhere.
    """

    commits: int
    events: int
    failures: int
    healthy: bool
    held: int = 0


class Store(abc.ABC):
    """Where streams are kept. All methods may be called from many tasks; calls take effect one after the
    other.

    Errors: `StoreUnavailable` means that nothing of the call took effect and a later one may succeed;
    `StoreFailed` that nobody knows whether it did, and the store is down until it is opened again;
    `StoreClosed`, which is one of these, that it was down before; `StoreCorrupt` that what was read
    contradicts itself.

    Cancellation: `commit` may not be left half known: once handed to the store it completes before the
    cancellation is raised, under a shield whose deadline is the store's time-out. Reads may be abandoned at
    any time.
    """

    generation: str
    """This opening of the store."""

    lineage: tuple[str, ...]
    """Every generation in whose history this store stands, oldest first, this one last."""

    @abc.abstractmethod
    async def load(self, key: StreamKey) -> StreamState:
        """The stream's state. A stream that nobody wrote yet gets its incarnation here, durably."""

    @abc.abstractmethod
    async def commit(self, units: Sequence[Unit]) -> list[Outcome]:
        """Apply each unit whole, in order, and put the batch on stable storage; one outcome per unit.

        A unit with an answer whose key was answered within `ANSWER_WINDOW` is not applied (`Duplicate` or,
        with another digest, `Conflict`), save that what was "accepted" is replaced by its answer. A unit with
        an event id that was used with another digest is not applied either (`Conflict`). Answers that are
        applied are kept with the positions of the unit's entries. Only the first answer of a unit is checked
        in this way; the others are kept as they are.

        A snapshot that is older than the stream's last one, or of another epoch, changes nothing; one of the
        same seq tells what was forgotten since.
        """

    @abc.abstractmethod
    def now(self) -> float:
        """The time in seconds by which answers and ids age: answers that are handed in have it as `at`.

        It passes while the store is open, and goes on where it was when the store was closed: so neither a
        clock that is set, nor a machine that sleeps, nor a restart makes an answer older than it is.
        """

    @abc.abstractmethod
    async def read(
        self, key: StreamKey, after: int, *, upto: int, max_events: int, max_bytes: int
    ) -> list[Entry]:
        """The entries after seq `after`, up to and including `upto`, contiguous from `after` + 1.

        At most `max_events`, and as many as fit `max_bytes` of bodies but at least one. Where `after` + 1 was
        trimmed it begins at the oldest that is kept.
        """

    @abc.abstractmethod
    async def retain(self, limits: Mapping[StreamKey, Retention], *, now: float) -> Retained:
        """Forget what is over the limits, oldest first, with `now` in unix seconds; and old answers.

        The newest event may go by age but never by count or bytes. What a user's newest snapshot does not
        cover is held back: it is nowhere else.
        """

    @abc.abstractmethod
    async def snapshot(self, key: StreamKey) -> StoredSnapshot:
        """The stream's newest snapshot."""

    @abc.abstractmethod
    async def oldest_contexts(self, keys: Sequence[StreamKey]) -> dict[StreamKey, float]:
        """Of each of these streams whose snapshot has contexts, the `at` of the one that is used least."""

    @abc.abstractmethod
    async def keys(self, *, after: StreamKey | None = None, limit: int = 1000) -> list[StreamKey]:
        """The streams that the store knows, in the order of their keys: at most `limit` after `after`."""

    @abc.abstractmethod
    async def answer(self, key: AnswerKey) -> tuple[Answer, tuple[Position, ...]] | None:
        """What the command was answered, if that is within the window."""

    @abc.abstractmethod
    async def runs(self) -> list[RunRecord]:
        """The runs that were started and not ended."""

    @abc.abstractmethod
    async def revocations(self) -> list[Revocation]:
        """All that was revoked; of a user, or a token, the last time alone."""

    @abc.abstractmethod
    async def forget_revocations(self, *, before: float) -> None:
        """Forget those whose `at` is before that."""

    @abc.abstractmethod
    async def erase(self, one: UserRevocation) -> None:
        """Keep the revocation, and forget all else that is known of the user.

        That is its stream with its snapshot and event ids, the answers to its commands and its runs. It takes
        effect whole, on stable storage, or not at all. The stream has another incarnation from then on, and
        nothing that was known of the old one counts: its `load`, its positions, the snapshots of its epoch.
        Broadcast streams stay. Cancelled: as `commit`.
        """

    @abc.abstractmethod
    async def purge(self) -> None:
        """Wait until nothing of what was erased by now can be found in the store's files either.

        That may take a while, in which commits may have to wait for seconds; where the store is closed before
        it is done, the next opening goes on with it. Raises `StoreUnavailable` where it cannot be done now,
        and then the next call tries again. May be abandoned.
        """

    @abc.abstractmethod
    def statistics(self) -> StoreStatistics:
        """Counts, without waiting."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close for good. Commits that were handed over complete first."""
