"""Who is who, and who may what."""

from __future__ import annotations

from .authenticator import Authenticator, Credentials
from .claims import Grant
from .jwks import KeySource
from .opening import open_verifier
from .principal import Principal
from .tokens import TokenVerifier, read_secret, sign

__all__ = [
    "Authenticator",
    "Credentials",
    "Grant",
    "KeySource",
    "Principal",
    "TokenVerifier",
    "open_verifier",
    "read_secret",
    "sign",
]
