"""Messages that are nearly right, without end: the same seed gives the same ones."""

from __future__ import annotations

import copy
import random
import string
from typing import Any

import orjson

__all__ = ["GOOD", "Mutator", "damaged"]

COMMAND = {"op": "send", "id": "c1", "type": "chat", "data": {"text": "hi"}}

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 1e300, 2**53, 2**63, "", "x", "x" * 200, "\x00", "\u00f6", "\u2028",
    [], {}, [[]], [None], {"": None}, ["e", 1], {"user": 1}, {"user": ["e", 1]}, "user", "t1", "ping",
]  # fmt: skip

GOOD: list[dict[str, Any]] = [
    COMMAND,
    {"op": "ack", "pos": {"user": 0}},
    {"op": "ping"},
    {"op": "pong"},
    {"op": "send", "id": "c2", "type": "start_agent", "data": {"agent": "nobody", "input": {"a": [1]}}},
    {"op": "send", "id": "c3", "type": "cancel_run", "thread": "t1", "age": 1.5, "data": {"run": "r1"}},
    {"op": "send", "id": "c4", "type": "publish", "data": {"user": "eve", "events": [{"type": "a"}]}},
    {"op": "send", "id": "c5", "type": "respond", "data": {"request": "request.1.r1", "answer": {"a": [1]}}},
    {"op": "send", "id": "c6", "type": "note", "data": {"text": "milk", "stars": [1, 2]}},
    {"op": "follow", "id": "f1", "threads": ["t1"]},
    {"op": "auth", "id": "a1", "token": "e.e.e"},
    {"op": "hello", "client": "c", "resume": {"user": ["e", 1]}, "part": {"user": [1, 2]}, "threads": ["t1"]},
]  # fmt: skip


class Mutator:
    """Bad messages without end; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def frame(self, frame: dict[str, Any] | None = None) -> dict[str, Any]:
        """A frame in which something is missing, added or another value."""
        mutant = orjson.loads(orjson.dumps(frame or self.rng.choice(GOOD)))
        for _ in range(self.rng.randrange(1, 4)):
            self.change(mutant)
        return dict(mutant)

    def change(self, node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = self.rng.choice(keys)
        if isinstance(node[key], dict | list) and self.rng.random() < 0.5:
            self.change(node[key])
            return
        match self.rng.randrange(3 if isinstance(node, dict) else 2):
            case 0:
                node[key] = copy.deepcopy(self.rng.choice(VALUES))
            case 1:
                del node[key]
            case 2:
                node[self.rng.choice(["op", "id", "type", "data", "x", ""])] = copy.deepcopy(
                    self.rng.choice(VALUES)
                )

    def message(self) -> str:
        """A message as text: of such frames, and damaged further now and then."""
        frames = [self.frame() for _ in range(self.rng.choice([1, 1, 1, 2, 5]))]
        text = orjson.dumps(frames[0] if len(frames) == 1 else frames).decode()
        if self.rng.random() < 0.3:
            text = self.damage(text)
        return text

    def damage(self, text: str) -> str:
        place, other = sorted(self.rng.choices(range(len(text) + 1), k=2))
        match self.rng.randrange(5):
            case 0:
                return text[:place]
            case 1:
                return text[:place] + self.rng.choice(string.printable + "\u00f6\U0001f600") + text[place:]
            case 2:
                return text[:place] + text[other:]
            case 3:
                return text[:other] + text[place:]
            case _:
                token = self.rng.choice(["NaN", "-Infinity", "1e999", '"\\ud83d"', "[" * 99, "{", "9" * 4400])
                return text[:place] + token + text[place:]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with some flipped, lost, doubled or made up."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1:
                del changed[place : place + rng.randrange(1, 8)]
            case 2:
                changed[place:place] = rng.randbytes(rng.randrange(1, 8))
            case _:
                changed[place:place] = changed[place : place + rng.randrange(1, 16)]
    return bytes(changed)
