"""What goes wrong in a test with a local server is told as it is, in no group."""

from __future__ import annotations

import pytest
import trio

from wsrecover.errors import ConfigError, StoreUnavailable
from wsrecover.testing import local_server


class Trouble(Exception):
    pass


async def test_what_the_block_raises_passes_out_as_it_is() -> None:
    trouble = Trouble()
    trouble.__context__ = earlier = KeyError()
    with pytest.raises(Trouble) as raised:
        async with local_server(log_level="error"):
            raise trouble
    assert raised.value is trouble
    assert trouble.__context__ is earlier
    assert not trouble.__suppress_context__


async def test_a_group_of_the_blocks_own_stays_one() -> None:
    trouble = Trouble()
    with pytest.raises(ExceptionGroup) as raised:
        async with local_server(log_level="error"):
            raise ExceptionGroup("mine", [trouble])
    assert (raised.value.message, raised.value.exceptions) == ("mine", (trouble,))


async def test_what_keeps_the_server_from_starting_is_told_as_serve_tells_it() -> None:
    with pytest.raises(StoreUnavailable, match="the folder /nope does not exist"):
        async with local_server(store="sqlite:/nope/x.db"):
            raise AssertionError("it started")


async def test_a_mistyped_setting_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="prot"):
        async with local_server(prot=0):
            raise AssertionError("it started")


async def test_a_cancellation_passes_through() -> None:
    with trio.CancelScope() as scope:
        async with local_server(log_level="error"):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
