"""`wsrecover serve` as a process that a test starts, kills and starts again on the same file and port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
import trio

import wsrecover
from wsrecover.access.tokens import sign

__all__ = ["TENANT", "ServerProcess", "server_process"]

TENANT: Final = "acme"
SECRET: Final = b"a secret of at least 32 bytes, for tests"

LIMITED: Final = """
import os, resource, sys
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
os.execv(sys.argv[2], sys.argv[2:])
"""

SERVE: Final = ("-m", "wsrecover", "serve", "--app", "talker_app:app")

START_SECONDS: Final = 120.0
"""A process that is not ready by then will not be, even where others compile and test meanwhile."""


class ServerProcess:
    """A server with a folder of its own, one process after the other."""

    def __init__(
        self,
        folder: Path,
        nursery: trio.Nursery,
        settings: str,
        descriptors: int | None,
        program: Sequence[str],
    ) -> None:
        self.store = folder / "log.db"
        self.port = 0
        self.said: list[str] = []
        self._spoke = trio.Event()
        self._nursery = nursery
        self._descriptors = descriptors
        self._program = program
        self._process: trio.Process | None = None
        self._secret_file = folder / "secret"
        self._secret_file.write_bytes(SECRET)
        self._config_file = folder / "wsrecover.toml"
        self._config_file.write_text(settings)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def token(self, user: str = "ada", roles: Sequence[str] = ()) -> str:
        return sign(SECRET, tenant=TENANT, user=user, roles=roles, lifetime=3600, clock=time.time)

    async def start(self) -> None:
        """Start a process; returns when it says that it is ready. It keeps the port of the first one."""
        assert self._process is None
        command = [sys.executable, *self._program]
        if self._descriptors is not None:
            command = [sys.executable, "-c", LIMITED, str(self._descriptors), *command]
        command += ["--port", str(self.port), "--store", f"sqlite:{self.store}", "--log-format", "json"]
        command += ["--secret-file", str(self._secret_file), "--config", str(self._config_file)]
        env = {**os.environ, "PYTHONPATH": str(Path(wsrecover.__file__).parents[1])}
        self._process = await trio.lowlevel.open_process(
            command, stderr=subprocess.PIPE, cwd=Path(__file__).parent, env=env
        )
        with trio.fail_after(START_SECONDS):
            ready = await self._nursery.start(self._listen, self._process)
        self.port = int(ready["url"].rpartition(":")[2])

    def lines(self, *events: str) -> list[dict[str, Any]]:
        """What its processes have logged under these names."""
        lines = [orjson.loads(line) for line in self.said if line.startswith("{")]
        return [line for line in lines if line["event"] in events]

    async def until_said(self, event: str) -> dict[str, Any]:
        """Wait until this has been logged; the first line of it."""
        while not (lines := self.lines(event)):
            await self._spoke.wait()
        return lines[0]

    async def kill(self) -> None:
        """`kill -9`: not a word more."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to stop; its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(number)
        with trio.move_on_after(START_SECONDS, shield=True):
            return await process.wait()
        process.kill()
        raise AssertionError(f"it did not end on {number.name}")

    async def aclose(self) -> None:
        if self._process is not None:
            await self.kill()

    async def _listen(
        self,
        process: trio.Process,
        *,
        task_status: trio.TaskStatus[dict[str, Any]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep what the process logs, from its `ready` on; without one it has failed."""
        assert process.stderr is not None
        async with process.stderr:
            rest, ready = b"", False
            async for piece in process.stderr:
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    self.said.append(line.decode())
                    if not ready and b'"ready"' in line:
                        ready = True
                        task_status.started(orjson.loads(line))
                self._spoke.set()
                self._spoke = trio.Event()
        assert ready, "\n".join(self.said)


@asynccontextmanager
async def server_process(
    folder: Path, *, settings: str = "", descriptors: int | None = None, program: Sequence[str] = SERVE
) -> AsyncIterator[ServerProcess]:
    """A server for the block, not started yet. `settings` are in TOML. At the end it is killed.

    It may have so many `descriptors`; None: as many as this process. `program` is what Python runs: another
    one than `wsrecover serve` takes its options and says `ready` as well.
    """
    async with trio.open_nursery() as nursery:
        server = ServerProcess(folder, nursery, settings, descriptors, program)
        try:
            yield server
        finally:
            await server.aclose()
