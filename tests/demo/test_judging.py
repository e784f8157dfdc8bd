"""The demo's judge must see each fault that it says is absent."""

from __future__ import annotations

import attrs
import orjson
import pytest

from wsrecover.demo.judging import Verdict, judge, recited
from wsrecover.protocol.events import Event
from wsrecover.streams.store import Entry, StreamKey

TEXTS = ["Zwölf ", "Boxkämpfer ", "jagen ", "😀 ", "Viktor"]


def event(seq: int) -> Event:
    offset = sum(len(text.encode("utf-16-le")) // 2 for text in TEXTS[: seq - 1])
    data = {"message_id": "m", "offset": offset, "text": TEXTS[seq - 1]}
    return Event(stream="user", seq=seq, ts=1.0, type="message_delta", data=data, run="r")


def entry(one: Event) -> Entry:
    body = orjson.dumps({"ts": one.ts, "type": one.type, "run": one.run, "data": one.data})
    return Entry(StreamKey("user", "demo", "ada"), body, one.ts, seq=one.seq)


LOG = [entry(event(seq)) for seq in range(1, 6)]
ALL = [event(seq) for seq in range(1, 6)]
MERGED = attrs.evolve(ALL[3], first_seq=2, data={"message_id": "m", "offset": 6, "text": "".join(TEXTS[1:4])})
WHOLE = Event("user", 6, 1.0, "message_completed", {"message_id": "m", "text": "".join(TEXTS)}, run="r")


@pytest.mark.parametrize(
    "got", [[attrs.evolve(WHOLE, first_seq=1)], [*ALL[:2], attrs.evolve(WHOLE, first_seq=3)]]
)
def test_a_finished_message_may_stand_for_its_fragments(got: list[Event]) -> None:
    log = [*LOG, entry(WHOLE)]
    assert judge(log, got).exact
    assert recited(got, "r") == "".join(TEXTS)
    cut = attrs.evolve(got[-1], data={"message_id": "m", "text": "Zwölf"})
    assert judge(log, [*got[:-1], cut]).altered == 1


@pytest.mark.parametrize("got", [ALL, [ALL[0], MERGED, ALL[4]]])
def test_what_came_once_and_in_order_is_exact(got: list[Event]) -> None:
    assert judge(LOG, got) == Verdict(
        published=5, delivered=5, duplicates=0, missing=0, reordered=0, altered=0
    )
    assert judge(LOG, got).exact
    assert recited(got, "r") == "".join(TEXTS)


@pytest.mark.parametrize(
    ("got", "fault"),
    [
        (ALL[:4], {"missing": 1}),
        ([ALL[0], *ALL[2:]], {"missing": 1}),
        ([*ALL, ALL[4]], {"duplicates": 1}),
        ([*ALL[:3], *ALL], {"duplicates": 3}),
        ([ALL[0], MERGED, ALL[3], ALL[4]], {"duplicates": 1}),
        ([ALL[0], ALL[2], ALL[1], *ALL[3:]], {"reordered": 1}),
        ([*ALL[:4], attrs.evolve(ALL[4], data={"text": "Wiktor"})], {"altered": 1}),
        ([*ALL[:4], attrs.evolve(ALL[4], run="another")], {"altered": 1}),
        ([ALL[0], attrs.evolve(MERGED, data={**MERGED.data, "text": "..."}), ALL[4]], {"altered": 1}),
        ([*ALL, attrs.evolve(ALL[4], seq=6)], {"altered": 1}),
    ],
)
def test_each_fault_is_counted(got: list[Event], fault: dict[str, int]) -> None:
    verdict = judge(LOG, got)
    faults = attrs.asdict(verdict, filter=lambda field, value: field.name in FAULTS and value)
    assert faults == fault
    assert not verdict.exact


FAULTS = ("duplicates", "missing", "reordered", "altered")
