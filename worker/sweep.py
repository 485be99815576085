"""Which batch sizes to measure, how often, and whether the device kept still meanwhile; no device here.

Sizes: powers of two and the largest first. Then, as long as there are intervals in which a straight line
may hide a bend, the middle of the widest doubtful one is measured: if it lies off the line by more than
``tolerance``, both halves are doubtful in turn, else neither is. So a straight curve costs one more size
per interval, and a step (a wave of thread blocks more, another algorithm) is closed in on by bisection.

Four rounds: the first as above, the others over the same sizes again, backwards and forwards in turn. What
varies within a round is noise; by how much the rounds' medians differ beyond that is how the device wandered
(clocks, temperature, a neighbour), and a later measurement may find it elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

TOLERANCE: Final = 0.03
"""A size that lies off the line between its neighbours by this share shows that the curve bends there."""
MOST_SIZES: Final = 40
ROUNDS: Final = 4
WANDER: Final = 0.05
"""Rounds whose medians differ by this share (median over the sizes), and by more than noise: unstable."""
NOISE: Final = 2.5
"""Times what noise alone would make of that: the range of four medians, of so many runs each."""
SPREAD: Final = 0.25
"""Runs of one size that differ by this share (half of p10 to p90, median over the sizes): unstable."""
WIDE: Final = 0.3
"""A spread of this share that comes of wandering, at one size: unstable, whatever the noise."""
BEYOND: Final = 1.5
"""Times as far as it wandered while it was measured, a device may be elsewhere the next time."""
LEAST_SPREAD: Final = 0.01


@dataclass(frozen=True, slots=True)
class Timing:
    """One executed batch, ns: preparing, copy to the device, on the device, copy back, post-processing."""

    pre: int
    copy_in: int
    compute: int
    copy_out: int
    post: int


@dataclass(slots=True)
class Size:
    """The runs of one batch size, by round."""

    b: int
    rounds: list[list[Timing]] = field(default_factory=list)

    def times(self, part: str = "compute") -> npt.NDArray[np.float64]:
        """One part of every run, ms."""
        return np.array([getattr(t, part) for runs in self.rounds for t in runs]) / 1e6

    def medians(self) -> list[float]:
        """Of the time on the device, ms, one per round."""
        return [float(np.median([t.compute for t in runs])) / 1e6 for runs in self.rounds]

    def noise(self) -> float:
        """Half the range of the middle 80 % of the runs, each as a share of its round's median."""
        shares = np.concatenate([_shares(runs) for runs in self.rounds])
        p10, p90 = np.percentile(shares, (10, 90))
        return float(p90 - p10) / 2

    def wander(self) -> float:
        """How far the rounds' medians lie apart, as a share."""
        medians = self.medians()
        return (max(medians) - min(medians)) / min(medians)


def _shares(runs: Sequence[Timing]) -> npt.NDArray[np.float64]:
    times = np.array([timing.compute for timing in runs], dtype=np.float64)
    return times / np.median(times)


def spreads(sizes: Sequence[Size]) -> list[float]:
    """By size: how far apart the medians of two measurements may lie, as a share.

    Half the range of the middle 80 % of its runs, or :data:`BEYOND` times as far as the device wandered
    between the rounds if that is more, at any size: what moves one moves all. At least :data:`LEAST_SPREAD`.
    """
    wandered = BEYOND * max((size.wander() for size in sizes), default=0.0)
    return [max(_half_range(size), wandered, LEAST_SPREAD) for size in sizes]


def _half_range(size: Size) -> float:
    p10, p50, p90 = np.percentile(size.times(), (10, 50, 90))
    return float((p90 - p10) / 2 / p50)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure. ``sizes``: these and no others; None: chosen. ``runs``: per size and round, unless
    they take longer than ``budget_s``; ``least``: but never fewer. There are :data:`ROUNDS` rounds."""

    max_batch: int
    sizes: Sequence[int] | None = None
    runs: int = 15
    least: int = 5
    budget_s: float = 0.5
    tolerance: float = TOLERANCE
    most_sizes: int = MOST_SIZES


def sweep(
    run: Callable[[int], Timing],
    plan: Plan,
    progress: Callable[[int, int, int], None] = lambda done, total, size: None,
    clock: Callable[[], int] = time.monotonic_ns,
) -> list[Size]:
    """Measure; sizes ascend.

    Args:
        run: executes one batch of that size.
        plan: see there.
        progress: called with (measurements done, expected, the size that comes next).
        clock: ns, for the budget.
    """
    measured: dict[int, Size] = {}
    total = ROUNDS * len(plan.sizes or first_sizes(plan.max_batch))

    def measure(b: int) -> None:
        size = measured.setdefault(b, Size(b))
        done = sum(len(s.rounds) for s in measured.values())
        progress(done, max(total, done + 1), b)
        if not size.rounds:
            for _ in range(2):  # warm: memory pools, kernels chosen for this shape
                run(b)
        runs: list[Timing] = []
        began = clock()
        while len(runs) < plan.runs:
            runs.append(run(b))
            if len(runs) >= plan.least and clock() - began > plan.budget_s * 1e9:
                break
        size.rounds.append(runs)

    for b in sorted(set(plan.sizes or first_sizes(plan.max_batch))):
        measure(b)
    if plan.sizes is None:
        sizes = sorted(measured)
        doubtful = [(a, c) for a, c in pairwise(sizes) if c - a > 1]
        while doubtful and len(measured) < plan.most_sizes:
            doubtful.sort(key=lambda span: span[0] - span[1])
            a, c = doubtful.pop(0)
            b = (a + c) // 2
            total += ROUNDS
            measure(b)
            ends = [measured[x].medians()[0] for x in (a, c)]
            line = ends[0] + (ends[1] - ends[0]) * (b - a) / (c - a)
            found = measured[b].medians()[0]
            if abs(found - line) > plan.tolerance * found:
                doubtful += [(x, y) for x, y in ((a, b), (b, c)) if y - x > 1]
    for number in range(1, ROUNDS):
        for b in sorted(measured, reverse=number % 2 == 1):
            measure(b)
    progress(ROUNDS * len(measured), ROUNDS * len(measured), 0)
    return [measured[b] for b in sorted(measured)]


def first_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, 8 … and max_batch."""
    return sorted({1 << i for i in range(max_batch.bit_length())} | {max_batch})


def complaints(sizes: Sequence[Size]) -> list[str]:
    """Why these measurements should not be trusted; empty if the device kept still."""
    said = []
    noise = float(np.median([size.noise() for size in sizes]))
    runs = float(np.median([len(runs) for size in sizes for runs in size.rounds]))
    # Normal noise: its middle 80 % reach 1.28 sigma to each side, the median of n runs varies by 1.25 sigma
    # / sqrt(n), and four of them range over twice that. A small n hides some of the noise.
    by_chance = 2.06 * 1.25 / 1.28 * noise * (runs / max(1.0, runs - 1)) / runs**0.5
    wander = float(np.median([size.wander() for size in sizes]))
    widest = max(size.wander() for size in sizes)
    if wander > max(WANDER, NOISE * by_chance) or BEYOND * widest > WIDE:
        drift = float(np.median([size.medians()[-1] / size.medians()[0] for size in sizes])) - 1
        how = f"became {'slower' if drift > 0 else 'faster'} by {abs(drift):.0%}"
        if abs(drift) < max(wander, widest) / 2:
            how = f"changed its speed by up to {widest:.0%} and back"
        said.append(
            f"the device {how} while it was measured: clocks, temperature, or something else that ran on it"
        )
    if noise > SPREAD:
        said.append(f"runs of the same batch differ by ±{noise:.0%}: the device is not this model's alone")
    return said
