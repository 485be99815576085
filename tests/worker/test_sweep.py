"""Which sizes are measured and what is said of the device, from made-up curves under a made-up clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise

import numpy as np
import pytest

from worker.sweep import Plan, Size, Timing, complaints, first_sizes, sweep

MS = 1_000_000


def runner(
    curve: Callable[[int], float], factor: Callable[[int], float] = lambda n: 1.0
) -> Callable[[int], Timing]:
    """``curve`` in ms; ``factor`` of the run's number."""
    number = count()
    return lambda b: Timing(1, 2, round(curve(b) * factor(next(number)) * MS), 3, 4)


def sizes_of(curve: Callable[[int], float], most: int = 128, **options: float) -> list[int]:
    plan = Plan(most, runs=5, **options)  # type: ignore[arg-type]
    return [size.b for size in sweep(runner(curve), plan)]


def test_powers_of_two_and_the_largest_come_first() -> None:
    assert first_sizes(1) == [1]
    assert first_sizes(24) == [1, 2, 4, 8, 16, 24]


def test_a_straight_curve_costs_one_more_size_per_interval() -> None:
    assert sizes_of(lambda b: 2 * b + 5) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]


def test_a_step_is_closed_in_on() -> None:
    sizes = sizes_of(lambda b: 10 if b <= 71 else 20)
    assert {71, 72} <= set(sizes)
    assert len(sizes) < 25
    near, far = [b for b in sizes if 64 <= b <= 96], [b for b in sizes if 16 <= b <= 48]
    assert len(near) > len(far)


def test_sizes_that_were_asked_for_are_measured_and_no_others() -> None:
    measured = sweep(runner(lambda b: b**2), Plan(100, sizes=[7, 3, 100], runs=5))
    assert [size.b for size in measured] == [3, 7, 100]
    assert [len(size.rounds) for size in measured] == [2, 2, 2]


def test_the_number_of_sizes_is_bounded() -> None:
    rng = np.random.default_rng(0)
    assert len(sizes_of(lambda b: float(rng.uniform(1, 100)), 4096, most_sizes=30)) == 30


def test_a_slow_size_gets_fewer_runs() -> None:
    now = [0]

    def run(b: int) -> Timing:
        now[0] += 400 * MS
        return Timing(0, 0, 400 * MS, 0, 0)

    (size,) = sweep(run, Plan(1, runs=30, least=3, budget_s=1.0), clock=lambda: now[0])
    assert [len(runs) for runs in size.rounds] == [3, 3]


def test_progress_ends_where_it_said() -> None:
    seen: list[tuple[int, int]] = []
    sweep(runner(lambda b: b), Plan(16, runs=5), lambda done, total, size: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert all(a <= b for (a, _), (b, _) in pairwise(seen))
    assert all(done <= total for done, total in seen)


def test_a_quiet_device_gets_no_complaint() -> None:
    assert complaints(sweep(runner(lambda b: b + 5), Plan(32, runs=10))) == []


@pytest.mark.parametrize(("factor", "word"), [(1.5, "slower by 50%"), (0.7, "faster by 30%")])
def test_drift_between_the_rounds_is_told(factor: float, word: str) -> None:
    runs = [[Timing(0, 0, 10 * MS, 0, 0)] * 5, [Timing(0, 0, round(factor * 10 * MS), 0, 0)] * 5]
    (said,) = complaints([Size(b, list(runs)) for b in (1, 2, 4)])
    assert word in said


def test_a_neighbour_on_the_device_is_told() -> None:
    (said,) = complaints(sweep(runner(lambda b: b + 5, lambda n: 1 + n % 2), Plan(8, runs=20)))
    assert "differ by" in said


def test_two_measurements_of_a_noisy_device_lie_within_their_spreads() -> None:
    def measured(seed: int) -> list[Size]:
        rng = np.random.default_rng(seed)
        noise = lambda n: float(rng.normal(1, 0.05))  # noqa: E731
        return sweep(runner(lambda b: b + 5, noise), Plan(32, sizes=[1, 2, 4, 8, 16, 32], runs=30))

    for a, b in zip(measured(1), measured(2), strict=True):
        apart = abs(np.median(a.times()) - np.median(b.times())) / np.median(a.times())
        assert apart < a.spread() + b.spread()
        assert 0.03 < a.spread() < 0.15
