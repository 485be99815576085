"""Exactly one outcome per request, under any interleaving of what can happen to it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from symphony.pending import SLACK, Line, Outcome, PendingTable, Request
from symphony.status import Status

GRACE = 50


@dataclass
class Seen:
    """What the table told the callers."""

    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)

    def on_done(self, request: Request, outcome: Outcome) -> None:
        self.outcomes.setdefault(request.tag, []).append(outcome)


def make(seen: Seen, tag: int, deadline: int = 100) -> Request:
    return Request("m", None, deadline, 0, seen.on_done, tag)


class OneOutcome(RuleBasedStateMachine):
    """Requests are admitted, sent, answered (twice, late, by strangers), given up, and closed upon."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.table = PendingTable()
        self.seen = Seen()
        self.requests: list[Request] = []
        self.line = Line()
        self.key = 0
        self.closed = False

    @precondition(lambda self: not self.closed)
    @rule(wait=st.integers(0, 200), send=st.booleans())
    def submit(self, wait: int, send: bool) -> None:
        request = make(self.seen, len(self.requests), self.now + wait)
        self.requests.append(request)
        self.table.admit(request, request.deadline + GRACE)
        if send:
            self.send(len(self.requests) - 1)

    @rule(pick=st.integers(0, 1000))
    def send(self, pick: int) -> None:
        if self.requests:
            request = self.requests[pick % len(self.requests)]
            if not request.done and request.key < 0:
                self.key += 3
                self.table.assign(request, self.key, self.line)

    @rule(pick=st.integers(0, 1000), later=st.integers(0, 300))
    def reschedule(self, pick: int, later: int) -> None:
        if self.requests:
            request = self.requests[pick % len(self.requests)]
            if not request.done:
                self.table.reschedule(request, self.now + later)

    @rule(key=st.integers(-1, 400), status=st.sampled_from(list(Status)), times=st.integers(1, 3))
    def answer(self, key: int, status: Status, times: int) -> None:
        waiting = self.table.get(key) is not None
        taken = [self.table.answer(key, Outcome(status, self.now)) for _ in range(times)]
        assert taken == [waiting] + [False] * (times - 1)

    @rule()
    def lose_the_line(self) -> None:
        self.line.lost = "lost"
        self.line = Line()

    @rule(step=st.integers(0, 120))
    def time_passes(self, step: int) -> None:
        self.now += step
        due = [r for r in self.requests if not r.done and r.expires <= self.now]
        assert self.table.expire(self.now, self.now) == len(due)
        for request in due:
            (outcome,) = self.seen.outcomes[request.tag]
            lost = request.line is None or request.line.lost is not None
            assert outcome.status == (Status.UNAVAILABLE if lost else Status.TIMEOUT)

    @rule()
    def close(self) -> None:
        self.closed = True
        self.table.close(self.now, "closed")
        assert self.table.live == 0

    @invariant()
    def never_two_and_never_lost(self) -> None:
        self.table.validate()
        for request in self.requests:
            assert len(self.seen.outcomes.get(request.tag, [])) == request.done
        assert self.table.live == sum(not r.done for r in self.requests)
        waiting = [r.expires for r in self.requests if not r.done]
        assert self.table.next_expiry() == min(waiting, default=None)

    def teardown(self) -> None:
        self.table.expire(self.now + 10_000, self.now + 10_000)
        assert all(len(self.seen.outcomes[r.tag]) == 1 for r in self.requests)
        assert self.table.next_expiry() is None


OneOutcome.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestOneOutcome = OneOutcome.TestCase


@given(st.lists(st.integers(0, 1000), max_size=200))
def test_expiry_comes_in_order_of_the_deadlines(waits: list[int]) -> None:
    seen: list[int] = []
    table = PendingTable()
    for wait in waits:
        table.admit(Request("m", None, wait, 0, lambda r, o: seen.append(r.deadline)), wait)
    table.expire(1_000, 1_000)
    assert seen == sorted(waits)


def test_what_is_answered_does_not_stay_in_the_heap() -> None:
    table = PendingTable()
    done: Counter[Status] = Counter()
    for i in range(5 * SLACK):
        request = Request("m", None, 0, 0, lambda r, o: done.update([o.status]))
        table.admit(request, 10**15)
        table.assign(request, i, Line())
        assert table.answer(i, Outcome(Status.OK, 0))
        table.next_expiry()
        assert len(table._expiry) <= SLACK + 1
    assert done == {Status.OK: 5 * SLACK}


def test_a_callback_that_raises_is_counted_and_the_others_are_called() -> None:
    def bad(request: Request, outcome: Outcome) -> None:
        raise ZeroDivisionError("mine")

    seen, table = Seen(), PendingTable()
    for tag, on_done in enumerate((bad, seen.on_done)):
        table.admit(Request("m", None, 0, 0, on_done, tag), 5)
    assert table.expire(5, 5) == 2
    assert list(seen.outcomes) == [1]
    assert table.faults.counts["callback-raised"] == 1


def test_a_callback_may_submit_again() -> None:
    seen, table = Seen(), PendingTable()

    def again(request: Request, outcome: Outcome) -> None:
        table.admit(make(seen, 7), 20)

    table.admit(Request("m", None, 0, 0, again), 5)
    assert table.expire(10, 10) == 1
    assert table.next_expiry() == 20


@pytest.mark.parametrize(
    ("sent", "lost", "status", "text"),
    [
        (True, None, Status.TIMEOUT, "nobody answered"),
        (True, "shard-0 has died", Status.UNAVAILABLE, "shard-0 has died"),
        (False, None, Status.UNAVAILABLE, "no shard could be reached in time for 'm'"),
    ],
)
def test_giving_up_says_why(sent: bool, lost: str | None, status: Status, text: str) -> None:
    seen, table, line = Seen(), PendingTable(), Line()
    request = make(seen, 0)
    table.admit(request, 5)
    if sent:
        table.assign(request, 1, line)
    line.lost = lost
    table.expire(5, 99)
    (outcome,) = seen.outcomes[0]
    assert (outcome.status, outcome.at) == (status, 99)
    assert text in outcome.detail
