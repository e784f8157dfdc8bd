"""What the scenarios share."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
from serving import Clock
from stage import Stage
from steps import SEED

from wsrecover.testing import LocalServer, local_server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def same_order_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trio runs the tasks of a tick in a random order: here in one that follows from the seed."""
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(trio._core._run, "_r", random.Random(SEED))


@pytest.fixture
async def local(stage: Stage) -> AsyncIterator[LocalServer]:
    """A server in memory that runs the stage's agent."""
    async with local_server(stage.app) as server:
        yield server
