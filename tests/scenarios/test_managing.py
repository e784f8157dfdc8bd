"""S02, M01, M02, M04: the server as its embedding program sees it: who is there, since when, what failed."""

from __future__ import annotations

from collections.abc import AsyncIterator

import attrs
import pytest
import trio
from memory_world import MemoryWorld, memory_world
from serving import START, frames_until_closed, until_none
from stage import Stage
from trio.testing import MockClock, wait_all_tasks_blocked

from wsrecover.access import Credentials, Grant, Principal
from wsrecover.agents import App, Run
from wsrecover.config import Tier, Timeouts
from wsrecover.errors import ConnectionClosed, InvalidFilter
from wsrecover.session.mishaps import KINDS, WINDOW, Mishaps
from wsrecover.session.views import Filters
from wsrecover.testing import LocalServer, local_server


class TestS02Sessions:
    async def test_s02_each_user_has_one_that_ends_when_idle_for_the_linger_time(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_world(timeouts=Timeouts(linger=60.0)) as world:
            server = world.local.server
            for user in ("ada", "bob"):
                async with (
                    world.local.peer(user, client="a", dial=world.network.dial) as first,
                    world.local.peer(user, client="b", dial=world.network.dial) as second,
                ):
                    await first.until("live")
                    await second.until("live")
                    (session,) = server.sessions(user=user)
                    assert (session.state, len(session.connections)) == ("active", 2)
            await trio.sleep(1)
            assert [(one.user, one.state) for one in server.sessions()] == [("ada", "idle"), ("bob", "idle")]
            await trio.sleep(60)
            assert server.sessions() == ()
            counts = server.statistics().sessions.counts
            assert (counts["session.started"], counts["session.ended"]) == (2, 2)

    async def test_s02_its_limits_are_enforced_and_free_what_ends(self) -> None:
        tiers = {"free": Tier(connections=2, runs=1)}
        stage = Stage()
        async with local_server(stage.app, tiers=tiers) as local:
            async with local.peer(tier="free", client="a") as first, local.peer(tier="free", client="b"):
                await first.until("live")
                async with local.peer(tier="free", client="c") as third:
                    assert (await third.frame())["code"] == "overloaded"
                    with pytest.raises(ConnectionClosed) as closed:
                        await third.frame()
                    assert closed.value.code == 4006
                replies = [await first.command("start_agent", {"agent": "worker"}) for _ in range(2)]
                assert [reply["status"] for reply in replies] == ["ok", "error"]
                assert replies[1]["error"]["code"] == "overloaded"
                assert len(local.server.connections()) == 2
                stage.tell("finish")
                await until_none(local, "runs")
                assert (await first.command("start_agent", {"agent": "worker"}))["status"] == "ok"
                stage.tell("finish")
            await until_none(local, "connections")
            async with local.peer(tier="free", client="c") as third:
                assert (await third.frame())["op"] == "welcome"


class Town:
    """Four connections of three users in two tenants, one of which works."""

    def __init__(self, world: MemoryWorld) -> None:
        self.world = world
        self.server = world.local.server

    def clients(self, **filters: object) -> set[str]:
        return {one.client for one in self.server.connections(**filters)}  # type: ignore[arg-type]  # As each test says.

    def users(self, **filters: object) -> set[tuple[str, str]]:
        return {(one.tenant, one.user) for one in self.server.sessions(**filters)}  # type: ignore[arg-type]  # As each test says.


@pytest.fixture
async def town(autojump_clock: MockClock) -> AsyncIterator[Town]:
    """`phone`, which follows t1 alone, and `laptop` are ada's of acme, `tab` bob's, `other` ada's of zeta."""
    stage = Stage()
    async with memory_world(stage.app) as world:
        local, dial = world.local, world.network.dial
        async with (
            local.peer(client="phone", threads=["t1"], dial=dial) as phone,
            local.peer(client="laptop", roles=["ops"], tier="mid", dial=dial) as laptop,
        ):
            await phone.until("live")
            await laptop.until("live")
            await trio.sleep(5)
            async with (
                local.peer("bob", client="tab", dial=dial) as tab,
                local.peer("ada", tenant="zeta", client="other", dial=dial) as other,
            ):
                await tab.until("live")
                await other.until("live")
                await tab.command("start_agent", {"agent": "worker"}, thread="t2")
                await trio.sleep(5)
                yield Town(world)


class TestM01Queries:
    async def test_m01_by_tenant_and_user(self, town: Town, autojump_clock: MockClock) -> None:
        assert town.clients() == {"phone", "laptop", "tab", "other"}
        assert town.clients(tenant="acme") == {"phone", "laptop", "tab"}
        assert town.clients(user="ada") == {"phone", "laptop", "other"}
        assert town.clients(tenant="acme", user="ada") == {"phone", "laptop"}
        assert town.users(tenant="zeta") == {("zeta", "ada")}
        assert town.users(user="bob") == {("acme", "bob")}

    @pytest.mark.parametrize("foreign", [{"tenant": "ACME"}, {"tenant": "zeta", "user": "bob"}, {"user": ""}])
    async def test_m01_who_asks_for_another_gets_nothing(
        self, town: Town, autojump_clock: MockClock, foreign: dict[str, str]
    ) -> None:
        assert town.clients(**foreign) == set()
        assert town.users(**foreign) == set()

    async def test_m01_by_thread(self, town: Town, autojump_clock: MockClock) -> None:
        assert town.clients(thread="t1") == {"phone", "laptop", "tab", "other"}
        assert town.clients(thread="t2") == {"laptop", "tab", "other"}
        assert town.users(thread="t2") == {("acme", "bob")}
        assert town.users(thread="t1") == set()

    async def test_m01_by_age(self, town: Town, autojump_clock: MockClock) -> None:
        assert town.clients(min_age=10.0) == {"phone", "laptop"}
        assert town.clients(min_age=5.0) == {"phone", "laptop", "tab", "other"}
        assert town.clients(min_age=10.1) == set()
        assert town.users(min_age=10.0) == {("acme", "ada")}

    async def test_m01_by_state(self, town: Town, autojump_clock: MockClock) -> None:
        assert town.clients(state="live") == {"phone", "laptop", "tab", "other"}
        for number in range(300):
            await town.server.publish("acme", "bob", "noted", {"n": number, "pad": "x" * 1000})
        assert town.clients(state="lagging") == {"tab"}
        assert town.clients(state="live") == {"phone", "laptop", "other"}
        assert town.users(state="active") == {("acme", "ada"), ("acme", "bob"), ("zeta", "ada")}
        assert town.users(state="idle") == set()

    async def test_m01_by_what_its_token_says(self, town: Town, autojump_clock: MockClock) -> None:
        assert town.clients(role="ops") == {"laptop"}
        assert town.clients(role="op") == set()
        assert town.clients(tier="mid") == {"laptop"}
        assert town.clients(tier="free") == town.clients(role="ops", tier="free") == set()
        assert town.users(role="ops") == town.users(tier="mid") == {("acme", "ada")}
        assert town.users(role="ops", tenant="zeta") == set()

    async def test_m01_by_client_and_peer(self, town: Town, autojump_clock: MockClock) -> None:
        assert town.clients(client="tab") == {"tab"}
        assert town.users(client="tab") == {("acme", "bob")}
        assert town.clients(client="tab", user="ada") == town.users(client="tab", user="ada") == set()
        (phone,) = town.server.connections(client="phone")
        assert town.clients(peer=phone.peer) == {"phone"}
        assert town.users(peer=phone.peer) == {("acme", "ada")}
        assert town.clients(peer="memory") == {"phone", "laptop", "tab", "other"}
        assert town.clients(peer="memor") == town.users(peer="elsewhere") == set()

    async def test_m01_a_session_has_one_connection_that_all_filters_let_pass(
        self, town: Town, autojump_clock: MockClock
    ) -> None:
        assert town.users(client="phone") == town.users(role="ops") == {("acme", "ada")}
        assert town.users(client="phone", role="ops") == set()
        assert town.users(client="laptop", role="ops", tier="mid", peer="memory") == {("acme", "ada")}

    async def test_m01_a_filter_of_none_asks_nothing_and_an_unknown_one_is_refused(
        self, town: Town, autojump_clock: MockClock
    ) -> None:
        nothing = dict.fromkeys(Filters.__annotations__)
        assert town.clients(state=None, **nothing) == town.clients()
        assert town.users(state=None, **nothing) == town.users()
        for ask in (town.clients, town.users):
            with pytest.raises(TypeError, match="colour"):
                ask(colour="red")

    async def test_m01_a_state_that_there_is_not_is_refused_and_those_that_there_are_are_told(
        self, town: Town, autojump_clock: MockClock
    ) -> None:
        with pytest.raises(InvalidFilter) as caught:
            town.clients(state="active")
        assert str(caught.value) == ("state: is 'active'; accepted: 'opening', 'live', 'lagging', 'closing'")
        with pytest.raises(InvalidFilter) as caught:
            town.users(state="live")
        assert str(caught.value) == "state: is 'live'; accepted: 'active', 'idle', 'ended'"
        with pytest.raises(InvalidFilter, match=r"^state: is \[\]"):
            town.users(tenant="nobody", state=[])

    async def test_m01_what_is_known_of_a_connection(self, town: Town, autojump_clock: MockClock) -> None:
        (phone,) = town.server.connections(tenant="acme", thread="t1", user="ada", state="live")[:1]
        (laptop,) = town.server.connections(tenant="acme", thread="t2", user="ada")
        assert (phone.client, phone.threads, phone.tier, phone.roles) == ("phone", {"t1"}, None, ())
        assert (laptop.threads, laptop.tier, laptop.roles) == (None, "mid", ("ops",))
        assert (phone.tenant, phone.user, phone.peer[:7]) == ("acme", "ada", "memory:")
        assert laptop.since == trio.current_time() - 10
        assert laptop.processed == {}

    async def test_m01_views_do_not_change(self, town: Town, autojump_clock: MockClock) -> None:
        before = town.server.sessions(user="bob")
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            before[0].user = "eve"  # type: ignore[misc]  # It must not be possible.
        with pytest.raises(TypeError):
            before[0].connections[0].processed["user"] = 1  # type: ignore[index]  # Likewise.
        (run,) = before[0].runs
        assert (run.agent, run.thread, run.status) == ("worker", "t2", "running")
        async with town.world.local.peer("bob", client="new", dial=town.world.network.dial) as new:
            await new.until("live")
            assert [one.client for one in before[0].connections] == ["tab"]
            assert len(town.server.sessions(user="bob")[0].connections) == 2

    async def test_m01_what_a_peer_has_processed_is_told(self, town: Town, autojump_clock: MockClock) -> None:
        async with town.world.local.peer("eve", client="e", dial=town.world.network.dial) as peer:
            await peer.until("live")
            await town.server.publish("acme", "eve", "noted", {})
            await peer.until("event")
            await peer.send([{"op": "ack", "pos": {"user": 1}}, {"op": "ping"}])
            await peer.until("pong")
            assert town.server.connections(user="eve")[0].processed == {"user": 1}


async def test_m01_an_address_is_that_of_the_machine_whatever_the_port() -> None:
    async with local_server(host="::1") as local, local.peer(client="a") as first:
        await first.until("live")
        (view,) = local.server.connections()
        assert view.peer.startswith("[::1]:")
        for peer in (view.peer, "[::1]", "::1"):
            assert local.server.connections(peer=peer) == (view,)
            assert [one.user for one in local.server.sessions(peer=peer)] == ["ada"]
        assert local.server.connections(peer="::") == ()


class TestM02WaitConnected:
    async def test_m02_a_publish_to_nobody_is_logged_and_found_by_who_was_waited_for(self) -> None:
        async with local_server() as local, trio.open_nursery() as nursery:
            server = local.server
            position = await server.publish("acme", "ada", "noted", {"n": 1})
            assert position.seq == 1
            found: list[list[int]] = []

            async def come() -> None:
                async with local.peer(**START) as peer:
                    found.append([event["data"]["n"] for event in await peer.events(2)])

            nursery.start_soon(come)
            await server.wait_connected("acme", "ada", timeout=30)
            assert server.connections(tenant="acme", user="ada")
            await server.publish("acme", "ada", "noted", {"n": 2})
        assert found == [[1, 2]]

    async def test_m02_it_returns_at_once_where_there_is_one(self, local: LocalServer) -> None:
        async with local.peer() as peer:
            await peer.until("live")
            await local.server.wait_connected("acme", "ada", timeout=0)

    async def test_m02_it_gives_up_after_its_timeout_and_leaves_nothing(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_world() as world:
            dial = world.network.dial
            async with world.local.peer("bob", dial=dial), world.local.peer(tenant="zeta", dial=dial):
                begun = trio.current_time()
                with pytest.raises(trio.TooSlowError):
                    await world.local.server.wait_connected("acme", "ada", timeout=7.0)
                assert trio.current_time() - begun == 7.0
            assert world.services.presence._awaited == {}

    async def test_m02_everybody_who_waits_is_told(self, local: LocalServer) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(local.server.wait_connected, "acme", "ada", 30)
            await wait_all_tasks_blocked(0.01)
            async with local.peer() as peer:
                await peer.until("live")
        assert local.server._services.presence._awaited == {}


class TestM04Errors:
    async def test_m04_errors_are_counted_by_kind(self) -> None:
        app = App()

        @app.agent("broken")
        async def broken(run: Run) -> None:
            raise RuntimeError("broken")

        async with local_server(app) as local, local.peer() as peer:
            await peer.until("live")
            await peer.send({"op": "nonsense"})
            await peer.until("error")
            for _ in range(2):
                await peer.command("cancel_run", {"run": "none"})
            await peer.command("start_agent", {"agent": "broken"})
            await peer.until("event", type="agent_completed")
            await until_none(local, "runs")
            async with local.peer() as other:
                await other.until("live")
                await other.socket.send(b"binary")
                assert (await frames_until_closed(other))[1] == 4502
            await trio.testing.wait_all_tasks_blocked(0.01)
            errors = local.server.statistics().errors
            assert {kind: error.count for kind, error in errors.items()} == {
                "frame.unknown_op": 1,
                "command.not_found": 2,
                "run.failed": 1,
                "frame.malformed": 1,
                "connection.4502": 1,
            }
            assert all(0 <= local.wall_clock() - error.last < 60 for error in errors.values())

    async def test_m04_what_a_limit_refuses_is_an_error_too(self) -> None:
        async with local_server() as local, local.peer(tier="free") as peer:
            await peer.until("live")
            replies = [await peer.command("chat", {}) for _ in range(15)]
            told = [reply["error"]["code"] for reply in replies if reply["status"] == "error"]
            assert set(told) == {"rate_limited"}
            statistics = local.server.statistics()
            assert statistics.errors["command.rate_limited"].count == len(told)
            assert statistics.sessions.counts["refused.rate_limited"] == len(told)

    async def test_m04_so_is_an_ack_of_what_was_not_sent(self) -> None:
        async with local_server() as local, local.peer() as peer:
            await peer.until("live")
            await peer.send({"op": "ack", "pos": {"user": 7, "tenant": 7}})
            for _ in range(2):
                await peer.until("error")
            assert local.server.statistics().errors["frame.invalid"].count == 2

    async def test_m04_so_is_a_token_that_nobody_verified_in_time(self, mock_clock: MockClock) -> None:
        asked = trio.Event()

        class Slow:
            async def authenticate(self, credentials: Credentials) -> Grant:
                if not credentials.headers:  # It came with `auth`.
                    asked.set()
                    await trio.sleep_forever()
                return Grant(Principal("acme", "ada"), 1e9)

        async with (
            local_server(authenticator=Slow(), wall_clock=trio.current_time) as local,
            local.peer() as peer,
        ):
            await peer.until("live")
            await peer.send({"op": "auth", "id": "a1", "token": "any"})
            await asked.wait()
            mock_clock.jump(local.config.timeouts.handshake)
            assert (await peer.until("reply"))[-1]["error"]["code"] == "overloaded"
            assert local.server.statistics().errors["command.overloaded"].count == 1

    async def test_m04_codes_that_peers_make_up_count_as_one(self) -> None:
        async with local_server() as local:
            for code in (3000, 3999, 4999):
                async with local.peer() as peer:
                    await peer.until("live")
                    await peer.socket.aclose(code, timeout=5)
                await until_none(local, "connections")
            statistics = local.server.statistics()
        assert {kind: error.count for kind, error in statistics.errors.items()} == {"connection.other": 3}
        assert statistics.sessions.counts["closed.other"] == 3

    async def test_m04_statistics_do_not_change(self, local: LocalServer) -> None:
        statistics = local.server.statistics()
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            statistics.errors = {}  # type: ignore[misc]  # It must not be possible.
        with pytest.raises(TypeError):
            statistics.errors["x"] = None  # type: ignore[index]  # Likewise.
        with pytest.raises(TypeError):
            statistics.sessions.counts["x"] = 1  # type: ignore[index]  # Likewise.
        async with local.peer() as peer:
            await peer.until("live")
        assert statistics.sessions.counts == {}

    async def test_m04_they_are_forgotten_by_age(self, autojump_clock: MockClock) -> None:
        mishaps = Mishaps()
        mishaps.note("frame.invalid", 1.0)
        await trio.sleep(WINDOW / 2)
        mishaps.note("frame.invalid", 2.0)
        mishaps.note("run.failed", 3.0)
        assert {kind: (one.count, one.last) for kind, one in mishaps.statistics().items()} == {
            "frame.invalid": (2, 2.0),
            "run.failed": (1, 3.0),
        }
        await trio.sleep(WINDOW / 2 + 61)
        assert {kind: one.count for kind, one in mishaps.statistics().items()} == {
            "frame.invalid": 1,
            "run.failed": 1,
        }
        await trio.sleep(WINDOW)
        assert mishaps.statistics() == {}

    async def test_m04_their_memory_is_bounded(self, autojump_clock: MockClock) -> None:
        mishaps = Mishaps()
        for number in range(50_000):
            mishaps.note(f"command.app_{number % 5000}", float(number))
            if number % 100 == 0:
                await trio.sleep(20.0)
        found = mishaps.statistics()
        assert len(found) <= KINDS + 1
        assert found["other"].count > 0
        assert len(mishaps._slices) <= WINDOW / 60 + 2
        assert sum(len(one.counts) for one in mishaps._slices) <= (KINDS + 1) * (WINDOW / 60 + 2)
