"""The public face: what is promised by name is there, and nothing is promised by accident."""

from __future__ import annotations

import ast
import asyncio
import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import wsrecover

HERE = os.environ | {"PYTHONPATH": str(Path(wsrecover.__file__).parents[1])}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(wsrecover.__path__, "wsrecover.")
    if not module.name.endswith("__main__")
)


def bound(module: object) -> set[str]:
    """The names that a module's own code binds at its top, imports left out."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]  # modules of this package are files
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


@pytest.mark.parametrize("name", ["wsrecover", *MODULES])
def test_every_name_in_all_is_there_once(name: str) -> None:
    module = importlib.import_module(name)
    promised = getattr(module, "__all__", ())
    assert [each for each in promised if not hasattr(module, each)] == []
    assert len(promised) == len(set(promised))


@pytest.mark.parametrize("name", MODULES)
def test_every_module_with_code_says_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    assert hasattr(module, "__all__") or not bound(module)


PUBLIC = """
    AgentError App Authenticator Changed ClientSession Command CommandError Config ConfigError
    ConnectionView Contexts Credentials Ephemeral ErrorCount Event Forgotten Gap Grant InvalidArgument
    InvalidEvent InvalidFilter KeysUnavailable Limits NoAnswer Origins Position Principal Receipt
    ReceiptCounts Retention Run RunBroken RunEnded Server ServerStatistics SessionView Snapshot StoreClosed
    StoreError StoreFailed StoreUnavailable Tier Timeouts TokenError Tokens TransportError
    WsrecoverError connect load_config serve
"""

PUBLIC_FOR_TESTS = """
    Cut History LocalServer LossyLink MemoryNetwork MemoryPipe Peer PipeStream Report check
    check_store cuts local_server memory_pipe_pair
"""


@pytest.mark.parametrize(
    ("name", "promised"), [("wsrecover", PUBLIC), ("wsrecover.testing", PUBLIC_FOR_TESTS)]
)
def test_the_public_names_are_these_and_no_others(name: str, promised: str) -> None:
    """Who takes one away breaks programs, and who adds one has to keep it."""
    assert sorted(importlib.import_module(name).__all__) == sorted(promised.split())


def test_an_import_of_the_package_does_not_load_the_command_line() -> None:
    asked = "import sys, wsrecover; print({'wsrecover.cli', 'wsrecover.demo', 'cyclopts'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, env=HERE)
    assert done.stdout == "set()\n"


def test_what_needs_trio_says_so_under_asyncio() -> None:
    async def connected() -> None:
        async with wsrecover.connect("ws://127.0.0.1:9", token="t"):
            pass

    async def served() -> None:
        await wsrecover.serve(wsrecover.App(), wsrecover.Config(store="memory", secret=bytes(32)))

    for name, coroutine in (("connect", connected()), ("serve", served())):
        with pytest.raises(wsrecover.WsrecoverError, match=f"^{name} needs trio, not asyncio"):
            asyncio.run(coroutine)
