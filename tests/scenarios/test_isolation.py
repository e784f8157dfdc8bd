"""E10, E11, A6, I1 and I2: nobody sees, or does, or learns of what is another's."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from typing import Any, Final

import attrs
import orjson
import pytest
from figures import Figure
from serving import START, Frame

from wsrecover.access import sign
from wsrecover.agents import App, Command, Run
from wsrecover.config import Tokens
from wsrecover.errors import ConfigError
from wsrecover.testing import LocalServer, Peer, local_server

CANARY: Final = "canary-7f3a"
ROLES: Final = ("reviewer", "billing", "service", "operator")


@attrs.frozen
class Anything:
    pass


def gated_app() -> App:
    app = App()

    @app.agent("open")
    @app.agent("review", roles=["reviewer"])
    @app.agent("either", roles=["reviewer", "billing"])
    async def work(run: Run) -> None:
        await run.think("done")

    @app.agent("asker")
    async def ask(run: Run) -> dict[str, Any]:
        return {"heard": await run.ask(CANARY)}

    @app.command("anybody")
    @app.command("refund", roles=["billing"])
    async def answer(_: Command, __: Anything) -> dict[str, Any]:
        return {"done": True}

    return app


@pytest.fixture
async def local() -> AsyncIterator[LocalServer]:
    async with local_server(gated_app(), tokens=Tokens(operator_issuers=("ops",))) as server:
        yield server


def every_set(roles: Iterable[str]) -> list[tuple[str, ...]]:
    listed = tuple(roles)
    return [some for size in range(len(listed) + 1) for some in itertools.combinations(listed, size)]


def operator_token(local: LocalServer, roles: Iterable[str]) -> str:
    return sign(
        local.secret, tenant="acme", user="u", roles=roles, issuer="ops", lifetime=600, clock=local.wall_clock
    )


async def may(peer: Peer, kind: str, data: Frame) -> bool:
    return (await peer.command(kind, data))["status"] == "ok"


async def test_e10_each_set_of_roles_may_do_exactly_what_it_should(
    figure: Figure, local: LocalServer
) -> None:
    wrong = checked = 0
    event = {"user": "grace", "events": [{"type": "noted", "data": {}}]}
    notice = {"type": "notice", "data": {}}
    for roles in every_set(ROLES):
        held = set(roles)
        serves, rules = bool(held & {"service", "operator"}), "operator" in held
        async with local.peer(token=operator_token(local, roles)) as peer:
            await peer.until("live")
            for kind, data, expected in (
                ("start_agent", {"agent": "open"}, True),
                ("start_agent", {"agent": "review"}, "reviewer" in held),
                ("start_agent", {"agent": "either"}, bool(held & {"reviewer", "billing"})),
                ("start_agent", {"agent": "absent"}, False),
                ("anybody", {}, True),
                ("refund", {}, "billing" in held),
                ("chat", {}, True),
                ("publish", event, serves),
                ("publish", {**event, "tenant": "acme"}, serves),
                ("publish", {**event, "tenant": "other"}, rules),
                ("broadcast", {**notice, "to": "tenant"}, serves),
                ("broadcast", {**notice, "to": "role:reviewer"}, serves),
                ("broadcast", {**notice, "to": "tenant", "tenant": "other"}, rules),
                ("broadcast", {**notice, "to": "all"}, rules),
            ):
                checked += 1
                wrong += await may(peer, kind, data) != expected
    figure("E10", f"wrong decisions of {checked} (sets of roles, operations)", wrong)
    assert wrong == 0


async def test_e10_what_is_gated_looks_to_others_as_if_it_did_not_exist(local: LocalServer) -> None:
    async with local.peer(roles=["service"]) as peer:
        await peer.until("live")
        for kind, gated, absent in (
            ("start_agent", {"agent": "review"}, {"agent": "rewiev"}),
            ("start_agent", {"agent": "either"}, {"agent": "eihter"}),
        ):
            answers = [await peer.command(kind, data, id="same") for data in (gated, absent)]
            assert answers[0] == answers[1]
            assert answers[0]["error"]["code"] == "not_found"
        gated, absent = [await peer.command(kind, {}, id="same") for kind in ("refund", "refudn")]
        assert orjson.dumps(gated).replace(b"refund", b"refudn") == orjson.dumps(absent)
        assert gated["error"]["code"] == "unknown_type"


@pytest.mark.parametrize("roles", ["billing", [""], [1], None, ["a b"]])
def test_e10_roles_that_nobody_could_have_are_refused_at_registration(roles: Any) -> None:
    app = App()
    with pytest.raises(ConfigError, match=r"^agent\.roles: "):
        app.agent("a", roles=roles)
    with pytest.raises(ConfigError, match=r"^command\.roles: "):
        app.command("c", roles=roles)


async def test_e11_the_same_user_in_two_tenants_are_strangers(local: LocalServer, figure: Figure) -> None:
    async with local.peer(tenant="one") as one, local.peer(tenant="two") as two:
        epochs = [(await peer.until("live"))[0]["streams"]["user"]["epoch"] for peer in (one, two)]
        assert epochs[0] != epochs[1]
        await local.server.publish("one", "ada", "noted", {"secret": CANARY})
        run = (await one.command("start_agent", {"agent": "asker"}))["result"]["run"]
        first = [event["type"] for event in await one.events(3)]
        assert first == ["noted", "agent_started", "input_requested"]
        reply = await two.command("cancel_run", {"run": run})
        assert reply["error"]["code"] == "not_found"
        await local.server.publish("two", "ada", "noted", {"n": 2})
        (event,) = await two.events(1)
        assert (event["seq"], event["data"]) == (1, {"n": 2})
    async with local.peer(tenant="two", resume={"user": [epochs[0], 1]}) as peer:
        frames = await peer.until("live")
        assert frames[0]["streams"]["user"]["reason"] == "epoch_changed"
        leaked = sum(CANARY in repr(frame) for frame in frames)
        figure("E11 A6", "events of a namesake in another tenant", leaked)
        assert leaked == 0


async def victim(local: LocalServer, stack: AsyncExitStack) -> dict[str, Any]:
    """A user with a run that asks, a broadcast under way and a position; what others must not learn of."""
    peer = await stack.enter_async_context(local.peer("victim", client="client-of-victim", roles=["service"]))
    epoch = (await peer.until("live"))[0]["streams"]["user"]["epoch"]
    start = await peer.command(
        "start_agent", {"agent": "asker"}, id="victims-command", thread="thread-of-victim"
    )
    run = start["result"]["run"]
    events = await peer.events(2)
    receipt = await peer.command("broadcast", {"to": "role:service", "type": "notice", "data": {}})
    return {
        "peer": peer,
        "epoch": epoch,
        "run": run,
        "request": events[1]["data"]["request_id"],
        "receipt": receipt["result"]["receipt"],
        "head": events[1]["seq"],
    }


async def outcome(peer: Peer, kind: str, data: Frame, hide: Iterable[str]) -> str:
    """The answer to a command, without the ids that were asked for."""
    reply = orjson.dumps(await peer.command(kind, data, id="same")).decode()
    for each in hide:
        reply = reply.replace(each, "…")
    return reply


async def followed(peer: Peer, thread: str) -> str:
    """All that comes of following this thread anew, without its name."""
    for name in ("mine", thread):
        await peer.send({"op": "follow", "id": name, "threads": [name]})
        frames = await peer.until("reply", id=name)
        assert frames[-1]["status"] == "ok"
    await peer.send({"op": "ping"})
    return repr(frames + await peer.until("pong")).replace(thread, "…")


@pytest.mark.parametrize(("tenant", "user"), [("acme", "mallory"), ("other", "victim")])
async def test_i1_every_foreign_id_is_answered_like_one_that_does_not_exist(
    local: LocalServer, figure: Figure, tenant: str, user: str
) -> None:
    leaks = compared = 0
    async with AsyncExitStack() as stack:
        theirs = await victim(local, stack)
        # A service of another tenant may ask for receipts: those of others do not exist either.
        roles = ["service"] if tenant == "other" else []
        mallory = await stack.enter_async_context(local.peer(user, tenant=tenant, roles=roles))
        await mallory.until("live")
        for kind, name, more in (
            ("cancel_run", "run", {}),
            ("respond", "request", {"answer": "mine"}),
            ("receipt", "receipt", {}),
        ):
            for foreign in (theirs["run"], theirs["request"], theirs["receipt"], "client-of-victim"):
                absent = secrets.token_hex(len(foreign) // 2)
                answers = [
                    await outcome(mallory, kind, {name: each, **more}, (foreign, absent))
                    for each in (foreign, absent)
                ]
                compared += 1
                leaks += answers[0] != answers[1] or '"status":"error"' not in answers[0]
        told = [await followed(mallory, thread) for thread in ("thread-of-victim", "thread-of-nobody")]
        compared += 1
        leaks += told[0] != told[1] or CANARY in told[0]
        # The victim's own command id is free for everybody else.
        assert (await mallory.command("chat", {}, id="victims-command"))["status"] == "ok"
        assert (await mallory.command("chat", {}, id="victims-command"))["status"] == "duplicate"
        position = {"user": [theirs["epoch"], theirs["head"]]}
        for resume in (position, {"user": ["absent-epoch", 3]}):
            async with local.peer(
                user, tenant=tenant, client="client-of-victim", resume=resume, **START
            ) as peer:
                frames = await peer.until("live")
                state = frames[0]["streams"]["user"]
                compared += 1
                leaks += (state["resumed"], state["reason"]) != (False, "epoch_changed")
                leaks += any(CANARY in repr(frame) for frame in frames)
        # All this time the victim's connection, run and request are as they were.
        await theirs["peer"].send({"op": "ping"})
        await theirs["peer"].until("pong")
        reply = await theirs["peer"].command("respond", {"request": theirs["request"], "answer": "yes"})
        assert reply["status"] == "ok"
    figure("I1 A6", f"foreign ids told from absent ones, by {tenant}/{user}, of {compared}", leaks)
    assert leaks == 0


async def test_i1_a_stream_cannot_be_named_into_existence(local: LocalServer) -> None:
    names = ["role:operator", "tier:enterprise", "user:victim", "user/victim", "tenant:other", "all/../user"]
    async with local.peer(resume={each: ["e-1", 3] for each in names}) as peer:
        frames = await peer.until("live")
        assert set(frames[0]["streams"]) == {"user", "tenant", "all"}
        for each in names:
            await peer.send({"op": "ack", "pos": {each: 1}})
            assert (await peer.until("error"))[-1]["message"] == "no such stream"


ALIKE: Final = (
    ("ann", "Ann"),
    ("e\u0301ve", "\u00e9ve"),
    ("a:b", "a/b"),
    ("*", "%"),
    ("x' OR '1'='1", "x"),
    ("..", "."),
    ("\u200bann", "ann"),
    ("\u0430nn", "ann"),
    ("ann ", "ann"),
    ("NULL", "null"),
)


@pytest.mark.parametrize("field", ["user", "tenant"])
async def test_i2_names_that_look_alike_are_strangers(local: LocalServer, figure: Figure, field: str) -> None:
    collisions = 0
    for pair, alike in enumerate(ALIKE):
        names = [{"tenant": "acme", "user": "ada", field: f"{pair}{each}"} for each in alike]
        for number, each in enumerate(names):
            await local.server.publish(each["tenant"], each["user"], "noted", {"for": number})
        for number, each in enumerate(names):
            async with local.peer(each["user"], tenant=each["tenant"], **START) as peer:
                frames = await peer.until("live")
                seen = [frame["data"]["for"] for frame in frames if frame["op"] == "event"]
                collisions += seen != [number]
    figure("I2", f"{field}s that look alike and share a log, of {len(ALIKE)} pairs", collisions)
    assert collisions == 0


@pytest.mark.parametrize("mark", [":", "/", ".", "|", " ", "%2F", "\\"])
async def test_i2_no_name_reaches_over_the_border_of_another(
    local: LocalServer, figure: Figure, mark: str
) -> None:
    """A tenant `a:b` with a user or role `c` is not the tenant `a` with `b:c`, whatever joins names."""
    collisions = 0
    pairs = (("a", f"b{mark}c"), (f"a{mark}b", "c"))
    roles = pairs if " " not in mark else ()  # In no role there is one.
    for tenant, name in pairs:
        await local.server.publish(tenant, name, "noted", {"for": [tenant, name]})
    for tenant, name in roles:
        await local.server.broadcast(f"role:{name}", "noted", {"for": [tenant, name]}, tenant=tenant)
    for tenant, name in pairs:
        held = [name] if roles else []
        async with local.peer(name, tenant=tenant, roles=held, **START) as peer:
            seen = [frame["data"]["for"] for frame in await peer.until("live") if frame["op"] == "event"]
            collisions += seen != [[tenant, name]] * (1 + len(held))
    figure("I2", f"names that reach over the border by {mark!r}", collisions)
    assert collisions == 0
