"""R and C rows that are about the wire itself, so that a raw peer shows them best."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest
import trio
from serving import until_none
from stage import Stage
from structlog.testing import capture_logs

from wsrecover.errors import ConnectionClosed
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport import Dial
from wsrecover.transport.pipe import Pipe, SocketPipe


def position(welcome: dict[str, Any], seq: int) -> dict[str, Any]:
    return {"user": [welcome["streams"]["user"]["epoch"], seq]}


async def test_r01_a_resumed_connection_is_told_the_same_runs_and_statuses(
    local: LocalServer, stage: Stage
) -> None:
    async with local.peer() as peer:
        first = await peer.frame()
        started = await peer.command("start_agent", {"agent": "worker", "input": {}}, thread="t1")
        stage.tell("think")
        events = await peer.events(2)
        peer.socket.kill()
    async with local.peer(resume=position(first, events[-1]["seq"])) as peer:
        welcome = await peer.frame()
        assert welcome["runs"] == [
            {"run": started["result"]["run"], "agent": "worker", "status": "running", "thread": "t1"}
        ]
        assert welcome["streams"]["user"]["resumed"]
        assert welcome["streams"]["user"]["from"] == 3
        assert welcome["principal"] == first["principal"]
        stage.tell("finish")
        (done,) = await peer.events(1)
        assert (done["type"], done["seq"], done["run"]) == ("agent_completed", 3, started["result"]["run"])
    async with local.peer(resume=position(first, 3)) as peer:
        assert (await peer.frame()).get("runs", []) == []


async def test_r04_a_command_cut_in_half_is_not_done_and_done_once_when_repeated(local: LocalServer) -> None:
    rng = random.Random(4)
    command = b'{"op":"send","id":"say-1","type":"chat","data":{"text":"hello"}}'
    for _ in range(20):
        async with local.peer() as peer:
            await peer.until("live")
            head = b"\x81" + bytes([0x80 | len(command)]) + bytes(4)
            frame = head + command
            peer.socket.outbox.put(frame[: rng.randrange(1, len(frame))])
            await peer.socket.outbox.drain()
            peer.socket.kill()
    async with local.peer() as peer:
        await peer.until("live")
        reply = await peer.command("chat", {"text": "hello"}, id="say-1")
        assert (reply["status"], reply["result"]) == ("ok", {"seq": 1})
        again = await peer.command("chat", {"text": "hello"}, id="say-1")
        assert (again["status"], again["result"]) == ("duplicate", {"seq": 1})


async def test_r09_a_hundred_resumes_with_one_client_id_leave_the_newest_and_a_clean_stream(
    local: LocalServer, nursery: trio.Nursery
) -> None:
    for n in range(20):
        epoch = (await local.server.publish("acme", "ada", "noted", {"n": n})).epoch
    rng = random.Random(9)
    report, reports = trio.open_memory_channel[int](100)

    async def resume(held: int) -> None:
        async with local.peer(client="one-tab", resume={"user": [epoch, held]}) as peer:
            try:
                welcome, *frames = await peer.until("live")
                assert welcome["streams"]["user"]["resumed"]
                assert [frame["seq"] for frame in frames if frame["op"] == "event"] == [*range(held + 1, 21)]
                report.send_nowait((await peer.frame())["seq"])
            except ConnectionClosed as closed:
                report.send_nowait(closed.code)

    with capture_logs() as logs:
        for _ in range(100):
            nursery.start_soon(resume, rng.randrange(21))
        assert {await reports.receive() for _ in range(99)} == {4500}
    accepted = [line["peer"] for line in logs if line["event"] == "accepted"]
    assert len(accepted) == 100
    assert [one.peer for one in local.server.connections()] == accepted[-1:], "the newest wins"
    await local.server.publish("acme", "ada", "noted", {"n": 20})
    assert await reports.receive() == 21
    assert local.server.statistics().sessions.counts["closed.4500"] == 99


async def test_a_newer_connection_of_a_client_takes_over_in_mid_replay(local: LocalServer) -> None:
    async with local.peer(client="one-tab") as older:
        await older.until("live")
        async with local.peer(client="one-tab") as newer:
            await newer.until("live")
            with pytest.raises(ConnectionClosed) as ended:
                await older.frame()
            assert ended.value.code == 4500
            await local.server.publish("acme", "ada", "noted", {})
            assert (await newer.frame())["seq"] == 1


async def test_e07_connections_of_one_user_are_independent(stage: Stage) -> None:
    async with (
        local_server(stage.app) as local,
        local.peer() as stalled,
        local.peer() as closing,
        local.peer() as well,
    ):
        for peer in (stalled, closing, well):
            await peer.until("live")
        await closing.send({"op": "bye"})
        with pytest.raises(ConnectionClosed) as ended:
            await closing.frame()
        assert ended.value.code == 1000
        # `stalled` is not read while far more than its socket's buffers hold goes by.
        total = 150
        for n in range(total):
            await local.server.publish("acme", "ada", "noted", {"n": n, "pad": "x" * 60_000})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_whole_event, well)
        (session,) = (each for each in local.server.registry.sessions.values())
        lagging = [connection for connection in session.connections.values() if connection.state == "lagging"]
        assert len(lagging) == 1


async def _read_whole_event(peer: Peer) -> None:
    while True:
        frame = await peer.frame()
        if frame["op"] == "event" or frame["offset"] + 32768 >= frame["total"]:
            return


def from_address(address: str) -> Dial:
    """Dials from another address of this machine."""

    async def dial(host: str, port: int) -> Pipe:
        stream = await trio.open_tcp_stream(host, port, local_address=address)
        sock = socket.socket(fileno=stream.socket.detach())
        sock.setblocking(False)
        return SocketPipe(sock)

    return dial


@pytest.mark.parametrize("token", ["same", "fresh"])
@pytest.mark.parametrize("client", ["same", "another device"])
async def test_c03_another_address_device_and_user_agent_resume_with_the_token(
    local: LocalServer, stage: Stage, token: str, client: str
) -> None:
    first_token = local.token()
    headers = {"Authorization": f"Bearer {first_token}", "User-Agent": "Firefox on a laptop"}
    async with local.stranger(headers=headers) as peer:
        await peer.send({"op": "hello", "client": "a-random-id-of-a-tab"})
        (welcome,) = await peer.until("welcome")
        started = await peer.command("start_agent", {"agent": "worker", "input": {}}, thread="t1")
        stage.tell("think")
        events = await peer.events(2)
        peer.socket.kill()
    stage.tell("think", "finish")
    await until_none(local, "runs")
    elsewhere = {
        "Authorization": f"Bearer {first_token if token == 'same' else local.token()}",
        "User-Agent": "Safari on a phone",
        "X-Forwarded-For": "203.0.113.9",
        "Accept-Language": "de",
    }
    async with local.stranger(headers=elsewhere, dial=from_address("127.0.0.2")) as peer:
        name = "a-random-id-of-a-tab" if client == "same" else "a-random-id-of-a-phone"
        await peer.send({"op": "hello", "client": name, "resume": position(welcome, events[-1]["seq"])})
        (again,) = await peer.until("welcome")
        assert again["streams"]["user"]["resumed"]
        assert again["principal"] == welcome["principal"]
        rest = await peer.events(2)
    assert [(event["seq"], event["type"], event["run"]) for event in rest] == [
        (3, "agent_thinking", started["result"]["run"]),
        (4, "agent_completed", started["result"]["run"]),
    ]
