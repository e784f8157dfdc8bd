"""A tenant is one and the same for all its users, for as long as anything is noted for it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from wsrecover.access.limits import Rate, moment
from wsrecover.config import Config, Limits, Tier
from wsrecover.errors import CommandError
from wsrecover.session.quota import Quota, Quotas
from wsrecover.session.tenants import Tenants
from wsrecover.streams.store import StreamKey


def crowd(tenants: Tenants, count: int = 100) -> None:
    for number in range(count):
        tenants.of(f"t{number}")


async def test_one_that_is_as_new_is_forgotten_when_there_are_many() -> None:
    tenants = Tenants(Rate(1, 2), few=4)
    crowd(tenants)
    assert len(tenants) <= 4


@pytest.mark.parametrize("what", ["connections", "runs"])
async def test_one_that_has_anything_stays_the_same(what: str) -> None:
    tenants = Tenants(Rate(1, 2), few=4)
    acme = tenants.of("acme")
    setattr(acme, what, 1)
    crowd(tenants)
    assert tenants.of("acme") is acme


async def test_one_that_sent_commands_is_remembered_until_it_may_send_all_of_them_again(
    mock_clock: MockClock,
) -> None:
    tenants = Tenants(Rate(1, 2), few=4)
    acme = tenants.of("acme")
    assert acme.commands.take(moment(trio.current_time()), 2) == 0.0
    mock_clock.jump(1.999)
    crowd(tenants)
    assert tenants.of("acme") is acme
    mock_clock.jump(0.001)
    crowd(tenants)
    assert tenants.of("acme") is not acme


async def test_where_none_can_be_forgotten_they_are_looked_through_the_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = 0
    forget = Tenants._forget

    def count(tenants: Tenants) -> None:
        nonlocal looks
        looks += 1
        forget(tenants)

    monkeypatch.setattr(Tenants, "_forget", count)
    tenants = Tenants(Rate(1, 2), few=4)
    for number in range(1000):
        tenants.of(f"t{number}").connections = 1
    assert len(tenants) == 1000
    assert looks == 8


async def test_a_quota_that_was_idle_goes_by_the_tenant_that_the_others_go_by(mock_clock: MockClock) -> None:
    quotas = Quotas(
        Config(
            store="memory",
            limits=Limits(tenant_commands_per_second=1, tenant_connections=2, tenant_runs=1),
            tier=Tier(runs=9),
        )
    )
    quotas.tenants = Tenants(Rate(1, 2), few=1)
    ada = Quota(quotas, StreamKey("user", "acme", "ada"))
    Quota(quotas, StreamKey("user", "other", "eve"))  # And acme, as new, is forgotten.
    bob = Quota(quotas, StreamKey("user", "acme", "bob"))
    bob.add_connection(0, replaces=False)
    ada.add_connection(0, replaces=False)
    at = moment(trio.current_time())
    for quota in (ada, bob):
        quota.take_command(at, 0.0, repeat=False)
    with pytest.raises(CommandError, match="the tenant sends"):
        ada.take_command(at, 0.0, repeat=False)
    with pytest.raises(CommandError, match="as many connections"):
        bob.add_connection(1, replaces=False)
    ada.add_run(0)
    with pytest.raises(CommandError, match="as many runs"):
        bob.add_run(0)
