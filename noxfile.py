"""Sessions: `nox -s tests`, `compiled`, `faults`, `lint`, `types`, `bench`, `demo`.

Plain `nox`: lint, types, tests.
"""

from __future__ import annotations

from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True

PROJECT = nox.project.load_toml("pyproject.toml")
SOURCES = ("wsrecover", "tests", "benches", "noxfile.py", ".packaging")


def install(session: nox.Session, *groups: str, compiled: bool = False) -> None:
    """The package, interpreted or compiled, and what the groups name."""
    asked = {"WSRECOVER_COMPILE": "1" if compiled else "0"}
    session.install(".", *nox.project.dependency_groups(PROJECT, *groups), env=asked)
    session.run(
        "python", "-P", "-c", f"from wsrecover.compiled import COMPILED; assert COMPILED is {compiled}"
    )


@nox.session
def tests(session: nox.Session) -> None:
    """The whole suite, against the installed package: `nox -s tests -- -k resume` for a part of it.

    A process per core; `-n0` for one process, as `--pdb` needs it.
    """
    install(session, "test")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def compiled(session: nox.Session) -> None:
    """The suite against the compiled package: a minute to build, and it needs a C compiler."""
    install(session, "test", compiled=True)
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """The faults and attacks at full size, and the table of what they came to."""
    install(session, "test")
    session.run("pytest", "--figures", *session.posargs, env={"WSRECOVER_FAULTS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting: `ruff check --fix` and `ruff format` mend most of what this finds."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """Types of the package, the benches and the build, strictly."""
    install(session, "types")
    session.run("mypy", "--strict", "wsrecover", "benches", ".packaging")


@nox.session
def bench(session: nox.Session) -> None:
    """Every bench, or the named ones, compiled: `nox -s bench -- live resume`."""
    install(session, "test", compiled=True)
    found = {
        file.stem: file for file in sorted(Path("benches").glob("*.py")) if not file.stem.startswith("_")
    }
    for name in session.posargs or found:
        session.run("python", str(found[name]))


@nox.session
def demo(session: nox.Session) -> None:
    """The proof that a newcomer runs: `nox -s demo -- --cuts 200 --seed 7`."""
    install(session)
    session.run("wsrecover", "demo", *session.posargs)
