"""What a shard tells of itself once a second: counters, rates, waits, and its GPUs one by one."""

from __future__ import annotations

import numpy as np
import pytest
from shard_parts import S, make_table, spec

from broker.registry import stats_problem
from scheduler.stats import LATENESS_KEPT, LONGEST_BATCH_NS, MOST_TOLD, Stats, summary
from scheduler.workers import Back

NONE_OUT = np.zeros(0, np.int64)


def _back(model: int, size: int, good: int, started: int, finished: int, failed: int = 0) -> Back:
    return Back(*(np.array([value]) for value in (model, size, good, failed, started, finished, 0)))


def test_counters_by_model() -> None:
    core, table = make_table("a", "b")
    stats = Stats()
    stats.offered(2)[:] += (1, 2)
    stats.dropped(np.array([1, 9], np.int64), 2)
    stats.completed(_back(1, 4, 2, 50, 100), 2)
    stats.completed(_back(1, 1, 1, 100, 150, failed=1), 2)  # in time, but failed
    report = stats.report(200, core, table, np.arange(2), NONE_OUT)
    counters = ("offered", "good", "late", "dropped", "queued", "batches", "mean_batch")
    models = {name: {key: entry[key] for key in counters} for name, entry in report["models"].items()}
    assert models["a"] == {
        "offered": 1, "good": 0, "late": 0, "dropped": 0, "queued": 0, "batches": 0, "mean_batch": None,
    }  # fmt: skip
    assert models["b"] == {
        "offered": 2, "good": 2, "late": 3, "dropped": 1, "queued": 0, "batches": 2, "mean_batch": 2.5,
    }  # fmt: skip
    assert (report["v"], report["at"], report["gpus"]) == (1, 200, 2)


def test_counters_grow_with_the_table_and_keep_what_they_had() -> None:
    core, table = make_table("a")
    stats = Stats()
    stats.offered(1)[0] += 1
    table.learn(0, spec("b"))
    stats.offered(2)[1] += 2
    models = stats.report(1, core, table, np.arange(0), NONE_OUT)["models"]
    assert (models["a"]["offered"], models["b"]["offered"]) == (1, 2)


def test_the_busy_share_is_that_of_the_time_since_the_last_report() -> None:
    core, table = make_table("a")
    stats = Stats()
    assert stats.report(1_000, core, table, np.arange(2), NONE_OUT)["busy_share"] is None
    stats.completed(_back(0, 1, 1, 1_000, 1_500), 1)
    stats.completed(_back(0, 1, 1, 1_200, 1_300), 1)
    assert stats.report(2_000, core, table, np.arange(2), NONE_OUT)["busy_share"] == pytest.approx(0.3)
    assert stats.report(3_000, core, table, np.arange(2), NONE_OUT)["busy_share"] == 0.0
    again = stats.report(3_000, core, table, np.arange(2), NONE_OUT)
    assert again["busy_share"] is None, "no time has passed"
    assert stats.report(4_000, core, table, np.arange(0), NONE_OUT)["busy_share"] is None, "no GPUs"


def test_times_that_cannot_be_make_no_absurd_busy_share() -> None:
    core, table = make_table("a")
    stats = Stats()
    stats.report(1_000, core, table, np.array([0]), NONE_OUT)
    stats.completed(_back(0, 1, 0, 2**62, -(2**62)), 1)
    stats.completed(_back(0, 1, 0, -(2**61), 2**61), 1)
    elapsed = 10 * LONGEST_BATCH_NS
    report = stats.report(1_000 + elapsed, core, table, np.array([0]), NONE_OUT)
    assert report["busy_share"] == pytest.approx(0.1)


def test_lateness_is_that_of_the_last_timers() -> None:
    stats = Stats()
    assert stats.lateness_us() == (0.0, 0.0)
    for late in range(101):
        stats.woke(late * 1_000)
    assert stats.lateness_us() == (50.0, 99.0)
    for _ in range(LATENESS_KEPT):
        stats.woke(2_000)
    assert stats.lateness_us() == (2.0, 2.0)


# --- model table -------------------------------------------------------------------------------


def test_rates_waits_and_sizes_by_model_and_idle_times_by_gpu() -> None:
    core, table = make_table("a", "b")
    core.add_gpu(0, 3, 0, [0, 1])
    stats = Stats()
    for second in range(1, 5):
        stats.offered(2)[0] += 10 if second % 2 else 30
        report = stats.report(second * S, core, table, np.array([3, 4]), NONE_OUT)
    assert report["models"]["a"]["rate"] == pytest.approx(70 / 3, abs=0.01)
    assert report["models"]["a"]["rate_cv"] > 0.3
    assert report["models"]["b"] | {"rate": 0.0, "rate_cv": 0.0, "batch_sizes": []} == report["models"]["b"]
    sizes = np.array([1, 2, 3, 4, 5])
    ones = np.ones(5, np.int64)
    stats.completed(Back(ones, sizes, sizes, 0 * ones, ones * 4 * S, ones * (4 * S + S // 10), ones * 3), 2)
    report = stats.report(5 * S, core, table, np.array([3, 4]), NONE_OUT)
    assert report["models"]["b"]["batch_sizes"] == [1, 1, 2, 1]
    assert report["gpu"] == {"number": [3, 4], "busy": [0.5, 0.0], "idle_ms": [900, -1]}
    report = stats.report(6 * S, core, table, np.array([3]), np.array([3]))
    assert report["gpu"] == {"number": [3], "busy": [0.0], "idle_ms": [0]}
    assert "gpu" not in summary(report)


def test_a_batch_that_outlasts_reports_is_told_with_the_next_ones() -> None:
    core, table = make_table("a")
    stats = Stats()
    stats.report(S, core, table, np.array([0, 1]), NONE_OUT)
    stats.completed(_back(0, 1, 1, S, 4 * S - S // 2), 1)  # on GPU 0, for 2.5 s
    busy = [
        stats.report(second * S, core, table, np.array([0, 1]), NONE_OUT)["gpu"]["busy"]
        for second in range(4, 9)
    ]
    assert busy == [[0.833, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], (
        "three seconds in one report"
    )
    stats.completed(_back(0, 1, 1, 8 * S, 10 * S + S // 2), 1)
    busy = [
        stats.report(second * S, core, table, np.array([0, 1]), NONE_OUT)["gpu"]["busy"]
        for second in range(9, 13)
    ]
    assert busy == [[1.0, 0.0], [1.0, 0.0], [0.5, 0.0], [0.0, 0.0]]
    for _ in range(100):  # a worker that lies
        stats.completed(_back(0, 1, 1, 0, LONGEST_BATCH_NS), 1)
    told = [
        stats.report((13 + second) * S, core, table, np.array([0, 1]), NONE_OUT)["gpu"]["busy"][0]
        for second in range(70)
    ]
    assert told == [1.0] * 61 + [0.0] * 9, "no more than one of the longest batches is owed"


def test_the_oldest_wait_is_that_of_the_head_of_the_queue() -> None:
    core, table = make_table("a")
    core.add_gpu(0, 1, 0, [0])
    for first, n in ((1, 8), (9, 4)):  # one batch takes the GPU, the next has to wait for it
        keys = np.arange(first, first + n, dtype=np.uint64)
        core.submit(0, np.zeros(n, np.uint32), np.full(n, 10 * S, np.int64), keys)
    report = Stats().report(2 * S, core, table, np.array([1]), np.array([1]))
    assert report["models"]["a"]["queued"] == 4
    assert report["models"]["a"]["oldest_wait_ms"] == 2_000


def test_a_heartbeat_carries_the_busiest_models_only() -> None:
    core, table = make_table(*(f"m{i}" for i in range(MOST_TOLD + 5)))
    stats = Stats()
    stats.offered(MOST_TOLD + 5)[MOST_TOLD + 4] += 3
    report = stats.report(1, core, table, np.arange(0), NONE_OUT)
    assert len(report["models"]) == MOST_TOLD + 5
    told = summary(report)["models"]
    assert len(told) == MOST_TOLD
    assert f"m{MOST_TOLD + 4}" in told
    assert not stats_problem(summary(report))
