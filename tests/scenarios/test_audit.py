"""A4 and P12: the audit log says who and why, and no token is ever in it, nor anywhere else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import orjson
import pytest
import structlog
from figures import Figure
from serving import frames_until_closed

from wsrecover.access import sign
from wsrecover.config import Origins
from wsrecover.errors import ConnectionClosed, HandshakeRefused
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport import open_socket


class Log:
    """All that the server logs, down to debug, as the JSON of its collector."""

    def __init__(self) -> None:
        self.text = io.StringIO()

    def audit(self) -> list[dict[str, Any]]:
        lines = [orjson.loads(line) for line in self.text.getvalue().splitlines()]
        return [line for line in lines if line.get("log") == "audit"]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(log.text),
        cache_logger_on_first_use=False,
    )
    yield log
    structlog.reset_defaults()
    structlog.configure()


def token(local: LocalServer, jti: str, **more: Any) -> str:
    full = {"tenant": "acme", "user": "ada", "lifetime": 600, **more}
    return sign(local.secret, token_id=jti, clock=local.wall_clock, **full)


@pytest.mark.parametrize(
    ("proxies", "named"), [((), False), (("127.0.0.0/8",), True), (("10.0.0.0/8",), False)]
)
async def test_the_peer_in_the_log_is_the_one_that_a_trusted_proxy_names(
    log: Log, proxies: tuple[str, ...], named: bool
) -> None:
    forwarded = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9"}
    async with local_server(trusted_proxies=proxies) as local:
        headers = {"Authorization": f"Bearer {token(local, 't1')}", **forwarded}
        async with local.stranger(headers=headers) as peer:
            await peer.send({"op": "hello", "client": "c1"})
            await peer.until("live")
            (view,) = local.server.connections()
        for bad in ("nonsense", token(local, "t2", lifetime=-90)):
            with pytest.raises(HandshakeRefused):
                async with local.stranger(headers={"Authorization": f"Bearer {bad}", **forwarded}):
                    pass
    peers = [view.peer, *(line["peer"] for line in log.audit())]
    assert len(peers) == 4
    assert [peer == "203.0.113.9:0" for peer in peers] == [named] * 4
    assert named or all(peer.startswith("127.0.0.1:") for peer in peers)


async def test_a4_each_decision_is_told_with_who_and_why(log: Log) -> None:
    async with local_server(origins=Origins(missing=True)) as local:
        async with local.peer(token=token(local, "t1"), client="c1") as peer:
            first = (await peer.until("live"))[0]["connection"]
            async with local.peer(token=token(local, "t2"), client="c1") as newer:
                second = (await newer.until("live"))[0]["connection"]
                await newer.send({"op": "auth", "id": "a", "token": token(local, "t3")})
                await newer.until("reply")
                await newer.send({"op": "auth", "id": "b", "token": token(local, "t4", user="eve")})
                await frames_until_closed(newer)
        for headers in ({"Authorization": "Bearer nonsense"}, {"Origin": "https://evil.example"}):
            with pytest.raises(HandshakeRefused):
                async with local.stranger(headers=headers):
                    pass
        async with local.stranger() as stranger:
            await stranger.send({"op": "hello", "client": "c2", "token": token(local, "t5", lifetime=-90)})
            await frames_until_closed(stranger)
        await local.server.revoke_token("acme", "t1")
    told = [
        (line["event"], line.get("user"), line.get("token_id"), line.get("code", line.get("closed")))
        for line in log.audit()
    ]
    assert told == [
        ("accepted", "ada", "t1", None),
        ("replaced", "ada", "t1", None),
        ("accepted", "ada", "t2", None),
        ("refreshed", "ada", "t3", None),
        ("rejected", "ada", "t3", 4501),
        ("rejected", None, None, 401),
        ("rejected", None, None, 403),
        ("rejected", None, None, 4001),
        ("revoked", None, "t1", 0),
    ]
    connections = [first, first, second, second, second]
    assert [line.get("connection") for line in log.audit()] == [*connections, None, None, None, None]
    assert all(line["peer"].startswith("127.0.0.1:") for line in log.audit() if "peer" in line)
    reasons = [line["reason"] for line in log.audit() if line["event"] == "rejected"]
    assert reasons[0] == "the token speaks for somebody else"
    assert "expired" in reasons[-1]


async def test_a4_a_close_code_is_told_as_its_number() -> None:
    async with local_server() as local:
        with structlog.testing.capture_logs() as lines:
            async with local.stranger() as stranger:
                await stranger.send({"op": "hello", "client": "c2", "token": "nonsense"})
                await frames_until_closed(stranger)
    assert [repr(line["code"]) for line in lines if line["event"] == "rejected"] == ["4501"]


async def everything_with(local: LocalServer, one: str) -> list[str]:
    """Bring a token to every place in which somebody may put it; what the server answers."""
    said: list[str] = []

    async def listen(peer: Peer) -> None:
        try:
            while True:
                said.append(repr(await peer.frame()))
        except ConnectionClosed as closed:
            said.append(repr(closed))

    async def dial(path: str, headers: dict[str, str], *protocols: str) -> None:
        try:
            async with open_socket(
                local.url + path,
                headers=headers,
                subprotocols=["wsrecover.v1", *protocols],
                timeout=5,
                max_message_bytes=65536,
            ) as socket:
                peer = Peer(socket)
                await peer.send({"op": "bye"})
                await listen(peer)
        except HandshakeRefused as refused:
            said.append(repr(refused) + refused.body)

    bearer = {"Authorization": f"Bearer {one}"}
    await dial("/v1/connect?client=c1", bearer)
    await dial("/v1/connect?client=c1", {}, f"bearer.{one}")
    await dial(f"/v1/connect?token={quote(one)}", {})
    await dial(f"/v1/connect?client={quote(one)}&{quote(one)}=1&{quote(one)}=2", bearer)
    await dial(f"/{quote(one)}", bearer)
    await dial("/v1/connect?client=c1", {"Authorization": one})
    await dial("/v1/connect?client=c1", {"Authorization": f"Basic {one}", "Cookie": one})
    await dial("/v1/connect?client=c1", {"Origin": f"https://{one}"})
    for hello in (
        {"op": "hello", "client": "c1", "token": one},
        {"op": "hello", "client": 7, "token": one},
        {"op": "hello", "client": "c1", "token": [one]},
        {"op": "hello", "client": "c1", "token": one + "x"},
        {"op": "hello", "client": "c1", "resume": {"user": one}, "token": one},
        {"op": "auth", "id": "a1", "token": one},
    ):
        async with local.stranger() as peer:
            await peer.send([hello, {"op": "auth", "id": "a1", "token": one + "y"}, {"op": "bye"}])
            await listen(peer)
    return said


async def test_a4_no_token_is_in_a_log_an_answer_or_a_figure(log: Log, figure: Figure) -> None:
    hits = places = 0
    async with local_server() as local:
        for lifetime in (600, -600):
            one = token(local, "t", lifetime=lifetime)
            said = await everything_with(local, one)
            places += len(said)
            everywhere = "\n".join([*said, log.text.getvalue(), repr(local.server.statistics())])
            header, claims, signature = one.split(".")
            hits += sum(everywhere.count(part) for part in (claims, signature, claims[:24], signature[:24]))
            assert header
    figure("A4", f"pieces of a token in logs, figures and {places} answers", hits)
    assert hits == 0
    assert len(log.audit()) > 20


async def test_p12_what_a_stranger_sends_is_escaped_in_the_log(log: Log, figure: Figure) -> None:
    async with local_server() as local:
        for odd in ("\x1b[31mred", "line\r\nfeed", "\u2028", "\x00"):
            async with local.stranger() as peer:
                await peer.send({"op": "hello", "client": odd, "token": local.token()})
                await frames_until_closed(peer)
            async with local.stranger() as peer:
                await peer.send({"op": odd})
                await frames_until_closed(peer)
            async with local.peer(token=token(local, f"id {odd}", user="\u202eada")) as peer:
                await peer.until("live")
    assert [line["token_id"][-1] for line in log.audit() if line["event"] == "accepted"] == [
        "d",
        "d",
        "\u2028",
        "\x00",
    ]
    raw = sum(char in line for line in log.text.getvalue().split("\n") for char in "\x1b\r\x00\u2028\u202e")
    figure("P12", "raw control characters in the log", raw)
    assert raw == 0
