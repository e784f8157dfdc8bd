"""Live text comes in time and whole: the first of a message at once, what follows some times in a second."""

from __future__ import annotations

import trio
import trio.testing
from serving import START
from trio.testing import MockClock

from wsrecover.agents import App, Run
from wsrecover.config import Timeouts
from wsrecover.testing import LocalServer, Peer, local_server

WORDS = [f"wörd{n}😀 " for n in range(9)]


class Speaker:
    """The agent `speaker` says a word each time that the test puts one, and ends with the last of them."""

    def __init__(self) -> None:
        self.app = App()
        self.app.agent("speaker")(self._work)
        self._put, self._said = trio.open_memory_channel[str](100)

    async def _work(self, run: Run) -> None:
        async with run.message() as message:
            async for word in self._said:
                await message.text(word)
                if word == WORDS[-1]:
                    break

    async def say(self, *words: str) -> None:
        for word in words:
            self._put.send_nowait(word)
        await trio.testing.wait_all_tasks_blocked(0.001)


async def came(peer: Peer) -> list[tuple[str, str]]:
    """The events that it has been sent once the server has done all that it can: their types and texts.

    What is not there by then never comes: time stands still until the test moves it.
    """
    await trio.testing.wait_all_tasks_blocked(0.001)
    await peer.send({"op": "ping"})
    *events, _ = await peer.until("pong")
    return [(event["type"], event["data"].get("text", "")) for event in events]


def delta(*words: str) -> tuple[str, str]:
    return "message_delta", "".join(words)


ENDING = [("message_completed", "".join(WORDS)), ("agent_completed", "")]


async def begin(peer: Peer) -> None:
    await peer.until("live")
    await peer.command("start_agent", {"agent": "speaker", "input": {}})
    await peer.events(2)


async def all_of(local: LocalServer) -> tuple[str, str]:
    """The deltas' texts, each where its offset says, and the text of the completed message, on a replay."""
    text, completed = "", ""
    async with local.peer(**START) as late:
        for frame in await late.until("live"):
            if frame.get("type") == "message_delta":
                assert frame["data"]["offset"] == len(text.encode("utf-16-le")) // 2
                text += frame["data"]["text"]
            elif frame.get("type") == "message_completed":
                completed = frame["data"]["text"]
    return text, completed


async def test_e15_live_text_comes_at_once_and_then_every_25_ms(mock_clock: MockClock) -> None:
    speaker = Speaker()
    async with (
        local_server(speaker.app, wall_clock=trio.current_time) as local,
        local.peer() as peer,
        local.peer() as other,
    ):
        await other.until("live")
        await begin(peer)
        await speaker.say(WORDS[0])
        assert await came(peer) == [delta(WORDS[0])]
        await speaker.say(*WORDS[1:4])
        mock_clock.jump(0.024)
        await speaker.say(WORDS[4])
        assert await came(peer) == []
        mock_clock.jump(0.002)
        assert await came(peer) == [delta(*WORDS[1:5])]
        await speaker.say(*WORDS[5:7])
        assert await came(peer) == []
        mock_clock.jump(0.025)
        assert await came(peer) == [delta(*WORDS[5:7])]
        await speaker.say(*WORDS[7:])
        assert await came(peer) == [delta(*WORDS[7:]), *ENDING]
        live = await came(other)
        assert "".join(text for _, text in live[2:6]) == "".join(WORDS)
        assert live[6:] == ENDING
        text, whole = await all_of(local)
        assert whole == "".join(WORDS)
        assert text in ("", whole), "either it came as the completed message alone, or with all of its deltas"


async def test_e15_with_an_interval_of_0_each_word_is_an_event(mock_clock: MockClock) -> None:
    speaker = Speaker()
    async with (
        local_server(speaker.app, timeouts=Timeouts(delta_interval=0), wall_clock=trio.current_time) as local,
        local.peer() as peer,
    ):
        await begin(peer)
        await speaker.say(*WORDS)
        assert await came(peer) == [*map(delta, WORDS), *ENDING]
