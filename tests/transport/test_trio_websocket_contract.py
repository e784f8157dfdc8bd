"""What `engine.py` builds on in trio-websocket 0.12, private names included, and in wsproto."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import pytest
import trio
import trio_websocket
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection, Ping, TextMessage

from wsrecover.testing import PipeStream, memory_pipe_pair
from wsrecover.transport.engine import Engine
from wsrecover.transport.outbox import Outbox


def connection() -> trio_websocket.WebSocketConnection:
    pipe, _ = memory_pipe_pair()
    protocol = Connection(ConnectionType.SERVER)
    return trio_websocket.WebSocketConnection(PipeStream(pipe), protocol, host="", path="")


def test_the_version_is_the_one_it_was_written_against() -> None:
    assert version("trio-websocket").startswith("0.12.")


async def test_the_private_names_exist() -> None:
    for method in ("_send", "_handle_ping_event", "_handle_pong_event"):
        function = getattr(trio_websocket.WebSocketConnection, method)
        assert inspect.iscoroutinefunction(function)
        assert list(inspect.signature(function).parameters) == ["self", "event"]
    assert inspect.iscoroutinefunction(trio_websocket.WebSocketConnection._abort_web_socket)


@pytest.mark.parametrize("method", ["_send", "_handle_pong_event", "ping"])
async def test_what_the_library_reads_of_itself_is_there_without_its_constructor(method: str) -> None:
    pipe, _ = memory_pipe_pair()
    engine = Engine(Outbox(pipe), b"", 1024)
    library = trio_websocket.WebSocketConnection
    code = inspect.unwrap(getattr(library, method)).__code__
    own = {name for name in code.co_names if name in vars(connection())}
    assert own, "nothing is read: the test looks at the wrong code"
    assert own <= set(dir(engine))


@pytest.mark.parametrize("early", [b"", b"\x81\x80\0\0\0\0"])
async def test_nothing_of_wsproto_is_made_before_there_is_something_to_parse(early: bytes) -> None:
    pipe, peer = memory_pipe_pair()
    engine = Engine(Outbox(pipe), early, 1024)
    heard: list[str | bytes] = []
    await engine.handle(heard.append)
    assert ("_wsproto" in vars(engine), heard) == (bool(early), [""] * bool(early))
    assert peer.send_nowait(b"\x81\x81\0\0\0\0a")
    assert await engine.read()
    await engine.handle(heard.append)
    assert heard[-1] == "a"


async def test_sending_maps_a_lost_stream_to_the_librarys_error() -> None:
    ws = connection()
    await ws._stream.aclose()
    with pytest.raises(trio_websocket.ConnectionClosed):
        await ws._send(Ping(payload=b"x"))


def test_wsproto_starts_after_the_handshake_and_reports_bad_frames_with_the_state_left_open() -> None:
    protocol = Connection(ConnectionType.SERVER, trailing_data=b"\x81\x80\0\0\0\0\x83\x80\0\0\0\0")
    message, verdict = protocol.events()
    assert isinstance(message, TextMessage)
    assert isinstance(verdict, CloseConnection)
    assert (verdict.code, protocol.state) == (1002, ConnectionState.OPEN)


def test_wsproto_goes_on_where_a_cancelled_reader_left_off() -> None:
    protocol = Connection(ConnectionType.SERVER, trailing_data=b"\x81\x81\0\0\0\0a\x81\x81\0\0\0\0b")
    first = next(protocol.events())
    second = next(protocol.events())
    assert [first.data, second.data] == ["a", "b"]


async def test_a_pong_wakes_the_ping_that_waits() -> None:
    ws = connection()
    event = trio.Event()
    ws._pings[b"1"] = event
    await ws._handle_pong_event(Ping(payload=b"1"))
    assert event.is_set()
