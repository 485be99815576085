"""Point processes: renewals, moving rates and replayed traces, each from a generator of its own.

A process draws gaps of mean 1; the cumulative rate turns that operational time into time. So the same
generator gives the same pattern at every rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduler.select import tallies

from .modulation import Modulation
from .traces import Floats, Trace

Ints = npt.NDArray[np.int64]
NS = 1_000_000_000
GRID = 4096
"""Points at which a moving rate is integrated."""
BLOCK = 1 << 15
"""Points that are made at a time: so many stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The expected number of arrivals, ``total``, up to each time in ``seconds``; both rise from 0."""

    seconds: Floats
    total: Floats


def renewal(rng: np.random.Generator, kind: str, shape: float, rate: Rate, until_s: float) -> Iterator[Ints]:
    """A renewal process below ``until_s``, in int64 ns and in blocks: constant, gamma, else Poisson.

    What comes out does not depend on the size of the blocks.
    """
    expected = float(rate.total[-1])
    if kind == "constant":
        yield _in_time(np.arange(rng.random(), expected, 1.0), rate, until_s)
        return
    points = np.empty(min(BLOCK, int(expected + 4 * expected**0.5) + 16))
    steady = len(rate.total) == 2
    factor = rate.seconds[-1] / rate.total[-1] * NS
    reached = 0.0
    while reached < expected:
        if kind == "gamma":
            rng.standard_gamma(shape, out=points)
            points /= shape
        else:
            rng.standard_exponential(out=points)
        if steady:
            found = np.empty(len(points), np.int64)
            n = tallies().points(points, reached, expected, factor, round(until_s * NS), found)
            yield found[:n]
            if n < len(points):
                return
        else:
            points[0] += reached
            np.cumsum(points, out=points)
            yield _in_time(points[: np.searchsorted(points, expected)], rate, until_s)
        reached = float(points[-1])


def _in_time(points: Floats, rate: Rate, until_s: float) -> Ints:
    """Operational time, rising, as time in ns, as far as that is before ``until_s``."""
    found = np.empty(len(points), np.int64)
    if len(rate.total) == 2:
        np.multiply(points, rate.seconds[-1] / rate.total[-1] * NS, out=found, casting="unsafe")
    else:
        np.multiply(np.interp(points, rate.total, rate.seconds), NS, out=found, casting="unsafe")
    return found[: np.searchsorted(found, round(until_s * NS))]


class Choice:
    """Draws of 0 … len(shares) - 1, each as often as its share (Walker's alias method)."""

    def __init__(self, rng: np.random.Generator, shares: Floats) -> None:
        self._rng = rng
        self._number = len(shares)
        self._equal = bool((shares == shares[0]).all())
        self._keep, self._other = _aliases(shares)

    def draw(self, n: int) -> npt.NDArray[np.uint32]:
        """The next ``n``; what comes in all does not depend on how many are drawn at a time."""
        if self._equal:
            return self._rng.integers(self._number, size=n, dtype=np.uint32)
        # One draw for both: the column, and how far into it.
        place = self._rng.random(n)
        place *= self._number
        column = place.astype(np.uint32)
        place -= column
        np.copyto(column, self._other[column], where=place >= self._keep[column])
        return column


def _aliases(shares: Floats) -> tuple[Floats, npt.NDArray[np.uint32]]:
    """Per number the probability with which it is kept, and what it is replaced by otherwise."""
    left = shares * (len(shares) / shares.sum())
    keep = np.ones(len(shares), np.float64)
    other = np.arange(len(shares), dtype=np.uint32)
    small = [i for i, share in enumerate(left) if share < 1]
    large = [i for i, share in enumerate(left) if share >= 1]
    while small and large:
        poor, rich = small.pop(), large[-1]
        keep[poor], other[poor] = left[poor], rich
        left[rich] -= 1 - left[poor]
        if left[rich] < 1:
            small.append(large.pop())
    return keep, other


def moving_rate(
    rate: float, seconds: float, modulation: Modulation | None, per_minute: Floats | None, speed: float
) -> Rate:
    """A mean rate (1/s), shaped by a trace's counts per minute at ``speed`` times its pace, and modulated."""
    grid = np.array([0.0, seconds])
    total = rate * grid
    if per_minute is not None:
        minute = 60.0 / speed
        shape = per_minute / per_minute.mean()
        minutes = int(np.ceil(seconds / minute))
        shape = np.resize(shape, minutes)  # a trace that is too short begins again
        grid = minute * np.arange(minutes + 1)
        total = rate * minute * np.concatenate([[0.0], np.cumsum(shape)])
    if modulation is not None:
        fine = np.unique(np.concatenate([np.linspace(0, seconds, GRID), grid, _corners(modulation)]))
        fine = fine[fine <= max(seconds, grid[-1])]
        steps = np.diff(np.interp(fine, grid, total))
        middle = (fine[:-1] + fine[1:]) / 2
        total = np.concatenate([[0.0], np.cumsum(steps * _factor(modulation, middle))])
        grid = fine
    # np.interp inverts only where something arrives.
    rising = np.concatenate([[True], np.diff(total) > 0])
    rising[:-1] |= rising[1:]
    return Rate(grid[rising], total[rising])


def _corners(modulation: Modulation) -> Floats:
    return np.array([point.at for point in modulation.step or modulation.ramp or ()])


def _factor(modulation: Modulation, t: Floats) -> Floats:
    if modulation.sine is not None:
        return 1 + modulation.sine.amplitude * np.sin(2 * np.pi * t / modulation.sine.period_s)
    points = modulation.step or modulation.ramp or ()
    at = np.array([point.at for point in points])
    factor = np.array([point.factor for point in points])
    if modulation.ramp is not None:
        return np.asarray(np.interp(t, at, factor))
    return np.concatenate([[1.0], factor])[np.searchsorted(at, t, side="right")]


def replay(rng: np.random.Generator, trace: Trace, rate: float, speed: float, seconds: float) -> Ints:
    """A trace of timestamps at another speed and rate, repeated where it is too short.

    Below the trace's own rate each request is kept with the probability that gives ``rate``; above it
    each has copies, each put anywhere before the request that follows it in the trace.
    """
    assert trace.times is not None
    length = trace.seconds / speed
    rounds = int(np.ceil(seconds / length))
    once = trace.times / speed
    all_times = np.concatenate([once + i * length for i in range(rounds)])
    all_times = all_times[all_times < seconds]
    gaps = np.diff(np.append(all_times, min(rounds * length, seconds)))
    factor = rate * length / len(once)
    copies = int(factor) + (rng.random(len(all_times)) < factor - int(factor))
    out = np.repeat(all_times, copies)
    first = np.concatenate([[0], np.cumsum(copies)[:-1]])
    moved = np.ones(len(out), dtype=bool)
    moved[first[copies > 0]] = False
    out += np.where(moved, rng.random(len(out)) * np.repeat(gaps, copies), 0.0)
    out.sort()
    return (out * NS).astype(np.int64)
