"""`wsrecover token`: sign a token."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter

from wsrecover.access.tokens import read_secret, sign
from wsrecover.errors import TokenError

from .exits import USAGE, Failure, write_out
from .options import SecretFile

__all__ = ["token"]


def token(
    *,
    tenant: Annotated[str, Parameter(help="The tenant that the user belongs to.")],
    user: Annotated[str, Parameter(help="The user that the token speaks for.")],
    role: Annotated[
        tuple[str, ...],
        Parameter(negative=(), show_default=False, help="A role of the user's; may be given several times."),
    ] = (),
    tier: Annotated[str | None, Parameter(help="The user's tier.")] = None,
    issuer: Annotated[str | None, Parameter(help="Who signs it, its `iss`.")] = None,
    audience: Annotated[str | None, Parameter(help="Whom it is for, its `aud`.")] = None,
    lifetime: Annotated[float, Parameter(help="Seconds until the token expires.")] = 3600.0,
    secret_file: SecretFile = None,
) -> int:
    """Sign a token and print it."""
    if not 0 < lifetime < float("inf"):
        raise Failure(f"--lifetime is {lifetime}; accepted: a number of seconds > 0", USAGE)
    secret = read_secret(secret_file)
    try:
        signed = sign(
            secret,
            tenant=tenant,
            user=user,
            roles=role,
            tier=tier,
            issuer=issuer,
            audience=audience,
            lifetime=lifetime,
            clock=time.time,
        )
    except TokenError as error:
        field, _, problem = str(error).partition(": ")
        option = "role" if field.startswith("role") else field
        raise Failure(f"--{option}: {problem}", USAGE) from error
    write_out(f"{signed}\n")
    return 0
