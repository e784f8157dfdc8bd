"""S3, S4, E13, R10: the store is full, gone or broken. What is not kept is not acknowledged, and it heals."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Never

import apsw
import pytest
import trio
from figures import Figure
from process import ServerProcess, server_process
from serving import PATIENCE, Frame, log_of, until_none
from stage import Stage, types
from witness import Witness

from wsrecover import connect
from wsrecover.client import ClientSession, Event
from wsrecover.errors import CommandError, StoreClosed, StoreError, StoreFailed, StoreUnavailable
from wsrecover.streams.memory import MemoryStore
from wsrecover.streams.sqlite import SQLiteStore
from wsrecover.testing import LocalServer, local_server

SERVICE: Final = ("service",)
PAD: Final = "x" * 20_000


class Gone:
    """The store's file is moved away, as by an unmounted volume, and comes back as it was."""

    def __init__(self, local: LocalServer) -> None:
        path = local.config.store_path
        assert path is not None
        self.path, self.elsewhere = path, path.with_name("elsewhere.db")

    async def break_(self) -> None:
        self.path.rename(self.elsewhere)

    async def heal(self) -> None:
        self.elsewhere.rename(self.path)


class Full:
    """The disk has no room for another page, and then has: SQLite is told so by a limit of its own."""

    def __init__(self, local: LocalServer) -> None:
        store = local.server._services.store
        assert isinstance(store, SQLiteStore)
        self.store = store

    async def break_(self) -> None:
        await self._limit(1)  # No less than what the file has already.

    async def heal(self) -> None:
        await self._limit(2**30)

    async def _limit(self, pages: int) -> None:
        """Set where the connection belongs: in the writer's thread."""
        database = self.store._log._db
        with suppress(StoreUnavailable):  # Told to whatever shares a transaction with one that finds it full.
            await self.store._writes.call(lambda: database.pragma("max_page_count", pages))


Trouble = Gone | Full


@asynccontextmanager
async def troubled(
    stage: Stage, folder: Path, trouble: Callable[[LocalServer], Trouble]
) -> AsyncIterator[tuple[LocalServer, Trouble]]:
    async with local_server(stage.app, store=f"sqlite:{folder / 'log.db'}") as local:
        yield local, trouble(local)


each_trouble = pytest.mark.parametrize("trouble", [Gone, Full])


def unavailable(reply: Frame) -> bool:
    error = reply.get("error", {})
    return bool(error.get("code") == "store_unavailable" and error.get("retry_after", 0) > 0)


def publication(n: int) -> Frame:
    return {"user": "ada", "events": [{"type": "noted", "data": {"n": n, "pad": PAD}}]}


@each_trouble
async def test_fault_s3_commands_are_refused_as_unavailable_and_repeated_once_it_heals(
    stage: Stage, tmp_path: Path, trouble: Callable[[LocalServer], Trouble]
) -> None:
    commands = [
        ("chat", {"text": PAD}),
        ("user_message", {"text": PAD}),
        ("publish", publication(1)),
        ("start_agent", {"agent": "worker", "input": {"pad": PAD}}),
    ]
    async with troubled(stage, tmp_path, trouble) as (local, store), local.peer(roles=SERVICE) as peer:
        assert (await peer.command("publish", publication(0)))["status"] == "ok"
        await store.break_()
        for _ in range(2):
            for type_, data in commands:
                reply = await peer.command(type_, data, id=f"the {type_}")
                assert reply["status"] == "error"
                assert unavailable(reply), reply
        with pytest.raises(StoreUnavailable):
            await local.server.publish("acme", "ada", "noted", {"pad": PAD}, id="mine")
        assert not local.server.statistics().store.healthy
        await store.heal()
        replies = [await peer.command(type_, data, id=f"the {type_}") for type_, data in commands]
        position = await local.server.publish("acme", "ada", "noted", {"pad": PAD}, id="mine")
        assert local.server.statistics().store.healthy
        _, events = await log_of(local)
    assert [reply["status"] for reply in replies] == ["ok"] * 4
    assert types(events) == ["noted", "chat", "user_message", "noted", "agent_started", "noted"]
    assert [event["seq"] for event in events] == list(range(1, 7))
    assert position.seq == 6


@pytest.mark.parametrize(
    ("failure", "age", "code"),
    [
        (StoreUnavailable, None, "store_unavailable"),
        (StoreClosed, None, "store_unavailable"),
        (StoreFailed, None, "outcome_unknown"),
        (StoreUnavailable, 1.0, "outcome_unknown"),
        (StoreClosed, 1.0, "outcome_unknown"),
    ],
)
async def test_fault_s4_a_command_is_refused_only_where_it_is_sure_that_it_had_no_effect(
    monkeypatch: pytest.MonkeyPatch, failure: type[StoreError], age: float | None, code: str
) -> None:
    async def fail(store: MemoryStore, units: object) -> Never:
        await trio.lowlevel.checkpoint()
        raise failure("full")

    monkeypatch.setattr(MemoryStore, "commit", fail)
    repeat = {} if age is None else {"age": age}
    async with local_server() as local, local.peer() as peer:
        reply = await peer.command("chat", {"text": "hi"}, **repeat)
        assert (reply["status"], reply["error"]["code"]) == ("error", code)
        heals = code == "store_unavailable" or failure is StoreUnavailable
        assert ("retry_after" in reply["error"]) == heals, "then a repeat may tell"


async def test_fault_s4_a_write_that_takes_too_long_may_have_had_its_effect(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(store=store) as local, local.peer() as peer:
        await peer.command("chat", {"text": "before"})
        kept = local.server._services.store
        assert isinstance(kept, SQLiteStore)
        kept._timeout = 0.3  # Only now: the disk may be slow.
        blocker = apsw.Connection(str(tmp_path / "log.db"))
        blocker.execute("BEGIN IMMEDIATE")
        reply = await peer.command("chat", {"text": "slow"}, id="slow")
        blocker.close()
        assert reply["error"]["code"] == "outcome_unknown"
        later = await peer.command("chat", {"text": "later"})
        assert later["error"]["code"] == "store_unavailable"
    async with local_server(store=store) as local, local.peer() as peer:
        assert (await peer.command("chat", {"text": "slow"}, id="slow", age=1.0))["result"] == {"seq": 2}
        texts = [event["data"]["text"] for event in (await log_of(local))[1]]
        assert texts == ["before", "slow"], "it came to be, and once"


@each_trouble
async def test_r10_reads_of_the_tail_go_on_while_nothing_can_be_written(
    stage: Stage, tmp_path: Path, trouble: Callable[[LocalServer], Trouble]
) -> None:
    async with troubled(stage, tmp_path, trouble) as (local, store), local.peer() as connected:
        epoch = (await connected.until("live"))[0]["streams"]["user"]["epoch"]
        for n in range(10):
            await local.server.publish("acme", "ada", "noted", {"n": n, "pad": PAD})
        await connected.events(10)
        await store.break_()
        with pytest.raises(StoreUnavailable):
            await local.server.publish("acme", "ada", "noted", {"pad": PAD})
        await connected.send({"op": "ping"})
        assert (await connected.frame())["op"] == "pong"
        async with local.peer(resume={"user": [epoch, 4]}) as back:
            welcome = await back.frame()
            assert welcome["streams"]["user"]["resumed"]
            assert [event["data"]["n"] for event in await back.events(6)] == list(range(4, 10))
            await back.until("live")
            await store.heal()
            await local.server.publish("acme", "ada", "noted", {"n": 10})
            for peer in (connected, back):
                (event,) = await peer.events(1)
                assert (event["seq"], event["data"]["n"]) == (11, 10)


@each_trouble
async def test_s07_a_run_whose_commit_failed_is_ended_when_the_store_heals_and_has_no_hole(
    stage: Stage, tmp_path: Path, trouble: Callable[[LocalServer], Trouble]
) -> None:
    broken: list[BaseException] = []
    went_on = trio.Event()

    @stage.app.agent("writer")
    async def writer(run: Any) -> None:
        try:
            for n in range(10_000):
                await run.emit("noted", {"n": n, "pad": PAD})
                await run.flush()
        except Exception as error:
            broken.append(error)
            with pytest.raises(type(error)):
                await run.emit("noted", {"n": "after"})
            went_on.set()
            raise

    async with troubled(stage, tmp_path, trouble) as (local, store), local.peer() as peer:
        started = await peer.command("start_agent", {"agent": "writer", "input": {}})
        told = await peer.events(20)
        await store.break_()
        with trio.fail_after(10):
            await went_on.wait()
        assert local.server.statistics().sessions.runs == 1, "its end is still to be written"
        await store.heal()
        told += await peer.events(1)
        while told[-1]["type"] != "agent_completed":
            told += await peer.events(1)
        await until_none(local, "runs")
        _, events = await log_of(local)
        fresh = await peer.command("start_agent", {"agent": "worker", "input": {}})
        assert fresh["status"] == "ok"
    assert [type(error).__name__ for error in broken] == ["RunBroken"]
    assert told == events
    first, *noted, last = events
    assert first["run"] == last["run"] == started["result"]["run"]
    assert [event["data"]["n"] for event in noted] == list(range(len(noted)))
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert last["data"]["status"] == "failed"
    assert last["data"]["error"]["retryable"] is True


@each_trouble
async def test_s07_a_cancelled_run_is_acknowledged_only_when_its_end_is_kept(
    stage: Stage, tmp_path: Path, trouble: Callable[[LocalServer], Trouble]
) -> None:
    async with troubled(stage, tmp_path, trouble) as (local, store), local.peer() as peer:
        started = await peer.command("start_agent", {"agent": "worker", "input": {}})
        run = started["result"]["run"]
        await fill(local, store)
        await peer.send({"op": "send", "id": "stop", "type": "cancel_run", "data": {"run": run}})
        failures = local.server.statistics().store.failures
        await until(lambda: local.server.statistics().store.failures > failures)
        await peer.send({"op": "ping"})
        assert "reply" not in [frame["op"] for frame in await peer.until("pong")]
        await store.heal()
        reply = (await peer.until("reply"))[-1]
        assert (reply["status"], reply["result"]) == ("ok", {"run": run, "status": "cancelled"})
        again = await peer.command("cancel_run", {"run": run}, id="stop")
        assert (again["status"], again["result"]) == ("duplicate", reply["result"])
        _, events = await log_of(local)
    assert [event["type"] for event in events if event.get("run") == run] == [
        "agent_started",
        "agent_completed",
    ]


async def test_e13_a_full_disk_takes_nothing_that_is_acknowledged_and_keeps_nobody_from_reading(
    stage: Stage, tmp_path: Path, figure: Figure
) -> None:
    async with troubled(stage, tmp_path, Full) as (local, store):
        witness = Witness(local)
        async with witness.client() as client:
            await witness.publish(20, pad=5000)
            await client.take(20)
            await client.drop()
            await witness.publish(20, pad=5000)
            await store.break_()
            refused = 0
            for _ in range(10):
                with pytest.raises(StoreUnavailable):
                    await witness.publish(1, pad=20_000)
                refused += 1
            witness.history.fault("disk full")
            client.come_back()
            await client.take(20)
            await store.heal()
            await witness.publish(20, pad=5000)
            await client.take(20)
            client.settled()
        report = await witness.check(acknowledged=60, deliveries=60, resumes=1, faults=2, unknown=10)
        kept = len(await witness.drain("acme/ada"))
    figure("S3 E13", f"K around a full disk with {refused} publishes refused", len(report.anomalies))
    figure("S3 E13", "refused publishes that were kept nevertheless", kept - 60)
    assert kept == 60


async def fill(local: LocalServer, store: Trouble) -> None:
    """Break the store so that not even a small event fits any more."""
    await store.break_()
    with suppress(StoreUnavailable):
        while True:
            await local.server.publish("acme", "ada", "noted", {})


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # Outside only counts are seen.
            await trio.sleep(0.001)


async def test_fault_s4_after_a_write_that_failed_nothing_is_acknowledged_until_a_restart(
    tmp_path: Path,
) -> None:
    """Real: the kernel refuses to let the log grow (RLIMIT_FSIZE), which SQLite sees as an I/O error."""
    with trio.fail_after(PATIENCE):
        async with server_process(tmp_path) as server:
            await server.start()
            async with (
                connect(server.url, token=server.token()) as session,
                connect(server.url, token=server.token("backend", SERVICE)) as service,
            ):
                run = await session.start_agent("talker", {"tag": "one", "count": 3})
                acknowledged = dict([await publish(service, n) for n in range(20)])
                written = server.store.with_name("log.db-wal").stat().st_size
                limit_file_size(server, written)
                codes: list[str] = []
                more = dict([await publish(service, n, codes) for n in range(20, 40)])
                limit_file_size(server, resource.RLIM_INFINITY)
                assert await refusal(session.send("chat", {"text": "hello"})) == "store_unavailable"
                assert await refusal(session.cancel(run)) == "outcome_unknown", "it ends at the restart"
            await server.stop()
            await server.start()
            async with connect(server.url, token=server.token(), from_="start") as session:
                await session.send("chat", {"text": "hello"})
                events = await events_until(session, "chat")
    assert None not in acknowledged.values()
    assert codes[0] == "outcome_unknown", "the limit was felt, by a write that was under way"
    assert set(codes[1:]) == {"store_unavailable"}
    kept = {event.data["n"]: event.seq for event in events if event.type == "noted"}
    assert kept == {n: seq for n, seq in (acknowledged | more).items() if seq is not None}
    (end,) = (event for event in events if event.type == "agent_completed")
    assert (end.run, end.data["error"]["code"]) == (run, "producer_lost")


def limit_file_size(server: ServerProcess, size: int) -> None:
    """No file of the server may grow past `size` bytes."""
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


async def publish(
    service: ClientSession, n: int, refusals: list[str] | None = None
) -> tuple[int, int | None]:
    """Publish `n`; it, with the seq that it has, or None where that failed, with one of the `refusals`."""
    try:
        result = await service.send("publish", publication(n))
    except CommandError as error:
        if refusals is None:
            raise
        refusals.append(error.code)
        return n, None
    return n, result["positions"][0][1]


async def refusal(command: Awaitable[object]) -> str:
    with pytest.raises(CommandError) as refused:
        await command
    return refused.value.code


async def events_until(session: ClientSession, kind: str) -> list[Event]:
    events: list[Event] = []
    while not events or events[-1].type != kind:
        item = await anext(session)
        assert isinstance(item, Event)
        events.append(item)
    return events
