from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.report import NO_OUTCOME, BatchColumns, Columns, summarize
from symphony.status import Status

MS = 1_000_000
FIELDS = [
    "offered", "good", "late", "dropped", "rejected", "failed", "unanswered",
    "goodput_rps", "p50_ms", "p99_ms", "mean_batch",
]  # fmt: skip


def columns(rows: list[tuple[int, int, int, int]], batches: list[tuple[int, int, int, int]] = ()) -> Columns:  # type: ignore[assignment]
    """``rows``: model, intended ms, answered ms, status; the deadline is 100 ms after the intention."""
    model, intended, answered, status = np.array(rows, np.int64).reshape(-1, 4).T
    b = np.array(batches, np.int64).reshape(-1, 4).T
    return Columns(
        model=model,
        intended=intended * MS,
        sent=intended * MS + MS,
        deadline=(intended + 100) * MS,
        status=status.astype(np.uint8),
        answered=answered * MS,
        outcomes=(status != NO_OUTCOME).astype(np.uint8),
        batches=BatchColumns(b[0], b[1], b[2] * MS, b[3] * MS),
    )


def test_every_status_is_counted_where_it_belongs() -> None:
    rows = [(0, i, i + 10, status) for i, status in enumerate(Status)] + [(0, 50, 151, Status.OK)]
    report = summarize(["m"], columns(rows), 2.0, gpus=[1], all_gpus=1).models["m"]
    assert (report.offered, report.good, report.late) == (9, 1, 1)
    assert (report.dropped, report.rejected, report.failed, report.unanswered) == (1, 4, 1, 1)
    assert report.goodput_rps == 0.5
    assert report.p50_ms == pytest.approx((10 + 101) / 2)
    assert report.bad_share == pytest.approx(8 / 9)


def test_models_batches_and_busy_shares() -> None:
    rows = [(0, 0, 10, 0), (0, 0, 20, 0), (1, 0, 50, 0)]
    batches = [(0, 4, 0, 100), (0, 8, 100, 300), (1, 2, 900, 5_000)]
    report = summarize(["a", "b"], columns(rows, batches), 1.0, gpus=[2, 1], all_gpus=2)
    assert report.models["a"].mean_batch == 6
    assert report.models["a"].busy_share == pytest.approx(0.15)
    assert report.models["b"].busy_share == pytest.approx(0.1)  # what lies after the end does not count
    assert report.total.mean_batch == pytest.approx(14 / 3)
    assert report.total.offered == 3
    assert report.ok


def test_nothing_offered_and_nothing_answered() -> None:
    empty = summarize(["m"], columns([]), 1.0, gpus=[0], all_gpus=0)
    assert empty.total.offered == 0
    assert (empty.total.p50_ms, empty.total.mean_batch, empty.total.busy_share) == (None, None, None)
    assert empty.ok
    lost = summarize(["m"], columns([(0, 0, 0, NO_OUTCOME)]), 1.0, gpus=[0], all_gpus=0)
    assert lost.total.unanswered == 1
    assert not lost.ok


def test_two_outcomes_for_one_request_are_a_defect() -> None:
    double = columns([(0, 0, 1, 0)])
    double.outcomes[0] = 2
    assert not summarize(["m"], double, 1.0, gpus=[0], all_gpus=0).ok


def test_a_generator_that_falls_behind_says_so() -> None:
    recorded = columns([(0, i, i + 5, 0) for i in range(100)])
    assert not summarize(["m"], recorded, 1.0, gpus=[0], all_gpus=0).generator["behind"]
    recorded.sent += 20 * MS
    generator = summarize(["m"], recorded, 1.0, gpus=[0], all_gpus=0).generator
    assert generator["behind"]
    assert generator["lag_max_ms"] == pytest.approx(21)


def test_the_json_has_the_fields_that_are_promised() -> None:
    rows = [(0, 0, 10, 0), (0, 1, 5, Status.DROPPED)]
    said = [{"DROPPED: too late": 1}]
    report = summarize(["m"], columns(rows), 1.0, gpus=[1], all_gpus=1, reasons=said)
    parsed = json.loads(json.dumps(report.as_dict()))
    for one in (parsed["total"], parsed["models"]["m"]):
        assert list(one)[: len(FIELDS)] == FIELDS
    assert parsed["models"]["m"]["reasons"] == {"DROPPED: too late": 1}
    assert parsed["one_outcome_each"] is True


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 1000),
            st.integers(0, 2000),
            st.sampled_from([*map(int, Status), NO_OUTCOME]),
        ),
        max_size=60,
    )
)
def test_the_parts_always_sum_to_what_was_offered(rows: list[tuple[int, int, int, int]]) -> None:
    report = summarize(["a", "b", "c"], columns(rows), 1.0, gpus=[1, 1, 1], all_gpus=3)
    for one in (report.total, *report.models.values()):
        parts = one.good + one.late + one.dropped + one.rejected + one.failed + one.unanswered
        assert parts == one.offered
    assert report.total.offered == sum(m.offered for m in report.models.values()) == len(rows)
