"""S03, A1 and A2: whose tokens are accepted, seen from outside."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from figures import Figure
from forgery import AUDIENCE, CLAIMS, ISSUER, NOW, Mint, forged, valid
from serving import frames_until_closed
from structlog.testing import capture_logs
from trio.testing import MockClock

from wsrecover.access import Credentials, Grant, Principal, TokenVerifier
from wsrecover.agents import App
from wsrecover.config import Config, Timeouts, Tokens
from wsrecover.errors import ConfigError, HandshakeRefused, TokenError
from wsrecover.server import serve
from wsrecover.testing import LocalServer, local_server


@pytest.fixture(scope="module")
def mint() -> Mint:
    return Mint()


@pytest.fixture
async def local(mint: Mint, tmp_path: Path) -> AsyncIterator[LocalServer]:
    """Its keys come from a file alone; its time stands still."""
    file = tmp_path / "jwks.json"
    file.write_bytes(orjson.dumps(mint.key_set()))
    tokens = Tokens(jwks=str(file), issuers=(ISSUER,), audience=AUDIENCE, operator_issuers=())
    async with local_server(tokens=tokens, secret=None, wall_clock=lambda: NOW) as server:
        yield server


async def status(local: LocalServer, token: str) -> int:
    """The status with which the upgrade is answered; a refusal shows nothing of the token."""
    try:
        async with local.peer(token=token) as peer:
            await peer.until("welcome")
            return 101
    except HandshakeRefused as error:
        refused = error
    assert not any(part in refused.body for part in token.split(".") if len(part) > 8)
    return refused.status


async def test_s03_no_forged_token_is_accepted_and_no_valid_one_refused(
    local: LocalServer, mint: Mint, figure: Figure
) -> None:
    fetched: list[trio.SocketStream] = []

    async def note(stream: trio.SocketStream) -> None:
        fetched.append(stream)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, note, [listener])
        bad, good = list(forged(mint, f"http://127.0.0.1:{port}/jwks")), list(valid(mint))
        answers = {name: await status(local, token) for name, token in bad}
        refused = [name for name, token in good if await status(local, token) != 101]
        nursery.cancel_scope.cancel()
    accepted = [name for name, answer in answers.items() if answer == 101]
    figure("S03 A1 A2", f"of {len(bad)} forged tokens, accepted", len(accepted))
    figure("S03 A1 A2", f"of {len(good)} valid tokens, refused", len(refused))
    figure("A1", "keys fetched because a token said so", len(fetched))
    assert (accepted, refused, fetched) == ([], [], [])
    assert {name for name, answer in answers.items() if answer not in (400, 401, 431)} == set()
    assert len(bad) == len(answers) >= 150
    assert len(good) >= 40


async def test_s03_what_is_forged_is_refused_in_hello_too(local: LocalServer, mint: Mint) -> None:
    tokens = [
        token for name, token in forged(mint, "http://127.0.0.1:9") if name.startswith(("alg", "HS256"))
    ]
    assert len(tokens) > 20
    for token in tokens:
        async with local.stranger() as peer:
            await peer.send({"op": "hello", "client": "c1", "token": token})
            frames, code = await frames_until_closed(peer)
            assert ([frame["op"] for frame in frames], code) == ([], 4501)


@asynccontextmanager
async def published(keys: Path, place: str) -> AsyncIterator[str]:
    """Where the server finds the key set: the file itself, or a URL that gives it."""
    if place == "file":
        yield str(keys)
        return

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        body = await trio.Path(keys).read_bytes()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, answer, [listener]))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/jwks.json"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("place", ["file", "url"])
async def test_s03_keys_are_rotated_without_a_restart(
    mint: Mint, tmp_path: Path, mock_clock: MockClock, place: str
) -> None:
    """A new key counts at its first token, a minute after the last look; one that is withdrawn no more."""
    keys = {key.get("kid"): key for key in mint.key_set()["keys"]}
    file = tmp_path / "jwks.json"

    def publish(*names: str) -> None:
        file.write_bytes(orjson.dumps({"keys": [keys[f"{name}-1"] for name in names]}))

    async def answers(local: LocalServer) -> list[int]:
        return [await status(local, mint.token(name)) for name in ("RS256", "ES256", "EdDSA")]

    publish("RS256", "ES256")
    async with published(file, place) as location:
        tokens = Tokens(jwks=location, issuers=(ISSUER,), audience=AUDIENCE)
        async with local_server(tokens=tokens, secret=None, wall_clock=lambda: NOW) as local:
            assert await answers(local) == [101, 101, 401]
            publish("ES256", "EdDSA")
            assert await answers(local) == [101, 101, 401], "it was looked less than a minute ago"
            mock_clock.jump(60)
            assert (await answers(local))[1:] == [101, 101]
            assert await answers(local) == [401, 101, 101]


async def test_s03_the_role_operator_is_dropped_where_the_issuer_is_not_named(
    mint: Mint, tmp_path: Path
) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(orjson.dumps(mint.key_set()))
    tokens = Tokens(jwks=str(file), operator_issuers=(ISSUER,))
    claims = {**CLAIMS, "roles": ["operator", "service"]}
    async with local_server(tokens=tokens, secret=None, wall_clock=lambda: NOW) as local:
        for issuer, roles in [
            (ISSUER, ["operator", "service"]),
            (ISSUER + "x", ["service"]),
            (None, ["service"]),
        ]:
            token = mint.token("RS256", {**claims, "iss": issuer})
            with capture_logs() as lines:
                for client in ("c1", "c2"):
                    async with local.peer(token=token, client=client) as peer:
                        assert (await peer.frame())["principal"]["roles"] == roles
                        reply = await peer.command("broadcast", {"to": "all", "type": "notice", "data": {}})
            told = [line["issuer"] for line in lines if line["event"] == "operator_dropped"]
            assert told == ([] if "operator" in roles else [issuer])
            if "operator" not in roles:
                assert reply["error"]["code"] == "forbidden"
                assert "operator_issuers" in reply["error"]["message"]


async def test_s03_claims_have_the_names_that_the_settings_give_them(mint: Mint, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    file.write_bytes(orjson.dumps(mint.key_set()))
    tokens = Tokens(
        jwks=str(file),
        user_claim="https://acme.example/uid",
        tenant="only",
        roles_claim="realm_access.roles",
        tier_claim="plan",
    )
    claims = {
        "exp": NOW + 60,
        "sub": "not this",
        "https://acme.example/uid": "ada",
        "realm_access": {"roles": ["b", "a"]},
        "plan": "free",
    }
    async with (
        local_server(tokens=tokens, secret=None, wall_clock=lambda: NOW) as local,
        local.peer(token=mint.token("ES256", claims)) as peer,
    ):
        principal = (await peer.frame())["principal"]
    assert principal == {"tenant": "only", "user": "ada", "roles": ["a", "b"], "tier": "free"}


class ByCookie:
    """What an embedder may bring: sessions of its own, by a cookie, and API keys in `hello` or `auth`."""

    async def authenticate(self, credentials: Credentials) -> Grant | None:
        await trio.lowlevel.checkpoint()
        if credentials.token is not None:
            if credentials.token != "key of grace":
                raise TokenError("there is no such key")
            return Grant(Principal("acme", "grace"), NOW + 60)
        if credentials.headers.get("Cookie") != "sid=of-ada":
            return None
        return Grant(Principal("acme", "ada", ("service",)), NOW + 60)


async def test_s03_what_cannot_decide_is_refused_at_once() -> None:
    decide: Any = ByCookie.authenticate
    with pytest.raises(ConfigError, match=r"^authenticator: is a function; accepted: .*authenticate"):
        with trio.fail_after(5):
            await serve(App(), Config(port=0, store="memory"), authenticator=decide)


@pytest.mark.parametrize("expires_at", [None, math.inf, math.nan, "1", True])
def test_s03_a_grant_has_a_time_at_which_it_expires(expires_at: Any) -> None:
    with pytest.raises(ConfigError, match=r"^Grant\.expires_at: .*never expires"):
        Grant(Principal("acme", "ada"), expires_at)


async def test_s03_who_asks_for_more_than_a_valid_token_is_asked() -> None:
    class Doubting(TokenVerifier):
        async def authenticate(self, credentials: Credentials) -> Grant | None:
            await super().authenticate(credentials)
            raise TokenError("a token is not enough")

    secret = b"of the doubting one, 32 bytes long"
    doubting = Doubting(secret, leeway=0, clock=time.time)
    async with local_server(authenticator=doubting, secret=secret) as local:
        with pytest.raises(HandshakeRefused, match="not enough"):
            async with local.peer():
                pass


async def test_s03_a_key_may_count_for_as_good_as_ever() -> None:
    class Lasting(ByCookie):
        async def authenticate(self, credentials: Credentials) -> Grant | None:
            await trio.lowlevel.checkpoint()
            return Grant(Principal("acme", "ada"), NOW + 1e9)

    async with (
        local_server(authenticator=Lasting(), secret=None, wall_clock=lambda: NOW) as local,
        local.stranger() as peer,
    ):
        await peer.send({"op": "hello", "client": "c1"})
        assert (await peer.frame())["token_expires_in"] == 1e9


async def test_s03_an_embedder_may_decide_by_a_cookie_or_a_key() -> None:
    async with local_server(authenticator=ByCookie(), secret=None, wall_clock=lambda: NOW) as local:
        async with local.stranger(headers={"Cookie": "sid=of-ada"}) as ada:
            await ada.send({"op": "hello", "client": "c1"})
            assert (await ada.frame())["principal"]["user"] == "ada"
        async with local.stranger(headers={"Cookie": "sid=of-nobody"}) as grace:
            await grace.send({"op": "hello", "client": "c1", "token": "key of grace"})
            assert (await grace.frame())["principal"]["user"] == "grace"
            await grace.send({"op": "auth", "id": "a1", "token": "key of grace"})
            assert (await grace.until("reply"))[-1]["status"] == "ok"
            await grace.send({"op": "auth", "id": "a2", "token": "another key"})
            assert (await frames_until_closed(grace))[1] == 4501
        async with local.stranger(headers={"Cookie": "sid=of-nobody"}) as nobody:
            await nobody.send({"op": "hello", "client": "c1"})
            assert (await frames_until_closed(nobody))[1] == 4501


class Moody:
    """An authenticator that does what it is told to."""

    def __init__(self) -> None:
        self.act: Callable[[], object] = lambda: Grant(Principal("acme", "ada"), NOW + 60)

    async def authenticate(self, _: Credentials) -> Any:
        return self.act()


def fail() -> object:
    raise OSError("the database is down: secret=hunter2")


async def test_s03_an_authenticator_that_fails_is_told_to_the_operator_and_not_to_the_peer() -> None:
    moody = Moody()
    async with (
        local_server(authenticator=moody, secret=None, wall_clock=lambda: NOW) as local,
        local.peer(token="any") as ada,
    ):
        await ada.until("live")
        for number, act in enumerate((fail, lambda: "ada"), start=1):
            moody.act = act
            with capture_logs() as logs:
                with pytest.raises(HandshakeRefused) as refused:
                    async with local.peer(token="any"):
                        pass
                await ada.send({"op": "auth", "id": f"a{number}", "token": "fresh"})
                reply = (await ada.until("reply"))[-1]
            assert (refused.value.status, "hunter2" in refused.value.body) == (500, False)
            assert (reply["error"]["code"], "hunter2" in reply["error"]["message"]) == ("internal", False)
            told = [line for line in logs if line["event"] == "authenticator_failed"]
            assert [line["log_level"] for line in told] == ["error", "error"]
            assert [line["code"] for line in logs if line["event"] == "rejected"] == [500]
            assert local.server.statistics().errors["authenticator"].count == 2 * number


async def test_s03_an_authenticator_may_refuse_from_within_a_nursery() -> None:
    moody = Moody()

    def refuse() -> object:
        raise ExceptionGroup("of a nursery", [TokenError("no such key")])

    moody.act = refuse
    async with local_server(authenticator=moody, secret=None) as local:
        with pytest.raises(HandshakeRefused, match="no such key") as refused:
            async with local.peer(token="any"):
                pass
    assert refused.value.status == 401


async def test_s03_an_authenticator_that_fails_as_its_time_is_up_is_told_of_like_any_other() -> None:
    class Untidy:
        async def authenticate(self, credentials: Credentials) -> Grant | None:
            if credentials.token is not None:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.look_up)
                    await trio.sleep_forever()
            return None

        async def look_up(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise OSError("cannot be closed")

    async with (
        local_server(authenticator=Untidy(), secret=None, timeouts=Timeouts(handshake=0.1)) as local,
        local.stranger() as peer,
    ):
        await peer.send({"op": "hello", "client": "c1", "token": "any"})
        frames, code = await frames_until_closed(peer)
        assert ([frame["code"] for frame in frames], code) == (["internal"], 1013)
        assert local.server.statistics().errors["authenticator"].count == 1


async def test_s03_an_authenticator_that_is_not_async_is_refused_at_once() -> None:
    class Plain:
        def authenticate(self, _: Credentials) -> None: ...

    authenticator: Any = Plain()
    with pytest.raises(ConfigError, match="async method"):
        with trio.fail_after(5):
            await serve(App(), Config(port=0, store="memory"), authenticator=authenticator)


async def test_s03_an_embedder_may_decide_by_a_header_of_another_scheme() -> None:
    class ByPassword:
        async def authenticate(self, credentials: Credentials) -> Grant | None:
            await trio.lowlevel.checkpoint()
            assert credentials.token is None
            known = credentials.headers.get("Authorization") == "Basic YWRhOnNlY3JldA=="
            return Grant(Principal("acme", "ada"), NOW + 60) if known else None

    async with (
        local_server(authenticator=ByPassword(), secret=None, wall_clock=lambda: NOW) as local,
        local.stranger(headers={"Authorization": "Basic YWRhOnNlY3JldA=="}) as ada,
    ):
        await ada.send({"op": "hello", "client": "c1"})
        assert (await ada.frame())["principal"]["user"] == "ada"
