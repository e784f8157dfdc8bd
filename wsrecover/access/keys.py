"""The keys that tokens are signed with. Each is for one algorithm, which no token can change.

The only module that imports joserfc.
"""

from __future__ import annotations

import warnings
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import attrs
import orjson
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from wsrecover.errors import ConfigError, TokenError, UnknownKey
from wsrecover.logger import get_logger

__all__ = ["MIN_SECRET_BYTES", "Key", "Keys", "opened", "parse_jwks", "sealed", "secret_key"]

log = get_logger(__name__)

MIN_SECRET_BYTES: Final = 32
"""RFC 7518, section 3.2: a key at least as long as the hash."""

MIN_RSA_BITS: Final = 2048
"""RFC 7518, section 3.3."""

MAX_KEYS: Final = 100
"""Keys of one set."""

Material: TypeAlias = OctKey | RSAKey | ECKey | OKPKey

_ALGORITHMS: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = {
    ("oct", None): ("HS256",),
    ("RSA", None): ("RS256",),
    ("EC", "P-256"): ("ES256",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
}
"""What a key (`kty`, `crv`) may be for; the first where its `alg` does not say."""

_SUPPORTED: Final = frozenset(name for names in _ALGORITHMS.values() for name in names)

_KINDS: Final[Mapping[str, type[Material]]] = {"oct": OctKey, "RSA": RSAKey, "EC": ECKey, "OKP": OKPKey}


class _Registry(jws.JWSRegistry):
    """Does not warn of the name EdDSA, which RFC 9864 replaces and most issuers still use. Which algorithm is
    allowed was decided when the key was found."""

    max_header_length = (
        8192  # The token as a whole is bounded; some issuers put certificates into its header.
    )

    def get_alg(self, name: str) -> Any:
        return self.algorithms[name]


_REGISTRY: Final = _Registry(strict_check_header=False)


@attrs.frozen
class Key:
    """A key and the algorithm (`alg` of RFC 7518) that it is for. `kid` is its name, if it has one."""

    algorithm: str
    kid: str | None
    material: Material = attrs.field(repr=False)


def secret_key(secret: bytes) -> Key:
    """The shared secret. Raises `ConfigError` where it is shorter than 32 bytes, or a public key."""
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError("secret", f"has {len(secret)} bytes", f"at least {MIN_SECRET_BYTES} bytes")
    try:
        return Key("HS256", None, OctKey.import_key(secret))
    except ValueError:
        raise ConfigError("secret", "is a public key", "random bytes that nobody else knows") from None


def parse_jwks(text: bytes, *, secrets: bool) -> tuple[Key, ...]:
    """The keys of a JSON Web Key Set (RFC 7517, section 5) that tokens can be verified with.

    Keys for something else (encryption, other algorithms) are passed over; so are shared secrets unless
    `secrets`, for what is published is none; and so, with a warning in the log, is a key that cannot be used.
    Raises `ValueError` where none is left, which says what is wrong and shows nothing.
    """
    try:
        tree = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise ValueError("is not JSON") from None
    members = tree.get("keys") if isinstance(tree, dict) else None
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise ValueError("is not a key set: an object with the list `keys`")
    if len(members) > MAX_KEYS:
        raise ValueError(f"has {len(members)} keys, at most {MAX_KEYS} are allowed")
    keys: list[Key] = []
    problem = "has no key that signs with HS256, RS256, ES256 or EdDSA"
    for place, member in enumerate(members):
        try:
            key = _key(member, secrets=secrets)
        except ValueError as error:
            problem = str(error)
            log.warning("key_passed_over", place=place, problem=problem)
        else:
            keys += [] if key is None else [key]
    if not keys:
        raise ValueError(problem)
    names = [(key.algorithm, key.kid) for key in keys]
    if len(names) != len(set(names)):
        raise ValueError("has two keys with the same kid, or several without one, for one algorithm")
    return tuple(keys)


def _key(member: Mapping[str, Any], *, secrets: bool) -> Key | None:
    kty, kid, usage, operations = (member.get(name) for name in ("kty", "kid", "use", "key_ops"))
    if kty == "oct" and not secrets:
        return None
    verifies = operations is None or (isinstance(operations, list) and "verify" in operations)
    if usage not in (None, "sig") or not verifies:
        return None
    if not (kid is None or isinstance(kid, str)):
        raise ValueError("has a kid that is no text")
    curve = member.get("crv") if kty in ("EC", "OKP") else None
    named = isinstance(kty, str) and isinstance(curve, str | None)
    usable = _ALGORITHMS.get((str(kty), curve), ()) if named else ()
    algorithm = member.get("alg", usable[0] if usable else None)
    if algorithm not in usable:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):  # Of keys that are too short, which are refused below.
            material = _KINDS[str(kty)].import_key(dict(member))
    except (JoseError, ValueError, TypeError):
        raise ValueError(f"has a key of the type {kty} that cannot be read") from None
    if isinstance(material, RSAKey) and material.public_key.key_size < MIN_RSA_BITS:
        raise ValueError(f"has an RSA key of fewer than {MIN_RSA_BITS} bits")
    if isinstance(material, OctKey) and len(material.raw_value) < MIN_SECRET_BYTES:
        raise ValueError(f"has a secret of fewer than {MIN_SECRET_BYTES} bytes")
    return Key(algorithm, kid, material)


class Keys:
    """The keys that are trusted. A secret without a `kid` stands for every `kid` that no other key has."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = {(key.algorithm, key.kid): key for key in keys}

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms that there is a key for."""
        return frozenset(algorithm for algorithm, _ in self._keys)

    def find(self, algorithm: str, kid: str | None) -> Key:
        """The key that a token names. Without a `kid` there must be one key alone for the algorithm.

        Raises `UnknownKey`, and `TokenError` for an algorithm for which there will be none either.
        """
        if algorithm not in self.algorithms:
            problem = f"the token's algorithm must be {' or '.join(sorted(self.algorithms))}"
            raise UnknownKey(problem) if algorithm in _SUPPORTED else TokenError(problem)
        key = self._keys.get((algorithm, kid))
        if key is None and algorithm == "HS256":
            key = self._keys.get((algorithm, None))
        if key is None and kid is None:
            fitting = [one for one in self._keys.values() if one.algorithm == algorithm]
            key = fitting[0] if len(fitting) == 1 else None
        if key is None:
            raise UnknownKey("the token names a key that is not known here")
        return key


def opened(token: bytes, keys: Keys) -> bytes:
    """The payload of a signed token in the compact form of RFC 7515.

    Raises `TokenError`, which holds nothing of the token, and `UnknownKey`.
    """
    key = keys.find(*_header(token))
    try:
        payload = jws.deserialize_compact(token, key.material, registry=_REGISTRY).payload
    except (JoseError, ValueError):
        raise TokenError("the token's signature or form is not valid") from None
    if payload is None:
        raise TokenError("the token has no claims")
    return payload


def _header(token: bytes) -> tuple[str, str | None]:
    """The algorithm and key that a token names: all that is believed of it before its signature is.

    `crit` is refused, for no extension is understood here; `jwk`, `jku`, `x5c` and `x5u` are not looked at.
    """
    segment = token.partition(b".")[0]
    try:
        header = orjson.loads(urlsafe_b64decode(segment + b"=" * (-len(segment) % 4)))
    except ValueError:
        raise TokenError("the token's header is not JSON") from None
    if not isinstance(header, dict) or not isinstance(header.get("alg"), str):
        raise TokenError("the token's header names no algorithm")
    kid = header.get("kid")
    if not (kid is None or isinstance(kid, str)):
        raise TokenError("the token's header names no key: kid must be a text")
    if "crit" in header:
        raise TokenError("the token's header asks for extensions")
    return header["alg"], kid


def sealed(key: Key, payload: bytes) -> str:
    """A token of `payload`, signed."""
    header: dict[str, Any] = {"alg": key.algorithm, "typ": "JWT"}
    if key.kid is not None:
        header["kid"] = key.kid
    return jws.serialize_compact(header, payload, key.material, registry=_REGISTRY)
