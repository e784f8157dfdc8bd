"""Who is who, and who may what."""

from __future__ import annotations

from .principal import Principal
from .tokens import Grant, TokenVerifier, read_secret, sign

__all__ = ["Grant", "Principal", "TokenVerifier", "read_secret", "sign"]
