"""What a server refuses, as the app is told."""

from __future__ import annotations

from wsrecover.errors import CommandError
from wsrecover.protocol.frames import ErrorBody, ErrorFrame

__all__ = ["refusal"]


def refusal(error: ErrorBody | ErrorFrame) -> CommandError:
    """What to raise for a frame that was refused, in its `reply` or by an `error`."""
    return CommandError(error.code, error.message, field=error.field, retry_after=error.retry_after)
