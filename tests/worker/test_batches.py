"""Split and merge: whatever mix of frontends, sizes, missing and refused items, each gets its own rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from symphony import tensors, wire
from symphony.status import Status
from worker.batch import GONE, PENDING, Batch, one_line, results, shares

KEYS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 1 << 20)), min_size=0, max_size=40, unique=True
).map(lambda pairs: np.array([slot << 48 | seq for slot, seq in pairs], dtype=np.uint64))


def batch(key: wire.U64) -> Batch:
    return Batch(9, 2, "m", key, np.zeros(key.size, dtype=np.int64), 0, 0)


@given(KEYS)
def test_shares_part_the_rows_by_frontend(key: wire.U64) -> None:
    parts = shares(key)
    rows = [row for _, part in parts for row in part.tolist()]
    assert sorted(rows) == list(range(key.size))
    assert len({slot for slot, _ in parts}) == len(parts)
    for slot, part in parts:
        assert part.tolist() == sorted(part.tolist())
        assert all(wire.slot_of(int(key[row])) == slot for row in part)


@given(KEYS, st.data())
def test_every_wanted_key_comes_back_once_with_its_own_row(key: wire.U64, data: st.DataObject) -> None:
    fates = data.draw(
        st.lists(st.sampled_from(["ok", "ok", "gone", "bad", "worse"]), min_size=key.size, max_size=key.size)
    )
    made = batch(key)
    for row, fate in enumerate(fates):
        if fate == "gone":
            made.settle(row, GONE)
        elif fate != "ok":
            made.settle(row, Status.INVALID, f"it is {fate}")
    # The device sees the rows that are left, and its outputs name the request that they belong to.
    ran = made.pending()
    made.outputs = {
        "number": np.array([int(key[row]) for row in ran], dtype=np.uint64),
        "vector": np.array([[row, row + 0.5] for row in ran], dtype=np.float32).reshape(len(ran), 2),
        "text": np.array([str(row).encode() for row in ran], dtype=object),
    }
    made.ran = len(ran)
    made.succeed()
    seen: dict[int, tuple[int, str | None]] = {}
    for slot, (header, *frames) in results("w", made, lambda t: t + 5):
        result = wire.decode_result(header, len(frames))
        assert (result.worker, result.model, result.batch, result.gpu) == ("w", "m", 9, 2)
        assert result.size == len(ran)
        ok = [k for k, s in zip(result.key.tolist(), result.status, strict=True) if s == Status.OK]
        rows = {
            name: tensors.Rows(dtype, shape, frame, len(ok))
            for (name, dtype, shape), frame in zip(result.outputs, frames, strict=True)
        }
        assert set(rows) == ({"number", "vector", "text"} if ok else set())
        for i, k in enumerate(ok):
            row = key.tolist().index(k)
            assert rows["number"].row(i) == k
            assert rows["vector"].row(i).tolist() == [row, row + 0.5]
            assert rows["text"].row(i).item() == str(row).encode()
        for k, s in zip(result.key.tolist(), result.status.tolist(), strict=True):
            assert wire.slot_of(k) == slot
            assert k not in seen
            seen[k] = (s, None if s == Status.OK else result.error)
    expected = {
        k: (Status.OK, None) if fate == "ok" else (Status.INVALID, f"it is {fate}")
        for k, fate in zip(key.tolist(), fates, strict=True)
        if fate != "gone"
    }
    assert seen == expected
    assert made.not_ok() == sum(fate != "ok" for fate in fates)


def test_a_frontend_gets_one_message_when_there_is_one_error_text() -> None:
    made = batch(np.array([1, 2, 3], dtype=np.uint64))
    made.settle(1, Status.INVALID, "bad")
    made.outputs, made.ran = {"y": np.array([1.0, 3.0])}, 2
    made.succeed()
    ((_, frames),) = results("w", made, int)
    result = wire.decode_result(frames[0], 1)
    assert result.status.tolist() == [Status.OK, Status.INVALID, Status.OK]
    assert result.error == "bad"


def test_a_batch_that_nobody_wants_any_more_is_answered_by_nothing() -> None:
    made = batch(np.array([1, 2], dtype=np.uint64))
    made.settle_pending(GONE)
    assert results("w", made, int) == []
    assert made.not_ok() == 2


def test_pending_rows_are_those_without_a_fate() -> None:
    made = batch(np.array([1, 2, 3], dtype=np.uint64))
    assert made.status.tolist() == [PENDING] * 3
    made.settle(0, Status.FAILED)
    assert made.pending() == [1, 2]
    assert made.has_work()


def test_errors_travel_on_one_short_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert len(one_line("x" * 10_000)) == 500
