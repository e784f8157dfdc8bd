"""What all tests share: reproducible examples, and no silent skips where everything must run."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest
import structlog
from figures import FIGURE, Figure, Progress, figures, table
from hypothesis import HealthCheck, settings

from wsrecover.compiled import COMPILED

# As a program that embeds wsrecover and configures structlog itself: what tests capture stays captured.
structlog.configure()

PROGRESS_SECONDS = 5.0

CI = os.environ.get("WSRECOVER_CI") == "1"

# How fast examples are made is a matter of the machine.
settings.register_profile(
    "home", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
# A failure that CI saw must be seen again at home: its examples follow from the test alone.
settings.register_profile("ci", settings.get_profile("home"), derandomize=True)
settings.load_profile("ci" if CI else "home")


PATIENCE: Final = 3600.0 if os.environ.get("WSRECOVER_FAULTS") == "1" else 600.0
"""Seconds, far more than any test takes, after which one is taken to hang: under a clock that stands still
trio's own deadlines never come."""

TO_LEAVE: Final = 60.0
"""Seconds for one that was interrupted; then the whole run ends with the stacks of all threads."""

STDERR: Final = pytest.StashKey[int]()


class Hung(Exception):
    """The test did not end."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)  # What pytest captures later would be lost with the process.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Interrupt a test that hangs, as Ctrl-C would, so that it fails and the others go on."""
    hung = False

    def interrupt(*_: object) -> None:
        nonlocal hung
        hung = True
        os.write(item.config.stash[STDERR], f"\n{item.nodeid} hangs\n".encode())
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    faulthandler.dump_traceback_later(PATIENCE + TO_LEAVE, file=item.config.stash[STDERR], exit=True)
    try:
        return (yield)
    except BaseException as error:
        if not hung:
            raise
        raise Hung(f"{item.nodeid} did not end within {PATIENCE:g} s") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Reports a figure in the table that follows the tests."""
    properties = request.node.user_properties  # They reach the table from another process too.
    return lambda ids, what, value: properties.append((FIGURE, (ids, what, str(value))))


@pytest.fixture
def progress(request: pytest.FixtureRequest) -> Progress:
    """Tells whoever waits how far a long step is, each `PROGRESS_SECONDS`.

    Not where tests run in several processes: the terminal is another one's, and there others go on meanwhile.
    """
    plugins = request.config.pluginmanager
    reporter, capture = plugins.get_plugin("terminalreporter"), plugins.get_plugin("capturemanager")
    if reporter is None:
        return lambda _: None
    said = time.monotonic()

    def say(how_far: str) -> None:
        nonlocal said
        if time.monotonic() - said >= PROGRESS_SECONDS:
            said = time.monotonic()
            with capture.global_and_fixture_disabled():
                reporter.ensure_newline()
                reporter.write_line(f"{request.node.name}: {how_far}")
                reporter.flush()

    return say


@pytest.fixture
def kept_port() -> Iterator[int]:
    """A port of loopback for servers that come and go: nobody else is given it meanwhile.

    Who only binds it takes no connections, and lets servers bind it that set SO_REUSEADDR, as ours do.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--figures", action="store_true", help="only tests that report a figure")


def pytest_report_header() -> str:
    return f"wsrecover: {'compiled' if COMPILED else 'interpreted'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if COMPILED:
        beyond = [item for item in items if item.get_closest_marker("interpreted")]
        config.hook.pytest_deselected(items=beyond)
        items[:] = [item for item in items if item not in beyond]
    if config.getoption("figures"):
        items[:] = [item for item in items if "figure" in getattr(item, "fixturenames", ())]


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return len(reporter.stats.get("skipped", ())) if reporter else 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With WSRECOVER_CI=1 a skipped test counts as a failed one: what is not run proves nothing."""
    if CI and _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if CI and _skipped(config):
        terminalreporter.write_line("WSRECOVER_CI=1 asks for every test, and some were skipped.", red=True)
    if rows := figures(report for reports in terminalreporter.stats.values() for report in reports):
        terminalreporter.section("figures")
        for line in table(rows):
            terminalreporter.write_line(line)
