"""Text in UTF-16 units, in which a message's offsets count: those of JavaScript's strings."""

from __future__ import annotations

__all__ = ["between", "units"]


def units(text: str) -> int:
    """The length of `text` in UTF-16 units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def between(text: str, begin: int, end: int) -> str:
    """Units `begin` to `end` of `text`, as far as it reaches, without halves of characters."""
    if text.isascii():
        return text[begin:end]
    return text.encode("utf-16-le")[2 * begin : 2 * end].decode("utf-16-le", "ignore")
