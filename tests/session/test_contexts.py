"""One user's contexts: reduced when somebody asks, stored in between, forgotten by the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from wsrecover import App, Run
from wsrecover.config import Config, Contexts, Retention, Tier
from wsrecover.errors import StoreUnavailable
from wsrecover.session.contexts import TOGETHER, UserContexts, keep_up, store
from wsrecover.session.services import Services
from wsrecover.streams.store import StoredSnapshot, StreamKey, Unit
from wsrecover.testing import LocalServer, local_server

ADA = StreamKey("user", "acme", "ada")


class Log:
    """A server's log of ada, written and read as a service and an embedder would."""

    def __init__(self, local: LocalServer) -> None:
        self.local = local
        self.services: Services = local.server._services

    async def add(
        self, kind: str, data: dict[str, Any], thread: str | None = "t", run: str | None = None
    ) -> None:
        await self.local.server.publish("acme", "ada", kind, data, thread=thread)

    async def say(self, *texts: str, thread: str | None = "t") -> None:
        for text in texts:
            await self.add("user_message", {"text": text}, thread)

    def contexts(self) -> UserContexts:
        return UserContexts(self.services, ADA)

    async def stored(self) -> StoredSnapshot:
        return await self.services.store.snapshot(ADA)


@asynccontextmanager
async def log_of(store: str = "memory", **settings: Any) -> AsyncIterator[Log]:
    async with local_server(store=store, **settings) as local:
        yield Log(local)


async def said(contexts: UserContexts, thread: str | None = "t") -> list[str]:
    return [str(message.text) for message in (await contexts.thread(thread)).conversation]


async def never(*_: object, **__: object) -> Any:
    raise AssertionError("the log was read")


async def test_a_context_is_what_the_log_says_by_the_time_that_somebody_asks() -> None:
    async with log_of() as log:
        contexts = log.contexts()
        assert await said(contexts) == []
        await log.say("one", "two")
        await log.say("elsewhere", thread="u")
        await log.say("nowhere", thread=None)
        await log.add("app.own", {"text": "x"})
        assert await said(contexts) == ["one", "two"]
        assert await said(contexts, "u") == ["elsewhere"]
        assert await said(contexts, None) == ["nowhere"]
        snapshot = await contexts.snapshot()
        assert snapshot.seq == 5
        assert sorted(snapshot.contexts) == ["", "t", "u"]


async def test_what_was_taken_stays_as_it_was() -> None:
    async with log_of() as log:
        contexts = log.contexts()
        await log.say("one")
        snapshot = await contexts.snapshot()
        await log.say("two")
        assert await said(contexts) == ["one", "two"]
        assert len(snapshot.contexts["t"].messages) == 1


async def test_after_a_restart_only_what_follows_the_snapshot_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with log_of(store) as log:
        await log.say(*map(str, range(20)))
        contexts = log.contexts()
        await contexts.store()
        await log.say("last")
        whole = await contexts.thread("t")
    async with log_of(store) as log:
        read: list[int] = []
        original = log.services.store.read

        async def noting(key: StreamKey, after: int, **bounds: Any) -> Any:
            read.append(after)
            return await original(key, after, **bounds)

        monkeypatch.setattr(log.services.store, "read", noting)
        assert await log.contexts().thread("t") == whole
        assert read == [20]


async def test_what_keeps_up_has_nothing_to_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_of() as log:
        contexts = log.contexts()
        for text in ("one", "two"):
            await log.say(text)
            await contexts.keep_up()
        monkeypatch.setattr(log.services.store, "read", never)
        assert await said(contexts) == ["one", "two"]
        assert (await log.stored()).seq == 0


async def test_who_has_the_stream_open_keeps_up_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_of() as log:
        contexts, behind = log.contexts(), log.contexts()
        stream = await log.services.streams.open(ADA)
        await log.say("one")
        assert not contexts.keep_up_nowait(), "nothing is known yet: the store must be asked"
        await keep_up([contexts, behind])
        await log.say("two")
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(contexts, "keep_up", never)
            await keep_up([contexts])
        assert logs == []
        await log.say("three")
        stream.drop_tail()
        assert not behind.keep_up_nowait(), "the tail has it no more"
        await keep_up([contexts, behind])
        monkeypatch.setattr(log.services.store, "read", never)
        assert await said(contexts) == await said(behind) == ["one", "two", "three"]
        log.services.streams.release(stream)


async def test_what_concerns_no_context_need_not_be_there_to_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    app, go, gone = App(), trio.Event(), trio.Event()

    @app.agent("stepper")
    async def stepper(run: Run) -> None:
        await go.wait()
        for n in range(3):
            await run.emit("step", {"n": n})
        await run.flush()
        gone.set()
        await trio.sleep_forever()

    async with local_server(app) as local:
        log = Log(local)
        contexts, stream = log.contexts(), await log.services.streams.open(ADA)
        await local.server.start_agent("acme", "ada", "stepper", {})
        await keep_up([contexts])
        go.set()
        await gone.wait()
        monkeypatch.setattr(log.services.store, "read", never)
        stream.drop_tail()
        assert contexts.keep_up_nowait()
        await log.say("one")
        assert contexts.keep_up_nowait()
        assert await said(contexts) == ["one"]
        log.services.streams.release(stream)


async def test_one_that_fails_keeps_no_other_from_keeping_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_of() as log:
        good, bad = log.contexts(), log.contexts()
        await log.say("one")

        def break_down() -> bool:
            raise RuntimeError("a bug")

        monkeypatch.setattr(bad, "keep_up_nowait", break_down)
        with capture_logs() as logs:
            await keep_up([bad, good])
        assert [entry["event"] for entry in logs] == ["snapshot_failed"]
        monkeypatch.setattr(log.services.store, "read", never)
        assert await said(good) == ["one"]


async def test_what_is_too_large_for_memory_does_not_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_of(contexts=Contexts(memory_bytes=0)) as log:
        contexts = log.contexts()
        await log.say("one")
        await contexts.keep_up()
        await log.say("two")
        with monkeypatch.context() as patched:
            patched.setattr(contexts, "_advanced", never)
            await contexts.keep_up()
        assert await said(contexts) == ["one", "two"]


async def test_only_what_changed_is_stored_again() -> None:
    async with log_of() as log:
        contexts = log.contexts()
        await log.say("one")
        await log.say("two", thread="u")
        await contexts.store()
        first = await log.stored()
        await log.say("three", thread="u")
        await contexts.store()
        second = await log.stored()
        assert (first.seq, second.seq) == (2, 3)
        assert second.contexts["t"] is first.contexts["t"]
        assert second.contexts["u"] != first.contexts["u"]
        units = log.services.journal.statistics().committed
        await contexts.store()
        assert log.services.journal.statistics().committed == units


class TestForgetting:
    async def test_threads_that_were_used_last_are_kept(self) -> None:
        async with log_of(contexts=Contexts(threads=2)) as log:
            contexts = log.contexts()
            for thread in ("a", "b", "c", "a"):
                await log.say("hi", thread=thread)
            await contexts.store()
            assert sorted((await log.stored()).contexts) == ["a", "c"]
            assert await said(contexts, "b") == []
            await log.say("again", thread="b")
            await contexts.store()
            assert sorted((await log.stored()).contexts) == ["a", "b"]
            assert await said(contexts, "b") == ["again"]

    async def test_by_age_but_not_while_a_run_is_under_way(self) -> None:
        now = 1000.0
        async with local_server(wall_clock=lambda: now, contexts=Contexts(age=60.0)) as local:
            log = Log(local)
            await log.say("old", thread="old")
            await log.add("input_requested", {"request_id": "q", "prompt": "?"}, "asked")
            now += 30
            await log.say("young", thread="young")
            now += 31
            contexts = log.contexts()
            await contexts.store()
            assert sorted((await log.stored()).contexts) == ["asked", "young"]

    async def test_by_the_tier_that_a_token_named_last(self) -> None:
        now = 1000.0
        tiers = {"free": Tier(context_age=60.0, context_threads=2), "rich": Tier(context_age=900.0)}
        async with local_server(wall_clock=lambda: now, tiers=tiers) as local:
            log = Log(local)
            tell = log.services.quotas.tell_tier
            for thread in ("a", "b", "c"):
                await log.say("hi", thread=thread)
            contexts = log.contexts()
            tell(ADA, "rich")
            assert sorted((await contexts.snapshot()).contexts) == ["a", "b", "c"]
            tell(ADA, "free")
            assert sorted((await contexts.snapshot()).contexts) == ["b", "c"]
            now += 60
            assert sorted((await contexts.snapshot()).contexts) == ["b", "c"]
            now += 1
            assert sorted((await contexts.snapshot()).contexts) == []

    async def test_what_was_used_in_time_stays_though_nobody_looked_meanwhile(self) -> None:
        now = 1000.0
        async with local_server(wall_clock=lambda: now, contexts=Contexts(age=60.0)) as local:
            log = Log(local)
            contexts = log.contexts()
            await log.say("one")
            await contexts.store()
            for text in ("two", "three"):
                now += 50
                await log.say(text)
            assert await said(contexts) == await said(log.contexts()) == ["one", "two", "three"]

    async def test_a_thread_that_was_idle_for_too_long_begins_empty_though_nobody_looked_meanwhile(
        self,
    ) -> None:
        now = 1000.0
        async with local_server(wall_clock=lambda: now, contexts=Contexts(age=60.0)) as local:
            log = Log(local)
            contexts = log.contexts()
            await log.say("one")
            await log.add("input_requested", {"request_id": "q", "prompt": "?"}, "asked")
            await log.say("asked", thread="asked")
            await contexts.keep_up()
            now += 61
            await log.say("two")
            await log.say("after", thread="asked")
            for each in (contexts, log.contexts()):
                assert await said(each) == ["two"]
                assert await said(each, "asked") == ["asked", "after"]

    async def test_what_was_forgotten_is_stored_though_nothing_came_since(self) -> None:
        now = 1000.0
        async with local_server(wall_clock=lambda: now, contexts=Contexts(age=60.0)) as local:
            log = Log(local)
            await log.say("one")
            await log.contexts().store()
            now += 61
            await log.contexts().store()
            stored = await log.stored()
            assert (stored.seq, dict(stored.contexts)) == (1, {})


async def test_what_is_too_large_for_memory_is_read_again() -> None:
    async with log_of(contexts=Contexts(memory_bytes=0)) as log:
        contexts = log.contexts()
        await log.say("one")
        await contexts.store()
        assert contexts._state is None
        await log.say("two")
        assert await said(contexts) == ["one", "two"]
        await contexts.store()
        assert (await log.stored()).seq == 2


async def test_two_who_ask_at_once_and_one_who_gives_up_disturb_nobody() -> None:
    async with log_of() as log:
        contexts = log.contexts()
        await log.say(*map(str, range(10)))
        found: list[list[str]] = []

        async def ask() -> None:
            found.append(await said(contexts))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                scope.cancel()
                await ask()
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert found == [list(map(str, range(10)))] * 2


async def test_a_log_that_is_trimmed_keeps_its_contexts_also_of_users_who_are_away() -> None:
    settings = {"retention": Retention(events=50), "contexts": Contexts(every=20)}
    async with log_of(**settings) as log:
        await log.say(*map(str, range(300)))
        with trio.fail_after(10):
            while (await log.services.store.load(ADA)).oldest < 200:
                await trio.lowlevel.checkpoint()
        assert await said(log.contexts()) == list(map(str, range(300)))
        assert not log.local.server.registry.sessions


async def test_what_cannot_be_stored_is_logged_and_tried_again() -> None:
    async with log_of() as log:
        good, bad = log.contexts(), log.contexts()
        await log.say("one")

        async def fail() -> None:
            raise StoreUnavailable("gone")

        async def break_down() -> None:
            raise RuntimeError("a bug")

        bad._advanced = fail  # type: ignore[method-assign,assignment]
        broken = log.contexts()
        broken._advanced = break_down  # type: ignore[method-assign,assignment]
        with capture_logs() as logs:
            await store([bad, broken, good])
        assert [entry["event"] for entry in logs] == ["snapshot_not_stored", "snapshot_failed"]
        assert (await log.stored()).seq == 1


@pytest.mark.interpreted
async def test_many_that_are_due_share_commits_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with log_of() as log:
        due = []
        for number in range(3 * TOGETHER):
            key = StreamKey("user", "acme", f"user{number}")
            await log.local.server.publish("acme", key.name, "user_message", {"text": "hi"}, thread="t")
            due.append(UserContexts(log.services, key))
        commit, under_way, most = log.services.journal.commit, 0, 0

        async def counted(unit: Unit) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await trio.testing.wait_all_tasks_blocked()
            under_way -= 1
            return await commit(unit)

        monkeypatch.setattr(log.services.journal, "commit", counted)
        await store(due)
        assert most == TOGETHER > 1
        assert [(await log.services.store.snapshot(one._key)).seq for one in due] == [1] * len(due)


async def test_a_log_that_was_cut_without_a_snapshot_is_flagged() -> None:
    async with log_of() as log:
        stream = await log.services.streams.open(ADA)
        await log.say("one")
        contexts = log.contexts()
        await contexts.thread("t")
        await log.say("two", "three")
        stream.trim(3)
        with capture_logs() as logs:
            context = await contexts.thread("t")
        assert context.truncated
        assert [str(message.text) for message in context.conversation] == ["one", "three"]
        assert logs[0]["event"] == "context_incomplete"
        log.services.streams.release(stream)


def test_the_settings_are_part_of_the_config() -> None:
    assert Config(store="memory").contexts.every == 1_000
