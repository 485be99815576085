"""The learned factor between profiled and measured durations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scheduler.core.machine import Core
from scheduler.corrections import ENOUGH, LARGEST, Corrections
from scheduler.table import ModelTable
from symphony.control import ModelSpec
from symphony.faults import Faults

MS = 1_000_000


def observed(*measured_ms: float, profiled_ms: float = 10) -> Corrections:
    corrections = Corrections()
    observe(corrections, measured_ms, profiled_ms)
    return corrections


def observe(corrections: Corrections, measured_ms: Sequence[float], profiled_ms: float) -> None:
    n = len(measured_ms)
    measured = np.array([round(ms * MS) for ms in measured_ms], np.int64)
    corrections.observe(np.full(n, 3), np.full(n, 1), measured, np.full(n, round(profiled_ms * MS)))


def test_a_few_batches_change_nothing() -> None:
    assert list(observed(*[20] * (ENOUGH - 1)).changes()) == []


def test_slower_batches_raise_the_factor_to_their_high_percentile() -> None:
    corrections = observed(*[12] * 8, *[15] * 8)
    assert list(corrections.changes()) == [(3, 1, 1.5)]
    assert corrections.of(3, 1) == 1.5
    assert list(corrections.changes()) == []


def test_what_runs_faster_than_profiled_needs_no_correction() -> None:
    corrections = observed(*[5] * 32)
    assert list(corrections.changes()) == []
    assert corrections.of(3, 1) == 1.0


def test_small_moves_are_not_given_out_and_large_ones_are_bounded() -> None:
    assert list(observed(*[10.3] * 16).changes()) == []
    assert list(observed(*[900] * 16).changes()) == [(3, 1, LARGEST)]


def test_it_comes_back_to_one_when_the_device_is_quick_again() -> None:
    corrections = observed(*[20] * 16)
    assert list(corrections.changes()) == [(3, 1, 2.0)]
    observe(corrections, [10] * 64, 10)
    assert list(corrections.changes()) == [(3, 1, 1.0)]


def test_an_unknown_profile_is_ignored() -> None:
    corrections = observed(*[20] * 16, profiled_ms=0)
    assert list(corrections.changes()) == []


def test_the_core_counts_with_corrected_latencies_now_and_after_a_new_announcement() -> None:
    import logging

    core = Core()
    table = ModelTable(core, Faults(logging.getLogger("test")))
    spec = ModelSpec(name="m", slo_ms=100, max_batch=2, profiles={"cpu": [10 * MS, 16 * MS]})
    assert table.learn(0, spec)
    kind = table.type_number("cpu")
    assert kind is not None
    core.add_gpu(0, 0, kind)
    table.correct(0, 0, kind, 1.5)
    at = core.models.table[kind]
    assert [core.models.latency[at + b] for b in (1, 2)] == [15 * MS, 24 * MS]
    profiled = table.profiled_ns(
        np.array([0, 0, 7, 0]), np.array([kind, kind, kind, 63]), np.array([2, 3, 1, 1])
    )
    assert profiled.tolist() == [16 * MS, 0, 0, 0]
    table.learn(0, spec.model_copy(update={"profiles": {"cpu": [20 * MS, 30 * MS]}}))
    at = core.models.table[kind]
    assert [core.models.latency[at + b] for b in (1, 2)] == [30 * MS, 45 * MS]
