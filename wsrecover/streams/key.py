"""The names of streams."""

from __future__ import annotations

from typing import Literal, Self, TypeAlias

__all__ = ["Scope", "StreamKey"]

Scope: TypeAlias = Literal["user", "tenant", "tier", "role", "all"]


class StreamKey(str):
    """Names one stream. `name` is the user, tier or role; empty for `tenant` and `all`.

    A str, as it is looked up for every event, and a str keeps its hash. Keys are ordered as their `parts`.
    Names count by their characters, whatever their own `__str__` would tell, as an enum's member does.
    """

    __slots__ = ("name", "scope", "tenant")

    scope: Scope
    tenant: str
    name: str

    def __new__(cls, scope: Scope, tenant: str = "", name: str = "") -> Self:
        parts = scope, tenant, name
        key = super().__new__(cls, "\n".join(parts))  # Less than any character of a name.
        key.scope, key.tenant, key.name = parts
        return key

    def __getnewargs__(self) -> tuple[Scope, str, str]:  # type: ignore[override]  # A str has one argument.
        return self.parts

    def __repr__(self) -> str:
        return f"StreamKey{self.parts}"

    @property
    def parts(self) -> tuple[Scope, str, str]:
        """Scope, tenant and name."""
        return self.scope, self.tenant, self.name

    @property
    def wire_name(self) -> str:
        """What one who may follow the stream knows it by."""
        return f"role:{self.name}" if self.scope == "role" else self.scope
