"""A snapshot and what follows it are the whole log, however both came."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import reduce as fold
from typing import Any

import attrs
import orjson
import pytest
from context_logs import logs, merged, talks
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from strategies import json_values

from wsrecover.errors import FrameError, InvalidEvent
from wsrecover.protocol import context as contexts
from wsrecover.protocol.context import CONTEXT_BYTES, EMPTY, KEPT_BYTES, Context, parse, reduce
from wsrecover.protocol.events import Event
from wsrecover.protocol.patch import DOCUMENT_BYTES, PATCH_OPERATIONS, patched
from wsrecover.protocol.persistent import Map, Text


def event(
    seq: int, kind: str, data: dict[str, Any], *, run: str | None = "r", first: int | None = None
) -> Event:
    return Event("user", seq, float(seq), kind, data, "t", run, first)


@attrs.frozen
class Placed:
    seq: int


def context_of(*log: Event) -> Context:
    return fold(reduce, log, EMPTY)


def over_the_wire(context: Context) -> Context:
    return parse(orjson.loads(orjson.dumps(context.json())))


def delta(seq: int, offset: int, text: str, name: str = "m", first: int | None = None) -> Event:
    return event(seq, "message_delta", {"message_id": name, "offset": offset, "text": text}, first=first)


def text_of(context: Context, name: str = "m") -> str:
    message = context.messages.get(name)
    assert message is not None
    return str(message.text)


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """Contexts have so many bytes at most, so that small ones lose something too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "CONTEXT_BYTES", size)
        patch.setattr(contexts, "KEPT_BYTES", size * 7 // 8)
        yield


bounds = st.integers(200, 1500)


class TestTheBound:
    """Of contexts that lose something again and again."""

    @given(log=logs(), size=bounds)
    def test_holds_after_each_event(self, log: list[Event], size: int) -> None:
        with bounded(size):
            context = EMPTY
            for one in log:
                context = reduce(context, one)
                documents = parse({**EMPTY.json(), "memory": context.memory, "workflow": context.workflow})
                assert context.size <= max(size, documents.size)

    @given(log=logs(), size=bounds, data=st.data())
    def test_snapshot_and_tail_make_the_whole_log_for_any_snapshot(
        self, log: list[Event], size: int, data: st.DataObject
    ) -> None:
        with bounded(size):
            n = data.draw(st.integers(0, len(log)))
            whole = context_of(*log)
            restored = fold(reduce, log[n:], over_the_wire(context_of(*log[:n])))
            assert restored == whole
            assert restored.size == whole.size

    @given(log=talks(), size=bounds, data=st.data())
    def test_merged_deltas_make_the_same_also_over_a_part_that_is_known(
        self, log: list[Event], size: int, data: st.DataObject
    ) -> None:
        with bounded(size):
            begins = data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log)))
            n = data.draw(st.integers(0, len(log)))
            rest = [one for one in merged(log, begins) if one.seq > n]
            restored = fold(reduce, rest, over_the_wire(context_of(*log[:n])))
            assert restored == context_of(*log)
            assert restored.size <= size

    def test_is_kept_to_the_byte_whatever_the_room(self) -> None:
        run = event(1, "agent_started", {"agent": "a" * 100})
        said = event(2, "user_message", {"text": "x" * 20})
        tokens = [delta(3 + n, 30 * n, "y" * 30) for n in range(5)]
        ends = event(8, "message_completed", {"message_id": "m", "text": "y" * 150})
        lengths = set()
        for size in range(context_of(run).size, context_of(run, said, *tokens).size + 5):
            with bounded(size):
                for before in (context_of(run), context_of(run, said)):
                    grown = fold(reduce, tokens, before)
                    assert grown == reduce(before, delta(7, 0, "y" * 150, first=3))
                    assert reduce(grown, ends) == reduce(before, event(8, ends.type, ends.data, first=3))
                    assert len(grown.runs) == len(before.runs)
                    if len(grown.messages):
                        lengths.add(len(text_of(grown)))
                        assert len(text_of(grown)) == 150 or grown.size == size
        assert lengths == set(range(151))

    @pytest.mark.parametrize(
        "kind", ["message_delta", "message_started", "message_completed", "user_message"]
    )
    def test_is_met_by_the_logs_of_these_tests(self, kind: str) -> None:
        def is_met(given: tuple[list[Event], int]) -> bool:
            log, size = given
            with bounded(size):
                for n, one in enumerate(log, 1):
                    before, after = context_of(*log[: n - 1]), context_of(*log[:n])
                    if one.type == kind and after.truncated and after.size < before.size:
                        return True
            return False

        # What 200 examples hold depends on which modules are loaded: Hypothesis draws on their constants.
        search = settings(database=None, derandomize=True, max_examples=5_000, phases=[Phase.generate])
        find(st.tuples(logs() | talks(), bounds), is_met, settings=search)


class TestSnapshotAndTail:
    @given(log=logs(), data=st.data())
    def test_make_the_whole_log_for_any_snapshot(self, log: list[Event], data: st.DataObject) -> None:
        n = data.draw(st.integers(0, len(log)))
        whole = context_of(*log)
        restored = fold(reduce, log[n:], over_the_wire(context_of(*log[:n])))
        assert restored == whole
        assert restored.size == whole.size

    @given(log=logs())
    def test_size_is_never_less_than_the_json(self, log: list[Event]) -> None:
        context = context_of(*log)
        assert len(orjson.dumps(context.json())) <= context.size

    @given(log=logs())
    def test_a_former_context_stays_what_it_was(self, log: list[Event]) -> None:
        former: list[tuple[Context, bytes]] = []
        context = EMPTY
        for one in log:
            former.append((context, orjson.dumps(context.json())))
            context = reduce(context, one)
        assert all(orjson.dumps(context.json()) == said for context, said in former)

    @given(log=logs())
    def test_events_stay_what_they_were(self, log: list[Event]) -> None:
        before = orjson.dumps([one.data for one in log])
        context_of(*log)
        assert orjson.dumps([one.data for one in log]) == before

    @given(log=talks(), data=st.data())
    def test_merged_deltas_make_the_same(self, log: list[Event], data: st.DataObject) -> None:
        begins = data.draw(st.lists(st.booleans(), min_size=len(log), max_size=len(log)))
        assert context_of(*merged(log, begins)) == context_of(*log)

    @given(log=talks(), data=st.data())
    def test_a_merged_delta_over_a_part_that_is_known_makes_the_same(
        self, log: list[Event], data: st.DataObject
    ) -> None:
        n = data.draw(st.integers(0, len(log)))
        pieces = merged(log, [False] * len(log))
        rest = [one for one in pieces if one.seq > n]
        assert fold(reduce, rest, context_of(*log[:n])) == context_of(*log)


class TestMessages:
    def test_grow_by_their_deltas_and_end_with_the_whole_text(self) -> None:
        began = event(1, "message_started", {"message_id": "m", "role": "critic"})
        context = context_of(began, delta(2, 0, "𝄞 "), delta(3, 3, "ends"))
        assert context.json()["messages"] == [
            {"message_id": "m", "role": "critic", "text": "𝄞 ends", "complete": False, "run": "r", "seq": 1}
        ]
        context = reduce(
            context, event(4, "message_completed", {"message_id": "m", "text": "𝄞 ends!", "x": 1})
        )
        assert context.json()["messages"] == [
            {
                "message_id": "m",
                "role": "critic",
                "text": "𝄞 ends!",
                "complete": True,
                "run": "r",
                "data": {"x": 1},
                "seq": 1,
            }
        ]
        assert reduce(context, delta(5, 7, "late")) == context

    def test_a_delta_of_which_what_is_known_would_cut_a_character_is_of_another_text(self) -> None:
        context = context_of(delta(1, 0, "a"))
        apart = reduce(reduce(context, delta(2, 0, "𝄞")), delta(3, 2, "b"))
        assert apart == reduce(context, delta(3, 0, "𝄞b", first=2)) == context

    def test_a_delta_counts_once(self) -> None:
        context = context_of(delta(1, 0, "ab"), delta(2, 2, "cd"))
        assert text_of(reduce(context, delta(2, 2, "cd"))) == "abcd"
        assert text_of(reduce(context, delta(3, 0, "abcdef", first=1))) == "abcdef"

    def test_a_piece_behind_a_hole_and_a_piece_of_an_unknown_message_change_nothing(self) -> None:
        context = context_of(delta(1, 0, "ab"), delta(2, 3, "d"), delta(3, 1, "x", "other"))
        assert [message["text"] for message in context.json()["messages"]] == ["ab"]

    def test_a_message_that_is_only_completed_begins_where_that_event_begins(self) -> None:
        done = event(9, "message_completed", {"message_id": "m", "text": "all"}, first=3)
        (message,) = context_of(done).conversation
        assert (message.seq, str(message.text), message.complete, message.role) == (
            3,
            "all",
            True,
            "assistant",
        )

    def test_what_a_person_says_is_part_of_the_conversation(self) -> None:
        said = event(4, "user_message", {"text": "hi", "parts": [1]}, run=None)
        (message,) = context_of(said).json()["messages"]
        assert (message["role"], message["text"], message["data"]) == ("user", "hi", {"parts": [1]})

    def test_a_token_costs_what_the_token_costs(self) -> None:
        # Not a copy of the message, nor of the conversation: all of the former context is in the new one.
        context = context_of(
            *(event(n, "user_message", {"text": "x"}) for n in range(1, 500)), delta(500, 0, "a")
        )
        after = reduce(context, delta(501, 1, "b"))
        old, new = context.messages.get("m"), after.messages.get("m")
        assert old is not None
        assert new is not None
        assert new.text._pieces is old.text._pieces
        pairs = zip(context.messages._buckets, after.messages._buckets, strict=True)
        assert sum(one is not other for one, other in pairs) == 1

    def test_a_message_under_way_grows_until_there_is_no_room_for_it(self) -> None:
        with bounded(context_of(delta(1, 0, "abc")).size + 1):
            single = context_of(delta(1, 0, "ab"), delta(2, 2, "c𝄞"), delta(3, 5, "d"))
            assert (text_of(single), single.truncated) == ("abc", True)
            assert context_of(delta(3, 0, "abc𝄞d", first=1)) == single
            assert reduce(single, delta(4, 3, "e")).size == single.size + 1
            assert not context_of(delta(1, 0, "abc")).truncated


class TestToolsRunsAndRequests:
    def test_a_tool_call_has_its_input_output_and_duration(self) -> None:
        began = event(1, "tool_executing", {"tool_call_id": "c", "tool": "search", "input": {"q": 1}})
        (tool,) = context_of(began).json()["tools"]
        assert tool == {
            "tool_call_id": "c",
            "tool": "search",
            "input": {"q": 1},
            "run": "r",
            "status": "executing",
            "seq": 1,
        }
        ended = event(2, "tool_completed", {"tool_call_id": "c", "output": None, "duration": 0.5})
        (tool,) = context_of(began, ended).json()["tools"]
        assert (tool["status"], tool["output"], tool["duration"]) == ("completed", None, 0.5)
        failed = event(2, "tool_failed", {"tool_call_id": "c", "error": {"code": "x"}})
        (tool,) = context_of(began, failed, ended).json()["tools"]
        assert (tool["status"], tool["error"], "output" in tool) == ("failed", {"code": "x"}, False)

    def test_a_run_has_its_status_and_its_end(self) -> None:
        began = event(1, "agent_started", {"agent": "triage"})
        ended = event(5, "agent_completed", {"status": "failed", "error": {"code": "timeout"}})
        assert context_of(began).json()["runs"] == {
            "r": {"agent": "triage", "status": "running", "started": 1.0, "seq": 1}
        }
        assert context_of(began, ended, event(6, "agent_completed", {"status": "x"})).json()["runs"] == {
            "r": {
                "agent": "triage",
                "status": "failed",
                "started": 1.0,
                "ended": 5.0,
                "error": {"code": "timeout"},
                "seq": 5,
            }
        }

    def test_a_request_is_open_until_it_is_answered_or_its_run_ends(self) -> None:
        asked = event(1, "input_requested", {"request_id": "q", "prompt": "sure?", "expires_at": 9.5})
        context = context_of(asked)
        assert context.json()["requests"] == {
            "q": {"prompt": "sure?", "expires_at": 9.5, "run": "r", "seq": 1}
        }
        assert not reduce(context, event(2, "input_resolved", {"request_id": "q"})).requests
        assert not reduce(context, event(2, "agent_completed", {"status": "failed"})).requests
        assert reduce(context, event(2, "agent_completed", {"status": "failed"}, run="other")).requests


class TestDocuments:
    def test_change_by_patches_and_not_by_one_that_does_not_apply(self) -> None:
        good = {"target": "memory", "patch": [{"op": "add", "path": "/n", "value": 1}]}
        bad = {"target": "memory", "patch": [good["patch"][0], {"op": "remove", "path": "/x"}]}
        context = context_of(event(1, "state_patch", good), event(2, "state_patch", bad))
        assert (context.memory, context.workflow) == ({"n": 1}, {})

    @pytest.mark.parametrize(
        ("patch", "field"),
        [
            ({}, "patch"),
            ([{"op": "test", "path": "/a", "value": 2}], "patch[0]"),
            ([{"op": "add", "path": "/b", "value": 1}, {"op": "nope", "path": "/b"}], "patch[1]"),
            ([{"op": "replace", "path": "", "value": 5}], "patch[0]"),
            ([{"op": "add", "path": "/b", "value": "x" * DOCUMENT_BYTES}], "patch"),
            ([{"op": "test", "path": "", "value": {"a": 1}}] * (PATCH_OPERATIONS + 1), "patch"),
            ([{"op": "add", "path": "/b", "value": float("nan")}], "patch[0].value"),
        ],
    )
    def test_a_refused_patch_names_the_operation(self, patch: Any, field: str) -> None:
        document = {"a": 1}
        with pytest.raises(InvalidEvent) as refused:
            patched(document, patch)
        assert refused.value.field == field
        assert document == {"a": 1}

    def test_copies_that_double_a_document_are_stopped_at_the_limit(self) -> None:
        doubling = [
            {"op": "add", "path": "/a", "value": {}},
            *({"op": "copy", "from": "/a", "path": f"/a/{n}"} for n in range(60)),
        ]
        with pytest.raises(InvalidEvent, match=r"limit is|nested deeper"):
            patched({}, doubling)

    def test_what_one_operation_adds_a_later_one_may_change(self) -> None:
        value: dict[str, Any] = {}
        patch = [{"op": "add", "path": "/a", "value": value}, {"op": "add", "path": "/a/b", "value": 1}]
        assert patched({}, patch) == {"a": {"b": 1}}
        assert value == {}

    @given(document=st.dictionaries(st.sampled_from("ab"), json_values), patch=json_values)
    def test_any_patch_applies_or_is_refused(self, document: dict[str, Any], patch: Any) -> None:
        with contextlib.suppress(InvalidEvent):
            assert isinstance(patched(document, patch), dict)


class TestTruncation:
    def test_the_oldest_leave_first_and_it_is_flagged(self) -> None:
        log = [event(n, "user_message", {"text": "x" * 1000}) for n in range(1, 1100)]
        tool = event(1100, "tool_executing", {"tool_call_id": "c", "tool": "t", "input": "y"})
        context = context_of(event(1100, "agent_started", {"agent": "a"}), *log, tool)
        assert context.truncated
        assert context.json()["truncated"] is True
        assert context.size <= CONTEXT_BYTES
        seqs = [message.seq for message in context.conversation]
        assert seqs == list(range(seqs[0], 1100))
        assert context.tools.get("c") is not None
        assert context.runs.get("r") is not None

    def test_snapshot_and_tail_are_the_whole_log_across_it(self) -> None:
        log = [event(n, "user_message", {"text": "é" * 100_000}) for n in range(1, 12)]
        for n in range(len(log) + 1):
            restored = fold(reduce, log[n:], over_the_wire(context_of(*log[:n])))
            assert restored == context_of(*log)

    def test_it_does_not_depend_on_whether_deltas_were_merged(self) -> None:
        filler = [event(n, "user_message", {"text": "x" * 200_000}) for n in range(1, 6)]
        single = [delta(6 + n, 50_000 * n, "y" * 50_000) for n in range(4)]
        whole = delta(9, 0, "y" * 200_000, first=6)
        ends = event(10, "message_completed", {"message_id": "m", "text": "y" * 200_000})
        assert context_of(*filler, *single, ends) == context_of(*filler, whole, ends)
        assert context_of(*filler, *single) == context_of(*filler, whole)
        merged_end = event(10, "message_completed", ends.data, first=6)
        assert context_of(*filler, merged_end) == context_of(*filler, *single, ends)
        for log in ((*single, ends), (whole,), (merged_end,)):
            context = context_of(*filler, *log)
            assert KEPT_BYTES < context.size <= CONTEXT_BYTES
            assert [message.seq for message in context.conversation] == [2, 3, 4, 5, 6]

    def test_a_message_that_grows_makes_room_but_takes_none_from_what_goes_on(self) -> None:
        ask = event(2, "input_requested", {"request_id": "q", "prompt": "p" * 100_000})
        run = event(1, "agent_started", {"agent": "a" * 100_000})
        said = [event(n, "user_message", {"text": "x" * 100_000}) for n in range(3, 6)]
        tokens = [delta(6 + n, 10_000 * n, "y" * 10_000) for n in range(110)]
        context = context_of(run, ask, *said, *tokens)
        assert context.truncated
        assert [message.id for message in context.conversation] == ["m"]
        assert CONTEXT_BYTES - 1 <= context.size <= CONTEXT_BYTES
        assert (len(context.runs), len(context.requests)) == (1, 1)

    def test_one_that_is_larger_than_all_of_it_leaves_no_message(self) -> None:
        name = "n" * 600_000
        said = event(1, "user_message", {"text": "x"})
        run = event(2, "agent_started", {"agent": "a"})
        for last in (delta(3, 0, "x", name), event(3, "message_completed", {"message_id": name, "text": ""})):
            context = context_of(said, run, last)
            assert (len(context.messages), len(context.runs), context.truncated) == (0, 1, True)
            assert context.size < 1000

    def test_documents_stay_and_runs_that_go_on_leave_last(self) -> None:
        patch = {"target": "memory", "patch": [{"op": "add", "path": "/n", "value": "z" * 200_000}]}
        runs = [event(n, "agent_started", {"agent": "a" * 1000}, run=f"r{n}") for n in range(2, 900)]
        said = event(2, "user_message", {"text": "x" * 1000})
        context = context_of(event(1, "state_patch", patch), said, *runs)
        assert len(context.messages) == 0
        assert 0 < len(context.runs) < 898
        assert context.memory["n"] == "z" * 200_000


class TestParse:
    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"messages": None}, "context.messages"),
            ({"messages": [5]}, "messages"),
            ({"messages": [{"message_id": 5}]}, "messages.message_id"),
            ({"tools": [{"tool_call_id": "c", "tool": "t", "status": "gone", "seq": 1}]}, "tools.status"),
            ({"runs": []}, "context.runs"),
            ({"runs": {"r": {"agent": "a"}}}, "runs.status"),
            ({"requests": {"q": {}}}, "requests.seq"),
            ({"truncated": 1}, "context.truncated"),
        ],
    )
    def test_names_what_is_wrong(self, change: dict[str, Any], field: str) -> None:
        with pytest.raises(FrameError) as refused:
            parse({**EMPTY.json(), **change})
        assert refused.value.field == field

    @given(value=json_values)
    def test_raises_nothing_else(self, value: Any) -> None:
        for wrong in (value, {**EMPTY.json(), "messages": [value], "tools": [value], "runs": {"r": value}}):
            with pytest.raises(FrameError):
                parse(wrong)

    def test_ignores_what_it_does_not_know(self) -> None:
        assert parse({**EMPTY.json(), "later": 1}) == EMPTY


class TestPersistent:
    def test_two_who_go_on_from_one_text_do_not_meet(self) -> None:
        base = Text("a").plus("b")
        one, other = base.plus("c"), base.plus("d")
        assert [str(text) for text in (base, one, other, one.plus("e"))] == ["ab", "abc", "abd", "abce"]

    def test_a_map_keeps_what_it_was(self) -> None:
        one, two, three = Placed(1), Placed(2), Placed(3)
        full = Map[Placed]().put("a", one).put("b", two)
        assert (full.get("a"), full.without("a").get("a"), full.put("a", three)["a"]) == (one, None, three)
        sizes = [len(each) for each in (full, full.without("a"), full.put("a", three), full.without("x"))]
        assert sizes == [2, 1, 2, 2]
        assert list(full.values()) == [one, two]

    @given(seqs=st.lists(st.integers(1, 99), unique=True))
    def test_a_map_is_a_mapping_in_the_order_of_seq(self, seqs: list[int]) -> None:
        made = Map[Placed]()
        for seq in seqs:
            made = made.put(f"key {seq}", Placed(seq))
        expected = {f"key {seq}": Placed(seq) for seq in sorted(seqs)}
        assert list(made) == list(made.keys()) == list(expected)
        assert list(made.items()) == list(expected.items())
        assert list(made.values()) == list(expected.values())
        assert made == expected
        assert repr(made) == f"Map({expected!r})"
        assert "key 0" not in made
        assert made.put("key 0", Placed(0)) != made
        with pytest.raises(KeyError):
            made["key 0"]

    def test_text_is_equal_to_what_it_says_and_shows_it(self) -> None:
        text = Text("It ").plus("blinks.")
        assert text == "It blinks." == text
        assert text == Text("It blinks.")
        assert text != Text("It ")
        assert text != 7
        assert {text} == {"It blinks."}
        assert (str(text), f"{text}", repr(text)) == ("It blinks.", "It blinks.", "Text('It blinks.')")


class TestSight:
    """What an app sees of a context."""

    LOG = (
        event(1, "message_completed", {"message_id": "z", "role": "user", "text": "It blinks."}),
        event(2, "tool_executing", {"tool_call_id": "z", "tool": "search", "input": {}}),
        event(3, "tool_executing", {"tool_call_id": "a", "tool": "switch", "input": {}}),
        delta(4, 0, "Turn it ", "a"),
        delta(5, 8, "off.", "a"),
    )

    def test_messages_and_tools_come_in_the_order_of_the_log(self) -> None:
        context = context_of(*self.LOG)
        assert [message.text for message in context.messages.values()] == ["It blinks.", "Turn it off."]
        assert [message.id for message in context.conversation] == list(context.messages) == ["z", "a"]
        assert [call.tool for call in context.tools.values()] == ["search", "switch"]

    def test_what_is_equal_on_both_sides_of_the_wire_is_equal_piece_by_piece(self) -> None:
        here, there = context_of(*self.LOG), over_the_wire(context_of(*self.LOG))
        assert (here.messages, here.tools) == (there.messages, there.tools)
        assert here.messages != context_of(*self.LOG[:-1]).messages

    def test_it_shows_what_it_holds(self) -> None:
        shown = repr(context_of(*self.LOG))
        assert "Text('Turn it off.')" in shown
        assert "Map({'z': ToolCall(id='z', tool='search'" in shown
