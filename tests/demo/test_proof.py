"""The demo as a newcomer runs it, shorter: real sockets, a real store, real cuts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import attrs
import pytest
import trio

from wsrecover.agents.runlog import RunLog
from wsrecover.client.contexts import Contexts
from wsrecover.demo.away import Absence, stay_away
from wsrecover.demo.judging import Verdict
from wsrecover.demo.proof import LAST, Plan, Report, Sight, prove
from wsrecover.errors import ConfigError
from wsrecover.protocol.cursor import Step
from wsrecover.protocol.events import TERMINAL, Event
from wsrecover.protocol.receiver import Item, Receiver
from wsrecover.streams.store import Entry
from wsrecover.testing import Cut, LossyLink


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    file = tmp_path / "text.md"
    file.write_text("# Ein Titel\n\n" + "Zwölf Boxkämpfer jagen Viktor 😀 quer über den Sylter Deich. " * 5)
    return file


async def test_eight_cuts_lose_nothing(text_file: Path) -> None:
    sights: list[Sight] = []
    report = await prove(Plan(file=text_file, cuts=8, seed=1), sights.append)
    assert report.faults == []
    assert report.cuts == 8
    assert report.resumes >= 1
    assert report.longest_outage > 0
    assert report.verdict.published > 20
    assert sights[-1].cuts == 8


async def test_without_cuts_the_file_is_read_once(text_file: Path) -> None:
    report = await prove(Plan(file=text_file, cuts=0))
    assert report.proven
    assert (report.cuts, report.resumes) == (0, 0)


@pytest.mark.parametrize("text", ["", "one", "many words " * 500])
async def test_one_who_is_away_for_long_finds_the_gap_and_the_state(tmp_path: Path, text: str) -> None:
    file = tmp_path / "text.md"
    file.write_text(text)
    absence = await stay_away(file, text)
    assert absence.recovered
    assert absence.events > 5
    assert not (await stay_away(file, text + "!")).equal


async def test_a_state_that_lacks_something_is_seen(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contexts, "_replace", lambda self, snapshot: None)
    absence = await stay_away(text_file, await trio.Path(text_file).read_text())
    assert absence.events > 0
    assert not absence.equal


async def test_one_who_is_away_and_finds_nothing_in_time_fails_the_proof(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrecover.demo.away.TIME_LIMIT", 0.0)
    report = await prove(Plan(file=text_file, cuts=0))
    assert report.faults == ["one who was away for long had no state after 30 s"]


async def test_a_store_that_is_given_is_kept_and_serves_again(text_file: Path, tmp_path: Path) -> None:
    plan = Plan(file=text_file, cuts=2, store=f"sqlite:{tmp_path / 'kept.db'}")
    first = await prove(plan)
    second = await prove(attrs.evolve(plan, seed=3))
    assert first.proven
    assert second.proven
    assert (tmp_path / "kept.db").exists()


Harm: TypeAlias = Callable[[Event], list[Item]]


def with_fault(harm: Harm, receive: Callable[[Receiver, Event], list[Item]]) -> object:
    """What a client does with an event that came in, but for the tenth that it takes."""
    taken = 0

    def receive_badly(self: Receiver, event: Event) -> list[Item]:
        nonlocal taken
        items = receive(self, event)
        if event.thread is not None:
            return items  # Of the one who is away.
        taken += len(items)
        return harm(event) if items and taken == 10 else items

    return receive_badly


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda event: [], "1 missing"),
        (lambda event: [event, event], "1 duplicates"),
        (lambda event: [attrs.evolve(event, data={"text": "something else"})], "1 altered"),
    ],
)
async def test_a_client_that_is_not_exact_fails_the_proof(
    text_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Harm,
    fault: str,
) -> None:
    monkeypatch.setattr(Receiver, "_event", with_fault(harm, Receiver._event))
    report = await prove(Plan(file=text_file, cuts=0))
    assert report.faults[0] == fault


@pytest.mark.parametrize("lost", [TERMINAL, LAST])
async def test_a_client_that_loses_what_is_waited_for_fails_the_proof(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    receive = Receiver._event

    def lose(self: Receiver, event: Event) -> list[Item]:
        items = receive(self, event)
        return [] if event.type == lost and event.thread is None else items

    monkeypatch.setattr(Receiver, "_event", lose)
    report = await prove(Plan(file=text_file, cuts=0, stalled_after=0.5))
    assert report.stalled
    assert "nothing came any more" in report.faults


@pytest.mark.interpreted
async def test_a_server_that_drops_what_its_agent_made_fails_the_proof(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunLog.write

    async def drop(self: RunLog, event: Entry) -> None:
        if b'"tool_completed"' not in event.body:
            await write(self, event)

    monkeypatch.setattr(RunLog, "write", drop)
    report = await prove(Plan(file=text_file, cuts=0))
    assert report.faults == ["4 made by the agent and not logged"]


async def test_a_seed_makes_the_same_cuts_again(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[Cut | None]] = []

    class Noting(LossyLink):
        def __init__(self, host: str, port: int, *, plan: Iterator[Cut | None]) -> None:
            made.append([])
            super().__init__(host, port, plan=self._noted(plan, made[-1]))

        def _noted(self, plan: Iterator[Cut | None], noted: list[Cut | None]) -> Iterator[Cut | None]:
            for cut in plan:
                noted.append(cut)
                yield cut

    monkeypatch.setattr("wsrecover.demo.proof.LossyLink", Noting)
    for seed in (1, 1, 2):
        assert (await prove(Plan(file=text_file, cuts=6, seed=seed))).proven
    same = min(map(len, made))  # A connection that ends before its cut makes one more.
    assert same >= 5
    assert made[0][:same] == made[1][:same] != made[2][:same]


async def test_a_client_without_dedupe_fails_the_proof(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsrecover.protocol.receiver.step", lambda last, first, seq: Step.NEW)
    report = await prove(Plan(file=text_file, cuts=5, seed=1))
    assert report.verdict.duplicates > 0
    assert not report.proven


async def test_a_client_without_resume_fails_the_proof(
    text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Receiver, "resume", lambda self: {})
    report = await prove(Plan(file=text_file, cuts=5, seed=1))
    assert report.verdict.duplicates > 0
    assert not report.proven


@pytest.mark.parametrize(
    ("change", "field"),
    [({"cuts": -1}, "cuts"), ({"store": "memory"}, "store"), ({"file": Path("absent")}, "FILE")],
)
async def test_what_cannot_be_done_is_refused(change: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await prove(Plan(**{"cuts": 0, **change}))  # type: ignore[arg-type]  # wrong on purpose
    assert caught.value.field == field


def test_every_fault_is_named(tmp_path: Path) -> None:
    clean = Report(
        file=tmp_path,
        seed=1,
        verdict=Verdict(published=3, delivered=3, duplicates=0, missing=0, reordered=0, altered=0),
        unlogged=0,
        stalled=False,
        wanted=2,
        cuts=2,
        resumes=1,
        longest_outage=0.1,
        seconds=1.0,
        text_arrived=True,
        absence=Absence(9, equal=True),
    )
    assert clean.proven
    for fault in ("duplicates", "missing", "reordered", "altered"):
        report = attrs.evolve(clean, verdict=attrs.evolve(clean.verdict, **{fault: 1}))
        assert f"1 {fault}" in report.faults
    assert not attrs.evolve(clean, cuts=1).proven
    assert not attrs.evolve(clean, unlogged=1).proven
    assert not attrs.evolve(clean, stalled=True).proven
    assert not attrs.evolve(clean, text_arrived=False).proven
    assert not attrs.evolve(clean, absence=Absence(0, equal=True)).proven
    assert not attrs.evolve(clean, absence=Absence(9, equal=False)).proven
