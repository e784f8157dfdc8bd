"""S10: one word to many: all, a tenant, a tier, a role; found on return; and who has heard it, exactly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover import Receipt, ReceiptCounts
from wsrecover.access.tokens import sign
from wsrecover.client import Event, connect
from wsrecover.config import Limits, Retention, Tokens
from wsrecover.errors import InvalidEvent
from wsrecover.protocol.closecodes import CloseCode
from wsrecover.protocol.cursor import Position
from wsrecover.streams.store import StreamKey
from wsrecover.testing import LocalServer, Peer, local_server
from wsrecover.transport import ClientSocket, open_socket

SERVICE = {"roles": ["service"]}
ISSUER = "https://login.example"

PEOPLE: dict[str, dict[str, Any]] = {
    "ada": {"tenant": "acme", "user": "ada", "tier": "mid", "roles": ["ops", "dev"]},
    "bob": {"tenant": "acme", "user": "bob", "tier": "free", "roles": ["ops"]},
    "ada of zeta": {"tenant": "zeta", "user": "ada", "tier": "mid", "roles": ["ops"]},
    "eve": {"tenant": "zeta", "user": "eve"},
}

AUDIENCES: list[tuple[str, str | None, str, set[str]]] = [
    ("all", None, "all", {"ada", "bob", "ada of zeta", "eve"}),
    ("tenant", "acme", "tenant", {"ada", "bob"}),
    ("tenant", "zeta", "tenant", {"ada of zeta", "eve"}),
    ("tier:mid", "acme", "tier", {"ada"}),
    ("tier:free", "acme", "tier", {"bob"}),
    ("tier:mid", "zeta", "tier", {"ada of zeta"}),
    ("role:ops", "acme", "role:ops", {"ada", "bob"}),
    ("role:dev", "acme", "role:dev", {"ada"}),
    ("role:ops", "zeta", "role:ops", {"ada of zeta"}),
    ("tier:none", "acme", "tier", set()),
]


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    async with local_server(tokens=Tokens(operator_issuers=(ISSUER,))) as server:
        yield server


def operator(local: LocalServer) -> AbstractAsyncContextManager[Peer]:
    token = sign(
        local.secret,
        tenant="ops",
        user="root",
        roles=["operator"],
        issuer=ISSUER,
        lifetime=600.0,
        clock=local.wall_clock,
    )
    return local.peer(token=token)


def said(frames: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(frame["stream"], frame["data"]["text"]) for frame in frames if frame["op"] == "event"]


async def until_last(peer: Peer) -> list[tuple[str, str]]:
    """All that reaches a peer up to the word that is said to everybody at the end."""
    return said(await peer.until("event", type="last"))[:-1]


def expected(name: str) -> list[tuple[str, str]]:
    return [(stream, f"{to} of {tenant}") for to, tenant, stream, audience in AUDIENCES if name in audience]


async def trim(local: LocalServer, key: StreamKey, *, to: int) -> None:
    """Keep the newest events alone, now: retention would let some more be, for a while."""
    services = local.server._services
    gone = await services.store.retain({key: Retention(events=to)}, now=services.clock())
    services.streams.trim(gone.oldest)


async def say_all(local: LocalServer) -> None:
    for to, tenant, _, _ in AUDIENCES:
        await local.server.broadcast(to, "notice", {"text": f"{to} of {tenant}"}, tenant=tenant)


async def test_s10_each_gets_exactly_what_is_said_to_it(local: LocalServer) -> None:
    async with AsyncExitStack() as stack:
        peers = {name: await stack.enter_async_context(local.peer(**who)) for name, who in PEOPLE.items()}
        for peer in peers.values():
            await peer.until("live")
        await say_all(local)
        await local.server.broadcast("all", "last", {"text": ""})
        assert {name: await until_last(peer) for name, peer in peers.items()} == {
            name: expected(name) for name in PEOPLE
        }


async def test_s10_who_was_away_finds_it_on_return(local: LocalServer) -> None:
    positions: dict[str, dict[str, Any]] = {}
    for name, who in PEOPLE.items():
        async with local.peer(**who) as peer:
            streams = (await peer.until("live"))[0]["streams"]
            positions[name] = {stream: [at["epoch"], at["head"]] for stream, at in streams.items()}
    await say_all(local)
    for name, who in PEOPLE.items():
        async with local.peer(**who, resume=positions[name]) as peer:
            frames = await peer.until("live")
            assert all(state["resumed"] for state in frames[0]["streams"].values())
            assert sorted(said(frames)) == sorted(expected(name))
    # And who has never been there finds it, too.
    async with local.peer("new", tenant="acme") as peer:
        found = said(await peer.until("live"))
        assert sorted(found) == [("all", "all of None"), ("tenant", "tenant of acme")]


async def test_s10_one_append_serves_all(local: LocalServer) -> None:
    async with AsyncExitStack() as stack:
        for name in ("ada", "bob"):
            await (await stack.enter_async_context(local.peer(name))).until("live")
        before = local.server.statistics().store.events
        await local.server.broadcast("tenant", "notice", {}, tenant="acme")
        assert local.server.statistics().store.events == before + 1


class Audience:
    """Clients, two of each user, that the test cuts off and lets return. `got` is what reached each."""

    def __init__(self, local: LocalServer, count: int) -> None:
        self.local = local
        self.got: list[list[int]] = [[] for _ in range(count)]
        self.live = 0
        self._ways = [trio.Event() for _ in range(count)]
        self._sockets: dict[int, ClientSocket] = {}
        for way in self._ways:
            way.set()

    async def attend(self, number: int, *, task_status: trio.TaskStatus[None]) -> None:
        """Be there, live, until cancelled."""

        @asynccontextmanager
        async def dial(url: str, **given: Any) -> AsyncIterator[ClientSocket]:
            await self._ways[number].wait()
            async with open_socket(url, **given) as socket:
                self._sockets[number] = socket
                yield socket

        token = self.local.token(f"user{number // 2}")
        async with connect(self.local.url, token=token, dial=dial, rng=lambda: 0.0) as session:
            await session.wait_status("live")
            task_status.started()
            async for item in session:
                if isinstance(item, Event) and item.stream == "all":
                    self.got[number].append(item.seq)

    def cut(self, numbers: Sequence[int]) -> None:
        """Break the connections of these, and let none of them return."""
        for number in numbers:
            self._ways[number] = trio.Event()
            self._sockets[number].kill()

    def let_return(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._ways[number].set()


async def until_counts(receipt: Receipt, wanted: ReceiptCounts) -> None:
    with trio.fail_after(30):
        while receipt.counts != wanted:  # noqa: ASYNC110  # A receipt tells when it is complete, and counts.
            await trio.sleep(0.001)


async def test_s10_a_receipt_ends_complete_after_those_that_were_cut_off_returned(
    local: LocalServer, nursery: trio.Nursery
) -> None:
    count = 60
    audience = Audience(local, count)
    for number in range(count):
        await nursery.start(audience.attend, number)
    receipt = await local.server.broadcast("all", "notice", {"text": "all hands"})
    away = range(0, count, 10)
    audience.cut(away)
    assert receipt.counts.entitled == count
    await until_counts(receipt, ReceiptCounts(count, count - len(away), 0, len(away)))
    second = await local.server.broadcast("all", "notice", {"text": "while some are away"})
    audience.let_return(away)
    assert await receipt.wait(30) == ReceiptCounts(count, count, 0, 0)
    assert (await second.wait(30)).entitled == count - len(away)
    assert second.counts.complete
    # Acknowledged is handled: nothing more can be on its way to the apps.
    assert audience.got == [[1, 2]] * count, "each got each once"
    nursery.cancel_scope.cancel()


async def test_s10_a_receipt_waits_for_the_word_not_for_the_delivery(local: LocalServer) -> None:
    async with local.peer(client="c") as peer:
        await peer.until("live")
        receipt = await local.server.broadcast("all", "notice", {})
        await peer.until("event")
        assert receipt.counts == ReceiptCounts(1, 0, 1, 0)
        await peer.send({"op": "ack", "pos": {"all": 2}})
        await peer.until("error")
        assert receipt.counts == ReceiptCounts(1, 0, 1, 0), "what was not sent cannot be acknowledged"
        await peer.send({"op": "ack", "pos": {"all": 1}})
        assert (await receipt.wait(30)).complete


async def test_s10_an_ack_after_a_return_counts_and_another_client_of_the_user_does_not(
    local: LocalServer,
) -> None:
    async with local.peer(client="c") as peer:
        epoch = (await peer.until("live"))[0]["streams"]["all"]["epoch"]
        receipt = await local.server.broadcast("all", "notice", {})
        await peer.until("event")
    await until_counts(receipt, ReceiptCounts(1, 0, 0, 1))
    async with local.peer(client="other") as other:
        await other.until("live")
        await other.send([{"op": "ack", "pos": {"all": 1}}, {"op": "ping"}])
        await other.until("pong")
        assert receipt.counts == ReceiptCounts(1, 0, 0, 1)
    async with local.peer(client="c", resume={"all": [epoch, 1]}) as peer:
        await peer.until("live")
        assert receipt.counts == ReceiptCounts(1, 0, 1, 0)
        await peer.send({"op": "ack", "pos": {"all": 1}})
        assert (await receipt.wait(30)).complete


@pytest.mark.parametrize("hello", [{"from": "live"}, {"resume": {"all": ["x-y", 1]}, "from": "live"}])
async def test_s10_who_begins_anew_beyond_it_never_acknowledges_it(
    local: LocalServer, hello: dict[str, Any]
) -> None:
    async with local.peer(client="c") as peer:
        await peer.until("live")
        receipt = await local.server.broadcast("all", "notice", {})
    async with local.peer(client="c", **hello) as peer:
        await peer.until("live")
        await peer.send([{"op": "ack", "pos": {"all": 1}}, {"op": "ping"}])
        await peer.until("pong")
        assert await receipt.wait(30) == ReceiptCounts(1, 0, 0, 1)


async def test_s10_what_is_trimmed_before_it_is_heard_is_told_as_a_gap_and_not_acknowledged() -> None:
    async with local_server(retention_broadcast=Retention(events=2)) as local:
        async with local.peer(client="c") as peer:
            epoch = (await peer.until("live"))[0]["streams"]["all"]["epoch"]
            receipt = await local.server.broadcast("all", "notice", {"text": "0"})
        for number in range(1, 4):
            await local.server.broadcast("all", "notice", {"text": f"{number}"})
        await trim(local, StreamKey("all"), to=2)
        async with local.peer(client="c", resume={"all": [epoch, 0]}) as peer:
            frames = await peer.until("live")
            assert frames[0]["streams"]["all"]["reason"] == "trimmed"
            assert [text for _, text in said(frames)] == ["2", "3"]
            await peer.send([{"op": "ack", "pos": {"all": 4}}, {"op": "ping"}])
            await peer.until("pong")
            assert receipt.counts == ReceiptCounts(1, 0, 0, 1)


async def test_s10_who_gets_back_the_right_to_it_when_it_is_trimmed_never_acknowledges_it() -> None:
    async with (
        local_server(retention_broadcast=Retention(events=2)) as local,
        local.peer(roles=["ops"]) as peer,
    ):
        await peer.until("live")
        receipt = await local.server.broadcast("role:ops", "notice", {"text": "0"}, tenant="acme")
        await peer.until("event")
        await peer.send({"op": "auth", "id": "a1", "token": local.token()})
        await peer.until("streams")
        for number in range(1, 4):
            await local.server.broadcast("role:ops", "notice", {"text": f"{number}"}, tenant="acme")
        await trim(local, StreamKey("role", "acme", "ops"), to=2)
        await peer.send({"op": "auth", "id": "a2", "token": local.token(roles=["ops"])})
        assert [text for _, text in said(await peer.until("live", stream="role:ops"))] == ["2", "3"]
        await peer.send([{"op": "ack", "pos": {"role:ops": 4}}, {"op": "ping"}])
        await peer.until("pong")
        assert receipt.counts == ReceiptCounts(1, 0, 0, 1)


async def test_s10_who_is_about_to_be_closed_is_not_counted(local: LocalServer) -> None:
    async with local.peer(client="c") as peer:
        await peer.until("live")
        (session,) = local.server.registry.sessions.values()
        receipts = local.server._services.receipts
        at = Position("e", 1)
        assert receipts.open("before", StreamKey("all"), at, 60.0).counts.entitled == 1
        session.connections["c"].close(CloseCode.TOO_SLOW, "told to")
        assert receipts.open("after", StreamKey("all"), at, 60.0).counts.entitled == 0


async def test_s10_a_receipt_says_when_it_has_ended(local: LocalServer, mock_clock: MockClock) -> None:
    async with local.peer() as peer:
        await peer.until("live")
        receipt = await local.server.broadcast("all", "notice", {}, timeout=5)
        for jump, ended in ((4.9, False), (0.2, False), (1, True)):  # It is ended by the next sweep.
            mock_clock.jump(jump)
            await wait_all_tasks_blocked(0.001)
            assert receipt.ended is ended
        assert await receipt.wait() == ReceiptCounts(1, 0, 1, 0)
        await peer.send([{"op": "ack", "pos": {"all": 1}}, {"op": "ping"}])
        await peer.until("pong")
        assert receipt.counts == ReceiptCounts(1, 0, 1, 0)


async def test_s10_a_receipt_ends_with_its_server() -> None:
    async with local_server() as local, local.peer() as peer:
        await peer.until("live")
        receipt = await local.server.broadcast("all", "notice", {})
    assert receipt.ended
    assert not (await receipt.wait()).complete


@pytest.mark.parametrize(
    ("to", "tenant", "field"),
    [
        ("all", "acme", "tenant"),
        ("tenant", None, "tenant"),
        ("tier:mid", None, "tenant"),
        ("everybody", "acme", "to"),
        ("tiers:free", None, "to"),
        ("tier", "acme", "to"),
        ("role:", "acme", "to"),
        ("role:two words", "acme", "to"),
        ("tenant", "", "tenant"),
        ("user", "acme", "to"),
        ("tenant:acme", "acme", "to"),
    ],
)
async def test_s10_an_audience_that_there_cannot_be_is_refused_by_name(
    local: LocalServer, to: str, tenant: str | None, field: str
) -> None:
    with pytest.raises(InvalidEvent) as refused:
        await local.server.broadcast(to, "notice", {}, tenant=tenant)
    assert refused.value.field == field
    assert local.server.statistics().store.events == 0


class TestOverTheWire:
    async def test_s10_a_service_speaks_to_its_tenant_and_reads_the_receipt(self, local: LocalServer) -> None:
        async with local.peer("svc", **SERVICE) as service, local.peer("ada", tier="mid") as ada:
            await service.until("live")
            await ada.until("live")
            data = {"to": "tier:mid", "type": "notice", "data": {"text": "hello"}}
            reply = await service.command("broadcast", data, id="b1")
            result = reply["result"]
            assert (reply["status"], result["stream"], result["seq"]) == ("ok", "tier", 1)
            assert said(await ada.until("event")) == [("tier", "hello")]
            asked = await service.command("receipt", {"receipt": result["receipt"]})
            assert asked["result"] == {"entitled": 1, "acknowledged": 0, "pending": 1, "gone": 0}
            await ada.send([{"op": "ack", "pos": {"tier": 1}}, {"op": "ping"}])
            await ada.until("pong")
            asked = await service.command("receipt", {"receipt": result["receipt"]})
            assert asked["result"] == {"entitled": 1, "acknowledged": 1, "pending": 0, "gone": 0}
            again = await service.command("broadcast", data, id="b1")
            assert (again["status"], again["result"]) == ("duplicate", result)
            assert local.server.statistics().store.events == 1
            data["data"] = {"text": "other"}
            other = await service.command("broadcast", data, id="b1")
            assert other["error"]["code"] == "id_conflict"

    async def test_s10_an_operator_speaks_to_all_and_to_any_tenant(self, local: LocalServer) -> None:
        async with operator(local) as root, local.peer("eve", tenant="zeta") as eve:
            await eve.until("live")
            for data in ({"to": "all"}, {"to": "tenant", "tenant": "zeta"}):
                reply = await root.command("broadcast", {"type": "notice", "data": {"text": ""}, **data})
                assert reply["status"] == "ok"
            assert said(await eve.until("event", stream="tenant")) == [("all", ""), ("tenant", "")]

    @pytest.mark.parametrize(
        "data", [{"to": "all"}, {"to": "tenant", "tenant": "zeta"}, {"to": "role:ops", "tenant": "none"}]
    )
    async def test_s10_a_service_stays_within_its_tenant(
        self, local: LocalServer, data: dict[str, Any]
    ) -> None:
        async with local.peer("svc", **SERVICE) as service:
            reply = await service.command("broadcast", {"type": "notice", **data})
            assert reply["error"]["code"] == "forbidden"
            assert local.server.statistics().store.events == 0

    @pytest.mark.parametrize("command", ["broadcast", "receipt"])
    async def test_s10_a_user_may_not(self, local: LocalServer, command: str) -> None:
        async with local.peer("ada") as ada:
            data = {"to": "tenant", "type": "notice", "receipt": "r"}
            assert (await ada.command(command, data))["error"]["code"] == "forbidden"
            assert local.server.statistics().store.events == 0

    async def test_s10_a_receipt_of_another_tenant_is_not_there(self, local: LocalServer) -> None:
        receipt = await local.server.broadcast("tenant", "notice", {}, tenant="zeta")
        errors = []
        async with local.peer("svc", **SERVICE) as service, operator(local) as root:
            for name in (receipt.id, "none"):
                errors.append((await service.command("receipt", {"receipt": name}))["error"])
            assert (await root.command("receipt", {"receipt": receipt.id}))["status"] == "ok"
        assert errors[0] == errors[1]
        assert errors[0]["code"] == "not_found"

    @pytest.mark.parametrize(
        ("data", "field"),
        [
            ({"type": "notice"}, "data.to"),
            ({"to": "tenant"}, "data.type"),
            ({"to": "nobody", "type": "notice"}, "data.to"),
            ({"to": 7, "type": "notice"}, "data.to"),
            ({"to": "tenant", "type": "Not a type"}, "data.type"),
            ({"to": "tenant", "type": "notice", "data": []}, "data.data"),
            ({"to": "tenant", "type": "notice", "data": {"pad": "x" * 2000}}, "data.data"),
        ],
    )
    async def test_s10_what_is_wrong_is_named(self, data: dict[str, Any], field: str) -> None:
        limits = Limits(event_bytes=1024)
        async with local_server(limits=limits) as local, local.peer("svc", **SERVICE) as service:
            error = (await service.command("broadcast", data))["error"]
            assert (error["code"], error["field"]) == ("invalid", field)
