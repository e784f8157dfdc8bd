"""TLS as a codec: bytes in, bytes out, no socket. The `Outbox` keeps the order of what it writes."""

from __future__ import annotations

import contextlib
import ssl

import trio

__all__ = ["Tls"]


class Tls:
    """One TLS connection over memory BIOs. `server_hostname` makes it the client's end."""

    __slots__ = ("_incoming", "_object", "_outgoing")

    def __init__(self, context: ssl.SSLContext, *, server_hostname: str | None = None) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
        )

    def shake(self) -> bool:
        """Take the handshake as far as the bytes fed allow; True once it is done.

        Raises:
            trio.BrokenResourceError: the peers cannot agree, or a certificate was refused: see the cause.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except (ssl.SSLError, ssl.CertificateError) as error:
            raise trio.BrokenResourceError("TLS handshake failed") from error
        return True

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire; `b""` is their end."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def encrypt(self, data: bytes) -> bytes:
        """The wire bytes of `data`, together with whatever TLS itself has to say."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._object.write(rest) :]
        except ssl.SSLError as error:
            raise trio.BrokenResourceError("TLS failed") from error
        return self._outgoing.read()

    def decrypt(self, max_bytes: int) -> bytes | None:
        """Up to `max_bytes` of what the peer sent; `b""` at its end; None until more bytes are fed."""
        try:
            return self._object.read(max_bytes)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLEOFError:
            return b""  # Ended without close_notify: the WebSocket's own close frame tells a cut from an end.
        except ssl.SSLError as error:
            raise trio.BrokenResourceError("TLS failed") from error

    def close_notify(self) -> bytes:
        """The wire bytes that end our side; `b""` where it cannot be ended cleanly any more."""
        with contextlib.suppress(ssl.SSLError):  # Mostly SSLWantRead: the peer's own is not waited for.
            self._object.unwrap()
        return self._outgoing.read()

    def outgoing(self) -> bytes:
        """What TLS itself has to say by now (handshake, key update, alert)."""
        return self._outgoing.read() if self._outgoing.pending else b""
