"""A client on the Python package `websockets`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from interop_scenarios import Scenarios
from interop_world import Command


class TestPythonWebsockets(Scenarios):
    """`python_client.py`."""

    @pytest.fixture
    def command(self, tmp_path: Path) -> Command:
        return Command([sys.executable, str(Path(__file__).with_name("python_client.py"))], tmp_path)
