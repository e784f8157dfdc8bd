"""Any welcome: written out, it is what `encode` makes of it."""

from __future__ import annotations

from hypothesis import given
from strategies import SERVER

from wsrecover.protocol.codec import encode, welcome_frame
from wsrecover.protocol.frames import Welcome


@given(SERVER["welcome"])
def test_a_welcome_is_written_as_any_frame_is(welcome: Welcome) -> None:
    assert welcome_frame(welcome) == encode(welcome)
