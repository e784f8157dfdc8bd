"""What the log of a server says, and what it keeps to itself."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import TYPE_CHECKING, Final

import pytest

from wsrecover.access import sign

if TYPE_CHECKING:
    from .conftest import Cli

AGENT = """
import wsrecover

app = wsrecover.App()

@app.agent("careless")
async def careless(run):
    key = "sk-" + "".join(reversed("yranac"))
    raise RuntimeError("the model refused")
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_where_and_no_values(cli: Cli, log_format: str) -> None:
    (cli.home / "careless.py").write_text(AGENT)
    options = ("--app", "careless:app", "--port", "0", "--store", "memory", "--log-format", log_format)
    with cli.start("serve", *options, "--secret-file", str(cli.secret_file)) as process:
        (url,) = re.findall(r"ws://[0-9.:]+", process.wait_for("ready"))
        common = ("--url", url, "--token-file", cli.token())
        cli.run("send", *common, "start_agent", '{"agent": "careless", "input": {"password": "sk-canary"}}')
        process.wait_for("the model refused")  # The last line of the traceback.
        code, _, rest = process.stop()
    log = "".join(process.said) + rest
    assert code == 0
    assert "careless.py" in log
    assert "sk-canary" not in log


ODD: Final = "\x1b[31mred\x07\x00\x9b2J\u2028\u202e"
FORGED: Final = "\r\nforged [info] accepted"

QUOTING: Final = """
import wsrecover

app = wsrecover.App()

@app.agent("quoting")
async def quoting(run):
    raise RuntimeError(run.input["text"])
"""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_p12_ids_names_and_what_an_exception_quotes_are_escaped(cli: Cli, log_format: str) -> None:
    (cli.home / "quoting.py").write_text(QUOTING)
    secret = cli.secret_file.read_text().strip().encode()
    token = cli.home / "token"
    token.write_text(
        sign(secret, tenant="acme", user="\u202eada", token_id=ODD, lifetime=600, clock=time.time)
    )
    options = ("--app", "quoting:app", "--port", "0", "--store", "memory", "--log-format", log_format)
    with cli.start("serve", *options, "--secret-file", str(cli.secret_file)) as process:
        (url,) = re.findall(r"ws://[0-9.:]+", process.wait_for("ready"))
        start = json.dumps({"agent": "quoting", "input": {"text": ODD + FORGED}})
        cli.run("send", "--url", url, "--token-file", str(token), "start_agent", start)
        process.wait_for("forged")
        _, _, rest = process.stop()
    log = "".join(process.said) + rest
    assert [char for char in log if char != "\n" and not char.isprintable()] == []
    assert not [line for line in log.splitlines() if line.startswith("forged")]
    for told in (r"token_id", r"[31mred", r"202eada", "forged"):
        assert told in log, "the log has it"


def test_a_server_whose_log_nobody_reads_any_more_serves_on(cli: Cli) -> None:
    with cli.serving() as (process, url):
        assert process.popen.stderr is not None
        process.popen.stderr.close()
        common = ("--url", url, "--token-file", cli.token())
        for number in range(3):
            cli.run("send", *common, "chat", json.dumps({"text": f"{number}"}))
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait() == 0
