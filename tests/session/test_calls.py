"""What a peer is told of an error."""

from __future__ import annotations

import pytest

from wsrecover.errors import CommandError, FrameError
from wsrecover.protocol.frames import ErrorBody, ErrorFrame, Reply
from wsrecover.session.calls import error_frame, refusal


@pytest.mark.parametrize(
    ("error", "frame"),
    [
        (
            FrameError("invalid", "must be an id", field="id", ref="r1", close=4502),
            ErrorFrame("invalid", "must be an id", field="id", ref="r1"),
        ),
        (
            CommandError("overloaded", "too many", field="token", retry_after=2.5),
            ErrorFrame("overloaded", "too many", field="token", retry_after=2.5),
        ),
    ],
)
def test_a_frame_tells_all_that_the_error_knows(error: FrameError | CommandError, frame: ErrorFrame) -> None:
    assert error_frame(error) == frame


def test_a_reply_tells_all_that_the_error_knows() -> None:
    error = CommandError("rate_limited", "too often", field="type", retry_after=1.5)
    body = ErrorBody("rate_limited", "too often", field="type", retry_after=1.5)
    assert refusal("r1", error) == Reply("r1", "error", error=body)
