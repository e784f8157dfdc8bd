"""Runs `wsrecover` as real processes, in a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import orjson
import pytest

import wsrecover

DEADLINE = 540.0
"""Seconds after which a process that should have ended is killed, and its test fails.

A server is there for as long as its test, which may start ten more processes, and on a busy machine each of
them takes seconds; and it is killed before the test itself is taken to hang."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As of a shell's background job; processes that are started would inherit it, and ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SECRET = "a secret of at least 32 bytes, for tests"


class Process:
    """A command under way. Its log is read line by line: who waits for a line waits for what it tells."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self.popen = popen
        self.said: list[str] = []

    def wait_for(self, text: str, *, stream: str = "stderr") -> str:
        for line in getattr(self.popen, stream):
            self.said.append(line)
            if text in line:
                return str(line)
        raise AssertionError(
            f"it ended with {self.popen.wait()} and never said {text!r}:\n{''.join(self.said)}"
        )

    def ready(self) -> dict[str, Any]:
        """The `ready` line of a server that logs JSON."""
        line: dict[str, Any] = orjson.loads(self.wait_for('"ready"'))
        return line

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; the exit code and what it still wrote to stdout and stderr."""
        self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=DEADLINE)
        return self.popen.returncode, out, err


class Cli:
    """`wsrecover` with a state folder, a secret file and a current folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.secret_file = home / "secret"
        self.secret_file.write_text(f"{SECRET}\n")
        binaries = home / "bin"
        binaries.mkdir()
        script = binaries / "wsrecover"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wsrecover "$@"\n')
        script.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WSRECOVER_")}
        self.env = {
            **kept,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(wsrecover.__file__).parents[1]),
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "COLUMNS": "200",
        }

    def run(self, *arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        """Run to the end and check the exit code; nobody is ever shown a traceback."""
        return self._checked(["wsrecover", *arguments], code, env)

    def shell(self, command: str, *, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a line as it would be pasted into a terminal."""
        return self._checked(["sh", "-c", command], code, {})

    def _checked(
        self, command: list[str], code: int, env: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.home,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    @contextmanager
    def start(self, *arguments: str, program: str = "wsrecover") -> Iterator[Process]:
        """A process that goes on by itself; killed at the end of the block if nobody stopped it."""
        popen = subprocess.Popen(
            [program, *arguments],
            cwd=self.home,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        watchdog = Timer(DEADLINE, popen.kill)
        watchdog.start()
        try:
            with popen:
                try:
                    yield Process(popen)
                finally:
                    popen.kill()
        finally:
            watchdog.cancel()

    @contextmanager
    def serving(
        self, *arguments: str, store: str = "memory", port: str = "0"
    ) -> Iterator[tuple[Process, str]]:
        """A server, on any free port if none is given, and its URL."""
        common = ("--port", port, "--log-format", "json", "--secret-file", str(self.secret_file))
        with self.start("serve", "--store", store, *common, *arguments) as process:
            yield process, process.ready()["url"]

    def token(self, *arguments: str, user: str = "ada") -> str:
        """A file with a token for a user of the tenant acme."""
        done = self.run(
            "token", "--tenant", "acme", "--user", user, "--secret-file", str(self.secret_file), *arguments
        )
        file = self.home / f"{user}.token"
        file.write_text(done.stdout)
        return str(file)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)
