"""The commands with which a service speaks to many, and asks who has heard it."""

from __future__ import annotations

import attrs

from wsrecover.access.claims import OPERATOR
from wsrecover.access.policy import chosen_tenant, require_operator, require_service
from wsrecover.errors import CommandError, InvalidEvent
from wsrecover.streams.store import Applied, Conflict, Duplicate, Unit

from .broadcast import Broadcast, audience
from .calls import Call, Result, Status, conflict, settled, told
from .fields import object_field, text_field
from .services import Services

__all__ = ["answer_broadcast", "answer_receipt"]


async def answer_broadcast(services: Services, call: Call) -> tuple[Status, Result]:
    """`broadcast`: with the role `service` within its tenant, with `operator` to any and to all."""
    require_service(call.principal, call.send.type)
    try:
        broadcast = _broadcast(services, call)
    except InvalidEvent as error:
        raise CommandError("invalid", error.problem, field=f"data.{error.field}") from error
    result: Result = {"receipt": broadcast.id, "stream": broadcast.key.wire_name}
    outcome = await broadcast.commit(call.answer(result))
    match outcome:
        case Applied():
            return "ok", {**result, "seq": broadcast.entry.seq}
        case Duplicate(positions=positions):
            return "duplicate", {**told(outcome.status, outcome.result), "seq": positions[0].seq}
        case Conflict():
            raise conflict(outcome.id)


def _broadcast(services: Services, call: Call) -> Broadcast:
    data = call.send.data
    to, kind = (text_field(data, name, path="data") for name in ("to", "type"))
    named = text_field(data, "tenant", path="data", required=False) or None
    if to == "all":
        require_operator(call.principal)
    tenant = named if to == "all" else chosen_tenant(call.principal, named)
    key = audience(to, tenant)
    return Broadcast.of(services, key, kind, object_field(data, "data", path="data"))


async def answer_receipt(services: Services, call: Call) -> tuple[Status, Result]:
    """`receipt`: the counts of a broadcast of the caller's tenant; with the role `operator` of any."""
    require_service(call.principal, call.send.type)
    receipt = services.receipts.find(text_field(call.send.data, "receipt", path="data"))
    foreign = receipt is not None and receipt.key.tenant != call.principal.tenant
    if receipt is None or (foreign and OPERATOR not in call.principal.roles):
        # A repeat is answered as the first was, also where the receipt has ended meanwhile.
        if (known := await call.known(services.store)) is not None:
            return known
        raise CommandError("not_found", "there is no such receipt, or it has ended", field="data.receipt")
    result = attrs.asdict(receipt.counts)
    return settled(await services.journal.commit(Unit(answers=(call.answer(result),))), result)
