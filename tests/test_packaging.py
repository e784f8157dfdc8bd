"""Installing compiles where it can and asks for no compiler where there is none: wheels, built for real.

What all that is compiled does is shown by `nox -s compiled`; here it is two modules, which are soon done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from runpy import run_path
from zipfile import ZipFile

import pytest

MODULES = ("wsrecover/streams/budget.py", "wsrecover/transport/framing.py")
SUFFIX = EXTENSION_SUFFIXES[0]
PROJECT = Path(__file__).parent.parent
NOT_PYTHON = "\ndef (:\n"
"""What no compiler takes."""

SECONDS = 540.0
"""For one command: to compile, with all types that the two modules use, takes more than a minute where little
else runs. It is given up before the test itself is taken to hang."""


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
    scratch.mkdir(exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if key not in {"CC", "WSRECOVER_COMPILE"}}
    before = {path for path in checkout.rglob("*") if "__pycache__" not in path.parts}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env=inherited | {"TMPDIR": str(scratch)} | env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
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


@pytest.fixture
def compiler() -> None:
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


@pytest.mark.usefixtures("compiler")
class TestWithACompiler:
    def test_the_wheel_has_a_library_beside_each_of_the_modules(self, checkout: Path) -> None:
        settings = checkout / "pyproject.toml"
        text = settings.read_text(encoding="utf-8")
        begin = text.index("modules = [")
        end = text.index("]", begin)
        settings.write_text(f"{text[:begin]}modules = {list(MODULES)}{text[end + 1 :]}", encoding="utf-8")
        # What only the whole of the package's types, or the settings of who installs it, would find wrong.
        with (checkout / "wsrecover/errors.py").open("a", encoding="utf-8") as source:
            source.write('\nslip: int = "no int"\n')
        (checkout.parent / ".mypy.ini").write_text("[mypy]\nplugins = no_such_plugin\n", encoding="utf-8")

        done = build(checkout, HOME=str(checkout.parent))

        assert done.returncode == 0, done.stderr
        with ZipFile(wheel(checkout)) as archive:
            libraries = {name.partition(".")[0] for name in archive.namelist() if name.endswith(SUFFIX)}
            (described,) = [name for name in archive.namelist() if name.endswith(".dist-info/WHEEL")]
            tags = archive.read(described).decode()
            archive.extractall(checkout.parent / "installed")
        (shared,) = [name for name in libraries if name.endswith("__mypyc")]
        assert libraries - {shared} == {module.removesuffix(".py") for module in MODULES}
        assert "Root-Is-Purelib: false" in tags
        assert "py3-none-any" not in tags
        ask = "from wsrecover.transport import framing; print(framing.__file__)"
        done = run(checkout.parent / "installed", "-c", ask)
        assert done.stdout.endswith(f"{SUFFIX}\n"), done.stderr

    @pytest.mark.parametrize("switch", ["", "1"])
    def test_mypyc_is_fetched_with_what_the_types_come_from(self, checkout: Path, switch: str) -> None:
        ask = "import hatchling.build; print('\\n'.join(hatchling.build.get_requires_for_build_wheel()))"

        done = run(checkout, "-c", ask, WSRECOVER_COMPILE=switch)

        names = {line.partition(">")[0] for line in done.stdout.split()}
        assert names >= {"mypy", "setuptools", "attrs", "trio", "orjson"}, done.stderr

    def test_a_failure_is_told_and_the_wheel_is_plain_python(self, broken: Path) -> None:
        done = build(broken)

        assert done.returncode == 0, done.stderr
        assert "encode.py" in done.stdout + done.stderr
        assert "mypyc failed" in done.stdout + done.stderr
        assert_plain(broken)

    def test_without_the_headers_it_is_not_tried(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        has_compiler = run_path(str(PROJECT / ".packaging/compile.py"))["has_compiler"]
        assert has_compiler()
        monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
        assert not has_compiler()

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
