"""Key sets: what is taken from them, when they are read again, and what a bad one changes (nothing)."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog.testing
import trio
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from trio.testing import MockClock

from wsrecover.access import Credentials, KeySource, TokenVerifier
from wsrecover.access.jwks import MAX_BYTES
from wsrecover.access.keys import Key, parse_jwks, sealed
from wsrecover.errors import ConfigError, KeysUnavailable, TokenError, UnknownKey

CLAIMS = orjson.dumps({"sub": "ann", "tenant": "acme", "exp": 2e9})


class Signer:
    """An EC key with a name, and tokens of it."""

    def __init__(self, kid: str) -> None:
        self.key = Key("ES256", kid, ECKey.generate_key("P-256"))

    @property
    def jwk(self) -> dict[str, Any]:
        return {**self.key.material.as_dict(private=False), "kid": self.key.kid}

    @property
    def token(self) -> str:
        return sealed(self.key, CLAIMS)


def key_set(*signers: Signer) -> bytes:
    return orjson.dumps({"keys": [signer.jwk for signer in signers]})


def shown(signer: Signer) -> Credentials:
    return Credentials(signer.token, {}, "here")


def verifier(source: KeySource) -> TokenVerifier:
    return TokenVerifier(None, leeway=0, clock=lambda: 1e9, source=source)


@pytest.fixture
def old() -> Signer:
    return Signer("old")


@pytest.fixture
def new() -> Signer:
    return Signer("new")


class TestWhatIsTaken:
    def test_is_each_key_for_its_own_algorithm(self) -> None:
        keys = [
            {**RSAKey.generate_key(2048).as_dict(private=False), "kid": "r"},
            {**ECKey.generate_key("P-256").as_dict(private=False), "kid": "e"},
            {**OKPKey.generate_key("Ed25519").as_dict(private=False), "kid": "d"},
            {**OKPKey.generate_key("Ed25519").as_dict(private=False), "kid": "d", "alg": "Ed25519"},
            {**OctKey.generate_key(256).as_dict(), "kid": "o"},
        ]
        found = parse_jwks(orjson.dumps({"keys": keys}), secrets=True)
        assert [(key.algorithm, key.kid) for key in found] == [
            ("RS256", "r"),
            ("ES256", "e"),
            ("EdDSA", "d"),
            ("Ed25519", "d"),
            ("HS256", "o"),
        ]

    def test_is_no_secret_that_was_published(self, old: Signer) -> None:
        published = orjson.dumps({"keys": [{"kty": "oct", "k": "A" * 60, "kid": "o"}, old.jwk]})
        assert [key.kid for key in parse_jwks(published, secrets=False)] == ["old"]

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            (b"", "JSON"),
            (b"[]", "key set"),
            (b'{"keys": {}}', "key set"),
            (b'{"keys": [1]}', "key set"),
            (b'{"keys": []}', "no key"),
            (b'{"keys": [{"kty": ["RSA"]}]}', "no key"),
            (b'{"keys": [{"kty": "EC", "crv": ["P-256"]}]}', "no key"),
            (b'{"keys": [{"kty": "OKP", "crv": {}}]}', "no key"),
            (b'{"keys": [{"kty": "RSA", "key_ops": 1}]}', "no key"),
            (b'{"keys": [{"kty": "RSA", "kid": 1}]}', "kid"),
            (b'{"keys": [{"kty": "RSA", "n": "canary", "e": "AQAB"}]}', "cannot be read|bits"),
            (b'{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}', "cannot be read"),
            (b'{"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}', "32 bytes"),
            (orjson.dumps({"keys": [{}] * 101}), "at most 100"),
        ],
    )
    def test_is_nothing_of_a_bad_set(self, text: bytes, problem: str) -> None:
        with pytest.raises(ValueError, match=problem) as caught:
            parse_jwks(text, secrets=True)
        assert "canary" not in str(caught.value)

    @pytest.mark.parametrize(
        "bad",
        [
            {"kty": "RSA", "n": "canary", "e": "AQAB", "kid": "canary"},
            {"kty": "EC", "crv": "P-256", "x": "canary", "y": "AA"},
            {"kty": "RSA", "kid": 1},
            {"kty": "oct", "k": "Y2FuYXJ5"},
            {"kty": "RSA", "n": "w" + "A" * 170 + "E", "e": "AQAB"},
        ],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_is_all_but_a_key_that_cannot_be_used(
        self, old: Signer, bad: dict[str, Any], first: bool
    ) -> None:
        keys = [bad, old.jwk] if first else [old.jwk, bad]
        with structlog.testing.capture_logs() as logs:
            found = parse_jwks(orjson.dumps({"keys": keys}), secrets=True)
        assert [key.kid for key in found] == ["old"]
        assert [(line["event"], line["place"]) for line in logs] == [("key_passed_over", int(not first))]
        assert "canary" not in str(logs)
        assert "Y2FuYXJ5" not in str(logs)

    def test_is_no_key_that_another_shadows(self, old: Signer) -> None:
        with pytest.raises(ValueError, match="same kid"):
            parse_jwks(key_set(old, old), secrets=False)

    def test_is_no_weak_rsa_key(self) -> None:
        weak = orjson.dumps({"keys": [{"kty": "RSA", "n": "w" + "A" * 170 + "E", "e": "AQAB"}]})
        with pytest.raises(ValueError, match="2048 bits"):
            parse_jwks(weak, secrets=False)


class TestFile:
    async def test_a_key_that_is_added_counts_at_its_first_token(
        self, tmp_path: Path, old: Signer, new: Signer, mock_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        file = tmp_path / "keys.json"
        file.write_bytes(key_set(old))
        source = KeySource(str(file))
        await source.load()
        nursery.start_soon(source.run)
        tokens = verifier(source)
        assert await tokens.authenticate(shown(old)) is not None
        file.write_bytes(key_set(old, new))
        with pytest.raises(UnknownKey):
            await tokens.authenticate(shown(new))
        mock_clock.jump(60)
        grant = await tokens.authenticate(shown(new))
        assert grant is not None
        assert grant.principal.user == "ann"

    async def test_without_waiting_it_is_only_said_that_it_takes_waiting(
        self, tmp_path: Path, old: Signer, new: Signer
    ) -> None:
        file = tmp_path / "keys.json"
        file.write_bytes(key_set(old))
        source = KeySource(str(file))
        await source.load()
        tokens = verifier(source)
        grant = tokens.authenticate_nowait(shown(old))
        assert grant is not None
        assert grant.principal.user == "ann"
        assert tokens.authenticate_nowait(Credentials(None, {}, "here")) is None
        with pytest.raises(trio.WouldBlock):
            tokens.authenticate_nowait(shown(new))

    async def test_a_key_that_is_withdrawn_takes_its_remembered_tokens_with_it(
        self, tmp_path: Path, old: Signer, new: Signer, mock_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        file = tmp_path / "keys.json"
        file.write_bytes(key_set(old, new))
        source = KeySource(str(file))
        await source.load()
        nursery.start_soon(source.run)
        tokens = verifier(source)
        remembered = old.token
        tokens.verify(remembered)
        before = source.keys
        file.write_bytes(key_set(new))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(601)
        with trio.fail_after(30):
            while source.keys is before:
                await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(TokenError):
            tokens.verify(remembered)

    async def test_a_set_that_became_bad_changes_nothing(
        self, tmp_path: Path, old: Signer, new: Signer, mock_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        file = tmp_path / "keys.json"
        file.write_bytes(key_set(old))
        source = KeySource(str(file))
        await source.load()
        nursery.start_soon(source.run)
        tokens = verifier(source)
        file.write_bytes(b"not a key set")
        mock_clock.jump(60)
        with pytest.raises(UnknownKey):
            await tokens.authenticate(shown(new))
        tokens.verify(old.token)

    @pytest.mark.parametrize("content", [None, b"", b"x" * (MAX_BYTES + 1)])
    async def test_one_that_cannot_be_read_at_the_start_is_named(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        file = tmp_path / "keys.json"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"tokens\.jwks: .*keys\.json"):
            await KeySource(str(file)).load()


class Site:
    """An HTTP server that answers every request as it is told."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.head = "HTTP/1.1 200 OK"
        self.requests = 0
        self.asked: bytes | bytearray = b""
        self.url = ""
        self.held: trio.Event | None = None

    async def answer(self, stream: trio.SocketStream) -> None:
        self.asked = await stream.receive_some()
        self.requests += 1
        if self.held is not None:
            await self.held.wait()
        head = f"{self.head}\r\nConnection: close\r\nContent-Length: {len(self.body)}\r\n\r\n"
        await stream.send_all(head.encode() + self.body)


@asynccontextmanager
async def site(body: bytes) -> AsyncIterator[Site]:
    pytest.importorskip("httpx")
    one = Site(body)
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        one.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/jwks.json"
        nursery.start_soon(partial(trio.serve_listeners, one.answer, [listener]))
        yield one
        nursery.cancel_scope.cancel()


class TestUrl:
    async def test_a_compressed_answer_is_neither_asked_for_nor_unpacked(self, old: Signer) -> None:
        async with site(gzip.compress(key_set(old))) as there:
            there.head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip"
            with pytest.raises(ConfigError, match="encoding"):
                await KeySource(there.url).load()
            assert b"accept-encoding: identity" in there.asked.lower()

    async def test_an_unknown_key_is_looked_for_once_a_minute_whoever_asks(
        self, old: Signer, new: Signer, mock_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        async with site(key_set(old)) as there:
            source = KeySource(there.url)
            await source.load()
            nursery.start_soon(source.run)
            tokens = verifier(source)
            for _ in range(5):
                with pytest.raises(UnknownKey):
                    await tokens.authenticate(shown(new))
            assert there.requests == 1
            mock_clock.jump(60)
            there.body = key_set(new)

            async def come_back() -> None:
                assert await tokens.authenticate(shown(new)) is not None

            async with trio.open_nursery() as many:
                for _ in range(20):
                    many.start_soon(come_back)
            assert there.requests == 2
            for _ in range(5):
                with pytest.raises(UnknownKey):
                    await tokens.authenticate(shown(old))
            assert there.requests == 2

    async def test_who_asks_while_it_is_fetched_waits_for_that(
        self, old: Signer, new: Signer, mock_clock: MockClock, nursery: trio.Nursery
    ) -> None:
        async with site(key_set(old)) as there:
            source = KeySource(there.url)
            await source.load()
            nursery.start_soon(source.run)
            tokens = verifier(source)
            mock_clock.jump(60)
            there.body, there.held = key_set(new), trio.Event()

            async def come_back() -> None:
                assert await tokens.authenticate(shown(new)) is not None

            async with trio.open_nursery() as many:
                many.start_soon(come_back)
                while there.requests < 2:
                    await trio.testing.wait_all_tasks_blocked(0.001)
                many.start_soon(come_back)
                await trio.testing.wait_all_tasks_blocked(0.001)
                there.held.set()
            assert there.requests == 2

    @pytest.mark.parametrize(
        ("head", "body", "kind", "problem"),
        [
            ("HTTP/1.1 500 Sorry", b"", KeysUnavailable, "status 500"),
            ("HTTP/1.1 503 Not now", b"", KeysUnavailable, "status 503"),
            ("HTTP/1.1 429 Not so often", b"", KeysUnavailable, "status 429"),
            ("HTTP/1.1 404 Nowhere", b"", ConfigError, "status 404"),
            ("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/", b"", ConfigError, "status 302"),
            ("HTTP/1.1 200 OK", b"x" * (MAX_BYTES + 1), ConfigError, "more than"),
            ("HTTP/1.1 200 OK", b"{}", ConfigError, "key set"),
            ("no HTTP", b"", KeysUnavailable, "cannot be fetched"),
        ],
    )
    async def test_one_that_does_not_come_whole_is_named_and_whether_that_may_pass(
        self, head: str, body: bytes, kind: type[Exception], problem: str
    ) -> None:
        async with site(body) as there:
            there.head = head
            with pytest.raises(kind, match=problem) as caught:
                await KeySource(there.url).load()
            assert there.url in str(caught.value)

    async def test_one_that_does_not_come_is_given_up(self, mock_clock: MockClock) -> None:
        pytest.importorskip("httpx")
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        async with listener, trio.open_nursery() as nursery:

            async def load() -> None:
                with pytest.raises(KeysUnavailable, match="within 3 s"):
                    await KeySource(url).load()

            nursery.start_soon(load)
            async with await listener.accept() as stream:
                await stream.receive_some()
                mock_clock.jump(3.1)
                assert await stream.receive_some() == b""
