"""Close codes: RFC 6455, section 7.4, and this protocol's own; and what a client does after each."""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias

import attrs

__all__ = ["MAX_REASON_BYTES", "RULES", "Action", "CloseCode", "Rule", "after"]

MAX_REASON_BYTES: Final = 123
"""Bytes of a close frame's reason (RFC 6455, section 5.5)."""

Action: TypeAlias = Literal["reconnect", "refresh", "new_client_id", "fail_sends", "stop"]
"""`reconnect`: after the backoff. `refresh`: get a new token first. `new_client_id`: see `REPLACED`.
`fail_sends`: reconnect, but a send outstanding at two such closes is failed to the app. `stop`: tell the app.
"""


class CloseCode(enum.IntEnum):
    """Why a connection was closed."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    WS_PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_TEXT = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    DRAIN = 4000
    TOKEN_EXPIRED = 4001
    TOO_SLOW = 4002
    HEARTBEAT_LOST = 4003
    RATE_LIMITED = 4004
    OVERLOADED = 4005
    TOO_MANY_CONNECTIONS = 4006
    EPOCH_CHANGED = 4007
    REPLACED = 4500
    AUTHENTICATION_FAILED = 4501
    PROTOCOL_ERROR = 4502
    REVOKED = 4503


@attrs.frozen
class Rule:
    """What a client does after a code; `retry_after`: the frame before the close that gives a delay."""

    action: Action
    retry_after: Literal["drain", "error"] | None = None


RULES: Final[dict[CloseCode, Rule]] = {
    CloseCode.NORMAL_CLOSURE: Rule("stop"),
    CloseCode.GOING_AWAY: Rule("reconnect"),
    CloseCode.WS_PROTOCOL_ERROR: Rule("reconnect"),
    CloseCode.UNSUPPORTED_DATA: Rule("reconnect"),
    CloseCode.NO_STATUS: Rule("reconnect"),
    CloseCode.ABNORMAL_CLOSURE: Rule("reconnect"),
    CloseCode.INVALID_TEXT: Rule("fail_sends"),
    CloseCode.MESSAGE_TOO_BIG: Rule("fail_sends"),
    CloseCode.INTERNAL_ERROR: Rule("reconnect"),
    CloseCode.SERVICE_RESTART: Rule("reconnect"),
    CloseCode.TRY_AGAIN_LATER: Rule("reconnect"),
    CloseCode.DRAIN: Rule("reconnect", retry_after="drain"),
    CloseCode.TOKEN_EXPIRED: Rule("refresh"),
    CloseCode.TOO_SLOW: Rule("reconnect"),
    CloseCode.HEARTBEAT_LOST: Rule("reconnect"),
    CloseCode.RATE_LIMITED: Rule("reconnect", retry_after="error"),
    CloseCode.OVERLOADED: Rule("reconnect", retry_after="error"),
    CloseCode.TOO_MANY_CONNECTIONS: Rule("reconnect", retry_after="error"),
    CloseCode.EPOCH_CHANGED: Rule("reconnect"),
    CloseCode.REPLACED: Rule("new_client_id"),
    CloseCode.AUTHENTICATION_FAILED: Rule("stop"),
    CloseCode.PROTOCOL_ERROR: Rule("fail_sends"),
    CloseCode.REVOKED: Rule("stop"),
}
"""One rule for each code."""


def after(code: int) -> Action:
    """What a client does after `code`. Of those not listed, 4500 to 4999 mean stop, others reconnect."""
    try:
        return RULES[CloseCode(code)].action
    except ValueError:
        return "stop" if 4500 <= code <= 4999 else "reconnect"
