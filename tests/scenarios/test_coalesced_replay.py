"""A message that was missed comes back in few words, and says the same as the live one."""

from __future__ import annotations

from typing import Any

import trio

from wsrecover import connect
from wsrecover.agents import App, Run
from wsrecover.client import ClientSession, Event
from wsrecover.config import Retention
from wsrecover.protocol.context import EMPTY, Context, reduce
from wsrecover.testing import LocalServer, Peer, local_server

TOKENS = [f"word{n} " if n % 10 else "wörd😀 " for n in range(10_000)]


class Author:
    """The agent `author` writes one message token by token, each an event, and ends when it is told to."""

    def __init__(self, tokens: list[str]) -> None:
        self.app = App()
        self.app.agent("author")(self._work)
        self.written = trio.Event()
        self.end = trio.Event()
        self._tokens = tokens

    async def _work(self, run: Run) -> None:
        await run.emit("message_started", {"message_id": "m", "role": "assistant"})
        offset = 0
        for token in self._tokens:
            await run.emit("message_delta", {"message_id": "m", "offset": offset, "text": token})
            offset += len(token.encode("utf-16-le")) // 2
        await run.flush()
        self.written.set()
        await self.end.wait()
        await run.emit("message_completed", {"message_id": "m", "text": "".join(self._tokens)})


def events_of(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frame for frame in frames if frame["op"] == "event"]


def covered(events: list[dict[str, Any]]) -> list[int]:
    return [seq for event in events for seq in range(event.get("first_seq", event["seq"]), event["seq"] + 1)]


async def context_of(session: ClientSession, upto: int) -> Context:
    """The context that the session's events make, the one with this seq the last of them."""
    context = EMPTY
    async for item in session:
        assert isinstance(item, Event)
        context = reduce(context, item)
        if item.seq == upto:
            break
    return context


async def test_a_replay_of_10_000_token_deltas_is_a_handful_of_frames_and_one_batch() -> None:
    author = Author(TOKENS)
    async with local_server(author.app, retention=Retention(events=20_000)) as local:
        async with connect(local.url, token=local.token(), from_="start") as watching:
            await watching.start_agent("author")
            live = await context_of(watching, 2 + len(TOKENS))
        await author.written.wait()
        async with local.peer(**{"from": "start"}) as peer:
            _, *frames = await peer.until("live")
        async with connect(local.url, token=local.token(), from_="start") as session:
            batch = await anext(session.batches())
    events = events_of(frames)
    assert len(events) == 5, "two that begin, and three as large as a part"
    assert covered(events) == list(range(1, len(TOKENS) + 3))
    deltas = [event["data"] for event in events if event["type"] == "message_delta"]
    assert "".join(data["text"] for data in deltas) == "".join(TOKENS)
    assert [item.seq for item in batch if isinstance(item, Event)] == [event["seq"] for event in events]
    context = EMPTY
    for item in batch:
        assert isinstance(item, Event)
        context = reduce(context, item)
    assert context == live
    (message,) = context.json()["messages"]
    assert message["text"] == "".join(TOKENS)


async def missed(local: LocalServer, epoch: str, seq: int) -> tuple[Peer, list[dict[str, Any]]]:
    async with local.peer(client="phone", resume={"user": [epoch, seq]}) as peer:
        return peer, events_of(await peer.until("live"))


async def test_a_message_that_was_cut_goes_on_where_it_was_and_a_finished_one_comes_as_its_text() -> None:
    author = Author(TOKENS[:40])
    whole = "".join(TOKENS[:40])
    async with local_server(author.app) as local:
        async with local.peer(client="phone") as peer:
            (welcome, *_) = await peer.until("live")
            epoch = welcome["streams"]["user"]["epoch"]
            await peer.command("start_agent", {"agent": "author", "input": {}})
            first = await peer.events(12)
            peer.socket.kill()
        await author.written.wait()
        (rest,) = [await missed(local, epoch, 12) for _ in range(2)][-1][1]
        assert covered([*first, rest]) == list(range(1, 43))
        assert rest["data"]["offset"] == len("".join(TOKENS[:10]).encode("utf-16-le")) // 2
        assert rest["data"]["text"] == "".join(TOKENS[10:40])
        author.end.set()
        async with local.peer(**{"from": "start"}) as peer:
            frames = await peer.until("event", type="agent_completed")
        # Whoever has a part of it is sent the rest, and then the whole.
        _, some = await missed(local, epoch, 12)
        assert [event["type"] for event in some] == ["message_delta", "message_completed", "agent_completed"]
        assert covered(some) == list(range(13, 45))
        _, none = await missed(local, epoch, 1)
    started, finished, ended = none
    assert (started["type"], finished["type"]) == ("message_started", "message_completed")
    assert (finished["first_seq"], finished["seq"], finished["data"]["text"]) == (3, 43, whole)
    assert ended["seq"] == 44
    assert covered(events_of(frames))[-1] == 44
