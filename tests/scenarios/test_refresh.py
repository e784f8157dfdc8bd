"""C07: a token that expires, while connected or away, costs neither a run nor an event."""

from __future__ import annotations

from typing import Any

import trio
from serving import frames_until_closed
from stage import Stage
from trio.testing import MockClock

from wsrecover import Event, connect
from wsrecover.testing import Peer, local_server


async def stay_awake(peer: Peer, mock_clock: MockClock, seconds: float) -> list[dict[str, Any]]:
    """Let this much time go by while the peer shows that it is alive; the frames that came."""
    frames: list[dict[str, Any]] = []
    while seconds > 0:
        mock_clock.jump(min(seconds, 10))
        seconds -= 10
        await peer.send({"op": "ping"})
        frames += await peer.until("pong")
    return frames


async def test_c07_a_token_that_expires_closes_the_connection_and_the_run_goes_on(
    mock_clock: MockClock, stage: Stage
) -> None:
    async with local_server(stage.app, wall_clock=trio.current_time) as local:
        leeway = local.config.timeouts.token_leeway
        token = local.token(lifetime=100)
        async with local.peer(token=token, client="c1") as peer:
            epoch = (await peer.until("live"))[0]["streams"]["user"]["epoch"]
            run = (await peer.command("start_agent", {"agent": "worker", "input": {}}))["result"]["run"]
            stage.tell("think")
            assert [event["type"] for event in await peer.events(2)] == ["agent_started", "agent_thinking"]
            frames = await stay_awake(peer, mock_clock, 100 + leeway - 2)
            assert [frame["op"] for frame in frames].count("auth_required") == 1
            mock_clock.jump(2.1)
            stage.tell("think", "finish")
            assert (await frames_until_closed(peer))[1] == 4001
        while local.server.statistics().sessions.runs:
            await trio.testing.wait_all_tasks_blocked(0.01)
        async with local.peer(client="c1", resume={"user": [epoch, 2]}) as peer:
            events = await peer.events(2)
            assert [event["type"] for event in events] == ["agent_thinking", "agent_completed"]
            assert {event["run"] for event in events} == {run}


async def test_c07_a_client_gets_a_fresh_token_when_asked_and_its_connection_lives(
    mock_clock: MockClock,
) -> None:
    async with local_server(wall_clock=trio.current_time) as local:
        asked = 0

        def fresh() -> str:
            nonlocal asked
            asked += 1
            return local.token(lifetime=100 if asked == 1 else 10_000)

        async with connect(local.url, token=fresh) as session:
            await local.server.publish("acme", "ada", "noted", {"n": 1})
            assert isinstance(first := await anext(session), Event)
            connections = set(await ids(local))
            for _ in range(14):
                mock_clock.jump(10)
                await trio.testing.wait_all_tasks_blocked(0.01)
            await local.server.publish("acme", "ada", "noted", {"n": 2})
            assert isinstance(second := await anext(session), Event)
            assert (first.seq, second.seq, asked) == (1, 2, 2)
            assert set(await ids(local)) == connections


async def ids(local: Any) -> list[str]:
    """The connections that there are."""
    await trio.lowlevel.checkpoint()
    sessions = local.server.registry.sessions.values()
    return [connection.id for session in sessions for connection in session.connections.values()]


async def test_c07_a_token_that_expired_while_away_is_refreshed_before_the_next_try(
    mock_clock: MockClock,
) -> None:
    """The server answers 401 to the old one, which makes the client ask for another."""
    async with local_server(wall_clock=trio.current_time) as local:
        lifetimes = iter([100.0, 1000.0])

        def fresh() -> str:
            return local.token(lifetime=next(lifetimes))

        async with connect(local.url, token=fresh) as session:
            await local.server.publish("acme", "ada", "noted", {"n": 1})
            await anext(session)
            (session_there,) = local.server.registry.sessions.values()
            for connection in list(session_there.connections.values()):
                connection.kill()
            mock_clock.jump(140)
            await local.server.publish("acme", "ada", "noted", {"n": 2})
            seen = trio.Event()
            got: list[Any] = []

            async def follow() -> None:
                async for item in session:
                    got.append(item)
                    if isinstance(item, Event):
                        break
                seen.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                while not seen.is_set():
                    mock_clock.jump(1)
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert got[-1].data == {"n": 2}
            assert not list(lifetimes)
