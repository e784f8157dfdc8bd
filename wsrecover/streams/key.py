"""The names of streams."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

__all__ = ["Scope", "StreamKey"]

Scope: TypeAlias = Literal["user", "tenant", "tier", "role", "all"]


class StreamKey(str):
    """Names one stream. `name` is the user, tier or role; empty for `tenant` and `all`.

    A str, as it is looked up for every event, and a str keeps its hash. Keys are ordered as their `parts`.
    """

    __slots__ = ("name", "scope", "tenant")

    scope: Scope
    tenant: str
    name: str

    def __new__(cls, scope: Scope, tenant: str = "", name: str = "") -> Self:
        # What separates them is less than any character of an id.
        key = super().__new__(cls, f"{scope}\n{tenant}\n{name}")
        key.scope, key.tenant, key.name = scope, tenant, name
        return key

    @property
    def parts(self) -> tuple[Scope, str, str]:
        """Scope, tenant and name."""
        return self.scope, self.tenant, self.name

    @property
    def wire_name(self) -> str:
        """What one who may follow the stream knows it by."""
        return f"role:{self.name}" if self.scope == "role" else self.scope
