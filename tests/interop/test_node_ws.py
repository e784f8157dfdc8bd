"""A client on npm's `ws`, in Node."""

from __future__ import annotations

from pathlib import Path

import pytest
from interop_scenarios import Scenarios
from interop_world import Command


class TestNodeWs(Scenarios):
    """`client.mjs`."""

    @pytest.fixture
    def command(self, ws_folder: Path) -> Command:
        return Command(["node", str(Path(__file__).with_name("client.mjs"))], ws_folder)
