"""README's few lines for a web page, run in Node: each event once, in order, from the first drop on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio
from interop_world import PATIENCE

from wsrecover.demo.agents import readme
from wsrecover.testing import LocalServer, local_server

(FOLLOW,) = re.findall(r"^```js\n(.*?)^```$", readme().read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class Page:
    """The running page: its words one by one, and a way to have it send a command."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._lines = self._split()

    async def _split(self) -> AsyncIterator[str]:
        assert self._process.stdout is not None
        rest = b""
        async for piece in self._process.stdout:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.decode()

    async def word(self) -> dict[str, Any]:
        with trio.fail_after(PATIENCE):
            word: dict[str, Any] = json.loads(await anext(self._lines))
        return word

    async def send(self, *order: object) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(order).encode() + b"\n")


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    async with local_server() as server:
        yield server


@pytest.fixture
async def page(local: LocalServer, ws_folder: Path, tmp_path: Path) -> AsyncIterator[Page]:
    (tmp_path / "follow.mjs").write_text(FOLLOW, encoding="utf-8")
    program = str(Path(__file__).with_name("page.mjs"))
    process = await trio.lowlevel.open_process(
        ["node", program, f"{local.url}/v1/connect", local.token()],
        stdin=PIPE,
        stdout=PIPE,
        cwd=tmp_path,
        env={**os.environ, "NODE_PATH": str(ws_folder / "node_modules")},
    )
    try:
        yield Page(process)
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            await process.wait()


async def cut(local: LocalServer) -> None:
    """Break the page's connection, without a word; returns once the server has noticed."""
    for connection in list(local.server.registry.session("acme", "ada").connections.values()):
        connection.kill()
    with trio.fail_after(PATIENCE):
        while local.server.connections():  # noqa: ASYNC110  # Outside only counts are seen.
            await trio.sleep(0.001)


async def publish(local: LocalServer, n: int) -> None:
    await local.server.publish("acme", "ada", "noted", {"n": n})


async def test_a_page_gets_each_event_once_and_in_order_over_drops(local: LocalServer, page: Page) -> None:
    await publish(local, 0)
    assert (await page.word())["type"] == "welcome"
    for n in range(1, 5):  # At first it is cut off before it got anything.
        await cut(local)
        await publish(local, n)
        assert (await page.word())["data"] == {"n": n}
    await page.send("chat", {"text": "hello"}, "c1")
    assert {word["type"]: word["id"] for word in [await page.word(), await page.word()]}["reply"] == "c1"
    await cut(local)
    await publish(local, 5)
    assert (await page.word())["data"] == {"n": 5}


async def test_a_page_whose_user_was_revoked_does_not_come_back(local: LocalServer, page: Page) -> None:
    assert (await page.word())["type"] == "welcome"
    await local.server.revoke("acme", "ada")
    assert await page.word() == {"type": "closed", "code": 4503}
