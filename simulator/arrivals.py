"""When requests arrive: renewal processes, modulated rates and traces, all from one seed.

Each copy of a model draws gaps of mean 1 from its own generator; the cumulative rate turns that
operational time into seconds. So the same seed gives the same pattern at every rate: two rates, or
two policies, are compared on the same arrivals.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .experiment import Experiment, ExperimentError, ModelGroup
from .modulation import Modulation
from .traces import Floats, Trace, load_trace, trace_path

NS = 1_000_000_000
START_NS = NS
"""Virtual time at which an experiment begins; the core knows no time before 0."""
GRID = 4096
"""Points at which a moving rate is integrated."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Columns over all requests in order of arrival, with ``coalesce_us`` by tick and then by model.

    at: int64 ns. model: uint32, the number of the copy over all groups. deadline: int64 ns.
    """

    at: npt.NDArray[np.int64]
    model: npt.NDArray[np.uint32]
    deadline: npt.NDArray[np.int64]


def copy_rates(group: ModelGroup, rate: float) -> list[float]:
    """Requests/s of each copy, ``rate`` being their mean: equal, or falling as rank^-S."""
    kind, _, rest = group.popularity.partition(":")
    skew = float(rest) if kind == "zipf" else 0.0
    weights: Floats = np.arange(1, group.count + 1, dtype=np.float64) ** -skew
    return [float(x) for x in rate * group.count * weights / weights.sum()]


def group_rate(experiment: Experiment, group: ModelGroup) -> float:
    """Mean requests/s per copy before modulation; a trace without a rate has its own."""
    if group.rate is not None:
        return group.rate
    trace = _trace(experiment, group)
    return trace.requests / trace.seconds * group.trace_speed


def check_arrivals(experiment: Experiment) -> None:
    """Read every trace and refuse an experiment in which nothing can arrive.

    Raises:
        ExperimentError: see :func:`make_arrivals`.
    """
    if sum(group_rate(experiment, group) for group in experiment.models) <= 0:
        raise ExperimentError("nothing arrives: every rate is 0")
    for group in experiment.models:
        if group.arrivals.startswith("trace:"):
            _trace(experiment, group)


def make_arrivals(experiment: Experiment, scale: float = 1.0) -> Arrivals:
    """All arrivals of the experiment with every rate multiplied by ``scale``.

    Raises:
        ExperimentError: a trace cannot be read, or nothing arrives at all.
    """
    times: list[Floats] = []
    slos: list[int] = []
    number = 0
    for group in experiment.models:
        trace = _trace(experiment, group) if group.arrivals.startswith("trace:") else None
        for rate in copy_rates(group, group_rate(experiment, group) * scale):
            rng = np.random.default_rng([experiment.seed, number])
            times.append(_copy(rng, group, rate, trace, experiment.seconds))
            slos.append(round(group.slo_ms * 1e6))
            number += 1
    at = (np.concatenate(times) * NS).astype(np.int64) + START_NS
    model = np.repeat(np.arange(number, dtype=np.uint32), [len(t) for t in times])
    if len(at) == 0:
        raise ExperimentError(f"nothing arrives within {experiment.seconds:g} s: raise rate or seconds")
    # Within one tick all are handed over together: then by model, which is what a stable sort by tick
    # leaves, and for up to 65,536 ticks it is a radix sort.
    tick = round(experiment.coalesce_us * 1e3)
    order = np.argsort(_small(-(-(at - START_NS) // tick)) if tick else at, kind="stable")
    at, model = at[order], model[order]
    return Arrivals(at, model, at + np.array(slos)[model])


def _small(values: npt.NDArray[np.int64]) -> npt.NDArray[np.unsignedinteger]:
    """The same numbers in the type that sorts fastest."""
    return values.astype(np.uint16 if values.max() < 1 << 16 else np.uint32)


def _trace(experiment: Experiment, group: ModelGroup) -> Trace:
    path = trace_path(experiment.base, group.arrivals.partition(":")[2])
    return _load_once(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=16)
def _load_once(path: Path, _changed_ns: int) -> Trace:
    return load_trace(path)


def _copy(
    rng: np.random.Generator, group: ModelGroup, rate: float, trace: Trace | None, seconds: float
) -> Floats:
    """Arrival times of one copy in [0, seconds)."""
    if rate <= 0:
        return np.empty(0)
    grid, total = _cumulative(group, rate, trace, seconds)
    if trace is not None and trace.times is not None and group.modulation is None:
        return _replayed(
            rng, trace.times, trace.seconds / group.trace_speed, rate, group.trace_speed, seconds
        )
    kind, _, rest = group.arrivals.partition(":")
    operational = _renewal(rng, kind, float(rest) if kind == "gamma" else 1.0, float(total[-1]))
    times: Floats = np.interp(operational, total, grid)
    return times[times < seconds]


def _renewal(rng: np.random.Generator, kind: str, shape: float, until: float) -> Floats:
    """Points of a renewal process with gaps of mean 1 below ``until``, the first one in mid-gap."""
    if kind == "constant":
        first = rng.random()
        return np.arange(first, until, 1.0)
    parts: list[Floats] = []
    reached = 0.0
    while reached < until:
        n = max(64, int((until - reached) * 1.05))
        gaps = rng.exponential(1.0, n) if kind != "gamma" else rng.gamma(shape, 1.0 / shape, n)
        part = reached + np.cumsum(gaps)
        parts.append(part)
        reached = float(part[-1])
    points = np.concatenate(parts)
    return points[points < until]


def _cumulative(group: ModelGroup, rate: float, trace: Trace | None, seconds: float) -> tuple[Floats, Floats]:
    """Times and the expected number of arrivals up to each, both rising from 0."""
    grid = np.array([0.0, seconds])
    total = rate * grid
    if trace is not None and trace.per_minute is not None:
        minute = 60.0 / group.trace_speed
        shape = trace.per_minute / trace.per_minute.mean()
        minutes = int(np.ceil(seconds / minute))
        shape = np.resize(shape, minutes)  # a trace that is too short begins again
        grid = minute * np.arange(minutes + 1)
        total = rate * minute * np.concatenate([[0.0], np.cumsum(shape)])
    if group.modulation is not None:
        fine = np.unique(np.concatenate([np.linspace(0, seconds, GRID), grid, _corners(group.modulation)]))
        fine = fine[fine <= max(seconds, grid[-1])]
        steps = np.diff(np.interp(fine, grid, total))
        middle = (fine[:-1] + fine[1:]) / 2
        total = np.concatenate([[0.0], np.cumsum(steps * _factor(group.modulation, middle))])
        grid = fine
    # np.interp inverts only where something arrives.
    rising = np.concatenate([[True], np.diff(total) > 0])
    rising[:-1] |= rising[1:]
    return grid[rising], total[rising]


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


def _replayed(
    rng: np.random.Generator, times: Floats, length: float, rate: float, speed: float, seconds: float
) -> Floats:
    """A trace of timestamps at another speed and rate, repeated where it is too short.

    Below the trace's own rate each request is kept with the probability that gives ``rate``; above it
    each has copies, each put anywhere before the request that follows it in the trace.
    """
    rounds = int(np.ceil(seconds / length))
    once = times / speed
    all_times = np.concatenate([once + i * length for i in range(rounds)])
    all_times = all_times[all_times < seconds]
    gaps = np.diff(np.append(all_times, min(rounds * length, seconds)))
    factor = rate * length / len(times)
    copies = int(factor) + (rng.random(len(all_times)) < factor - int(factor))
    out = np.repeat(all_times, copies)
    first = np.concatenate([[0], np.cumsum(copies)[:-1]])
    moved = np.ones(len(out), dtype=bool)
    moved[first[copies > 0]] = False
    out += np.where(moved, rng.random(len(out)) * np.repeat(gaps, copies), 0.0)
    out.sort()
    return out
