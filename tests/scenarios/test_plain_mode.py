"""M07: clients that know nothing of frames see the same events, in order and once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import trio
from serving import log_of
from stage import Stage
from trio.testing import MockClock

from wsrecover.config import Retention
from wsrecover.errors import ConnectionClosed, HandshakeRefused
from wsrecover.protocol.events import AGENT_EVENTS
from wsrecover.protocol.plain import PLAIN
from wsrecover.testing import LocalServer, local_server
from wsrecover.transport import ClientSocket, open_socket

Word = dict[str, Any]

ACROSS_DROPS = ("think", "tool", "think", "tool")


class Terminal:
    """What a person at a terminal sees: a message, then the next."""

    def __init__(self, socket: ClientSocket) -> None:
        self.socket = socket
        self.begins = ""
        """The id that it was told to begin behind, where it brought none."""

    async def word(self) -> Word:
        with trio.fail_after(10):
            said = orjson.loads(await self.socket.receive())
        assert isinstance(said, dict), "one thing in a message"
        return said

    async def words(self, count: int) -> list[Word]:
        return [await self.word() for _ in range(count)]

    async def until(self, kind: str) -> list[Word]:
        words = [await self.word()]
        while words[-1]["type"] != kind:
            words.append(await self.word())
        return words

    async def say(self, word: object) -> None:
        await self.socket.send(orjson.dumps(word).decode())


@asynccontextmanager
async def terminal(
    local: LocalServer, since: str | None = None, *, subprotocols: tuple[str, ...] = (PLAIN,), **token: Any
) -> AsyncIterator[Terminal]:
    query = "" if since is None else f"?since={since}"
    async with open_socket(
        f"{local.url}/v1/connect{query}",
        headers={"Authorization": f"Bearer {local.token(**token)}"},
        subprotocols=list(subprotocols),
        timeout=10.0,
        max_message_bytes=1 << 22,
    ) as socket:
        plain = Terminal(socket)
        if since is None and socket.subprotocol in (PLAIN, None):
            word = await plain.word()
            assert word == {"type": "welcome", "id": word["id"]}
            plain.begins = word["id"]
        yield plain


def seqs(words: list[Word]) -> list[int]:
    return [int(word["id"].rpartition(".")[2]) for word in words]


def as_plain(epoch: str, event: dict[str, Any]) -> Word:
    """An event of version 1, as the plain mode has it."""
    rest = {name: event[name] for name in ("type", "data", "thread", "run", "ts") if name in event}
    return {"id": f"{epoch}.{event['seq']}", **rest}


async def test_m07_e01_the_five_events_of_a_run_reach_a_plain_client_over_drops(
    stage: Stage, local: LocalServer
) -> None:
    async with terminal(local) as plain:
        await plain.say({"type": "start_agent", "data": {"agent": "worker", "input": {}}, "thread": "t1"})
        seen = [word for word in await plain.words(2) if word["type"] != "reply"]
    for step in ACROSS_DROPS:
        async with terminal(local, seen[-1]["id"]) as plain:
            stage.tell(step)
            seen += await plain.words(2 if step == "tool" else 1)
    stage.tell("finish")
    async with terminal(local, seen[-1]["id"]) as plain:
        seen += await plain.until("agent_completed")
    epoch, events = await log_of(local)
    assert seen == [as_plain(epoch, event) for event in events]
    assert {word["type"] for word in seen} == set(AGENT_EVENTS)


async def test_m07_r02_what_was_emitted_while_away_follows_the_id_in_order_and_once(
    local: LocalServer,
) -> None:
    async with terminal(local) as plain:
        await local.server.publish("acme", "ada", "noted", {"n": 0}, thread="t")
        seen = [await plain.word()]
    for n in range(1, 601):
        await local.server.publish("acme", "ada", "noted", {"n": n})
    async with terminal(local, seen[-1]["id"]) as plain:
        seen += await plain.words(600)
        await local.server.publish("acme", "ada", "noted", {"n": 601})
        seen.append(await plain.word())
    epoch, events = await log_of(local)
    assert seen == [as_plain(epoch, event) for event in events]
    assert [word["data"]["n"] for word in seen] == list(range(602))


async def test_m07_without_an_id_it_begins_live(local: LocalServer) -> None:
    await local.server.publish("acme", "ada", "noted", {"n": 0})
    async with terminal(local) as plain:
        await local.server.publish("acme", "ada", "noted", {"n": 1})
        assert (await plain.word())["data"] == {"n": 1}


async def test_m07_who_is_cut_off_before_anything_came_misses_nothing(local: LocalServer) -> None:
    await local.server.publish("acme", "ada", "noted", {"n": 0})
    async with terminal(local) as plain:
        begins = plain.begins
    await local.server.publish("acme", "ada", "noted", {"n": 1})
    async with terminal(local, begins) as plain:
        assert (await plain.word())["data"] == {"n": 1}


async def test_m07_a_large_event_comes_in_one_message(local: LocalServer) -> None:
    async with terminal(local) as plain:
        await local.server.publish("acme", "ada", "noted", {"pad": "x" * 300_000})
        first = await plain.word()
        await local.server.publish("acme", "ada", "noted", {"n": 1})
        second = await plain.word()
    assert (len(first["data"]["pad"]), second["data"]) == (300_000, {"n": 1})
    async with terminal(local, first["id"].replace(".1", ".0")) as plain:
        assert await plain.words(2) == [first, second]


async def test_m07_what_is_gone_is_said_with_the_id_that_it_reaches_to(stage: Stage) -> None:
    async with local_server(stage.app, retention=Retention(events=10)) as local:
        epoch = (await local.server.publish("acme", "ada", "noted", {"n": 0})).epoch
        for n in range(1, 200):
            await local.server.publish("acme", "ada", "noted", {"n": n})
        async with terminal(local, f"{epoch}.1") as plain:
            gap, *rest = await plain.words(6)
            assert (gap["type"], gap["reason"]) == ("gap", "trimmed")
            assert seqs([gap, *rest])[0] + 1 == seqs(rest)[0]
            assert seqs(rest) == list(range(seqs(rest)[0], seqs(rest)[0] + 5))
        async with terminal(local, "another-history.7") as plain:
            gap, first = await plain.words(2)
            assert (gap["type"], gap["reason"]) == ("gap", "epoch_changed")
            assert seqs([gap])[0] + 1 == seqs([first])[0]
        async with terminal(local, gap["id"]) as plain:
            assert await plain.word() == first


async def test_m07_broadcasts_come_live_and_without_an_id(stage: Stage, local: LocalServer) -> None:
    await local.server.broadcast("tenant", "notice", {"n": 0}, tenant="acme")
    epoch = (await local.server.publish("acme", "ada", "noted", {"n": 0})).epoch
    async with terminal(local, f"{epoch}.0") as plain:
        assert (await plain.word())["type"] == "noted"
        await local.server.broadcast("tenant", "notice", {"n": 1}, tenant="acme")
        word = await plain.word()
    assert (word["type"], word["data"], "id" in word) == ("notice", {"n": 1}, False)
    assert word["ts"] > 0


async def test_m07_what_it_says_is_a_command_and_takes_effect_once(local: LocalServer) -> None:
    async with terminal(local) as plain:
        for _ in range(2):
            await plain.say({"type": "chat", "data": {"text": "hello"}, "id": "mine"})
        words = await plain.words(3)
        replies = [word for word in words if word["type"] == "reply"]
        assert [(word["id"], word["status"]) for word in replies] == [("mine", "ok"), ("mine", "duplicate")]
        assert [word["data"] for word in words if word["type"] == "chat"] == [{"text": "hello"}]
        await plain.say({"type": "chat", "data": {"text": "again"}})
        (reply,) = [word for word in await plain.words(2) if word["type"] == "reply"]
        assert (reply["status"], reply["result"]) == ("ok", {"seq": 2})


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("not JSON", "malformed"),
        ('{"type":"chat","type":"chat","data":{}}', "malformed"),
        ("[1]", "malformed"),
        ('[{"op":"bye"}]', "malformed"),
        ('[{"type":"chat","data":{}}]', "malformed"),
        ('{"type":"chat","data":{"n":12345678901234567890}}', "malformed"),
        ('{"type":"chat","data":{"text":"\\ud800"}}', "malformed"),
        ('"chat"', "malformed"),
        ('{"data":{}}', "invalid"),
        ('{"type":"chat"}', "invalid"),
        ('{"op":"bye"}', "invalid"),
        ('{"type":"chat","data":{},"id":7}', "invalid"),
        ("x" * 70_000, None),
    ],
)
async def test_m07_what_it_says_wrong_is_answered_or_closes(
    local: LocalServer, said: str, code: str | None
) -> None:
    async with terminal(local) as plain:
        await plain.socket.send(said)
        if code is None:
            with pytest.raises(ConnectionClosed) as closed:
                await plain.word()
            assert closed.value.code == 1009
            return
        word = await plain.word()
        assert (word["type"], word["code"]) == ("error", code)
        assert not {"op", "frame"} & set(word["message"].replace(":", " ").split()), "words of version 1"
        await plain.say({"type": "chat", "data": {}})
        assert {word["type"] for word in await plain.words(2)} == {"reply", "chat"}


async def test_m07_a_binary_message_closes(local: LocalServer) -> None:
    async with terminal(local) as plain:
        await plain.socket.send(b"\x00")
        assert (await plain.word())["type"] == "error"
        with pytest.raises(ConnectionClosed) as closed:
            await plain.word()
        assert closed.value.code == 4502


class TestHandshake:
    async def test_no_subprotocol_will_do_with_a_header(self, local: LocalServer) -> None:
        async with terminal(local, subprotocols=()) as plain:
            assert plain.socket.subprotocol is None
            await plain.say({"type": "chat", "data": {}})
            assert {word["type"] for word in await plain.words(2)} == {"reply", "chat"}

    async def test_a_browser_brings_its_token_as_a_second_subprotocol(self, local: LocalServer) -> None:
        async with open_socket(
            f"{local.url}/v1/connect",
            headers={},
            subprotocols=[PLAIN, f"bearer.{local.token()}"],
            timeout=10.0,
            max_message_bytes=1 << 20,
        ) as socket:
            assert socket.subprotocol == PLAIN

    async def test_version_1_is_spoken_with_whoever_offers_both(self, local: LocalServer) -> None:
        async with terminal(local, subprotocols=(PLAIN, "wsrecover.v1")) as plain:
            assert plain.socket.subprotocol == "wsrecover.v1"

    @pytest.mark.parametrize(
        ("query", "headers", "subprotocols", "status"),
        [
            ("", {}, [PLAIN], 401),
            ("", {}, [], 400),
            ("", {}, ["chat"], 400),
            ("", {"Authorization": "Bearer x"}, [PLAIN], 401),
            ("?since=7", None, [PLAIN], 400),
            ("?since=e.", None, [PLAIN], 400),
            ("?since=e.-1", None, [PLAIN], 400),
            ("?since=e.99999999999999999", None, [PLAIN], 400),
            ("?since=.7", None, [PLAIN], 400),
            ("?client=%E9", None, [PLAIN], 400),
        ],
    )
    async def test_what_is_missing_or_wrong_is_refused(
        self,
        local: LocalServer,
        query: str,
        headers: dict[str, str] | None,
        subprotocols: list[str],
        status: int,
    ) -> None:
        given = {"Authorization": f"Bearer {local.token()}"} if headers is None else headers
        with pytest.raises(HandshakeRefused) as refused:
            async with open_socket(
                f"{local.url}/v1/connect{query}",
                headers=given,
                subprotocols=subprotocols,
                timeout=10.0,
                max_message_bytes=1 << 20,
            ):
                pass
        assert refused.value.status == status


async def test_m07_silence_is_asked_about_by_a_ping_that_any_library_answers(mock_clock: MockClock) -> None:
    async with local_server(wall_clock=trio.current_time) as local, terminal(local) as plain:
        for n in range(4):
            await local.server.publish("acme", "ada", "noted", {"n": n})
            # Its library answers the ping before it, of which nothing else is seen.
            assert (await plain.word())["data"] == {"n": n}
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(26)
            await trio.testing.wait_all_tasks_blocked(0.05)
            mock_clock.jump(0.5)


async def test_m07_a_server_that_stops_says_when_to_come_back(local: LocalServer) -> None:
    async with terminal(local) as plain, trio.open_nursery() as nursery:
        nursery.start_soon(local.server.drain)
        assert await plain.word() == {"type": "drain", "retry_after": 1.0, "jitter": 5.0}
        with pytest.raises(ConnectionClosed) as closed:
            await plain.word()
        assert closed.value.code == 4000
