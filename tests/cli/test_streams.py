"""What becomes of a command whose output is not wanted, or cannot be had."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

if TYPE_CHECKING:
    from .conftest import Cli

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")


class TestClosed:
    def test_a_command_takes_effect_and_is_done(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            send = f"wsrecover send --url {url} --token-file {shlex.quote(cli.token())} chat"
            for closed in (">&-", "2>&-", ">&- 2>&-"):
                assert cli.shell(f"{send} {closed}").stderr == ""
            assert orjson.loads(cli.shell(send).stdout) == {"seq": 4}

    @pytest.mark.parametrize("command", ["--help", "--version", "token --help"])
    def test_nobody_is_told_anything(self, cli: Cli, command: str) -> None:
        assert cli.shell(f"wsrecover {command} >&-").stderr == ""

    def test_an_error_has_its_code(self, cli: Cli) -> None:
        cli.shell("wsrecover no-such-command 2>&-", code=2)


@needs_full
class TestFull:
    def test_it_is_told_that_the_command_took_effect(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            send = f"wsrecover send --url {url} --token-file {shlex.quote(cli.token())} chat"
            done = cli.shell(f"{send} > /dev/full", code=1)
        assert done.stderr == (
            "wsrecover: stdout cannot be written: No space left on device\n"
            'The command took effect all the same: {"seq":1}\n'
        )

    def test_what_could_not_be_written_is_named(self, cli: Cli) -> None:
        secret = shlex.quote(str(cli.secret_file))
        command = f"wsrecover token --tenant acme --user ada --secret-file {secret} > /dev/full"
        said = cli.shell(command, code=1).stderr
        assert said == "wsrecover: stdout cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", [("--help",), ("tail", "--help"), ("--version",)])
def test_a_reader_that_has_left_is_no_failure(cli: Cli, command: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(["wsrecover", *command], env=cli.env, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
