"""The commands of a session: each takes effect once, however often it is sent.

A command's answer is kept by the store in the same transaction as what the command appended. So a repeat
needs no look-up of its own: the commit itself says `Duplicate` and gives the first answer. A repeat of a
command that is still under way joins it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias

import attrs
import trio

from wsrecover.access.policy import chosen_tenant, may, require_service
from wsrecover.access.principal import Principal
from wsrecover.agents.command import Handler
from wsrecover.errors import (
    CommandError,
    InvalidEvent,
    StoreClosed,
    StoreError,
    StoreFailed,
    StoreUnavailable,
)
from wsrecover.logger import get_logger
from wsrecover.protocol import codec
from wsrecover.protocol.cursor import Position
from wsrecover.protocol.frames import Reply, Send
from wsrecover.protocol.schema import fitted
from wsrecover.streams.store import (
    AnswerKey,
    Applied,
    Conflict,
    Duplicate,
    Entry,
    StreamKey,
    Unit,
)

from .announcing import answer_broadcast, answer_receipt
from .calls import Call, Result, Status, conflict, outcome_unknown, refusal, settled
from .fields import entry_of, name_field, object_field, text_field
from .own import answer_own
from .runs import Runs
from .services import Services

__all__ = ["Commands"]

log = get_logger(__name__)

REPEAT_WINDOW: Final = 600.0
"""The age in seconds up to which a repeat is sure to find the first one's answer."""

PUBLISH_EVENTS: Final = 100
"""Events that one `publish` may carry."""

STORE_RETRY_AFTER: Final = 1.0
"""Seconds after which a client may repeat what the store could not take."""


Answerer: TypeAlias = Callable[[Call], Awaitable[tuple[Status, Result]]]


def _store_trouble(send: Send, error: StoreError) -> CommandError:
    """What became of a command, as far as anybody knows: of a repeat an earlier try may have taken effect."""
    if isinstance(error, StoreUnavailable | StoreClosed) and send.age is None:
        problem = "the log cannot be written now"
        return CommandError("store_unavailable", problem, retry_after=STORE_RETRY_AFTER)
    retry_after = STORE_RETRY_AFTER if isinstance(error, StoreUnavailable) else None
    return outcome_unknown("the log could not tell whether it took effect", retry_after=retry_after)


@attrs.define
class UnderWay:
    """A command that was not answered yet."""

    digest: bytes
    reply: Reply | None = None
    done: trio.Event = attrs.field(factory=trio.Event)


class Caller(Protocol):
    """The connection that a command came by."""

    @property
    def state(self) -> str:
        """`closing` where it is told nothing any more."""


class Commands:
    """Takes a session's commands, at most `limits.commands_in_flight` at once."""

    def __init__(self, services: Services, key: StreamKey, runs: Runs) -> None:
        self._services = services
        self._key = key
        self._runs = runs
        self._admitted: Counter[str] = Counter()
        self._under_way: dict[str, UnderWay] = {}
        self._joined: dict[object, set[trio.CancelScope]] = {}
        self._handlers: Mapping[str, Answerer] = {
            "start_agent": self._start_agent,
            "cancel_run": self._cancel_run,
            "user_message": self._say,
            "chat": self._say,
            "respond": self._respond,
            "publish": self._publish,
            "broadcast": partial(answer_broadcast, services),
            "receipt": partial(answer_receipt, services),
        }

    def admit(self, id: str) -> None:
        """Make room for a command that `answer` will then take. Raises `CommandError("overloaded")`.

        A repeat of one under way waits for that one's answer and is none on top: it has room of its own. Else
        a client that comes back with all that it had outstanding would be told of each that it was refused,
        and so of each new one, which it sends when it has an answer. That room is for two rounds: the repeats
        of a connection that was just replaced are about to leave it.
        """
        limit, admitted = self._services.config.limits.commands_in_flight, self._admitted
        if admitted.total() >= 3 * limit if id in admitted else len(admitted) >= limit:
            raise CommandError("overloaded", f"{limit} commands are under way, the limit", retry_after=1.0)
        admitted[id] += 1

    async def wait_idle(self) -> None:
        """Wait until no command is under way."""
        while self._under_way:
            await next(iter(self._under_way.values())).done.wait()

    async def answer(self, principal: Principal, send: Send, caller: Caller) -> Reply | None:
        """The reply to a command that was admitted; never raises what a command can cause.

        None: `caller` is gone, and its repeat waits no longer for the one under way, which goes on.
        Cancelled, it may have taken effect; a repeat of the same id then gives its answer.
        """
        try:
            reply = await self._answer_once(principal, send, caller)
        except CommandError as error:
            reply = refusal(send.id, error)
        except InvalidEvent as error:
            reply = refusal(send.id, CommandError("invalid", error.problem, field=error.field))
        except StoreError as error:
            log.warning("command_not_logged", command=send.type, error=repr(error))
            reply = refusal(send.id, _store_trouble(send, error))
        except Exception:
            log.exception("command_failed", command=send.type)
            reply = refusal(send.id, CommandError("internal", "the command failed in the server"))
        finally:
            self._admitted[send.id] -= 1
            if not self._admitted[send.id]:
                del self._admitted[send.id]
        if reply is None:
            return None
        self._services.counts[f"commands.{reply.status}"] += 1
        if reply.error is not None:
            self._services.note(f"command.{reply.error.code}")
        return reply

    async def _answer_once(self, principal: Principal, send: Send, caller: Caller) -> Reply | None:
        handler = self._handlers.get(send.type)
        if handler is None:
            own = self._services.app.commands.get(send.type)
            if own is None or not may(principal, own.roles):
                raise CommandError("unknown_type", f"there is no command {send.type!r}", field="type")
            handler = partial(self._own, own)
        digest = codec.digest(send.type, send.thread, send.data)
        first = self._under_way.get(send.id)
        while first is not None:
            if first.digest != digest:
                raise conflict(send.id)
            if not await self._join(first, caller):
                return None
            if first.reply is not None:
                return attrs.evolve(first.reply, status="duplicate")
            first = self._under_way.get(send.id)
        self._under_way[send.id] = under_way = UnderWay(digest)
        try:
            key = AnswerKey(principal.tenant, principal.user, send.id)
            call = Call(principal, send, key, digest, self._services.clock(), self._services.store.now())
            await self._refuse_expired(call)
            status, result = await handler(call)
            under_way.reply = Reply(send.id, status, result=result)
            return under_way.reply
        finally:
            del self._under_way[send.id]
            under_way.done.set()

    async def _join(self, first: UnderWay, caller: Caller) -> bool:
        """Wait until the first one is done. False: the caller is gone before, for a client that comes back
        again and again is to leave no repeat behind that waits for nobody."""
        with trio.CancelScope() as scope:
            if caller.state == "closing":
                scope.cancel()
            scopes = self._joined.setdefault(caller, set())
            scopes.add(scope)
            try:
                await first.done.wait()
            finally:
                scopes.discard(scope)
                if not scopes:
                    del self._joined[caller]
        return not scope.cancelled_caught

    def leave(self, caller: object) -> None:
        """The caller is gone: let its repeats go."""
        for scope in self._joined.get(caller, ()):
            scope.cancel()

    async def _refuse_expired(self, call: Call) -> None:
        age = call.send.age
        if age is None or age <= REPEAT_WINDOW:
            return
        if await self._services.store.answer(call.key) is None:
            raise CommandError("expired", f"answers are kept for {REPEAT_WINDOW:g} s only", field="age")

    async def _commit(
        self, call: Call, entries: tuple[Entry, ...], render: Callable[[Sequence[Position]], Result]
    ) -> tuple[Status, Result]:
        unit = Unit(entries, (call.answer(),))
        outcome = await self._services.journal.commit(unit)
        match outcome:
            case Applied():
                return "ok", render(unit.positions)
            case Duplicate(positions=positions):
                return "duplicate", render(positions)
            case Conflict():
                raise conflict(outcome.id)

    async def _say(self, call: Call) -> tuple[Status, Result]:
        send = call.send
        if send.type == "user_message":
            text_field(send.data, "text", path="data")
        body = codec.encode_event(
            ts=call.now,
            type=send.type,
            data=fitted(send.type, send.data, self._services.app.events),
            thread=send.thread,
            max_bytes=self._services.config.limits.event_bytes,
        )
        entry = Entry(self._key, body, call.now, send.thread)
        return await self._commit(call, (entry,), lambda positions: {"seq": positions[0].seq})

    async def _publish(self, call: Call) -> tuple[Status, Result]:
        require_service(call.principal, "publish")
        data = call.send.data
        tenant = chosen_tenant(
            call.principal, name_field(data, "tenant", path="data", required=False) or None
        )
        user = name_field(data, "user", path="data")
        events = data.get("events")
        if not isinstance(events, list) or not 1 <= len(events) <= PUBLISH_EVENTS:
            raise CommandError(
                "invalid", f"must be a list of 1 to {PUBLISH_EVENTS} events", field="data.events"
            )
        key = StreamKey("user", tenant, user)
        most, schemas = self._services.config.limits.event_bytes, self._services.app.events
        entries = tuple(
            entry_of(event, key, path=f"data.events[{place}]", now=call.now, max_bytes=most, schemas=schemas)
            for place, event in enumerate(events)
        )
        return await self._commit(
            call, entries, lambda positions: {"positions": [[at.epoch, at.seq] for at in positions]}
        )

    async def _own(self, handler: Handler, call: Call) -> tuple[Status, Result]:
        return await answer_own(call, handler, self._services, self._key, self._runs)

    async def _start_agent(self, call: Call) -> tuple[Status, Result]:
        name = text_field(call.send.data, "agent", path="data")
        given = object_field(call.send.data, "input", path="data")
        try:
            execution = self._runs.prepare(
                name, given, thread=call.send.thread, field="data.agent", principal=call.principal
            )
            result = {"run": execution.run.id}
            outcome = await self._runs.start(execution, call.answer(result))
        except CommandError:
            # A repeat is answered as the first was, also where another run would be refused by now.
            if (known := await call.known(self._services.store)) is not None:
                return known
            raise
        return settled(outcome, result)

    async def _respond(self, call: Call) -> tuple[Status, Result]:
        name = text_field(call.send.data, "request", path="data")
        if "answer" not in call.send.data:
            raise CommandError("invalid", "is missing", field="data.answer")
        try:
            request = self._runs.requests.find(name)
            outcome = await request.respond(call.send.data["answer"], call.answer({}))
        except CommandError:
            if (known := await call.known(self._services.store)) is not None:
                return known
            raise
        return settled(outcome, {})

    async def _cancel_run(self, call: Call) -> tuple[Status, Result]:
        run = text_field(call.send.data, "run", path="data")
        if (known := await call.known(self._services.store)) is not None:
            return known
        execution = self._runs.find(run)
        if execution is None:
            raise CommandError("not_found", "there is no such run under way", field="data.run")
        committed = execution.cancel(call.answer())
        result = {"run": run, "status": await execution.wait_ended()}
        if not execution.recorded:
            raise StoreFailed(f"the end of run {run} could not be written")
        if not committed:
            unit = Unit(answers=(call.answer(result),))
            return settled(await self._services.journal.commit(unit), result)
        return "ok", result
