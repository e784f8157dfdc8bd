"""The checker passes what a correct server does and catches each of the mutants, whatever happened before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsrecover.testing import History, check
from wsrecover.testing.recording import ANOMALIES

EPOCHS = ("log-g1", "log-g2")
USERS = ("acme/ann", "acme/bob", "beta/ann")

MUTANTS = {
    "drop one": {"skip"},
    "drop the last": {"lost"},
    "swap two": {"skip", "reorder"},
    "repeat one": {"duplicate"},
    "acknowledge before commit": {"lost"},
    "forget what was delivered": {"lost", "divergence"},
    "ignore the tenant": {"leak"},
    "gap at every resume": {"false_gap"},
    "refuse every resume": {"false_gap"},
    "resume at the head": {"skip"},
    "skip inside the filter": {"false_gap"},
    "append twice": {"duplicate"},
    "commit in another order": {"order"},
    "commit what was refused": {"phantom"},
    "invent one": {"phantom"},
    "merge the wrong text": {"divergence"},
    "give a seq to two": {"divergence"},
    "change the epoch silently": {"skip"},
}
"""Each defect, and the anomalies of which all must be found."""


class Model:
    """A server in small, with its clients; `defect` is what it does wrong from now on."""

    def __init__(self) -> None:
        self.history = History({user: [user] for user in USERS})
        self.logs: dict[str, list[tuple[str, str | None]]] = {user: [] for user in USERS}
        self.oldest = dict.fromkeys(USERS, 1)
        self.positions: dict[str, tuple[str, int]] = {}
        self.connections: dict[str, str] = {}
        self.filters: dict[str, str | None] = dict.fromkeys(USERS)
        self.epoch = EPOCHS[0]
        self.made = 0
        self.defect = ""

    def publish(self, user: str, outcome: str = "ok", thread: str | None = None) -> None:
        self.made += 1
        value = f"<{self.made}>"
        self.history.invoke(value, user, thread=thread)
        log = self.logs[user]
        refused = outcome == "fail" and self.defect != "commit what was refused"
        lost = outcome == "lost" or (outcome == "ok" and self.defect == "acknowledge before commit")
        if not (refused or lost):
            log.append((value, thread))
            if self.defect == "append twice":
                log.append((value, thread))
            if self.defect == "commit in another order" and len(log) > 1:
                log[-2:] = reversed(log[-2:])
        if outcome == "ok":
            seq = len(log) if self.defect != "commit in another order" else 1 + log.index((value, thread))
            self.history.ok(value, self.epoch, seq + (self.defect == "acknowledge before commit"))
        elif outcome == "fail":
            self.history.fail(value)
        else:
            self.history.unknown(value)

    def connect(self, user: str, thread: str | None = None) -> None:
        if user in self.connections:
            return
        self.made += 1
        name = self.connections[user] = f"c{self.made}"
        self.filters[user] = thread
        self.history.connect(name, threads=None if thread is None else [thread])
        oldest, head = self.oldest[user], len(self.logs[user])
        if user not in self.positions:
            self.history.begin(name, user, self.epoch, oldest)
            self.positions[user] = (self.epoch, oldest - 1)
            return
        epoch, seq = self.positions[user]
        if seq < oldest - 1 or self.defect == "refuse every resume":
            self.history.refused(name, user, epoch, seq, oldest)
            if seq < oldest - 1:
                self.history.gap(name, user, seq + 1, oldest - 1)
            seq = oldest - 1
        else:
            self.history.resume(name, user, epoch, seq)
        if self.defect == "gap at every resume" and head > seq:
            self.history.gap(name, user, seq + 1, head)
            seq = head
        if self.defect == "resume at the head":
            seq = head - 1
        self.positions[user] = (self.epoch, seq)

    def drop(self, user: str) -> None:
        self.connections.pop(user, None)

    def trim(self, user: str) -> None:
        self.oldest[user] = max(self.oldest[user], len(self.logs[user]) - 1)

    def restart(self) -> None:
        """The same log goes on under another generation; nobody is connected over it."""
        self.connections.clear()
        self.epoch = EPOCHS[1 - EPOCHS.index(self.epoch)]

    def pump(self, user: str, merged: bool = False) -> None:
        """Send what lies after the cursor."""
        if user not in self.connections:
            return
        seq = self.positions[user][1]
        if seq < self.oldest[user] - 1:
            self.history.gap(self.connections[user], user, seq + 1, self.oldest[user] - 1)
            seq = self.oldest[user] - 1
        wanted = [n for n in range(seq + 1, len(self.logs[user]) + 1) if self.passes(user, n)]
        head = len(self.logs[user])
        if self.defect == "skip inside the filter" and wanted:
            self.history.skip(self.connections[user], user, head)
            wanted = []
        if self.defect in ("drop one", "drop the last") and len(wanted) > 1:
            del wanted[-1 if self.defect == "drop the last" else -2]
        if self.defect == "swap two" and len(wanted) > 1:
            wanted[-2:] = reversed(wanted[-2:])
        if self.defect == "repeat one":
            wanted += wanted[-1:]
        if merged or self.defect == "merge the wrong text":
            self.send_merged(user, wanted)
        else:
            self.send_each(user, wanted, seq)
        self.positions[user] = (self.epoch, head)
        told = max(wanted, default=seq)
        if told < head and self.defect not in ("drop the last", "skip inside the filter"):
            self.history.skip(self.connections[user], user, head)

    def send_each(self, user: str, wanted: list[int], last: int) -> None:
        for n in wanted:
            if n > last + 1 and not any(self.passes(user, m) for m in range(last + 1, n)):
                self.history.skip(self.connections[user], user, n - 1)
            self.deliver(user, n, self.logs[user][n - 1][0])
            last = n

    def send_merged(self, user: str, wanted: list[int]) -> None:
        """All adjacent events of what is wanted as one."""
        last = self.positions[user][1]
        while wanted:
            count = next((i for i in range(1, len(wanted)) if wanted[i] != wanted[0] + i), len(wanted))
            run, wanted = wanted[:count], wanted[count:]
            if run[0] > last + 1:
                self.history.skip(self.connections[user], user, run[0] - 1)
            text = "".join(self.logs[user][n - 1][0] for n in run)
            if self.defect == "merge the wrong text":
                text += text
            self.deliver(user, run[-1], text, first_seq=run[0])
            last = run[-1]

    def deliver(self, user: str, seq: int, value: str, **more: Any) -> None:
        epoch = self.epoch
        if self.defect == "ignore the tenant":
            value = self.logs["beta/ann"][-1][0]
        if self.defect == "invent one":
            value = "<0>"
        if self.defect == "give a seq to two":
            value = self.logs[user][seq - 2][0]
        if self.defect == "change the epoch silently":
            epoch = "another-g1"
        self.history.deliver(self.connections[user], user, user, epoch, seq, value, **more)

    def passes(self, user: str, seq: int) -> bool:
        thread = self.logs[user][seq - 1][1]
        return self.filters[user] is None or thread in (None, self.filters[user])

    def finish(self, defect: str = "") -> Any:
        """A last round that gives every defect its chance, then the drain."""
        user = "acme/ann"
        self.publish("beta/ann")
        self.connect(user)
        self.pump(user)
        self.drop(user)
        self.connect(user)
        self.publish(user)
        self.pump(user)
        self.drop(user)
        if defect != "commit what was refused":
            self.publish(user)
        else:
            self.defect = defect
            self.publish(user, "fail")
        self.publish(user)
        self.defect = defect
        self.publish(user)
        self.publish(user)
        self.connect(user)
        self.pump(user)
        if defect == "forget what was delivered":
            self.logs[user].pop()
            self.publish(user)
        self.defect = ""
        self.drop_others(user)
        if defect != "drop the last":
            self.publish(user)
            self.pump(user)
        self.history.settled(self.connections[user], user)
        trimmed = {name: oldest - 1 for name, oldest in self.oldest.items()}
        return check(self.history, self.drained(), trimmed=trimmed)

    def drop_others(self, user: str) -> None:
        for other in [other for other in self.connections if other != user]:
            self.drop(other)

    def drained(self) -> dict[str, list[tuple[str, int, str]]]:
        return {
            user: [
                (self.epoch, n, value) for n, (value, _) in enumerate(log, start=1) if n >= self.oldest[user]
            ]
            for user, log in self.logs.items()
        }


users = st.sampled_from(USERS)
threads = st.sampled_from([None, "t1", "t2"])
steps = st.one_of(
    *[st.tuples(st.just("publish"), users, st.sampled_from(["ok", "ok", "fail", "lost", "unknown"]), threads)]
    * 3,
    st.tuples(st.just("connect"), users, threads),
    *[st.tuples(st.just("pump"), users, st.booleans())] * 2,
    st.tuples(st.just("drop"), users),
    st.tuples(st.just("trim"), users),
    st.tuples(st.just("restart")),
)
pasts = st.lists(steps, max_size=40)


def play(past: list[tuple[Any, ...]]) -> Model:
    model = Model()
    for name, *arguments in past:
        getattr(model, name)(*arguments)
    return model


@settings(max_examples=400)
@given(pasts)
def test_what_a_correct_server_does_is_clean(past: list[tuple[Any, ...]]) -> None:
    play(past).finish().assert_clean(publishes=5, acknowledged=5, deliveries=4, resumes=1)


@pytest.mark.parametrize("defect", MUTANTS)
@settings(max_examples=40)
@given(past=pasts)
def test_each_mutant_is_caught(defect: str, past: list[tuple[Any, ...]]) -> None:
    report = play(past).finish(defect)
    assert MUTANTS[defect] <= {anomaly.kind for anomaly in report.anomalies}
    with pytest.raises(AssertionError, match="anomalies"):
        report.assert_clean()


def test_an_acknowledged_event_may_only_be_missing_where_the_test_let_it_be_trimmed() -> None:
    history = History()
    for n in (1, 2, 3):
        history.invoke(f"v{n}", "s")
        history.ok(f"v{n}", "log-g1", n)
    drained = {"s": [("log-g1", 3, "v3")]}
    assert [anomaly.kind for anomaly in check(history, drained, trimmed={"s": 1}).anomalies] == ["lost"]
    check(history, drained, trimmed={"s": 2}).assert_clean()
    history.gap("c1", "s", 1, 2)
    check(history, drained).assert_clean()


def test_a_history_in_which_too_little_happened_is_not_clean() -> None:
    history = History()
    history.fault("cut")
    report = check(history, {})
    report.assert_clean(faults=1)
    with pytest.raises(AssertionError, match="resumes: 0, at least 1"):
        report.assert_clean(resumes=1)


def test_a_position_of_the_same_log_survives_a_restart_of_the_store() -> None:
    history = History()
    for n, epoch in ((1, "log-g1"), (2, "log-g2")):
        history.invoke(f"v{n}", "s")
        history.ok(f"v{n}", epoch, n)
    history.resume("c1", "s", "log-g1", 1)
    history.deliver("c1", "me", "s", "log-g2", 2, "v2")
    check(history, {"s": [("log-g2", 1, "v1"), ("log-g2", 2, "v2")]}).assert_clean(resumes=1)


def test_a_newly_followed_thread_may_come_as_a_snapshot() -> None:
    history = History()
    for n, thread in ((1, "a"), (2, "b"), (3, "b")):
        history.invoke(f"v{n}", "s", thread=thread)
        history.ok(f"v{n}", "log-g1", n)
    drained = {"s": [("log-g1", n, f"v{n}") for n in (1, 2, 3)]}
    history.connect("c1", threads=["a"])
    history.begin("c1", "s", "log-g1", 1)
    history.deliver("c1", "me", "s", "log-g1", 1, "v1")
    history.follow("c1", "s", ["a", "b"], 2)
    history.snapshot("c1", "s", 2)
    history.deliver("c1", "me", "s", "log-g1", 3, "v3")
    history.settled("c1", "s")
    check(history, drained).assert_clean()
    history.skip("c1", "s", 3)
    history.connect("c2", threads=["b"])
    history.begin("c2", "s", "log-g1", 1)
    history.skip("c2", "s", 2)
    assert [anomaly.kind for anomaly in check(history, drained).anomalies] == ["false_gap"]


def test_what_a_reader_may_not_see_is_a_leak_also_on_its_own_stream() -> None:
    history = History({"tenant/role:ops": ["acme/ann"]})
    history.invoke("v1", "tenant/role:ops")
    history.ok("v1", "log-g1", 1)
    history.deliver("c1", "acme/bob", "tenant/role:ops", "log-g1", 1, "v1")
    report = check(history, {"tenant/role:ops": [("log-g1", 1, "v1")]})
    assert [anomaly.kind for anomaly in report.anomalies] == ["leak"]


def test_every_anomaly_is_some_mutants() -> None:
    assert set().union(*MUTANTS.values()) == set(ANOMALIES)
