"""Which sizes are measured and what is said of the device, from made-up curves under a made-up clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise

import numpy as np
import pytest

from worker.sweep import ROUNDS, Plan, Size, Timing, complaints, first_sizes, spreads, sweep

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
    assert [len(size.rounds) for size in measured] == [ROUNDS] * 3


def test_the_number_of_sizes_is_bounded() -> None:
    rng = np.random.default_rng(0)
    assert len(sizes_of(lambda b: float(rng.uniform(1, 100)), 4096, most_sizes=30)) == 30


def test_a_slow_size_gets_fewer_runs() -> None:
    now = [0]

    def run(b: int) -> Timing:
        now[0] += 400 * MS
        return Timing(0, 0, 400 * MS, 0, 0)

    (size,) = sweep(run, Plan(1, runs=30, least=3, budget_s=1.0), clock=lambda: now[0])
    assert [len(runs) for runs in size.rounds] == [3] * ROUNDS


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
    first, last = Timing(0, 0, 10 * MS, 0, 0), Timing(0, 0, round(factor * 10 * MS), 0, 0)
    runs = [[first] * 5, [first] * 5, [last] * 5, [last] * 5]
    (said,) = complaints([Size(b, list(runs)) for b in (1, 2, 4)])
    assert word in said


def test_a_device_that_changes_and_comes_back_is_told() -> None:
    usual, slower = Timing(0, 0, 10 * MS, 0, 0), Timing(0, 0, 13 * MS, 0, 0)
    runs = [[usual] * 5, [slower] * 5, [slower] * 5, [usual] * 5]
    (said,) = complaints([Size(b, list(runs)) for b in (1, 2, 4)])
    assert "changed its speed by up to 30% and back" in said


def test_a_neighbour_on_the_device_is_told() -> None:
    (said,) = complaints(sweep(runner(lambda b: b + 5, lambda n: 1 + n % 2), Plan(8, runs=20)))
    assert "differ by" in said


# -- two profiles of the same device -----------------------------------------------------------------


class Device:
    """``b + 5`` ms times what is wrong with it; its clock advances by what it takes.

    ``noise``: standard deviation of every run. ``walk``: of the logarithm of its speed after a second.
    ``dwell_s``: how long a neighbour that makes it slower by half stays, and stays away, in the mean.
    """

    def __init__(self, seed: int, noise: float = 0.02, walk: float = 0.0, dwell_s: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.noise, self.walk, self.dwell_s = noise, walk, dwell_s
        self.ns, self.log_speed = 0, 0.0
        self.neighbour = bool(self.rng.random() < 0.5)

    def rest(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)
        self.log_speed += float(self.rng.normal(0, self.walk * seconds**0.5)) if self.walk else 0.0
        if self.dwell_s and self.rng.random() < 1 - np.exp(-seconds / self.dwell_s):
            self.neighbour = not self.neighbour

    def run(self, b: int) -> Timing:
        slower = 1.5 if self.dwell_s and self.neighbour else 1.0
        ms = (
            (b + 5) * slower * float(np.exp(self.log_speed)) * max(0.2, float(self.rng.normal(1, self.noise)))
        )
        self.rest(ms / 1e3)
        return Timing(0, 0, round(ms * MS), 0, 0)

    def profile(self) -> list[Size]:
        return sweep(self.run, Plan(32, sizes=[1, 2, 4, 8, 16, 32]), clock=lambda: self.ns)


def pairs(count: int = 20, **trouble: float) -> tuple[int, int, int]:
    """Of so many pairs of profiles: in how many the device kept still by both, agreed, and both."""
    still = agree = both = 0
    for seed in range(count):
        device = Device(seed, **trouble)
        one = device.profile()
        device.rest(5)
        two = device.profile()
        medians = [[float(np.median(size.times())) for size in sizes] for sizes in (one, two)]
        apart = [abs(a - b) / min(a, b) for a, b in zip(*medians, strict=True)]
        agrees = all(d <= x + y for d, x, y in zip(apart, spreads(one), spreads(two), strict=True))
        quiet = not complaints(one) and not complaints(two)
        still, agree, both = still + quiet, agree + agrees, both + (quiet and agrees)
    return still, agree, both


def test_profiles_of_a_device_with_known_noise_agree_and_nobody_complains() -> None:
    assert pairs(noise=0.05) == (20, 20, 20)


def test_the_stated_spread_follows_the_noise() -> None:
    for noise in (0.02, 0.05, 0.1):
        spread = float(np.median(spreads(Device(1, noise=noise).profile())))
        assert noise < spread < 3 * noise


def test_much_noise_is_told_and_profiles_agree_all_the_same() -> None:
    still, agree, _ = pairs(noise=0.4)
    assert (still, agree) == (0, 20)


def test_a_device_that_wanders_slowly_agrees_with_itself() -> None:
    _, agree, _ = pairs(walk=0.01)
    assert agree == 20


def test_a_device_that_wanders_fast_is_noticed() -> None:
    still, agree, both = pairs(walk=0.05)
    assert still <= 2
    assert both == still
    assert agree >= 17


def test_a_neighbour_that_comes_and_goes_while_it_is_measured_is_noticed() -> None:
    still, agree, _ = pairs(dwell_s=2)
    assert still <= 2
    assert agree >= 17


def test_a_device_that_has_become_another_one_does_not_agree() -> None:
    one, two = Device(1).profile(), Device(2)
    two.log_speed = 0.4
    apart = [
        abs(np.median(a.times()) / np.median(b.times()) - 1) for a, b in zip(one, two.profile(), strict=True)
    ]
    assert min(apart) > 2 * max(spreads(one))
