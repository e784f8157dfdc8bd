"""How a session keeps itself connected, or says why it cannot. Time is virtual."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio
from scripted import Peer, Server, event, live, welcome
from talking import RESUMED, opened, seqs, stay, take
from trio.testing import MockClock

from wsrecover.errors import (
    ConnectionClosed,
    HandshakeRefused,
    TokenError,
    TooLarge,
    TransportError,
)


class TestTokens:
    @staticmethod
    def counted() -> tuple[list[str], Any]:
        made: list[str] = []

        async def token() -> str:
            await trio.lowlevel.checkpoint()
            made.append(f"t{len(made)}")
            return made[-1]

        return made, token

    @pytest.mark.parametrize("refusal", [HandshakeRefused(401), 4001])
    async def test_a_refused_one_is_asked_for_again_before_the_next_try(
        self, refusal: Any, autojump_clock: MockClock
    ) -> None:
        async def expire(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(refusal)

        made, token = self.counted()
        server = Server(refusal if isinstance(refusal, HandshakeRefused) else expire, stay)
        async with opened(server, token=token) as session:
            await server.reached(2)
            await session.wait_status("live")
        assert [peer.token for peer in server.peers] == made == ["t0", "t1"]

    async def test_one_that_counts_is_used_again(self, autojump_clock: MockClock) -> None:
        async def drop(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(1006)

        made, token = self.counted()
        server = Server(drop, stay)
        async with opened(server, token=token):
            await server.reached(2)
        assert made == ["t0"]

    async def test_auth_required_is_answered_in_place(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "auth_required", "expires_in": 60.0})
            start = trio.current_time()
            frame = await peer.hear()
            assert (frame["op"], frame["token"]) == ("auth", "t1")
            assert trio.current_time() == start + 15
            peer.say({"op": "reply", "id": frame["id"], "status": "ok", "result": {}})
            answered.set()
            await peer.until_bye()

        answered = trio.Event()
        made, token = self.counted()
        async with opened(Server(script), token=token):
            await answered.wait()
        assert made == ["t0", "t1"]

    async def test_a_fixed_one_that_is_refused_ends_the_session(self, autojump_clock: MockClock) -> None:
        with pytest.raises(TokenError) as caught:
            async with opened(Server(HandshakeRefused(401))):
                pass
        assert isinstance(caught.value.__cause__, HandshakeRefused)

    async def test_three_fresh_ones_refused_end_the_session(self, autojump_clock: MockClock) -> None:
        made, token = self.counted()
        with pytest.raises(TokenError):
            async with opened(Server(HandshakeRefused(401)), token=token):
                pass
        assert made == ["t0", "t1", "t2"]

    async def test_refusals_are_counted_from_the_last_welcome(self, autojump_clock: MockClock) -> None:
        async def expire(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(4001)

        made, token = self.counted()
        server = Server(expire, expire, expire, expire, stay)
        async with opened(server, token=token) as session:
            await server.reached(5)
            await session.wait_status("live")
        assert made == ["t0", "t1", "t2", "t3", "t4"]

    async def test_a_callback_that_fails_is_tried_again(self, autojump_clock: MockClock) -> None:
        answers: list[Any] = [OSError("no network"), "t2"]

        def token() -> str:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

        server = Server(stay)
        async with opened(server, token=token) as session:
            assert isinstance(session.last_error, TokenError)
        assert server.peers[0].token == "t2"

    async def test_a_callback_that_gave_one_before_may_fail_to_for_a_while(
        self, autojump_clock: MockClock
    ) -> None:
        async def expire(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "auth_required", "expires_in": 60.0})
            await trio.sleep(20)
            peer.close(4001)

        answers: list[Any] = ["t0", None, "with\nnewline", None, "t4"]
        server = Server(expire, stay)
        async with opened(server, token=lambda: answers.pop(0)) as session:
            await trio.sleep(16)
            assert session.status == "live"
            assert str(session.last_error) == (
                "token: the callback gave None; accepted: a string, or a function that gives one"
            )
            await server.reached(2)
            await session.wait_status("live")
        assert [peer.token for peer in server.peers] == ["t0", "t4"]
        assert answers == []

    async def test_a_callback_that_hangs_is_given_the_time_of_a_try(self, autojump_clock: MockClock) -> None:
        async def token() -> str:
            await trio.sleep_forever()
            raise AssertionError

        with pytest.raises(TokenError, match="within 4 s"):
            async with opened(Server(), token=token, connect_timeout=4, give_up_after=9):
                pass


class TestReconnecting:
    async def test_statuses_and_delays_follow_the_tries(self, autojump_clock: MockClock) -> None:
        async def drop(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}))
            await trio.sleep(1)
            peer.say(event(1), live(1))
            await trio.sleep(1)
            peer.close(1001)

        async def again(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 2}, **RESUMED), live(1))
            await peer.until_bye()

        statuses: list[str] = []
        server = Server(drop, TransportError("refused"), TransportError("refused"), again)
        async with opened(server, on_status=statuses.append) as session:
            await server.reached(4)
            await session.wait_status("live")
        assert statuses == [
            *("replaying", "live", "waiting"),
            *("connecting", "waiting"),
            *("connecting", "waiting"),
            *("connecting", "live", "closed"),
        ]
        waits = [
            later - sooner
            for sooner, later in zip(server.dialled_at[1:], server.dialled_at[2:], strict=False)
        ]
        assert waits == [0.5, 1.0]  # the half of 1 and 2 s

    @pytest.mark.parametrize("status", [429, 503])
    async def test_retry_after_of_a_refusal_is_honoured(self, status: int, autojump_clock: MockClock) -> None:
        server = Server(HandshakeRefused(status, retry_after=40), stay)
        async with opened(server):
            pass
        assert server.dialled_at[1] - server.dialled_at[0] == 40.25

    async def test_retry_after_of_the_error_before_a_close_is_honoured(
        self, autojump_clock: MockClock
    ) -> None:
        async def full(peer: Peer) -> None:
            peer.say({"op": "error", "code": "overloaded", "message": "too many", "retry_after": 30.0})
            peer.close(4006)

        server = Server(full, stay)
        async with opened(server):
            pass
        assert server.dialled_at[1] - server.dialled_at[0] == 30.25

    async def test_a_drain_names_its_own_jitter(self, autojump_clock: MockClock) -> None:
        async def drain(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "drain", "retry_after": 10.0, "jitter": 4.0})
            peer.close(4000)

        server = Server(drain, stay)
        async with opened(server) as session:
            await server.reached(2)
            await session.wait_status("live")
        assert server.dialled_at[1] - server.dialled_at[0] == 12

    async def test_retry_after_of_a_refused_command_does_not_delay_the_next_try(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            error = {"op": "error", "code": "rate_limited", "message": "no", "ref": "x", "retry_after": 30.0}
            peer.say(welcome(), live(0), error)
            peer.close(1006)

        server = Server(script, stay)
        async with opened(server):
            await server.reached(2)
        assert server.dialled_at[1] - server.dialled_at[0] == 0.25

    async def test_a_server_that_drains_without_closing_is_left(self, autojump_clock: MockClock) -> None:
        async def drain(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "drain", "retry_after": 3.0, "jitter": 4.0})
            await peer.gone.wait()

        server = Server(drain, stay)
        async with opened(server) as session:
            start = trio.current_time()
            await session.wait_status("waiting")
            assert trio.current_time() == start + 7

    async def test_stable_for_a_minute_it_may_be_replaced_again(self, autojump_clock: MockClock) -> None:
        async def replace(peer: Peer) -> None:
            peer.say(welcome(heartbeat=1000.0), live(0))
            await trio.sleep(60)
            peer.close(4500)

        server = Server(replace, replace, stay)
        async with opened(server) as session:
            await server.reached(3)
            await session.wait_status("live")
        assert len({peer.hello["client"] for peer in server.peers}) == 3

    async def test_a_minute_of_connection_starts_the_backoff_anew(self, autojump_clock: MockClock) -> None:
        async def minute(peer: Peer) -> None:
            peer.say(welcome(heartbeat=1000.0), live(0))
            await trio.sleep(60)
            peer.close(1006)

        server = Server(TransportError("a"), TransportError("b"), minute, stay)
        async with opened(server):
            await server.reached(4)
        assert server.dialled_at[3] - server.dialled_at[2] == 60.25

    @pytest.mark.parametrize("code", [4501, 4503, 4502, 4999, 1000])
    async def test_a_close_that_says_stop_ends_the_session(
        self, code: int, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), event(1), live(1))
            peer.close(code, "why")

        async with opened(Server(script)) as session:
            await session.wait_status("closed")
            assert seqs(await take(session, 1)) == [1]
            for _ in range(2):
                with pytest.raises(ConnectionClosed, match=f"{code}: why"):
                    await anext(session)
            with pytest.raises(ConnectionClosed):
                await session.send("chat", {})

    async def test_who_waits_for_another_status_than_closed_is_told_of_the_end(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            await trio.sleep(5)
            peer.close(4503)

        async with opened(Server(script)) as session:
            for _ in range(2):  # While it waits, and behind the end.
                with pytest.raises(ConnectionClosed, match="4503"):
                    await session.wait_status("waiting")
            assert await session.wait_status("live", "closed") == "closed"

    async def test_who_waits_for_a_status_of_a_session_that_is_left_is_told_so(
        self, autojump_clock: MockClock
    ) -> None:
        async with opened(Server(stay)) as session:
            await session.aclose()
            with pytest.raises(TransportError, match="the session is closed"):
                await session.wait_status("live")

    async def test_an_event_that_is_larger_than_a_client_takes_ends_the_session(
        self, autojump_clock: MockClock
    ) -> None:
        """The server would send it again and again."""

        async def script(peer: Peer) -> None:
            part = {
                "op": "part",
                "stream": "user",
                "seq": 2,
                "offset": 0,
                "total": 8 * 2**20 + 1,
                "bytes": "eyJ",
            }
            peer.say(welcome(2, **{"from": 1}), event(1), part)
            await trio.sleep_forever()

        async with opened(Server(script)) as session:
            assert seqs(await take(session, 1)) == [1]
            with pytest.raises(TooLarge, match="event 2 of user has 8388609 bytes"):
                await anext(session)
            with pytest.raises(TooLarge):
                await session.send("chat", {})

    @pytest.mark.parametrize(
        "code", [1001, 1002, 1003, 1005, 1007, 1009, 1011, 1013, 4002, 4003, 4004, 4007, 4499]
    )
    async def test_a_close_that_does_not_is_followed_by_another_try(
        self, code: int, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(code)

        server = Server(script, stay)
        async with opened(server) as session:
            await session.wait_status("waiting")
            await session.wait_status("live")
        assert len(server.peers) == 2

    @pytest.mark.parametrize("status", [400, 403, 404, 426, 431])
    async def test_a_refusal_that_will_not_change_ends_the_session(
        self, status: int, autojump_clock: MockClock
    ) -> None:
        with pytest.raises(HandshakeRefused):
            async with opened(Server(HandshakeRefused(status))):
                pass

    async def test_who_is_replaced_comes_back_once_under_another_name(
        self, autojump_clock: MockClock
    ) -> None:
        async def first(peer: Peer) -> None:
            peer.say(welcome(1, **{"from": 1}), event(1), live(1))
            peer.close(4500)

        async def second(peer: Peer) -> None:
            assert peer.hello["resume"] == {"user": ["e-1", 1]}
            peer.say(welcome(1, **{"from": 2}, **RESUMED), live(1))
            await trio.sleep(5)
            peer.close(4500)

        server = Server(first, second)
        async with opened(server, client_id="mine") as session:
            await session.wait_status("closed")
            assert isinstance(session.last_error, ConnectionClosed)
        assert server.peers[0].hello["client"] == "mine"
        assert server.peers[1].hello["client"] == session.client_id != "mine"

    async def test_give_up_after_ends_with_the_last_error(self, autojump_clock: MockClock) -> None:
        server = Server(TransportError("no such host"))
        start = trio.current_time()
        with pytest.raises(TransportError, match="no such host"):
            async with opened(server, give_up_after=60):
                pass
        assert trio.current_time() == start + 60
        assert len(server.peers) > 5

    async def test_giving_up_is_counted_from_the_loss_of_the_connection(
        self, autojump_clock: MockClock
    ) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(heartbeat=1000.0), live(0))
            await trio.sleep(500)
            peer.close(1006)

        async with opened(Server(script, TransportError("gone")), give_up_after=30) as session:
            start = trio.current_time()
            with pytest.raises(TransportError, match="gone"):
                await session.send("chat", {})
            assert trio.current_time() == start + 530
            with pytest.raises(TransportError, match="gone"):
                await anext(session)

    async def test_a_certificate_that_is_trusted_no_more_may_be_renewed(
        self, autojump_clock: MockClock
    ) -> None:
        async def drop(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(1006)

        expired = TransportError("TLS failed")
        expired.__cause__ = ssl.SSLCertVerificationError("certificate has expired")
        server = Server(drop, expired, stay)
        async with opened(server) as session:
            await server.reached(3)
            await session.wait_status("live")

    async def test_why_it_waits_is_told_also_before_the_first_connection(
        self, autojump_clock: MockClock
    ) -> None:
        async def drop(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            peer.close(1001)

        told: list[str] = []
        server = Server(TransportError("no such host"), HandshakeRefused(503), drop, stay)
        async with opened(
            server, on_status=told.append, on_error=lambda error: told.append(str(error))
        ) as session:
            assert told[:5] == ["no such host", "waiting", "connecting", "HTTP 503", "waiting"]
            await server.reached(4)
            await session.wait_status("live")
        assert told[5:] == [
            "connecting",
            "live",
            "closed with 1001",
            "waiting",
            "connecting",
            "live",
            "closed",
        ]

    async def test_no_welcome_in_time_counts_as_a_failed_try(self, autojump_clock: MockClock) -> None:
        async def silent(peer: Peer) -> None:
            await trio.sleep_forever()

        server = Server(silent, stay)
        async with opened(server, connect_timeout=6) as session:
            assert "no welcome within 6 s" in str(session.last_error)
        assert server.dialled_at[1] - server.dialled_at[0] == 6.25


class TestLiveness:
    async def test_a_silent_server_is_asked_and_given_ten_seconds(self, autojump_clock: MockClock) -> None:
        async def silent(peer: Peer) -> None:
            peer.say(welcome(), live(0))
            start = trio.current_time()
            assert await peer.hear() == {"op": "ping"}
            assert trio.current_time() == start + 25
            await trio.sleep(9)
            peer.say({"op": "pong"})
            assert await peer.hear() == {"op": "ping"}
            assert trio.current_time() == start + 59
            await peer.gone.wait()

        server = Server(silent, stay)
        async with opened(server) as session:
            start = trio.current_time()
            await session.wait_status("waiting")
            assert trio.current_time() == start + 69
            assert "nothing was heard" in str(session.last_error)

    async def test_a_ping_is_answered(self, autojump_clock: MockClock) -> None:
        async def script(peer: Peer) -> None:
            peer.say(welcome(), live(0), {"op": "ping"})
            assert await peer.hear() == {"op": "pong"}
            answered.set()
            await peer.until_bye()

        answered = trio.Event()
        async with opened(Server(script)):
            await answered.wait()

    async def test_silence_does_not_count_while_the_app_makes_the_reader_wait(
        self, autojump_clock: MockClock
    ) -> None:
        heard = []

        async def script(peer: Peer) -> None:
            peer.say(welcome(2, **{"from": 1}), event(1), event(2), live(2))
            heard.append(await peer.hear())
            peer.close(1000)

        server = Server(script)
        async with opened(server, buffer_items=2) as session:
            await trio.sleep(1000)
            assert seqs(await take(session, 2)) == [1, 2]
        assert heard == [{"op": "bye"}]

    async def test_a_server_that_takes_nothing_is_left_after_ten_seconds(
        self, autojump_clock: MockClock
    ) -> None:
        async def full(peer: Peer) -> None:
            peer.stop_taking()
            peer.say(welcome(), live(0), {"op": "ping"})
            await peer.gone.wait()

        server = Server(full, stay)
        async with opened(server) as session:
            start = trio.current_time()
            await session.wait_status("waiting")
            assert trio.current_time() == start + 10
            assert "took nothing for 10 s" in str(session.last_error)

    async def test_what_waits_for_a_server_that_takes_nothing_is_bounded(
        self, autojump_clock: MockClock
    ) -> None:
        async def full(peer: Peer) -> None:
            peer.stop_taking()
            peer.say(welcome(), live(0), *[{"op": "ping"}] * 1100)
            await peer.gone.wait()

        async with opened(Server(full, stay)) as session:
            await session.wait_status("waiting")
            assert "1024 messages wait" in str(session.last_error)
