"""M08, A7 and A8: what was revoked is cut at once, refused from then on, and stays so over a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from operator import ne
from pathlib import Path
from typing import Any

import orjson
import pytest
from figures import Figure
from serving import START, Clock, frames_until_closed, log_of

from wsrecover.access import sign
from wsrecover.access.keys import sealed, secret_key
from wsrecover.config import Tokens
from wsrecover.errors import ConnectionClosed, HandshakeRefused, InvalidArgument
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport import open_socket

LATER = 30.5
"""Seconds after which a fresh token is sure to be from after a revocation: the leeway, and a bit."""


@pytest.fixture
async def local(clock: Clock) -> AsyncIterator[LocalServer]:
    async with local_server(wall_clock=clock) as server:
        yield server


def token_of(local: LocalServer, user: str = "ada", *, jti: str | None = None, tenant: str = "acme") -> str:
    return sign(local.secret, tenant=tenant, user=user, token_id=jti, lifetime=3600, clock=local.wall_clock)


async def status(local: LocalServer, token: str, **hello: object) -> int:
    try:
        async with local.peer(token=token, **hello) as peer:
            await peer.until("live")
            return 101
    except HandshakeRefused as refused:
        return refused.status


async def test_m08_all_connections_of_a_revoked_user_end_with_4503_and_nobody_elses(
    local: LocalServer, clock: Clock, figure: Figure
) -> None:
    token, namesake = token_of(local), token_of(local, tenant="other")
    async with AsyncExitStack() as stack:
        theirs = [await stack.enter_async_context(local.peer(token=token, client=f"c{n}")) for n in range(3)]
        others = [
            await stack.enter_async_context(local.peer("grace")),
            await stack.enter_async_context(local.peer(token=namesake)),
        ]
        for peer in (*theirs, *others):
            await peer.until("live")
        assert await local.server.revoke("acme", "ada") == 3
        await local.server.publish("acme", "ada", "noted", {"secret": "canary"})
        after = 0
        for peer in theirs:
            frames, code = await frames_until_closed(peer)
            after += len(frames)
            assert code == 4503
        figure("M08 A7", "frames to a revoked user afterwards", after)
        assert after == 0
        for peer in others:
            await peer.send({"op": "ping"})
            await peer.until("pong")


async def test_m08_a_revoked_user_resumes_nothing_until_it_has_a_token_of_later(
    local: LocalServer, clock: Clock
) -> None:
    token = token_of(local)
    async with local.peer(token=token) as peer:
        epoch = (await peer.until("welcome"))[0]["streams"]["user"]["epoch"]
    await local.server.publish("acme", "ada", "noted", {})
    await local.server.revoke("acme", "ada")
    assert await status(local, token, resume={"user": [epoch, 0]}) == 401
    async with local.stranger() as peer:
        await peer.send({"op": "hello", "client": "c1", "token": token})
        assert (await frames_until_closed(peer))[1] == 4503
    clock.now += LATER
    async with local.peer(token=token_of(local), resume={"user": [epoch, 0]}) as peer:
        assert len(await peer.events(1)) == 1


@pytest.mark.parametrize("ahead", [0.0, 0.5, 29.9, 30.0])
async def test_m08_an_issuer_whose_clock_is_ahead_gives_nothing_that_outlives_a_revocation(
    local: LocalServer, clock: Clock, ahead: float
) -> None:
    """A token of before is refused for good; who asks for another soon is told to refresh, not to stop."""
    before = sign(local.secret, tenant="acme", user="ada", lifetime=3600, clock=lambda: clock.now + ahead)
    async with local.peer(token=before) as peer:
        await peer.until("live")
        assert await local.server.revoke("acme", "ada") == 1
        assert (await frames_until_closed(peer))[1] == 4503
    for passed in (0.0, ahead, LATER, 600.0):
        clock.now += passed
        assert await status(local, before) == 401
    assert await status(local, token_of(local)) == 101


async def test_m08_the_edges_of_what_a_revocation_is_about(local: LocalServer, clock: Clock) -> None:
    await local.server.revoke("acme", "ada")
    clock.now += LATER
    codes = {}
    for iat in (-1.0, 0.0, 0.001, 29.999, 30.0, 30.001):
        then = 1_800_000_000.0 + iat
        token = sign(local.secret, tenant="acme", user="ada", lifetime=3600, clock=lambda then=then: then)
        async with local.stranger() as peer:
            await peer.send({"op": "hello", "client": "c1", "token": token})
            try:
                await peer.until("live")
                codes[iat] = 0
            except ConnectionClosed as closed:
                codes[iat] = closed.code
    assert codes == {-1.0: 4503, 0.0: 4503, 0.001: 4001, 29.999: 4001, 30.0: 4001, 30.001: 0}


async def test_m08_a_token_from_too_far_ahead_counts_for_nothing(local: LocalServer, clock: Clock) -> None:
    found = []
    for ahead in (30.0, 30.001):
        token = sign(local.secret, tenant="acme", user="ada", lifetime=3600, clock=lambda: clock.now + ahead)  # noqa: B023  # Called at once.
        found.append(await status(local, token))
    assert found == [101, 401]


async def test_m08_a_revocation_is_forgotten_once_no_token_is_left_that_it_is_about(
    tmp_path: Path, clock: Clock
) -> None:
    settings = {"store": f"sqlite:{tmp_path / 'log.db'}", "tokens": Tokens(max_lifetime=3600.0)}
    async with local_server(wall_clock=clock, **settings) as local:
        # The last that can be about: issued by a clock that is ahead by the leeway, for as long as may be.
        last = sign(
            local.secret,
            tenant="acme",
            user="ada",
            token_id="t1",
            lifetime=3600,
            clock=lambda: clock.now + 30,
        )
        await local.server.revoke_token("acme", "t1")
        clock.now += 3600 + 59.5
        await local.server.revoke("acme", "somebody")
        assert await status(local, last) == 401
        known, store = local.server._services.revocations, local.server._services.store
        for number in range(50):
            await local.server.revoke("acme", f"user {number}")
            clock.now += 1000
            assert len(known) <= 6
            assert len(await store.revocations()) <= 6
        clock.now += 1e6
    async with local_server(wall_clock=clock, **settings) as local:
        assert len(local.server._services.revocations) == 0
        assert await local.server._services.store.revocations() == []


async def test_m08_with_a_longest_lifetime_no_token_counts_that_lasts_longer(clock: Clock) -> None:
    async with local_server(wall_clock=clock, tokens=Tokens(max_lifetime=3600.0)) as local:
        found = []
        for lifetime in (3600.0, 3600.5):
            token = sign(local.secret, tenant="acme", user="ada", lifetime=lifetime, clock=clock)
            found.append(await status(local, token))
        claims = {"sub": "ada", "tenant": "acme", "exp": clock.now + 60}
        found.append(await status(local, sealed(secret_key(local.secret), orjson.dumps(claims))))
        assert found == [101, 401, 401]


async def test_m08_one_token_is_revoked_by_its_id_and_the_users_others_stay(local: LocalServer) -> None:
    lost, kept = token_of(local, jti="lost"), token_of(local, jti="kept")
    async with local.peer(token=lost) as stolen, local.peer(token=kept) as own:
        for peer in (stolen, own):
            await peer.until("live")
        assert await local.server.revoke_token("acme", "lost") == 1
        assert (await frames_until_closed(stolen))[1] == 4503
        await own.send({"op": "auth", "id": "a1", "token": kept})
        await own.until("reply", status="ok")
        await own.send({"op": "auth", "id": "a2", "token": lost})
        assert (await frames_until_closed(own))[1] == 4503
    assert [await status(local, token) for token in (lost, kept)] == [401, 101]
    assert await status(local, token_of(local, jti="lost", tenant="other")) == 101


async def test_m08_a_revocation_that_comes_between_the_token_and_hello_counts(local: LocalServer) -> None:
    async with local.stranger(headers={"Authorization": f"Bearer {token_of(local)}"}) as peer:
        await local.server.revoke("acme", "ada")
        await peer.send({"op": "hello", "client": "c1"})
        frames, code = await frames_until_closed(peer)
        assert ([frame["op"] for frame in frames], code) == ([], 4503)


async def test_m08_a_refreshed_token_of_before_is_revoked_too(local: LocalServer, clock: Clock) -> None:
    spare = token_of(local)
    clock.now += 10
    await local.server.revoke("acme", "ada")
    clock.now += LATER
    async with local.peer(token=token_of(local)) as peer:
        await peer.until("live")
        await peer.send({"op": "auth", "id": "a1", "token": spare})
        frames, code = await frames_until_closed(peer)
        assert (frames[-1]["error"]["code"], code) == ("forbidden", 4503)


async def test_m08_it_survives_a_restart_and_so_does_the_log(tmp_path: Path, clock: Clock) -> None:
    store = f"sqlite:{tmp_path / 'log.db'}"
    async with local_server(store=store, wall_clock=clock) as local:
        token, by_id = token_of(local), token_of(local, "grace", jti="t1")
        await local.server.publish("acme", "ada", "noted", {"n": 1})
        await local.server.revoke("acme", "ada")
        await local.server.revoke_token("acme", "t1")
    async with local_server(store=store, wall_clock=clock) as local:
        assert [await status(local, one) for one in (token, by_id)] == [401, 401]
        clock.now += LATER
        _, events = await log_of(local)
        assert [event["data"] for event in events] == [{"n": 1}]


async def test_a7_events_that_are_on_their_way_stop_at_the_revocation(local: LocalServer) -> None:
    """A reader that lags far behind is cut as well: nothing more is read from the log for it."""
    for n in range(300):
        await local.server.publish("acme", "ada", "noted", {"n": n, "pad": "x" * 30_000})
    async with local.peer(token=token_of(local), **START) as peer:
        await peer.events(1)
        await local.server.revoke("acme", "ada")
        frames, code = await frames_until_closed(peer)
    assert code == 4503
    assert len(frames) < 299


@pytest.mark.parametrize(
    ("field", "tenant", "user"), [("user", "acme", ""), ("user", "acme", None), ("tenant", "", "ada")]
)
async def test_m08_a_user_that_could_be_nobody_is_refused(
    local: LocalServer, field: str, tenant: str, user: Any
) -> None:
    for end in (local.server.revoke, local.server.erase):
        with pytest.raises(InvalidArgument, match=f"^{field}: must ") as raised:
            await end(tenant, user)
        assert raised.value.field == field


@pytest.mark.parametrize(
    ("field", "tenant", "jti"),
    [
        ("token_id", "acme", ""),
        ("token_id", "acme", "x" * 257),
        ("token_id", "acme", 5),
        ("tenant", "a\ncme", "t1"),
    ],
)
async def test_m08_a_token_that_could_be_nobodys_is_refused(
    local: LocalServer, field: str, tenant: str, jti: Any
) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: must ") as raised:
        await local.server.revoke_token(tenant, jti)
    assert raised.value.field == field


async def test_a7_a_role_that_is_lost_in_a_refresh_is_lost_for_the_next_command(local: LocalServer) -> None:
    publish = {"user": "grace", "events": [{"type": "noted", "data": {}}]}
    service = local.token(roles=["service"])
    async with local.peer(token=service) as peer:
        await peer.until("live")
        assert (await peer.command("publish", publish))["status"] == "ok"
        await peer.send(
            [
                {"op": "auth", "id": "a1", "token": local.token()},
                {"op": "send", "id": "s1", "type": "publish", "data": publish},
            ]
        )
        assert (await peer.until("reply", id="s1"))[-1]["error"]["code"] == "forbidden"


async def test_a7_what_is_said_to_a_role_ends_with_it_also_where_it_is_on_its_way(
    local: LocalServer, figure: Figure
) -> None:
    """A reader that lags far behind in the stream of its role is sent nothing more of it."""
    for n in range(300):
        await local.server.broadcast("role:ops", "notice", {"n": n, "pad": "x" * 30_000}, tenant="acme")
    async with local.peer(roles=["ops"], **START) as peer:
        before = await peer.events(1)
        await peer.send({"op": "auth", "id": "a1", "token": local.token()})
        before += await peer.until("streams")
        await local.server.broadcast("role:ops", "notice", {"n": 300}, tenant="acme")
        await local.server.publish("acme", "ada", "noted", {})
        after = await peer.until("event", stream="user")
        await stay_awake(peer)
    assert before[-1]["removed"] == ["role:ops"]
    assert sum(frame["op"] == "event" for frame in before) < 300
    late = [frame for frame in after if frame.get("stream") == "role:ops"]
    figure("A7", "frames of its stream to one that has lost the role", len(late))
    assert late == []


async def stay_awake(peer: Peer) -> None:
    await peer.send({"op": "ping"})
    await peer.until("pong")


async def test_a8_a_stored_token_of_a_session_that_ended_is_refused_and_its_log_kept(
    local: LocalServer, figure: Figure
) -> None:
    stored, count = token_of(local), 20
    async with local.peer(token=stored) as peer:
        await peer.until("live")
        await stay_awake(peer)
        positions = [await local.server.publish("acme", "ada", "noted", {"n": n}) for n in range(count)]
        await local.server.revoke("acme", "ada")
        await frames_until_closed(peer)
    local.wall_clock.now += LATER  # type: ignore[attr-defined]  # it is the Clock of the fixture
    assert await status(local, stored) == 401
    epoch, events = await log_of(local)
    kept = [(epoch, event["seq"], event["data"]) for event in events]
    said = [(position.epoch, position.seq, {"n": n}) for n, position in enumerate(positions)]
    figure("A8", f"anomalies of {count} events of a session that ended", sum(map(ne, kept, said)))
    assert kept == said
    assert await status(local, stored) == 401


async def test_m08_in_the_plain_mode_too(local: LocalServer) -> None:
    headers = {"Authorization": f"Bearer {token_of(local)}"}
    mode = ["wsrecover.plain.v1"]
    async with open_socket(
        f"{local.url}/v1/connect", headers=headers, subprotocols=mode, timeout=5, max_message_bytes=65536
    ) as socket:
        assert orjson.loads(await socket.receive())["type"] == "welcome"
        await local.server.publish("acme", "ada", "noted", {"n": 1})
        assert orjson.loads(await socket.receive())["data"] == {"n": 1}
        await local.server.revoke("acme", "ada")
        await local.server.publish("acme", "ada", "noted", {"n": 2})
        with pytest.raises(ConnectionClosed) as closed:
            await socket.receive()
        assert closed.value.code == 4503
    with pytest.raises(HandshakeRefused) as refused:
        async with open_socket(
            f"{local.url}/v1/connect", headers=headers, subprotocols=mode, timeout=5, max_message_bytes=65536
        ):
            pass
    assert refused.value.status == 401
