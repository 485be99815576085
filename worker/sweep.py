"""Which batch sizes to measure, how often, and whether the device kept still meanwhile; no device here.

Sizes: powers of two and the largest first. Then, as long as there are intervals in which a straight line
may hide a bend, the middle of the widest doubtful one is measured: if it lies off the line by more than
``tolerance``, both halves are doubtful in turn, else neither is. So a straight curve costs one more size
per interval, and a step (a wave of thread blocks more, another algorithm) is closed in on by bisection.

Two rounds: the first as above, the last over the same sizes again, in reverse order. What has changed from
one to the other is drift (clocks, temperature, a neighbour); what varies within them is spread.
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
DRIFT: Final = 0.05
"""Medians of the last round that differ from the first's by this share, over all sizes: unstable."""
SPREAD: Final = 0.25
"""Runs of one size that differ by this share (half of p10 to p90, median over the sizes): unstable."""
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

    def spread(self) -> float:
        """How far apart two measurements of this size may lie: half the range of the middle 80 % of the
        runs, or the distance of the rounds' medians if that is more; a share of the median."""
        times = self.times()
        p10, p50, p90 = np.percentile(times, (10, 50, 90))
        medians = self.medians()
        apart = max(medians) - min(medians)
        return max(float((p90 - p10) / 2 / p50), apart / min(medians), LEAST_SPREAD)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to measure. ``sizes``: these and no others; None: chosen. ``runs``: per size and round, unless
    they take longer than ``budget_s``; ``least``: but never fewer."""

    max_batch: int
    sizes: Sequence[int] | None = None
    runs: int = 30
    least: int = 5
    budget_s: float = 1.0
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
    total = 2 * len(plan.sizes or first_sizes(plan.max_batch))

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
            total += 2
            measure(b)
            ends = [measured[x].medians()[0] for x in (a, c)]
            line = ends[0] + (ends[1] - ends[0]) * (b - a) / (c - a)
            found = measured[b].medians()[0]
            if abs(found - line) > plan.tolerance * found:
                doubtful += [(x, y) for x, y in ((a, b), (b, c)) if y - x > 1]
    for b in sorted(measured, reverse=True):
        measure(b)
    progress(2 * len(measured), 2 * len(measured), 0)
    return [measured[b] for b in sorted(measured)]


def first_sizes(max_batch: int) -> list[int]:
    """1, 2, 4, 8 … and max_batch."""
    return sorted({1 << i for i in range(max_batch.bit_length())} | {max_batch})


def complaints(sizes: Sequence[Size]) -> list[str]:
    """Why these measurements should not be trusted; empty if the device kept still."""
    said = []
    ratios = [size.medians()[-1] / size.medians()[0] for size in sizes]
    drift = float(np.median(ratios)) - 1
    if abs(drift) > DRIFT:
        said.append(
            f"the device became {'slower' if drift > 0 else 'faster'} by {abs(drift):.0%} while it was "
            "measured: clocks, temperature, or something else that ran on it"
        )
    halves = []
    for runs in [runs for size in sizes for runs in size.rounds]:
        p10, p50, p90 = np.percentile([timing.compute for timing in runs], (10, 50, 90))
        halves.append((p90 - p10) / 2 / p50)
    spread = float(np.median(halves))
    if spread > SPREAD:
        said.append(f"runs of the same batch differ by ±{spread:.0%}: the device is not this model's alone")
    return said
