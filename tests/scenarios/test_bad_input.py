"""E12: whatever a client sends is answered by a typed error or a close code, and nobody else notices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import orjson
import pytest
import trio
from mutants import GOOD, Mutator
from serving import PATIENCE
from structlog.testing import capture_logs
from witness import Witness

from wsrecover import protocol
from wsrecover.errors import ConnectionClosed, HandshakeRefused
from wsrecover.protocol.frames import ERROR_CODES, SUBPROTOCOL
from wsrecover.testing import LocalServer, Peer
from wsrecover.transport import open_socket

SPEC: Final = Path(protocol.__file__).with_name("SPEC.md")

SEED = 12

COMMAND = {"op": "send", "id": "c1", "type": "chat", "data": {"text": "hi"}}


def changed(**fields: Any) -> bytes:
    return orjson.dumps({**COMMAND, **fields})


SURVIVED: list[tuple[bytes, str, str | None]] = [
    # Not a message at all
    (b"", "malformed", None),
    (b"hello", "malformed", None),
    (b"{", "malformed", None),
    (b'{"op":"ping"}}', "malformed", None),
    (b'{"op":"ping",}', "malformed", None),
    (b"{'op':'ping'}", "malformed", None),
    (b"null", "malformed", None),
    (b"7", "malformed", None),
    (b'"ping"', "malformed", None),
    (b"[]", "malformed", None),
    (b"[" + b",".join([b'{"op":"ping"}'] * 257) + b"]", "malformed", None),
    (b"[1]", "malformed", None),
    (b"[[]]", "malformed", None),
    # JSON that is not strict
    (b'{"op":"ack","pos":{"user":NaN}}', "malformed", None),
    (b'{"op":"ack","pos":{"user":Infinity}}', "malformed", None),
    (changed()[:-1] + b',"age":1e999}', "malformed", None),
    (b'{"op":"ping","op":"bye"}', "malformed", None),
    (changed()[:-1] + b',"data":{"text":"other"}}', "malformed", None),
    (b'{"op":"send","id":"c1","type":"chat","data":{"text":"\\ud800"}}', "malformed", None),
    (b'{"op":"send","id":"c1","type":"chat","data":{"\\udfff":1}}', "malformed", None),
    (b'{"op":"ack","pos":{"user":9007199254740992}}', "malformed", None),
    (b'{"op":"ack","pos":{"user":' + b"9" * 5000 + b"}}", "malformed", None),
    (b'{"op":"send","data":' + b"[" * 64 + b"]" * 64 + b"}", "malformed", None),
    (b"[" * 20_000 + b"]" * 20_000, "malformed", None),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "malformed", None),
    # Frames that are none
    (b"{}", "malformed", "op"),
    (b'{"op":null}', "malformed", "op"),
    (b'{"op":["ping"]}', "malformed", "op"),
    (b'{"op":"pingg"}', "unknown_op", "op"),
    (b'{"op":"welcome"}', "unknown_op", "op"),
    (b'{"op":""}', "unknown_op", "op"),
    (b'{"op":"hello","client":"c"}', "invalid", "op"),
    # Fields that are missing or wrong
    (b'{"op":"ack"}', "invalid", "pos"),
    (b'{"op":"ack","pos":[]}', "invalid", "pos"),
    (b'{"op":"ack","pos":{"user":"0"}}', "invalid", "pos.user"),
    (b'{"op":"ack","pos":{"user":0.0}}', "invalid", "pos.user"),
    (b'{"op":"ack","pos":{"user":false}}', "invalid", "pos.user"),
    (b'{"op":"ack","pos":{"user":-1}}', "invalid", "pos.user"),
    (b'{"op":"ack","pos":{"user":999}}', "invalid", "pos.user"),
    (b'{"op":"ack","pos":{"other":0}}', "invalid", "pos.other"),
    (b'{"op":"send","type":"chat","data":{}}', "invalid", "id"),
    (changed(id=""), "invalid", "id"),
    (changed(id="x" * 129), "invalid", "id"),
    (changed(id="sch\u00f6n"), "invalid", "id"),
    (changed(id="a\nb"), "invalid", "id"),
    (changed(id=7), "invalid", "id"),
    (changed(type=None), "invalid", "type"),
    (changed(data="text"), "invalid", "data"),
    (changed(data=None), "invalid", "data"),
    (changed(thread=7), "invalid", "thread"),
    (changed(age=-1), "invalid", "age"),
    (changed(age="1"), "invalid", "age"),
    (b'{"op":"auth","id":"a1"}', "invalid", "token"),
    (b'{"op":"hello"}', "invalid", "client"),
    (b'{"op":"hello","client":"c","resume":{"user":["e"]}}', "invalid", "resume.user"),
    (b'{"op":"hello","client":"c","resume":{"user":["e","1"]}}', "invalid", "resume.user[1]"),
    (b'{"op":"hello","client":"c","from":"end"}', "invalid", "from"),
]
"""What is answered with one `error` of this code, about this field; the connection goes on."""

REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"type": "sing"}, "unknown_type", "type"),
    ({"type": "respond", "data": {}}, "invalid", "data.request"),
    ({"type": "respond", "data": {"request": "none", "answer": 1}}, "not_found", "data.request"),
    ({"type": "note", "data": {"text": "x", "stars": [1, "2"]}}, "invalid", "data.stars[1]"),
    ({"type": "start_agent", "data": {}}, "invalid", "data.agent"),
    ({"type": "start_agent", "data": {"agent": 7}}, "invalid", "data.agent"),
    ({"type": "start_agent", "data": {"agent": "worker", "input": []}}, "invalid", "data.input"),
    ({"type": "start_agent", "data": {"agent": "nobody"}}, "not_found", "data.agent"),
    ({"type": "cancel_run", "data": {"run": "none"}}, "not_found", "data.run"),
    ({"type": "cancel_run", "data": {"run": None}}, "invalid", "data.run"),
    ({"type": "user_message", "data": {}}, "invalid", "data.text"),
    ({"type": "user_message", "data": {"text": ["hi"]}}, "invalid", "data.text"),
    ({"type": "publish", "data": {"user": "bob", "events": []}}, "forbidden", None),
    ({"age": 601}, "expired", "age"),
]
"""What is answered with a `reply` that is an error."""

CLOSED: list[tuple[bytes, int]] = [
    (b"\x82\x84\x00\x00\x00\x00ping", 4502),
    (b"\x82\x80\x00\x00\x00\x00", 4502),
    (b"\x81\x82\x00\x00\x00\x00\xff\xfe", 1007),
    (b"\x81\x83\x00\x00\x00\x00\xed\xa0\x80", 1007),
    (b"\x81\xff" + (65 * 1024).to_bytes(8, "big") + bytes(4) + b'"' + b"x" * (65 * 1024 - 1), 1009),
    (b"\x81\xff" + (2**63).to_bytes(8, "big") + bytes(4), 1002),
    (b"\x81\x0d" + b'{"op":"ping"}', 1002),
    (b"\xc1\x8d\x00\x00\x00\x00" + b'{"op":"ping"}', 1002),
    (b"\x83\x80\x00\x00\x00\x00", 1002),
    (b"\x80\x80\x00\x00\x00\x00", 1002),
    (b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + bytes(126), 1002),
]
"""Bytes on the wire, and the code with which the connection is closed for them."""


def short(value: object) -> str:
    return repr(value)[:60]


@pytest.fixture
async def undisturbed(local: LocalServer) -> AsyncIterator[None]:
    """Somebody else, another tab of the same user and the log see nothing of what the test does."""
    witness = Witness(local)
    with capture_logs() as logs:
        async with witness.client("bob") as other, witness.client() as tab:
            await witness.publish(1, "bob")
            welcomes = len(other.welcomes), len(tab.welcomes)
            yield
            await witness.publish(1, "bob")
            await witness.publish(1, "ada")
            assert [event.type for event in await other.take(2)] == ["noted"] * 2
            await tab.until("noted")
            assert (len(other.welcomes), len(tab.welcomes)) == welcomes, "they stayed connected"
            assert other.notices == tab.notices == []
            assert other.session.last_error is None
            assert tab.session.last_error is None
    assert [entry for entry in logs if entry["log_level"] in ("warning", "error", "critical")] == []


@pytest.mark.parametrize(("message", "code", "field"), SURVIVED, ids=short)
async def test_e12_a_bad_message_is_answered_and_the_connection_goes_on(
    message: bytes, code: str, field: str | None, local: LocalServer, undisturbed: None
) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        await peer.socket.send(message.decode())
        error = await peer.frame()
        assert (error["op"], error["code"], error.get("field")) == ("error", code, field)
        assert error["message"]
        await still_well(peer)


async def still_well(peer: Peer) -> None:
    """It answers a ping and takes a command, and nothing else is on its way."""
    await peer.send({"op": "ping"})
    assert await peer.frame() == {"op": "pong"}
    assert (await peer.command("chat", {"text": "hi"}))["status"] == "ok"


@pytest.mark.parametrize(("fields", "code", "field"), REFUSED, ids=short)
async def test_e12_a_bad_command_is_refused_by_its_reply(
    fields: dict[str, Any], code: str, field: str | None, local: LocalServer, undisturbed: None
) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        await peer.send({**COMMAND, **fields})
        reply = await peer.frame()
        assert (reply["op"], reply["id"], reply["status"]) == ("reply", "c1", "error")
        assert (reply["error"]["code"], reply["error"].get("field")) == (code, field)
        # A refusal is not kept: the same id may be tried again.
        assert (await peer.command("chat", {"text": "hi"}, id="c1"))["status"] == "ok"


@pytest.mark.parametrize(
    ("data", "problem"), [({}, "is missing"), ({"agent": ""}, "must be a non-empty text")], ids=short
)
async def test_e12_a_field_that_is_missing_is_said_to_be(
    data: dict[str, Any], problem: str, local: LocalServer
) -> None:
    async with local.peer() as peer:
        reply = await peer.command("start_agent", data)
        assert (reply["error"]["field"], reply["error"]["message"]) == ("data.agent", problem)
    if not data:
        assert json.dumps(reply["error"], separators=(",", ":")) in SPEC.read_text(), "its example"


@pytest.mark.parametrize(("wire", "code"), CLOSED, ids=short)
async def test_e12_bytes_that_are_no_message_close_the_connection(
    wire: bytes, code: int, local: LocalServer, undisturbed: None
) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        peer.socket.outbox.put(wire)
        await peer.socket.outbox.drain()
        assert await how_it_ends(peer) == code


async def how_it_ends(peer: Peer) -> int:
    """The close code, before which at most errors come."""
    with trio.fail_after(PATIENCE):
        try:
            while True:
                assert (await peer.frame())["op"] == "error"
        except ConnectionClosed as closed:
            return closed.code


async def test_e12_of_an_array_the_good_frames_count(local: LocalServer, undisturbed: None) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        await peer.send([{"op": "nothing"}, {"op": "ping"}, 7, {"op": "ack"}, {"op": "ping"}])
        ops = [(await peer.frame())["op"] for _ in range(5)]
        assert ops == ["error", "pong", "error", "error", "pong"]
        await still_well(peer)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("client=", "client"),
        ("client=%00", "client"),
        ("client=c&from=end", "from"),
        ("client=c&resume=", "resume"),
        ("client=c&resume=%7B", "resume"),
        ("client=c&resume=" + quote('{"user":["e",1],"user":["e",2]}'), "resume"),
        ("client=c&resume=" + quote('{"user":["e","1"]}'), "resume.user[1]"),
        ("client=c&threads=" + quote('["t1",7]'), "threads[1]"),
        ("client=c&part=" + quote('{"user":[1]}'), "part.user"),
        ("client=c&client=d", "given twice"),
    ],
)
async def test_e12_a_bad_hello_in_the_url_is_answered_400(
    query: str, words: str, local: LocalServer, undisturbed: None
) -> None:
    with pytest.raises(HandshakeRefused) as refused:
        async with open_with(local, query):
            raise AssertionError("this was to be refused")
    assert refused.value.status == 400
    assert words in refused.value.body


def open_with(local: LocalServer, query: str) -> Any:
    return open_socket(
        f"{local.url}/v1/connect?{query}",
        headers={"Authorization": f"Bearer {local.token()}"},
        subprotocols=[SUBPROTOCOL],
        timeout=10,
        max_message_bytes=1 << 20,
    )


class TestE12Thousands:
    MESSAGES = 6_000
    HELLOS = 300

    async def test_e12_of_thousands_of_mutated_messages_none_is_unhandled(
        self, local: LocalServer, undisturbed: None
    ) -> None:
        mutator = Mutator(SEED)
        answers: Counter[str | int] = Counter()
        sent = 0
        while sent < self.MESSAGES:
            async with local.peer() as peer:
                await peer.until("live")
                try:
                    while sent < self.MESSAGES:
                        sent += 1
                        await self.ask(peer, mutator.message(), answers)
                except ConnectionClosed as closed:
                    answers[closed.code] += 1
        # A token that is none is all that may end a connection.
        assert set(answers) == {"error", "reply", 4501}, f"seed {SEED}: {answers}"
        assert answers["error"] > self.MESSAGES / 2, f"seed {SEED}: {answers}"
        assert answers["reply"] > 100, f"seed {SEED}: {answers}"
        async with local.peer() as peer:
            await peer.until("live")
            await still_well(peer)

    async def ask(self, peer: Peer, message: str, answers: Counter[str | int]) -> None:
        """Send it and a ping, and look at what comes until the pong."""
        await peer.socket.send(message)
        await peer.socket.send('{"op":"send","id":"mark","type":"cancel_run","data":{"run":"none"}}')
        with trio.fail_after(PATIENCE):
            while True:
                frame = await peer.frame()
                if frame.get("id") == "mark":
                    return
                if frame["op"] == "error":
                    assert frame["code"] in ERROR_CODES - {"internal"}, (SEED, message, frame)
                    answers["error"] += 1
                elif frame["op"] == "reply":
                    code = (frame.get("error") or {}).get("code", "invalid")
                    assert code in ERROR_CODES - {"internal"}, (SEED, message, frame)
                    answers["reply"] += 1
                else:
                    assert frame["op"] in ("pong", "event", "skip", "snapshot"), (SEED, message, frame)

    async def test_e12_nor_of_hundreds_of_mutated_hellos(self, local: LocalServer, undisturbed: None) -> None:
        mutator = Mutator(SEED)
        codes: list[int] = []
        for number in range(self.HELLOS):
            hello = {**GOOD[-1], "token": local.token("eve"), "client": "c" * 24}
            async with local.stranger() as peer:
                await peer.socket.send(orjson.dumps(mutator.frame(hello)).decode())
                try:
                    with trio.fail_after(PATIENCE):
                        frames = await peer.until("live")
                        assert frames[0]["op"] == "welcome", (SEED, number)
                    codes.append(0)
                except ConnectionClosed as closed:
                    codes.append(closed.code)
        assert set(codes) == {0, 4501, 4502}, f"seed {SEED}"
        assert min(codes.count(code) for code in (0, 4501, 4502)) > 10, f"seed {SEED}"
