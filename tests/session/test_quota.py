"""What of a user's log is kept follows its tier, and never less before that is known."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from wsrecover.access import Principal
from wsrecover.agents import App, Run
from wsrecover.config import Config, Contexts, Limits, Retention, Tier
from wsrecover.errors import StoreFailed
from wsrecover.protocol.frames import Hello
from wsrecover.session.introduction import Introduction
from wsrecover.session.quota import CHANGE, Quota, Quotas
from wsrecover.streams.store import StreamKey
from wsrecover.testing import local_server

ADA = StreamKey("user", "acme", "ada")


def taken(quotas: Quotas) -> tuple[int, int]:
    """The connections and runs of the tenant."""
    tenant = quotas.tenants.of("acme")
    return tenant.connections, tenant.runs


@pytest.fixture
def quotas() -> Quotas:
    tiers = {"free": Tier(log_events=10, log_bytes=2000, log_age=60.0), "rich": Tier(log_events=10**9)}
    kept = Retention(events=100, bytes=100_000, age=3600.0)
    return Quotas(
        Config(
            store="memory",
            tiers=tiers,
            tier=Tier(log_events=50),
            retention=kept,
            limits=Limits(event_bytes=5000),
        )
    )


async def test_a_tier_keeps_less_and_none_keeps_more(quotas: Quotas) -> None:
    quota = Quota(quotas, ADA)
    for name, kept in [
        ("free", Retention(10, 5000, 60.0)),
        ("rich", Retention(100, 100_000, 3600.0)),
        (None, Retention(50, 100_000, 3600.0)),
        ("unheard-of", Retention(50, 100_000, 3600.0)),
    ]:
        quota.adopt(Principal("acme", "ada", (), name))
        assert quotas.retention(ADA) == kept


async def test_before_a_token_told_the_tier_all_is_kept_that_any_may_keep(quotas: Quotas) -> None:
    assert quotas.retention(ADA) == quotas.config.retention
    assert quotas.retention(StreamKey("tenant", "acme")) == quotas.config.retention_broadcast


async def test_contexts_are_kept_for_as_long_and_as_many_as_the_tier_says_and_else_the_settings() -> None:
    tiers = {
        "free": Tier(context_age=60.0, context_threads=5),
        "rich": Tier(context_age=9000.0),
        "wide": Tier(context_threads=500),
    }
    contexts = Contexts(age=600.0, threads=50)
    quotas = Quotas(Config(store="memory", tiers=tiers, tier=Tier(context_threads=7), contexts=contexts))
    assert quotas.contexts(ADA) == (9000.0, 500), "the most of any, until a token told"
    for name, kept in [
        ("free", (60.0, 5)),
        ("rich", (9000.0, 50)),
        ("wide", (600.0, 500)),
        (None, (600.0, 7)),
        ("unheard-of", (600.0, 7)),
    ]:
        Quota(quotas, ADA).adopt(Principal("acme", "ada", (), name))
        assert quotas.contexts(ADA) == kept
        assert quotas.context_age(ADA) == kept[0]


async def test_a_tier_is_remembered_when_its_user_has_left(quotas: Quotas) -> None:
    Quota(quotas, ADA).adopt(Principal("acme", "ada", (), "free"))
    assert Quota(quotas, ADA).tier is quotas.config.tiers["free"]


async def test_what_is_dropped_leaves_nothing_behind(quotas: Quotas) -> None:
    quota = Quota(quotas, ADA)
    quota.add_connection(0, replaces=False)
    quota.add_run(0)
    assert taken(quotas) == (1, 1)
    quota.drop_connection()
    quota.drop_run()
    assert taken(quotas) == (0, 0)


async def test_what_is_put_back_late_makes_no_more_than_may_be_replayed_at_once(
    mock_clock: MockClock,
) -> None:
    most = 60 * 1024
    config = Config(
        store="memory",
        tier=Tier(replay_bytes_per_minute=most),
        limits=Limits(page_bytes=8192, event_bytes=8192),
    )
    quota = Quota(Quotas(config), ADA)
    assert quota.take_replay(8192) == 0.0
    mock_clock.jump(1000)
    quota.settle_replay(-8192)
    change = most // CHANGE
    assert quota.take_replay(most - change + 1) > 0
    assert quota.take_replay(most - change) == 0.0
    assert quota.take_replay(change) == 0.0
    assert quota.take_replay(1) > 0


@pytest.mark.parametrize("per_minute", [1024, 8192, 8193])
@pytest.mark.parametrize("before", [0, 100, 128])
async def test_the_largest_page_and_event_may_be_replayed_however_small_the_quota_is(
    mock_clock: MockClock, per_minute: int, before: int
) -> None:
    limits = Limits(page_bytes=4096, event_bytes=8192)
    tier = Tier(replay_bytes_per_minute=per_minute)
    quota = Quota(Quotas(Config(store="memory", tier=tier, limits=limits)), ADA)
    taken = rounds = 0
    assert quota.take_replay(before) == 0.0
    for size in (8192, 4096, 8192, 8192):
        while wait := quota.take_replay(size):
            mock_clock.jump(wait)
            rounds += 1
            assert rounds < 10, "it waits for ever"
        taken += size
    assert taken <= 2 * 8192 + trio.current_time() * (per_minute // 60)


async def test_what_comes_when_the_server_has_stopped_takes_nothing_of_the_tenants() -> None:
    app = App()

    @app.agent("worker")
    async def worker(run: Run) -> None:
        await run.flush()

    async with local_server(app) as local, local.peer() as peer:
        await peer.until("live")
        quotas = local.server._services.quotas
        session = local.server.registry.sessions["acme", "ada"]
        (connection,) = session.connections.values()
        assert taken(quotas) == (1, 0)
    assert taken(quotas) == (0, 0)
    with pytest.raises(StoreFailed):
        await session.runs.start(session.runs.prepare("worker", {}, thread=None))
    assert taken(quotas) == (0, 0)
    with pytest.raises(StoreFailed):
        session.attach(connection.socket, connection.grant, Introduction(Hello("another")))
    assert taken(quotas) == (0, 0)
    assert session.connections == {}


def test_a_tier_that_nobody_configured_is_logged_once(quotas: Quotas) -> None:
    with capture_logs() as logs:
        for name in ("fre", None, "free", "fre"):
            quotas.tell_tier(ADA, name)
        assert len(logs) == 1
        for number in range(200):
            quotas.tell_tier(ADA, f"tier{number}")
    first, *others = logs
    assert first == {
        "event": "unknown_tier",
        "log_level": "warning",
        "tier": "fre",
        "tenant": "acme",
        "user": "ada",
        "held_to": "[tier]",
    }
    assert len(others) == 99
