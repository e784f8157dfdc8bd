"""What the tests of foreign clients share; see `interop_world`. Those in Node need npm's `ws`."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("interop_world", "interop_scenarios")

VERSION = "8.23.0"
PACKAGE = {"private": True, "dependencies": {"ws": VERSION}}
NPM = ("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1")
NPM_SECONDS = 120


@pytest.fixture(scope="session")
def ws_folder(pytestconfig: pytest.Config) -> Path:
    """A folder in pytest's cache in which `ws` is installed."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: get Node 18 or newer with npm from https://nodejs.org")
    cache = pytestconfig.cache.mkdir("interop")
    folder = cache / f"ws-{VERSION}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            _install(Path(fresh, "ws"))
            try:
                Path(fresh, "ws").rename(folder)
            except OSError:
                if not folder.exists():  # Another process of the same run was faster.
                    raise
    return folder


def _install(folder: Path) -> None:
    folder.mkdir()
    (folder / "package.json").write_text(json.dumps(PACKAGE))
    try:
        done = subprocess.run(
            NPM, cwd=folder, capture_output=True, text=True, timeout=NPM_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm could not install ws {VERSION} within {NPM_SECONDS} s: is its registry reachable?")
    if done.returncode:
        pytest.skip(f"npm could not install ws {VERSION}: {done.stderr.strip()[-500:]}")
