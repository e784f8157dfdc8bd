"""Build hook: the way of an event, compiled by mypyc into the wheel.

`WSRECOVER_COMPILE` says whether: `1` always, and the build fails where it cannot be; `0` never. Unset, it is
tried where the C compiler and the headers of this Python are there, and where it fails the wheel is plain
Python, which does the same, slower. An editable install is never compiled: its sources are to be changed.

All work is done on a copy: a library in the checkout would hide a source that is changed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "WSRECOVER_COMPILE"
PACKAGE = "wsrecover"
ARGUMENTS = ["--follow-imports=silent", "--config-file="]
"""For mypy: what others wrote, and the settings of who installs, must not decide whether this compiles."""

TAIL = 2_000
"""Characters of a failed build's output that are told: its end says why."""

SETUP = """\
from setuptools import setup
from mypyc.build import mypycify

extensions = mypycify({arguments!r}, opt_level="3", debug_level="0")
for one in extensions:  # A compiler may warn of generated code as it likes.
    one.extra_compile_args = [flag for flag in one.extra_compile_args if flag != "-Werror"]
setup(name="compiled", packages=[], ext_modules=extensions)
"""


def has_compiler() -> bool:
    """Whether the C compiler and the headers of this Python are there."""
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return bool(command) and shutil.which(command[0]) is not None and headers.exists()


class CompileHook(BuildHookInterface[Any]):
    """Compiles what its setting `modules` names; `requires` is what that needs, beside the package's own."""

    work: TemporaryDirectory[str] | None = None

    def is_asked(self) -> bool | None:
        """What the switch says; None where it leaves that to the machine."""
        told = os.environ.get(SWITCH, "")
        answers = {"": None, "0": False, "1": True}
        if told not in answers:
            raise ValueError(f"{SWITCH}: {told!r} is neither 0 nor 1")
        return answers[told]

    def is_wanted(self) -> bool:
        """Whether to try."""
        asked = self.is_asked()
        return has_compiler() if asked is None else asked

    def dependencies(self) -> list[str]:
        """mypyc, and what the modules take their types from."""
        return [*self.config["requires"], *self.metadata.core.dependencies] if self.is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the libraries beside the sources in the wheel."""
        if version == "editable" or not self.is_wanted():
            return
        self.work = TemporaryDirectory(prefix="wsrecover-compile-")
        copy = Path(self.work.name)
        libraries = copy / "libraries"
        shutil.copytree(Path(self.root, PACKAGE), copy / PACKAGE)
        setup = SETUP.format(arguments=[*ARGUMENTS, *self.config["modules"]])
        (copy / "setup.py").write_text(setup, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--build-lib", str(libraries)],
            cwd=copy,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        found = [library for library in libraries.rglob("*") if library.is_file()]
        if done.returncode == 0 and found:
            build_data["force_include"] |= {str(one): str(one.relative_to(libraries)) for one in found}
            build_data["infer_tag"] = True
            build_data["pure_python"] = False
        elif self.is_asked():
            raise RuntimeError(f"{SWITCH}=1, but mypyc failed:\n{done.stdout[-TAIL:]}")
        else:
            self.app.display_warning(f"{done.stdout[-TAIL:]}\nmypyc failed: a wheel of plain Python it is.")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Take the copy away."""
        if self.work is not None:
            self.work.cleanup()
