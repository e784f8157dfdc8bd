"""Who is let in, and what everybody else is told."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
import trio.testing
import trustme

from wsrecover.access.tokens import sign
from wsrecover.agents import App, Run
from wsrecover.config import Config, Tier
from wsrecover.errors import ConnectionClosed, HandshakeRefused, StoreFailed, TransportError
from wsrecover.server import serve
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport import open_socket


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server


async def refusal(
    local: LocalServer, path: str, *, subprotocols: list[str] | None = None, **headers: str
) -> HandshakeRefused:
    """How the server refuses this upgrade."""
    offered = ["wsrecover.v1"] if subprotocols is None else subprotocols
    with pytest.raises(HandshakeRefused) as refused:
        async with open_socket(
            local.url + path, headers=headers, subprotocols=offered, timeout=5, max_message_bytes=65536
        ):
            pass
    return refused.value


async def close_code(peer: Peer) -> int:
    try:
        while True:
            await peer.frame()
    except ConnectionClosed as closed:
        return closed.code


class TestBeforeTheUpgrade:
    async def test_another_path_is_not_found(self, local: LocalServer) -> None:
        assert (await refusal(local, "/v2/connect")).status == 404

    async def test_the_subprotocol_must_be_offered(self, local: LocalServer) -> None:
        refused = await refusal(local, "/v1/connect", subprotocols=["chat"])
        assert refused.status == 400
        assert "wsrecover.v1" in refused.body

    @pytest.mark.parametrize("header", ["Bearer nonsense", "Bearer", "Bearer  "])
    async def test_a_bad_token_in_the_header_is_unauthorized(self, local: LocalServer, header: str) -> None:
        refused = await refusal(local, "/v1/connect?client=c1", Authorization=header)
        assert refused.status == 401
        assert "nonsense" not in refused.body

    async def test_a_bad_token_in_a_subprotocol_is_unauthorized(self, local: LocalServer) -> None:
        offered = ["wsrecover.v1", "bearer." + local.token()[:-2]]
        assert (await refusal(local, "/v1/connect?client=c1", subprotocols=offered)).status == 401

    async def test_a_token_of_another_secret_or_time_is_unauthorized(self, local: LocalServer) -> None:
        foreign = sign(b"y" * 32, tenant="acme", user="ada", lifetime=60, clock=local.wall_clock)
        for token in (foreign, local.token(lifetime=-60)):
            refused = await refusal(local, "/v1/connect?client=c1", Authorization=f"Bearer {token}")
            assert refused.status == 401

    @pytest.mark.parametrize(
        ("query", "field"),
        [
            ("client=", "client"),
            ("client=" + "x" * 129, "client"),
            ("client=c1&resume=nonsense", "resume"),
            ("client=c1&resume=" + quote('{"user":["e","3"]}'), "resume"),
            ("client=c1&resume=" + quote('{"user":["e",1],"user":["e",2]}'), "resume"),
            ("client=c1&resume=" + quote("[" * 300 + "]" * 300), "resume"),
            ("client=c1&threads=" + quote('["a",1]'), "threads"),
            ("client=c1&from=here", "from"),
        ],
    )
    async def test_a_bad_parameter_is_named(self, local: LocalServer, query: str, field: str) -> None:
        refused = await refusal(local, f"/v1/connect?{query}", Authorization=f"Bearer {local.token()}")
        assert refused.status == 400
        assert refused.body.count(field) == 1

    async def test_parameters_of_other_names_are_ignored(self, local: LocalServer) -> None:
        async with open_socket(
            local.url + "/v1/connect?client=c1&theme=dark",
            headers={"Authorization": f"Bearer {local.token()}"},
            subprotocols=["wsrecover.v1"],
            timeout=5,
            max_message_bytes=65536,
        ) as socket:
            assert (await Peer(socket).frame())["op"] == "welcome"

    async def test_plain_http_is_told_how_to_connect(self, local: LocalServer) -> None:
        stream = await trio.open_tcp_stream(*local.server.addresses[0])
        async with stream:
            await stream.send_all(b"GET /v1/connect HTTP/1.1\r\nHost: here\r\n\r\n")
            answer = b"".join([chunk async for chunk in stream])
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert b"WebSocket" in answer


class TestHello:
    async def test_a_token_may_come_with_the_first_frame(self, local: LocalServer) -> None:
        async with local.stranger() as peer:
            await peer.send([{"op": "hello", "client": "c1", "token": local.token()}, {"op": "ping"}])
            frames = await peer.until("pong")
        assert frames[0]["op"] == "welcome"
        assert frames[0]["principal"] == {"tenant": "acme", "user": "ada", "roles": []}

    async def test_a_browser_brings_it_as_a_subprotocol_and_is_answered_with_ours_alone(
        self, local: LocalServer
    ) -> None:
        async with open_socket(
            local.url + "/v1/connect",
            headers={},
            subprotocols=["wsrecover.v1", "bearer." + local.token()],
            timeout=5,
            max_message_bytes=65536,
        ) as socket:
            assert socket.subprotocol == "wsrecover.v1"
            peer = Peer(socket)
            await peer.send({"op": "hello", "client": "c1"})
            assert (await peer.frame())["op"] == "welcome"

    @pytest.mark.parametrize("way", ["subprotocol", "hello"])
    async def test_a_header_of_another_scheme_hides_no_token(self, local: LocalServer, way: str) -> None:
        """As a browser sends it whose user typed a password for the proxy in front of a staging server."""
        token = local.token()
        async with open_socket(
            local.url + "/v1/connect",
            headers={"Authorization": "Basic dXNlcjpwYXNzd29yZA=="},
            subprotocols=["wsrecover.v1", f"bearer.{token}"] if way == "subprotocol" else ["wsrecover.v1"],
            timeout=5,
            max_message_bytes=65536,
        ) as socket:
            peer = Peer(socket)
            await peer.send({"op": "hello", "client": "c1", **({"token": token} if way == "hello" else {})})
            assert (await peer.frame())["op"] == "welcome"

    @pytest.mark.parametrize("token", [None, "nonsense"])
    async def test_without_a_good_token_it_ends_with_4501(
        self, local: LocalServer, token: str | None
    ) -> None:
        async with local.stranger() as peer:
            await peer.send({"op": "hello", "client": "c1", **({} if token is None else {"token": token})})
            assert await close_code(peer) == 4501

    async def test_with_an_expired_token_it_ends_with_4001_for_that_can_be_mended(
        self, local: LocalServer
    ) -> None:
        async with local.stranger() as peer:
            await peer.send({"op": "hello", "client": "c1", "token": local.token(lifetime=-60)})
            assert await close_code(peer) == 4001

    @pytest.mark.parametrize("message", ["nonsense", "[]", '{"op":"hello"}', '{"op":"hello","client":7}'])
    async def test_one_that_is_none_ends_with_4502_and_says_why(
        self, local: LocalServer, message: str
    ) -> None:
        async with local.stranger() as peer:
            await peer.socket.send(message)
            assert (await peer.frame())["op"] == "error"
            assert await close_code(peer) == 4502

    async def test_what_is_bad_behind_it_in_the_same_read_is_answered_and_it_counts(
        self, local: LocalServer
    ) -> None:
        headers = {"Authorization": f"Bearer {local.token()}"}
        async with local.stranger(headers=headers) as peer:
            messages = (b'{"op":"hello","client":"c1"}', b"{nope", b'{"op":"ping"}')
            # Unmasked by a mask of zeros; one write, so that the server reads them at once.
            peer.socket.outbox.put(
                b"".join(bytes((0x81, 0x80 | len(one))) + bytes(4) + one for one in messages)
            )
            ops = [frame["op"] for frame in await peer.until("pong")]
        assert ops[0] == "welcome"
        assert ops.count("error") == 1

    async def test_a_second_one_is_refused_and_the_connection_lives(self, local: LocalServer) -> None:
        async with local.peer() as peer:
            await peer.until("live")
            await peer.send({"op": "hello", "client": "c2"})
            error = (await peer.until("error"))[-1]
            assert (error["code"], error["field"]) == ("invalid", "op")
            await peer.send({"op": "ping"})
            await peer.until("pong")


async def test_one_connection_too_many_is_turned_away_but_a_takeover_is_none() -> None:
    config = Config(tier=Tier(connections=2))
    async with (
        local_server(config=config) as local,
        local.peer(client="a") as first,
        local.peer(client="b") as second,
        local.peer("grace", client="a") as other,
    ):
        for peer in (first, second, other):
            await peer.until("live")
        async with local.peer(client="c") as third:
            error = await third.frame()
            assert error["code"] == "overloaded"
            assert error["retry_after"] > 0
            assert await close_code(third) == 4006
        async with local.peer(client="b") as again:
            await again.until("live")
            assert await close_code(second) == 4500


async def test_an_ack_beyond_what_was_sent_is_refused_and_ignored(local: LocalServer) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        await local.server.publish("acme", "ada", "noted", {})
        await peer.events(1)
        await peer.send([{"op": "ack", "pos": {"user": 2}}, {"op": "ack", "pos": {"tenant": 1}}])
        errors = [(await peer.until("error"))[-1]["field"] for _ in range(2)]
        assert errors == ["pos.user", "pos.tenant"]
        await peer.send([{"op": "ack", "pos": {"user": 1}}, {"op": "ping"}])
        await peer.until("pong")
        (session,) = local.server.registry.sessions.values()
        (connection,) = session.connections.values()
        assert connection.processed == {"user": 1}


async def test_it_all_works_over_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with local_server(tls_certificate=str(certificate), tls_key=str(key)) as local:
        assert local.url.startswith("wss://")
        async with open_socket(
            local.url + "/v1/connect?client=c1",
            headers={"Authorization": f"Bearer {local.token()}"},
            subprotocols=["wsrecover.v1"],
            ssl_context=trusting,
            timeout=5,
            max_message_bytes=65536,
        ) as socket:
            peer = Peer(socket)
            await peer.until("live")
            for n in range(50):
                await local.server.publish("acme", "ada", "noted", {"n": n, "pad": "x" * 20_000})
            assert [event["data"]["n"] for event in await peer.events(50)] == list(range(50))


async def test_a_refresh_with_an_expired_token_ends_with_4001(local: LocalServer) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        await peer.send({"op": "auth", "id": "a1", "token": local.token(lifetime=-60)})
        reply = (await peer.until("reply"))[-1]
        assert (reply["id"], reply["error"]["code"]) == ("a1", "forbidden")
        assert await close_code(peer) == 4001


async def test_who_comes_when_its_session_has_just_been_stopped_is_told_to_come_later(
    local: LocalServer,
) -> None:
    session = local.server.registry.session("acme", "ada")
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as ended:
        pass
    session.members._nursery = ended
    async with local.peer() as peer:
        assert await close_code(peer) == 4000
    assert session.connections == {}


async def test_a_server_that_has_stopped_starts_no_agent() -> None:
    app = App()

    @app.agent("idle")
    async def idle(run: Run) -> None:
        await run.think("nothing")

    async with local_server(app) as local:
        server = local.server
    with pytest.raises(StoreFailed):
        await server.start_agent("acme", "ada", "idle", {})
    assert server.registry.sessions == {}


async def test_what_cannot_start_is_raised_by_itself() -> None:
    async with local_server() as local:
        port = local.server.addresses[0][1]
        with pytest.raises(TransportError):
            await serve(App(), Config(port=port, store="memory", secret=local.secret))
