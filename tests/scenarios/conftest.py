"""What the scenarios share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from stage import Stage

from wsrecover.testing import LocalServer, local_server


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
async def local(stage: Stage) -> AsyncIterator[LocalServer]:
    """A server in memory that runs the stage's agent."""
    async with local_server(stage.app) as server:
        yield server
