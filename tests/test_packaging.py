"""Installing compiles where it can and asks for no compiler where there is none: wheels, built for real.

What a compiled wheel does is shown by `nox -s compiled`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

PROJECT = Path(__file__).parent.parent
NOT_PYTHON = "\ndef (:\n"
"""What no compiler takes."""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a wheel is made of."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(PROJECT / name, copy)
    for name in (".packaging", "wsrecover"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return copy


@pytest.fixture
def broken(checkout: Path) -> Path:
    """One whose compiling must fail."""
    with (checkout / "wsrecover/protocol/encode.py").open("a", encoding="utf-8") as source:
        source.write(NOT_PYTHON)
    return checkout


def run(checkout: Path, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command in the checkout, which must leave nothing behind in it or in the folder for such things."""
    scratch = checkout.parent / "tmp"
    scratch.mkdir()
    inherited = {key: value for key, value in os.environ.items() if key not in {"CC", "WSRECOVER_COMPILE"}}
    before = {path for path in checkout.rglob("*") if "__pycache__" not in path.parts}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env=inherited | {"TMPDIR": str(scratch)} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    after = {path for path in checkout.rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    assert not list(scratch.iterdir())
    return done


def build(checkout: Path, target: str = "wheel", **env: str) -> subprocess.CompletedProcess[str]:
    """Build a wheel beside the checkout."""
    return run(
        checkout, "-m", "hatchling", "build", "--target", target, "--directory", str(checkout.parent), **env
    )


def wheel(checkout: Path) -> Path:
    """The wheel that was built."""
    (built,) = checkout.parent.glob("*.whl")
    return built


def assert_plain(checkout: Path) -> None:
    """The wheel has no library, and is one for every machine."""
    built = wheel(checkout)
    assert built.name.endswith("-py3-none-any.whl")
    with ZipFile(built) as archive:
        assert "wsrecover/protocol/encode.py" in archive.namelist()
        assert not [name for name in archive.namelist() if name.endswith((".so", ".pyd"))]


def require_compiler() -> None:
    if shutil.which("cc") is None or not Path(sysconfig.get_path("include"), "Python.h").exists():
        pytest.skip("needs a C compiler and Python's headers: apt-get install gcc libc6-dev python3-dev")


class TestWithoutACompiler:
    def test_the_wheel_is_plain_python(self, checkout: Path) -> None:
        done = build(checkout, CC="no-such-compiler")

        assert done.returncode == 0, done.stderr
        assert_plain(checkout)

    def test_nothing_is_fetched_to_compile_with(self, checkout: Path) -> None:
        ask = "import hatchling.build; print(hatchling.build.get_requires_for_build_wheel())"

        done = run(checkout, "-c", ask, CC="no-such-compiler")

        assert done.stdout.strip() == "[]", done.stderr

    def test_it_fails_where_compiling_was_asked_for(self, broken: Path) -> None:
        done = build(broken, WSRECOVER_COMPILE="1", CC="no-such-compiler")

        assert done.returncode != 0
        assert "WSRECOVER_COMPILE=1, but mypyc failed" in done.stderr
        assert not list(broken.parent.glob("*.whl"))


class TestWithACompiler:
    def test_mypyc_is_fetched_with_what_the_types_come_from(self, checkout: Path) -> None:
        ask = "import hatchling.build; print('\\n'.join(hatchling.build.get_requires_for_build_wheel()))"

        done = run(checkout, "-c", ask, WSRECOVER_COMPILE="1")

        names = {line.partition(">")[0] for line in done.stdout.split()}
        assert names >= {"mypy", "setuptools", "attrs", "trio", "orjson"}, done.stderr

    def test_a_failure_is_told_and_the_wheel_is_plain_python(self, broken: Path) -> None:
        require_compiler()

        done = build(broken)

        assert done.returncode == 0, done.stderr
        assert "mypyc failed" in done.stdout + done.stderr
        assert_plain(broken)

    def test_it_is_not_tried_where_nobody_wants_it(self, broken: Path) -> None:
        done = build(broken, WSRECOVER_COMPILE="0")

        assert done.returncode == 0, done.stderr
        assert "mypyc" not in done.stdout + done.stderr
        assert_plain(broken)

    def test_an_editable_install_is_never_compiled(self, broken: Path) -> None:
        done = build(broken, "wheel:editable", WSRECOVER_COMPILE="1")

        assert done.returncode == 0, done.stderr
        assert wheel(broken).name.endswith("-py3-none-any.whl")


def test_another_answer_is_refused_with_the_accepted_ones(checkout: Path) -> None:
    done = build(checkout, WSRECOVER_COMPILE="yes")

    assert done.returncode != 0
    assert "WSRECOVER_COMPILE: 'yes' is neither 0 nor 1" in done.stderr
