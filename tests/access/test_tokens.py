"""Tokens are accepted or refused by their signature, their header and each claim; nothing of them leaks."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import orjson
import pytest

from wsrecover.access import Grant, Principal, TokenVerifier, read_secret, sign
from wsrecover.access.tokens import MAX_TOKEN_BYTES
from wsrecover.errors import ConfigError, TokenError

SECRET = b"correct horse battery staple, 32+"
NOW = 1_700_000_000.0
CLAIMS: dict[str, Any] = {"sub": "ann", "tenant": "acme", "exp": NOW + 60}
HEADER: dict[str, Any] = {"alg": "HS256", "typ": "JWT"}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> TokenVerifier:
    return TokenVerifier(SECRET, leeway=5, clock=clock)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forge(
    claims: Any = CLAIMS, header: Any = HEADER, *, secret: bytes = SECRET, algorithm: Any = hashlib.sha256
) -> str:
    """A signed token of any content; bytes are taken as they are."""
    parts = [part if isinstance(part, bytes) else orjson.dumps(part) for part in (header, claims)]
    head = ".".join(map(b64, parts))
    return f"{head}.{b64(hmac.new(secret, head.encode(), algorithm).digest())}"


def test_a_signed_token_gives_back_who_it_was_signed_for(verifier: TokenVerifier, clock: Clock) -> None:
    token = sign(
        SECRET,
        tenant="acme",
        user="ann",
        roles=["b", "a", "b"],
        tier="free",
        token_id="t",
        lifetime=60,
        clock=clock,
    )
    assert verifier.verify(token) == Grant(Principal("acme", "ann", ("a", "b"), "free"), NOW + 60, "t", NOW)


def test_the_least_claims_suffice(verifier: TokenVerifier) -> None:
    assert verifier.verify(forge()) == Grant(Principal("acme", "ann"), NOW + 60)


def test_unknown_headers_and_claims_are_ignored(verifier: TokenVerifier) -> None:
    token = forge({**CLAIMS, "iss": "x", "aud": ["y"]}, {**HEADER, "kid": "k", "x-app": 1})
    assert verifier.verify(token).principal.user == "ann"


def test_a_token_counts_until_expiry_plus_leeway_whether_remembered_or_not(
    verifier: TokenVerifier, clock: Clock
) -> None:
    token = forge()
    clock.now = NOW + 64.9
    verifier.verify(token)
    clock.now = NOW + 65
    with pytest.raises(TokenError, match="exp"):
        verifier.verify(token)
    assert not verifier._verified
    with pytest.raises(TokenError, match="exp"):
        TokenVerifier(SECRET, leeway=5, clock=clock).verify(token)


def test_a_remembered_token_is_not_verified_again(
    verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = forge()
    first = verifier.verify(token)
    monkeypatch.setattr(verifier, "_keys", None)
    assert verifier.verify(token) is first


def test_what_is_remembered_is_bounded(verifier: TokenVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsrecover.access.tokens._REMEMBERED", 2)
    for number in range(5):
        verifier.verify(forge({**CLAIMS, "jti": str(number)}))
    assert len(verifier._verified) == 2


@pytest.mark.parametrize("name", ["sub", "tenant", "exp"])
def test_required_claims_are_named_when_missing(verifier: TokenVerifier, name: str) -> None:
    claims = {key: value for key, value in CLAIMS.items() if key != name}
    with pytest.raises(TokenError, match=f"^{name}: the claim is missing"):
        verifier.verify(forge(claims))


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("exp", "1800000000"),
        ("exp", True),
        ("exp", None),
        ("exp", [NOW + 60]),
        ("exp", NOW - 5),
        ("nbf", NOW + 6),
        ("nbf", "0"),
        ("iat", NOW + 6),
        ("iat", False),
        ("sub", ""),
        ("sub", 7),
        ("sub", "x" * 129),
        ("sub", "a\nb"),
        ("sub", "a\x1b[31m"),
        ("sub", "a\u2028b"),
        ("tenant", None),
        ("tenant", "\x00"),
        ("roles", "admin"),
        ("roles", {"admin": 1}),
        ("roles", [1]),
        ("roles", [""]),
        ("roles", ["a b"]),
        ("roles", ["ü"]),
        ("roles", ["x" * 65]),
        ("roles", [str(number) for number in range(65)]),
        ("tier", 1),
        ("tier", ""),
        ("tier", "x" * 65),
        ("jti", 1),
        ("jti", "x" * 257),
    ],
)
def test_a_bad_claim_is_refused_by_name(verifier: TokenVerifier, claim: str, value: object) -> None:
    with pytest.raises(TokenError, match=f"^{'user' if claim == 'sub' else claim}: "):
        verifier.verify(forge({**CLAIMS, claim: value}))


@pytest.mark.parametrize(
    "payload",
    [
        b'{"sub":"ann","tenant":"acme","exp":NaN}',
        b'{"sub":"ann","tenant":"acme","exp":Infinity}',
        b'{"sub":"ann","tenant":"acme","exp":1e999}',
        b'{"sub":"\\ud800","tenant":"acme","exp":1800000000}',
        b"[]",
        b'"claims"',
        b"null",
        b"",
        b"\xff",
        b"[" * 5000,
    ],
)
def test_claims_that_are_no_strict_json_object_are_refused(verifier: TokenVerifier, payload: bytes) -> None:
    with pytest.raises(TokenError):
        verifier.verify(forge(payload))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "hs256"},
        {"alg": "RS256"},
        {"alg": ["HS256"]},
        {"typ": "JWT"},
        {**HEADER, "crit": []},
        {**HEADER, "crit": ["b64"], "b64": False},
        {**HEADER, "b64": False},
        {**HEADER, "jku": 7},
        ["alg"],
        "alg",
        None,
        b"",
        b"\xff",
        b"[" * 300,
        b"[" * 3000,
    ],
)
def test_a_header_that_asks_for_anything_else_is_refused(verifier: TokenVerifier, header: object) -> None:
    with pytest.raises(TokenError):
        verifier.verify(forge(header=header))


@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
def test_a_longer_hash_is_not_accepted_either(verifier: TokenVerifier, algorithm: str) -> None:
    digest = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    with pytest.raises(TokenError, match="must be HS256"):
        verifier.verify(forge(header={"alg": algorithm}, algorithm=digest))


def test_an_embedded_key_is_not_used(verifier: TokenVerifier) -> None:
    own = b"k" * 32
    header = {**HEADER, "jwk": {"kty": "oct", "k": b64(own)}}
    with pytest.raises(TokenError, match="signature"):
        verifier.verify(forge(header=header, secret=own))


@pytest.mark.parametrize("position", ["header", "claims", "signature"])
def test_one_changed_character_is_refused(verifier: TokenVerifier, position: str) -> None:
    parts = forge().split(".")
    index = ["header", "claims", "signature"].index(position)
    parts[index] = parts[index][:-4] + ("A" if parts[index][-4] != "A" else "B") + parts[index][-3:]
    with pytest.raises(TokenError):
        verifier.verify(".".join(parts))


@pytest.mark.parametrize("token", ["", ".", "..", "...", "a.b", "é.a.b", "\ud800", "a" * 100])
def test_what_is_no_token_is_refused(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(TokenError):
        verifier.verify(token)


def test_a_token_over_the_limit_is_refused_before_it_is_parsed(verifier: TokenVerifier) -> None:
    token = forge({**CLAIMS, "pad": "x" * MAX_TOKEN_BYTES})
    with pytest.raises(TokenError, match="8192"):
        verifier.verify(token)


def test_errors_hold_nothing_of_the_token(verifier: TokenVerifier) -> None:
    for token in [
        forge(secret=b"y" * 32),
        forge({**CLAIMS, "sub": "canary\n"}),
        forge({**CLAIMS, "exp": "canary"}),
    ]:
        with pytest.raises(TokenError) as caught:
            verifier.verify(token)
        shown = repr(caught.value) + repr(caught.value.__cause__)
        assert "canary" not in shown
        assert not any(part in shown for part in token.split("."))


def test_names_that_look_alike_stay_apart(verifier: TokenVerifier) -> None:
    names = ["ann", "Ann", "a:b", "a/b", "*", "e\u0301", "\u00e9", "' or 1=1", "\u200b", "a\u200b"]
    principals = {verifier.verify(forge({**CLAIMS, "sub": name})).principal for name in names}
    assert {principal.user for principal in principals} == set(names)


class TestSecret:
    def test_a_short_one_is_refused(self, clock: Clock) -> None:
        with pytest.raises(ConfigError, match="at least 32 bytes"):
            TokenVerifier(b"x" * 31, leeway=0, clock=clock)
        with pytest.raises(ConfigError, match="at least 32 bytes"):
            sign(b"", tenant="a", user="b", lifetime=1, clock=clock)

    def test_a_file_loses_one_trailing_newline(self, tmp_path: Path) -> None:
        path = tmp_path / "secret"
        path.write_bytes(b"x" * 32 + b"\n\n")
        assert read_secret(path, environ={}) == b"x" * 32 + b"\n"

    def test_without_a_file_it_is_the_environments(self) -> None:
        assert read_secret(environ={"WSRECOVER_SECRET": "y" * 32}) == b"y" * 32

    @pytest.mark.parametrize("environ", [{}, {"WSRECOVER_SECRET": ""}, {"WSRECOVER_SECRET": "short-canary"}])
    def test_a_missing_or_short_variable_is_named(self, environ: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match=r"WSRECOVER_SECRET.*at least 32 bytes") as caught:
            read_secret(environ=environ)
        assert "canary" not in str(caught.value)

    def test_a_missing_or_short_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"secret_file: .* cannot be read"):
            read_secret(tmp_path / "none", environ={})
        path = tmp_path / "secret"
        path.write_bytes(b"x" * 31 + b"\n")
        with pytest.raises(ConfigError, match=r"secret_file: .* has 31 bytes"):
            read_secret(path, environ={})
