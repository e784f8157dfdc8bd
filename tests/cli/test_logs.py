"""What the log of a server says, and what it keeps to itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

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
