"""Who is here, and who waits for somebody to come."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import attrs
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.session.presence import Member, Presence
from wsrecover.streams.stream import Stream
from wsrecover.testing import local_server


@attrs.define(eq=False)
class Connection:
    member: Member
    streams: Mapping[str, Stream]


async def test_of_two_that_come_at_once_with_one_client_id_the_newer_is_here() -> None:
    async with local_server() as local, local.peer(client="other") as other:
        await other.until("live")  # The streams are open: a connection has nothing to wait for.
        host, port = local.server.addresses[0]
        for number in range(10):
            head = (
                f"GET /v1/connect?client=c{number} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: wsrecover.v1\r\n"
                f"Authorization: Bearer {local.token()}\r\n\r\n"
            )
            with (
                socket.create_connection((host, port)) as older,
                socket.create_connection((host, port)) as newer,
            ):
                for one in (older, newer):  # No checkpoint between them: the server accepts both in one step.
                    one.sendall(head.encode())
                await local.server.wait_connected("acme", "ada")
                await wait_all_tasks_blocked(0.01)
                receipt = await local.server.broadcast("all", "notice", {})
                assert receipt.counts.entitled == 2, number
            while local.server.statistics().sessions.connections > 1:
                await wait_all_tasks_blocked(0.01)


async def test_who_waits_again_beside_another_whose_time_is_up_too_is_told(mock_clock: MockClock) -> None:
    presence, met = Presence(), list[int]()

    async def wait_twice(number: int) -> None:
        with trio.move_on_after(1):
            await presence.wait_arrival("acme", "ada")
        await presence.wait_arrival("acme", "ada")
        met.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(wait_twice, number)
        await wait_all_tasks_blocked()
        mock_clock.jump(2)
        await wait_all_tasks_blocked()
        presence.arrive(Connection(Member("acme", "ada", "tab"), {}))
        await wait_all_tasks_blocked()
        assert sorted(met) == [0, 1, 2]
        nursery.cancel_scope.cancel()
