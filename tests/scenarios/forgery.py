"""Tokens made by hand, good and bad ones, with the primitives of `cryptography`."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterator
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa, utils

__all__ = ["AUDIENCE", "ISSUER", "LEEWAY", "NOW", "Mint", "forged", "valid"]

NOW: Final = 1_800_000_000.0
LEEWAY: Final = 30.0
ISSUER: Final = "https://login.example/"
AUDIENCE: Final = "wsrecover"
SECRET: Final = b"a shared secret of the key set, 32 bytes and more"
CLAIMS: Final[dict[str, Any]] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "ada",
    "tenant": "acme",
    "exp": NOW + 600,
}
ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")

Sign = Callable[[bytes], bytes]
Case = tuple[str, str]


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def b64int(number: int) -> str:
    return b64(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def encode(header: Any, claims: Any, sign: Sign) -> str:
    parts = [part if isinstance(part, bytes) else orjson.dumps(part) for part in (header, claims)]
    head = ".".join(map(b64, parts))
    return f"{head}.{b64(sign(head.encode()))}"


def hs(secret: bytes, digest: Any = hashlib.sha256) -> Sign:
    return lambda data: hmac.new(secret, data, digest).digest()


def rs(key: rsa.RSAPrivateKey, digest: hashes.HashAlgorithm | None = None) -> Sign:
    return lambda data: key.sign(data, padding.PKCS1v15(), digest or hashes.SHA256())


def ps(key: rsa.RSAPrivateKey) -> Sign:
    return lambda data: key.sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256())


def es(key: ec.EllipticCurvePrivateKey, digest: hashes.HashAlgorithm | None = None) -> Sign:
    size = (key.key_size + 7) // 8

    def sign(data: bytes) -> bytes:
        r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(digest or hashes.SHA256())))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    return sign


class Mint:
    """The four trusted keys, what is published of them, and an attacker's own."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.ed = ed25519.Ed25519PrivateKey.generate()
        self.for_encryption = rsa.generate_private_key(65537, 2048)
        self.p384 = ec.generate_private_key(ec.SECP384R1())
        self.signers: dict[str, Sign] = {
            "HS256": hs(SECRET),
            "RS256": rs(self.rsa),
            "ES256": es(self.ec),
            "EdDSA": self.ed.sign,
        }
        own_rsa = rsa.generate_private_key(65537, 2048)
        own_ec = ec.generate_private_key(ec.SECP256R1())
        own_ed = ed25519.Ed25519PrivateKey.generate()
        self.own: dict[str, tuple[Sign, dict[str, Any]]] = {
            "HS256": (hs(b"k" * 32), {"kty": "oct", "k": b64(b"k" * 32)}),
            "RS256": (rs(own_rsa), rsa_jwk(own_rsa)),
            "ES256": (es(own_ec), ec_jwk(own_ec, "P-256")),
            "EdDSA": (own_ed.sign, ed_jwk(own_ed)),
        }

    def key_set(self) -> dict[str, Any]:
        """The JSON Web Key Set, with keys in it that are for something else."""
        return {
            "keys": [
                {"kty": "oct", "k": b64(SECRET), "kid": "HS256-1", "alg": "HS256"},
                {**rsa_jwk(self.rsa), "kid": "RS256-1", "use": "sig"},
                {**ec_jwk(self.ec, "P-256"), "kid": "ES256-1", "alg": "ES256", "key_ops": ["verify"]},
                {**ed_jwk(self.ed), "kid": "EdDSA-1"},
                {**rsa_jwk(self.for_encryption), "kid": "enc-1", "use": "enc"},
                {**ec_jwk(self.p384, "P-384"), "kid": "ES384-1"},
                {"kty": "unheard of", "kid": "later"},
            ]
        }

    def token(
        self, algorithm: str, claims: Any = CLAIMS, *, signed: Sign | None = None, **header: Any
    ) -> str:
        """Signed with the right key, unless told otherwise; a header of None is left out."""
        full = {"alg": algorithm, "kid": f"{algorithm}-1", "typ": "JWT", **header}
        full = {name: value for name, value in full.items() if value is not None}
        return encode(full, claims, signed or self.signers[algorithm])


def rsa_jwk(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    numbers = key.public_key().public_numbers()
    return {"kty": "RSA", "n": b64int(numbers.n), "e": b64int(numbers.e)}


def ec_jwk(key: ec.EllipticCurvePrivateKey, curve: str) -> dict[str, Any]:
    numbers, size = key.public_key().public_numbers(), (key.key_size + 7) // 8
    return {
        "kty": "EC",
        "crv": curve,
        "x": b64(numbers.x.to_bytes(size, "big")),
        "y": b64(numbers.y.to_bytes(size, "big")),
    }


def ed_jwk(key: ed25519.Ed25519PrivateKey) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64(key.public_key().public_bytes_raw())}


def public_bytes(key: Any) -> Iterator[tuple[str, bytes]]:
    """A public key in the forms in which it may be mistaken for a secret."""
    encodings = [("PEM", serialization.Encoding.PEM), ("DER", serialization.Encoding.DER)]
    for name, encoding in encodings:
        yield name, key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def forged(mint: Mint, listener: str) -> Iterator[Case]:
    """What must be refused, by name. `listener` is a URL that no token may make the server fetch."""
    for family in (
        _without_signature(mint),
        _confused(mint),
        _other_algorithms(mint),
        _foreign_keys(mint, listener),
        _headers(mint),
        _tampered(mint),
        _times(mint),
        _names(mint),
        _forms(mint),
    ):
        yield from family


def _without_signature(mint: Mint) -> Iterator[Case]:
    for algorithm in ("none", "None", "NONE", "nOnE", ""):
        yield f"alg {algorithm!r}, no signature", mint.token(algorithm, signed=lambda _: b"")
        yield f"alg {algorithm!r}, some signature", mint.token(algorithm, signed=lambda _: b"x" * 32)
        yield f"alg {algorithm!r}, right signature", mint.token(algorithm, signed=mint.signers["RS256"])


def _confused(mint: Mint) -> Iterator[Case]:
    """HS256 with what everybody knows as its secret."""
    for name, key in (("RS256", mint.rsa), ("ES256", mint.ec), ("EdDSA", mint.ed)):
        for form, secret in public_bytes(key):
            for kid in (f"{name}-1", "HS256-1", None):
                yield (
                    f"HS256 with the {form} of {name}, kid {kid}",
                    mint.token("HS256", signed=hs(secret), kid=kid),
                )
    raw = mint.ed.public_key().public_bytes_raw()
    yield "HS256 with the raw key of EdDSA", mint.token("HS256", signed=hs(raw))
    yield "HS256 with the modulus", mint.token("HS256", signed=hs(rsa_jwk(mint.rsa)["n"].encode()))
    yield "HS256 with an empty secret", mint.token("HS256", signed=hs(b""))
    yield "HS256 with the kid as its secret", mint.token("HS256", signed=hs(b"HS256-1"))


def _other_algorithms(mint: Mint) -> Iterator[Case]:
    others: list[tuple[str, str, Sign]] = [
        ("HS384", "HS256-1", hs(SECRET, hashlib.sha384)),
        ("HS512", "HS256-1", hs(SECRET, hashlib.sha512)),
        ("RS384", "RS256-1", rs(mint.rsa, hashes.SHA384())),
        ("RS512", "RS256-1", rs(mint.rsa, hashes.SHA512())),
        ("PS256", "RS256-1", ps(mint.rsa)),
        ("RS256", "RS256-1", ps(mint.rsa)),
        ("ES512", "ES256-1", es(mint.ec, hashes.SHA512())),
        ("ES256", "ES256-1", es(mint.ec, hashes.SHA384())),
        ("ES384", "ES384-1", es(mint.p384, hashes.SHA384())),
        ("ES256", "ES384-1", es(mint.p384)),
        ("ES256K", "ES256-1", es(ec.generate_private_key(ec.SECP256K1()))),
        ("EdDSA", "EdDSA-1", ed448.Ed448PrivateKey.generate().sign),
        ("Ed25519", "EdDSA-1", mint.ed.sign),
        ("Ed448", "EdDSA-1", ed448.Ed448PrivateKey.generate().sign),
        ("RS256", "enc-1", rs(mint.for_encryption)),
        ("RSA-OAEP", "enc-1", rs(mint.for_encryption)),
    ]
    for algorithm, kid, sign in others:
        yield f"{algorithm} with {kid}", mint.token(algorithm, signed=sign, kid=kid)
    for algorithm in ALGORITHMS:
        yield f"{algorithm} in lower case", mint.token(algorithm.lower(), signed=mint.signers[algorithm])
        yield f"a list of {algorithm}", mint.token(algorithm, alg=[algorithm])


def _foreign_keys(mint: Mint, listener: str) -> Iterator[Case]:
    for algorithm, (sign, jwk) in mint.own.items():
        yield f"{algorithm} with a key of one's own", mint.token(algorithm, signed=sign)
        yield f"{algorithm} with its own jwk", mint.token(algorithm, signed=sign, jwk=jwk)
        yield f"{algorithm} with its own jwk, no kid", mint.token(algorithm, signed=sign, jwk=jwk, kid=None)
        yield f"{algorithm} with its own jku", mint.token(algorithm, signed=sign, jku=listener, kid="new")
        yield f"{algorithm} with its own x5u", mint.token(algorithm, signed=sign, x5u=listener, kid=None)
        yield f"{algorithm} with its own x5c", mint.token(algorithm, signed=sign, x5c=[b64(b"certificate")])
        yield f"{algorithm} with a kid that is a URL", mint.token(algorithm, signed=sign, kid=listener)
        for other in ALGORITHMS:
            if other != algorithm:
                crossed = mint.token(algorithm, signed=mint.signers[other], kid=f"{other}-1")
                yield f"{algorithm} signed as {other}", crossed
    for kid in ("../../../dev/null", "RS256-1' or '1'='1", "rs256-1", "RS256-1 ", "RS256", "", "\x00", "é"):
        yield f"kid {kid!r}", mint.token("RS256", kid=kid)
    for odd in (1, ["RS256-1"], {"kid": "RS256-1"}, True):
        yield f"kid {odd!r}", mint.token("RS256", kid=odd)


def _headers(mint: Mint) -> Iterator[Case]:
    for crit in ([], ["b64"], ["exp"], "b64", {}, 1, ["alg"]):
        yield f"crit {crit!r}", mint.token("RS256", crit=crit)
    yield "crit null", encode(b'{"alg":"RS256","kid":"RS256-1","crit":null}', CLAIMS, mint.signers["RS256"])
    yield "b64 false", mint.token("RS256", b64=False, crit=["b64"])
    for header in (b"", b"{}", b"[]", b"null", b'"RS256"', b"\xff", b"{", b"[" * 500, b'{"alg":null}'):
        yield f"header {header[:20]!r}", encode(header, CLAIMS, mint.signers["RS256"])


def _tampered(mint: Mint) -> Iterator[Case]:
    for algorithm in ALGORITHMS:
        head, claims, signature = mint.token(algorithm).split(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        changes = {
            "first bit": bytes([raw[0] ^ 1]) + raw[1:],
            "last bit": raw[:-1] + bytes([raw[-1] ^ 1]),
            "cut": raw[:-1],
            "longer": raw + b"\0",
            "empty": b"",
            "zeros": bytes(len(raw)),
        }
        for name, change in changes.items():
            yield f"{algorithm} signature {name}", f"{head}.{claims}.{b64(change)}"
        for name, claim in (("sub", "eve"), ("tenant", "other"), ("roles", ["operator"])):
            yield (
                f"{algorithm} other {name}",
                f"{head}.{b64(orjson.dumps({**CLAIMS, name: claim}))}.{signature}",
            )
        yield f"{algorithm} other header", f"{b64(orjson.dumps({'alg': algorithm}))}.{claims}.{signature}"
    for r, s in ((0, 0), (1, 0), (0, 1), (1, 1)):
        yield (
            f"ES256 r={r} s={s}",
            mint.token("ES256", signed=lambda _, r=r, s=s: r.to_bytes(32, "big") + s.to_bytes(32, "big")),
        )
    yield (
        "ES256 in DER",
        mint.token("ES256", signed=lambda data: mint.ec.sign(data, ec.ECDSA(hashes.SHA256()))),
    )


def _times(mint: Mint) -> Iterator[Case]:
    without = {name: value for name, value in CLAIMS.items() if name != "exp"}
    yield "exp missing", mint.token("RS256", without)
    wrong = (None, str(NOW + 600), "NaN", "", True, [NOW + 600], {}, 0, -1, NOW - 600, NOW - LEEWAY)
    for value in wrong:
        yield f"exp {value!r}", mint.token("EdDSA", {**CLAIMS, "exp": value})
    for literal in ("NaN", "Infinity", "-Infinity", "1e999", "0x7fffffff", "1_800_000_600", "+1800000600"):
        claims = orjson.dumps(without)[:-1] + f',"exp":{literal}}}'.encode()
        yield f"exp {literal}", mint.token("HS256", claims)
    for name in ("nbf", "iat"):
        for value in (NOW + LEEWAY + 1, NOW + 1e9, str(NOW), None, True, []):
            yield f"{name} {value!r}", mint.token("ES256", {**CLAIMS, name: value})


def _names(mint: Mint) -> Iterator[Case]:
    near = (
        "https://login.example",
        "https://login.example/x",
        "HTTPS://LOGIN.EXAMPLE/",
        "http://login.example/",
    )
    for issuer in (*near, " " + ISSUER, ISSUER + "\n", "", None, 1, [ISSUER], {"iss": ISSUER}):
        yield f"iss {issuer!r}", mint.token("RS256", {**CLAIMS, "iss": issuer})
    lists = ([], ["other"], [AUDIENCE + "x"], [[AUDIENCE]], [AUDIENCE, 1], {AUDIENCE: 1})
    for audience in ("wsrecove", "wsrecover2", "WSRECOVER", "wsrecover ", "", "*", None, 1, True, *lists):
        yield f"aud {audience!r}", mint.token("RS256", {**CLAIMS, "aud": audience})
    for name in ("iss", "aud", "sub", "tenant"):
        left = {key: value for key, value in CLAIMS.items() if key != name}
        yield f"{name} missing", mint.token("ES256", left)
    for name in ("sub", "tenant"):
        for value in (None, 1, "", "a\nb", "a\x1b[31m", "x" * 129, ["ada"], {}, True):
            yield f"{name} {str(value)[:10]!r}", mint.token("HS256", {**CLAIMS, name: value})
    for roles in ("operator", {"operator": 1}, [1], [""], ["a b"], [str(n) for n in range(65)]):
        yield f"roles {str(roles)[:20]}", mint.token("EdDSA", {**CLAIMS, "roles": roles})
    for tier in (1, "", ["free"], "x" * 65):
        yield f"tier {str(tier)[:20]}", mint.token("EdDSA", {**CLAIMS, "tier": tier})
    for jti in (1, "", "x" * 257):
        yield f"jti {str(jti)[:20]}", mint.token("EdDSA", {**CLAIMS, "jti": jti})


def _forms(mint: Mint) -> Iterator[Case]:
    good = mint.token("RS256")
    head, claims, signature = good.split(".")
    general = {"payload": claims, "signatures": [{"protected": head, "signature": signature}]}
    yield "two parts", f"{head}.{claims}"
    yield "no claims", f"{head}..{signature}"
    yield "four parts", f"{good}.{signature}"
    yield "five parts, as JWE", f"{head}.{claims}.{signature}.{signature}.{signature}"
    yield "a dot in front", f".{good}"
    yield "a dot behind", f"{good}."
    yield "JSON serialization", orjson.dumps(general).decode()
    yield (
        "flattened JSON",
        orjson.dumps({"payload": claims, "protected": head, "signature": signature}).decode(),
    )
    yield "twice", f"{good},{good}"
    yield "with a space", f"{head}.{claims} .{signature}"
    yield "of 64 KB", mint.token("RS256", {**CLAIMS, "pad": "x" * 64_000})
    yield "a little too long", mint.token("RS256", {**CLAIMS, "pad": "x" * 6_500})
    yield "a token as claims", mint.token("RS256", good.encode())
    for payload in (b"", b"null", b"[]", b'"claims"', b"\xff", b"{", b"[" * 3000):
        yield f"claims {payload[:10]!r}", mint.token("RS256", payload)


def valid(mint: Mint) -> Iterator[Case]:
    """What must be accepted."""
    for algorithm in ALGORITHMS:
        yield f"{algorithm}", mint.token(algorithm)
        yield f"{algorithm} without kid", mint.token(algorithm, kid=None)
        yield f"{algorithm} without typ", mint.token(algorithm, typ=None)
        yield f"{algorithm} with unknown headers", mint.token(algorithm, x5t="abc", nonce=1)
        yield f"{algorithm} with jwk that is not looked at", mint.token(algorithm, jwk=mint.own[algorithm][1])
        yield (
            f"{algorithm} with more claims",
            mint.token(algorithm, {**CLAIMS, "scope": "a b", "act": {"sub": "x"}}),
        )
        yield f"{algorithm} within leeway", mint.token(algorithm, {**CLAIMS, "exp": NOW - LEEWAY + 1})
        early = {**CLAIMS, "nbf": NOW + LEEWAY, "iat": NOW + LEEWAY - 0.5}
        yield f"{algorithm} not before now, with leeway", mint.token(algorithm, early)
        yield f"{algorithm} for several", mint.token(algorithm, {**CLAIMS, "aud": ["other", AUDIENCE]})
        full = {**CLAIMS, "roles": ["service", "a"], "tier": "free", "jti": "t1", "iat": NOW}
        yield f"{algorithm} with all claims", mint.token(algorithm, full)
