"""One GPU among many that takes longer than its type's others is noticed, and nothing else is."""

from __future__ import annotations

import numpy as np

from scheduler.corrections import Corrections
from scheduler.margins import ENOUGH as MARGIN_ENOUGH
from scheduler.margins import SLOW_CAP, Margins
from scheduler.slow import ENOUGH, REMEMBERED, SlowGpus

MS = 1_000_000


def ids(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


class Rig:
    """Eight GPUs, of type 0 the first six."""

    def __init__(self) -> None:
        self.slow = SlowGpus()
        self.gpus = np.arange(8)
        self.kinds = ids(0, 0, 0, 0, 0, 0, 1, 1)

    def run(self, factors: dict[int, float], batches: int = REMEMBERED) -> list[tuple[int, float | None]]:
        for _ in range(batches):
            times = np.array([factors.get(gpu, 1.0) for gpu in range(8)]) * 10 * MS
            self.slow.observe(self.gpus, times.astype(np.int64), np.full(8, 10 * MS))
        self.slow.sweep()
        return self.slow.judge(self.gpus, self.kinds)


def test_equal_gpus_are_not_slow_however_wrong_the_profile_is() -> None:
    assert Rig().run(dict.fromkeys(range(8), 3.0)) == []


def test_a_gpu_that_turns_slow_is_told_once_and_so_is_its_recovery() -> None:
    rig = Rig()
    assert rig.run({}) == []
    ((gpu, factor),) = rig.run({4: 1.6})
    assert (gpu, round(factor or 0, 6)) == (4, 1.6)
    assert rig.slow.are_slow(ids(3, 4, 5, 999)).tolist() == [False, True, False, False]
    assert rig.run({4: 1.7}) == []
    assert round(rig.slow.factors[4], 6) == 1.7
    assert rig.run({4: 1.2}) == [], "between the two thresholds it stays what it was"
    assert rig.run({}) == [(4, None)]
    assert rig.slow.factors == {}


def test_a_few_batches_or_a_single_one_say_nothing() -> None:
    assert Rig().run({4: 5.0}, ENOUGH - 1) == []
    rig = Rig()
    rig.run({})
    assert rig.run({4: 5.0}, REMEMBERED // 2 - 1) == []


def test_two_gpus_of_a_type_cannot_be_told_apart() -> None:
    assert Rig().run({6: 9.0}) == []


def test_a_gpu_that_has_gone_is_forgotten() -> None:
    rig = Rig()
    rig.run({4: 2.0})
    rig.slow.forget(4)
    assert rig.slow.factors == {}
    assert not rig.slow.are_slow(ids(4)).any()
    assert rig.run({}) == []


def test_unknown_profiles_and_no_gpus_are_no_trouble() -> None:
    slow = SlowGpus()
    slow.observe(ids(1), ids(5), ids(0))
    slow.sweep()
    assert slow.judge(ids(), ids()) == []


def test_the_margin_of_a_slow_gpu_may_be_longer() -> None:
    rig, margins = Rig(), Margins()
    rig.run({4: 2.0})
    for _ in range(MARGIN_ENOUGH):
        margins.observe(ids(3, 4), ids(7 * MS, 7 * MS))
    assert margins.changes(1 * MS, rig.slow) == [(3, 1 * MS), (4, 7 * MS)]
    assert SLOW_CAP * MS > 7 * MS


def test_measured_against_profiled_is_told_by_model() -> None:
    corrections = Corrections()
    assert corrections.measured(3) is None
    for percent in range(50, 110):
        corrections.observe(ids(3), ids(0), ids(percent * MS), ids(100 * MS))
        corrections.observe(ids(3), ids(1), ids(percent * MS // 2), ids(100 * MS))
    list(corrections.changes())
    seen = corrections.measured(3)
    assert seen is not None
    assert 0.78 < seen[0] < 0.82
    assert seen[1] == 1.09
