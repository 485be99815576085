"""Gathering inputs: order, gone keys, dead and silent frontends, answers that nobody asked for."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony.status import Status
from symphony.wire import Tensors, WireError
from worker.batch import GONE, Batch
from worker.intake import GRACE_NS, PATIENCE_NS, Fetch, Intake

MS = 1_000_000


def key(slot: int, number: int) -> int:
    return slot << 48 | number


def make(*keys: int, received: int = 0, expected_ms: int = 10) -> Batch:
    column = np.array(keys, dtype=np.uint64)
    return Batch(
        1, 0, "m", column, np.zeros(column.size, dtype=np.int64), 0, received, expected_ns=expected_ms * MS
    )


def answer(fetch: Fetch, keys: list[int] | None = None) -> tuple[set[int], Tensors, list[Any]]:
    keys = fetch.key.tolist() if keys is None else keys
    message = Tensors(fetch.id, np.array(keys, dtype=np.uint64), ["x"], [["FP32", []]] * len(keys))
    return {fetch.slot}, message, [np.float32(k & 0xFFFF).tobytes() for k in keys]


def add(intake: Intake, batch: Batch, *, first_ms: int = 200, last_ms: int = 300) -> list[Fetch]:
    at = batch.received_ns
    return intake.add(batch, at, at + first_ms * MS, at + last_ms * MS)


def test_a_batch_leaves_when_every_frontend_has_answered() -> None:
    intake, batch = Intake(), make(key(1, 1), key(2, 1), key(1, 2))
    one, two = add(intake, batch)
    assert (one.slot, one.key.tolist()) == (1, [key(1, 1), key(1, 2)])
    assert intake.arrived(*answer(one)) == 0
    assert list(intake.take(0)) == []
    intake.arrived(*answer(two))
    assert list(intake.take(0)) == [batch]
    assert [p.frames for p in batch.inputs if p] == [[np.float32(n).tobytes()] for n in (1, 1, 2)]
    assert len(intake) == 0
    assert intake.next_wakeup(0) is None


def test_gone_keys_are_left_out_and_a_batch_of_nothing_still_comes_out() -> None:
    intake, batch = Intake(), make(key(1, 1), key(1, 2))
    (fetch,) = add(intake, batch)
    intake.arrived(*answer(fetch, [key(1, 2)]))
    assert list(intake.take(0)) == [batch]
    assert batch.status.tolist()[0] == GONE
    assert batch.pending() == [1]
    other = make(key(1, 3))
    (fetch,) = add(intake, other)
    intake.arrived(*answer(fetch, []))
    assert list(intake.take(0)) == [other]
    assert not other.has_work()


def test_answers_that_nobody_asked_for_change_nothing() -> None:
    intake, batch = Intake(), make(key(1, 1), key(1, 2))
    (fetch,) = add(intake, batch)
    slots, message, frames = answer(fetch)
    with pytest.raises(WireError, match="foreign-fetch"):
        intake.arrived({2}, message, frames)
    unknown = Tensors(fetch.id + 1, message.key, message.names, message.specs)
    with pytest.raises(WireError, match="unknown-fetch"):
        intake.arrived(slots, unknown, frames)
    assert list(intake.take(0)) == []
    assert intake.arrived(*answer(fetch, [key(1, 1), key(1, 1), key(1, 9), key(1, 2)])) == 2
    assert list(intake.take(0)) == [batch]
    with pytest.raises(WireError, match="unknown-fetch"):  # a second time
        intake.arrived(slots, message, frames)


def test_a_key_planned_twice_in_a_batch_runs_once() -> None:
    intake, batch = Intake(), make(key(1, 1), key(1, 1))
    (fetch,) = add(intake, batch)
    assert fetch.key.tolist() == [key(1, 1)]
    intake.arrived(*answer(fetch))
    assert list(intake.take(0)) == [batch]
    assert batch.pending() == [0]


def test_batches_leave_in_plan_order() -> None:
    intake, first, second = Intake(), make(key(1, 1)), make(key(1, 2))
    (one,), (two,) = add(intake, first), add(intake, second)
    intake.arrived(*answer(two))
    assert list(intake.take(0)) == []
    intake.arrived(*answer(one))
    assert list(intake.take(0)) == [first, second]


def test_a_silent_frontend_does_not_hold_the_others_for_long() -> None:
    intake, silent, ready = Intake(), make(key(1, 1)), make(key(2, 1))
    add(intake, silent)
    (fetch,) = add(intake, ready)
    intake.arrived(*answer(fetch))
    assert intake.next_wakeup(0) == PATIENCE_NS
    assert list(intake.take(PATIENCE_NS - 1)) == []
    assert list(intake.take(PATIENCE_NS)) == [ready]


def test_a_batch_goes_with_what_has_come_while_its_first_deadline_can_be_met() -> None:
    intake, batch = Intake(), make(key(1, 1), key(2, 1), expected_ms=10)
    one, _ = add(intake, batch, first_ms=200)
    intake.arrived(*answer(one))
    assert list(intake.take(190 * MS - 1)) == []
    assert list(intake.take(190 * MS)) == [batch]
    assert batch.pending() == [0]
    assert (batch.status[1], batch.errors[1]) == (Status.UNAVAILABLE, "the inputs did not come in time")


def test_a_batch_without_any_inputs_is_given_up_after_its_last_deadline() -> None:
    intake, batch = Intake(), make(key(1, 1), key(2, 1))
    fetches = add(intake, batch, first_ms=200, last_ms=300)
    assert {f.until_ns for f in fetches} == {300 * MS + GRACE_NS}
    assert list(intake.take(300 * MS + GRACE_NS - 1)) == []
    assert list(intake.take(300 * MS + GRACE_NS)) == [batch]
    assert batch.status.tolist() == [Status.UNAVAILABLE] * 2
    with pytest.raises(WireError, match="unknown-fetch"):
        intake.arrived(*answer(fetches[0]))


def test_a_dead_frontends_rows_leave_at_once() -> None:
    intake, batch, later = Intake(), make(key(1, 1), key(2, 1)), make(key(2, 2))
    one, two = add(intake, batch)
    (third,) = add(intake, later)
    intake.arrived(*answer(two))
    intake.arrived(*answer(third))
    intake.lost(1)
    assert list(intake.take(0)) == [batch, later]
    assert batch.status.tolist()[0] == GONE
    assert batch.pending() == [1]
    with pytest.raises(WireError, match="unknown-fetch"):
        intake.arrived(*answer(one))


def test_deadlines_in_the_past_still_give_inputs_a_moment() -> None:
    intake, batch = Intake(), make(key(1, 1), received=10_000 * MS)
    intake.add(batch, 0, 0, 0)
    assert list(intake.take(10_000 * MS)) == []
    assert list(intake.take(10_000 * MS + GRACE_NS)) == [batch]


@given(st.data())
def test_every_batch_leaves_once_and_time_always_advances(data: st.DataObject) -> None:
    """Any order of arrivals, losses and passing time: each batch leaves once, and waiting never spins."""
    intake, now, serial = Intake(), 0, 0
    open_fetches: list[Fetch] = []
    added: list[Batch] = []
    left: list[Batch] = []
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["add", "add", "answer", "lose", "wait"])):
            case "add":
                slots = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
                serial += 10
                made = make(*(key(s, serial + i) for i, s in enumerate(slots)), received=now)
                open_fetches += add(intake, made)
                added.append(made)
            case "answer" if open_fetches:
                fetch = open_fetches.pop(data.draw(st.integers(0, len(open_fetches) - 1)))
                kept = data.draw(st.lists(st.sampled_from(fetch.key.tolist()), unique=True))
                with contextlib.suppress(WireError):  # its frontend was lost, or its time was up
                    intake.arrived(*answer(fetch, kept))
            case "lose":
                intake.lost(data.draw(st.integers(1, 3)))
            case "wait":
                wakeup = intake.next_wakeup(now)
                assert wakeup is None or wakeup > now
                now = wakeup if wakeup is not None else now + MS
        left += intake.take(now)
    while len(intake):
        wakeup = intake.next_wakeup(now)
        assert wakeup is not None
        assert wakeup > now
        now = wakeup
        left += intake.take(now)
    assert sorted(map(id, left)) == sorted(map(id, added))
    for batch in added:
        for row in batch.pending():
            assert batch.inputs[row] is not None
