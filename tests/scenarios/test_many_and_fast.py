"""E04 and E15: many users at once who never see each other's events, and one run that emits very fast."""

from __future__ import annotations

import random

import trio
from serving import PATIENCE
from witness import Witness

from wsrecover.agents import App, Run
from wsrecover.config import Retention
from wsrecover.testing import LocalServer, local_server

USERS = 200
EACH = 10
BURST = 10_000


async def test_e04_two_hundred_users_publish_at_once_and_none_sees_anothers_events(
    local: LocalServer,
) -> None:
    witness = Witness(local)
    # Names that a mistake in a key would confuse: by tenant, by prefix, by case.
    users = [
        (f"tenant{number % 7}", f"{'User' if number % 2 else 'user'}{number % 50}") for number in range(USERS)
    ]
    assert len(set(users)) == USERS
    rng = random.Random(4)

    async def live(tenant: str, user: str) -> None:
        async with witness.client(user, tenant=tenant) as client:
            with trio.fail_after(PATIENCE):
                await client.session.wait_status("live")
                for _ in range(EACH):
                    await witness.publish(1, user, tenant=tenant)
                    if rng.random() < 0.1:
                        client.blink()
                await client.take(EACH - len(client.events))
            client.settled()

    async with trio.open_nursery() as nursery:
        for tenant, user in users:
            nursery.start_soon(live, tenant, user)
    report = await witness.check(
        publishes=USERS * EACH, connects=2 * USERS, deliveries=2 * USERS * EACH, resumes=20, faults=50
    )
    assert not report.of("leak")


async def test_e15_a_run_that_emits_ten_thousand_events_is_followed_in_batches() -> None:
    app = App()

    @app.agent("fast")
    async def fast(run: Run) -> None:
        for number in range(BURST):
            await run.emit("tick", {"n": number})

    # By default the log keeps as many as it emits, and two more come.
    async with local_server(app, retention=Retention(events=2 * BURST)) as local:
        witness = Witness(local)
        async with witness.client() as client:
            await client.session.start_agent("fast")
            events = await client.until("agent_completed")
            client.settled()
            assert [event.seq for event in events] == list(range(1, BURST + 3))
            assert [event.data["n"] for event in events[1:-1]] == list(range(BURST))
            assert len(client.messages) < BURST / 10, "an event each would be a write each"
        await witness.check(deliveries=2 * BURST)
