"""What the commands say where something answers, and no connection comes of it; each a process of its own."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

from wsrecover.cli.exits import Failure, why_not
from wsrecover.cli.tail import _Follower
from wsrecover.errors import ConnectionClosed, HandshakeRefused, TokenError, TransportError, caused_by

if TYPE_CHECKING:
    from .conftest import Cli

COMMANDS = [("tail",), ("send", "chat"), ("publish", "ada", "notice")]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secured(cli: Cli, authority: trustme.CA) -> Path:
    """Settings of a server that speaks TLS, with a certificate that nobody knows."""
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cli.home / "certificate.pem")
    issued.private_key_pem.write_to_path(cli.home / "key.pem")
    file = cli.home / "tls.toml"
    file.write_text('tls_certificate = "certificate.pem"\ntls_key = "key.pem"\n')
    return file


class TestCertificates:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_one_that_is_not_trusted_ends_it_at_once(
        self, cli: Cli, secured: Path, command: tuple[str, ...]
    ) -> None:
        with cli.serving("--config", str(secured)) as (_, url):
            done = cli.run(*command, "--url", url, "--token", "x", code=1)
        first, advice = done.stderr.splitlines()
        assert first.startswith("wsrecover: the connection failed: the server's certificate is not trusted: ")
        assert advice == "Set SSL_CERT_FILE to a file with the certificate of who signed it."

    def test_the_advice_helps(self, cli: Cli, secured: Path, authority: trustme.CA) -> None:
        authority.cert_pem.write_to_path(cli.home / "authority.pem")
        with cli.serving("--config", str(secured)) as (_, url):
            common = ("--url", url, "--token-file", cli.token())
            cli.run("send", *common, "chat", SSL_CERT_FILE=str(cli.home / "authority.pem"))

    def test_one_of_another_host_is_no_matter_of_who_signed_it(
        self, cli: Cli, secured: Path, authority: trustme.CA
    ) -> None:
        authority.cert_pem.write_to_path(cli.home / "authority.pem")
        authority.issue_cert("example.org").cert_chain_pems[0].write_to_path(cli.home / "certificate.pem")
        issued = authority.issue_cert("example.org")
        issued.cert_chain_pems[0].write_to_path(cli.home / "certificate.pem")
        issued.private_key_pem.write_to_path(cli.home / "key.pem")
        with cli.serving("--config", str(secured)) as (_, url):
            trusted = str(cli.home / "authority.pem")
            done = cli.run("tail", "--url", url, "--token", "x", code=1, SSL_CERT_FILE=trusted)
        assert "not trusted: IP address mismatch" in done.stderr
        assert "SSL_CERT_FILE" not in done.stderr


class TestTail:
    def test_tls_with_a_server_that_speaks_none_is_told(self, cli: Cli) -> None:
        with cli.serving() as (_, url):
            secure = url.replace("ws://", "wss://")
            with cli.start("tail", "--url", secure, "--token", "x") as tail:
                assert tail.wait_for("").startswith("wsrecover: no connection yet (TLS failed, ")

    def test_a_server_that_speaks_tls_alone_is_told(self, cli: Cli, secured: Path) -> None:
        with cli.serving("--config", str(secured)) as (_, url):
            plain = url.replace("wss://", "ws://")
            with cli.start("tail", "--url", plain, "--token", "x") as tail:
                assert tail.wait_for("").startswith("wsrecover: no connection yet (")

    def test_each_reason_is_told_once_in_an_outage(self, capsys: pytest.CaptureFixture[str]) -> None:
        follower = _Follower(as_json=True, positions={}, seqs={}, url="ws://server")
        busy, gone = HandshakeRefused(503, "busy"), TransportError("server: no answer within 10 s")
        for error in (busy, gone, busy, HandshakeRefused(401), busy):
            follower._tell_error(error)
            follower._tell_status("waiting")
        told = [
            f"wsrecover: no connection yet ({why}); trying again\n" for why in ("HTTP 503: busy", str(gone))
        ]
        assert capsys.readouterr().err == "".join(told)
        follower._tell_status("live")
        follower._tell_error(ConnectionClosed(1001))
        follower._tell_status("waiting")
        follower._tell_error(busy)
        assert capsys.readouterr().err == "wsrecover: the connection is lost, trying again\n" + told[0]


class TestReasons:
    def test_they_are_in_the_words_of_whom_knows(self) -> None:
        refused = caused_by(
            TransportError("x"), caused_by(RuntimeError("y"), ConnectionRefusedError(111, "z"))
        )
        assert why_not(refused) == "Connection refused"
        plain = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
        assert "Operation not permitted" not in why_not(caused_by(TransportError("x"), plain))
        assert why_not(caused_by(TokenError("x"), Failure("the file is empty"))) == "the file is empty"
        assert "a page for people" in why_not(HandshakeRefused(502, "<html>\n<p>\x1b[2J"))
        assert why_not(HandshakeRefused(503, "busy")) == "HTTP 503: busy"
