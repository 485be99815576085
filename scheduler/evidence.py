"""What a window of statistics says about a sub-cluster: how many GPUs the load needs, and which are idle.

The measure of load is the **fluid need**: the number of GPUs that the offered rates keep busy, each model
at the largest batch that its objective allows at its rate (:func:`fluid_need`). It is known while
a cluster is overloaded, when how busy GPUs are says only "all of them". Where GPUs differ in type the need
is counted in GPUs of one of them, the reference, and every type has a speed relative to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

SECOND: Final = 1_000_000_000
SURE: Final = 3.0
"""Standard errors that a measurement must be beyond a threshold to count."""
SURE_SLOPE: Final = 5.0
"""The same for a slope: it is looked for every second, so chance has many tries."""
STRAIGHT: Final = 0.85
"""Share of the variance that a straight line must explain to be taken for a trend."""
MOST_AHEAD: Final = 0.5
"""A trend adds at most this share of the present need."""
LEVEL: Final = 0.05
"""The last seconds' mean is within this share of the window's while the load is level."""
FALLEN: Final = 0.5
"""A load below this share of what it was is another load: what was before says nothing about it."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """One model's load: requests/s, and what serving it takes.

    budget_ns: SLO less control, result and margin. latency_ns: per GPU type l(1) … l(max_batch). data_ns: of
    the dispatch latency, per request.
    """

    rate: float
    budget_ns: int
    latency_ns: Mapping[str, Sequence[int]]
    data_ns: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One sub-cluster over one interval, usually a second.

    at: cluster time of its end, ns. seconds: its length. offered, good, late, dropped: requests in it.
    need: GPU type → GPUs of that type that the offered load would keep busy (:func:`fluid_need`).
    busy: ready GPU → share of the interval that it was busy. starting: GPUs that are members and not ready
    yet. draining: GPUs that get nothing more. types: the type of each of these GPUs. unit: what GPUs come
    and go together in (a worker process); a GPU that is not in it is its own. rates: requests/s by model, for
    people.
    """

    at: int
    seconds: float
    offered: int
    good: int
    late: int
    dropped: int
    need: Mapping[str, float]
    busy: Mapping[int, float]
    types: Mapping[int, str]
    starting: frozenset[int] = frozenset()
    draining: frozenset[int] = frozenset()
    unit: Mapping[int, str] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What :func:`weigh` found; needs in GPUs of the type ``reference``.

    complete, begun: the samples span the whole window, its last part. need, fast: means over these;
    need_error, fast_error: their standard errors. slope: GPUs per second, 0 where the load follows no
    straight line. bad, bad_fast: shares of the offered. carried: GPUs' worth of time that GPUs were busy.
    idle: ready GPUs that were idle through the whole window, highest number first. steady: the same GPUs were
    ready all the time. speed: capacity of a GPU of each type in GPUs of the reference.
    """

    now: int
    complete: bool
    begun: bool
    reference: str
    speed: dict[str, float]
    need: float
    need_error: float
    fast: float
    fast_error: float
    slope: float
    bad: float
    bad_fast: float
    carried: float
    idle: list[int]
    steady: bool

    @property
    def level(self) -> bool:
        """Whether the window shows one load, so that its mean is the load now."""
        return self.complete and abs(self.fast - self.need) <= LEVEL * self.need

    def capacity(self, counts: Mapping[str, int]) -> float:
        """Of so many GPUs by type, in GPUs of the reference; unknown types count as the reference."""
        return sum(count * self.speed.get(kind, 1.0) for kind, count in counts.items())


def fluid_need(loads: Iterable[ModelLoad], gpu_types: Sequence[str]) -> dict[str, float]:
    """GPU type → GPUs of that type that the loads would keep busy, if that type served them alone.

    Σ rate · l(b)/b over the models, b the largest batch with b/rate + l(b) + b·data ≤ budget, at least 1: in
    that time b requests gather and are served. Infinite where a model has no latencies on the type, or not
    even one request can be in time.
    """
    need = dict.fromkeys(gpu_types, 0.0)
    for load in loads:
        if load.rate <= 0:
            continue
        for kind in gpu_types:
            table = load.latency_ns.get(kind, ())
            if not table or table[0] + load.data_ns > load.budget_ns:
                need[kind] = math.inf
                continue
            gather = 1e9 / load.rate + load.data_ns
            b = _largest(table, gather, load.budget_ns)
            need[kind] += load.rate * table[b - 1] / b / 1e9
    return need


def _largest(table: Sequence[int], gather: float, budget: int) -> int:
    """The largest b with b·gather + l(b) ≤ budget, by bisection, at least 1."""
    low, high = 1, len(table) + 1
    while high - low > 1:
        b = (low + high) // 2
        low, high = (b, high) if b * gather + table[b - 1] <= budget else (low, b)
    return low


def weigh(window: Sequence[Sample], window_s: float, fast_s: float, idle_share: float) -> Evidence:
    """Look at the samples of the last ``window_s`` seconds, oldest first.

    After a fall by half the window begins anew; it is long enough again, and GPUs can be idle, after half
    of it.

    Args:
        window: at least one sample; times rise. window_s, fast_s: seconds that count, and that count as now.
        idle_share: a GPU that was busy for at most this share, of the window and of its last part, is idle.
    """
    now = window[-1].at
    samples = [sample for sample in window if now - sample.at < window_s * SECOND]
    recent = [sample for sample in samples if now - sample.at < fast_s * SECOND]
    reference, speed = _speeds(recent)
    needs = [_finite(sample.need.get(reference, 0.0)) for sample in samples]
    complete = sum(sample.seconds for sample in samples) >= 0.9 * window_s
    fall = _fall(needs)
    settling = fall > 0
    if complete and settling and now - samples[fall - 1].at >= window_s / 2 * SECOND:
        samples, needs, settling = samples[fall:], needs[fall:], False
        recent = recent[-len(samples) :]
    last = needs[-len(recent) :]
    # From the differences of neighbours: a step or a slope in the window is no noise.
    spread = math.sqrt(sum((b - a) ** 2 for a, b in pairwise(needs)) / 2)
    spread /= math.sqrt(max(1, len(needs) - 1))
    ready = set(samples[-1].busy)
    steady = all(set(sample.busy) == ready for sample in samples)
    return Evidence(
        now=now,
        complete=complete,
        begun=sum(sample.seconds for sample in recent) >= 0.9 * fast_s,
        reference=reference,
        speed=speed,
        need=_mean(needs),
        need_error=spread / math.sqrt(len(needs)),
        fast=_mean(last),
        fast_error=spread / math.sqrt(len(last)),
        slope=_slope(samples, needs, fast_s, spread),
        bad=_bad(samples),
        bad_fast=_bad(recent),
        carried=_mean([sum(sample.busy.values()) for sample in samples]),
        idle=_idle(samples, recent, idle_share) if complete and not settling else [],
        steady=steady,
    )


def _fall(needs: Sequence[float]) -> int:
    """Where the load fell off: the first position from which all are below half of the mean before; or 0."""
    mean, means = 0.0, []
    for i, need in enumerate(needs):
        means.append(mean)
        mean += (need - mean) / (i + 1)
    most, fall = 0.0, 0
    for i in range(len(needs) - 1, 0, -1):
        most = max(most, needs[i])
        if most < FALLEN * means[i]:
            fall = i
    return fall


def _speeds(samples: Sequence[Sample]) -> tuple[str, dict[str, float]]:
    """The reference: the type of most ready GPUs that can serve the load; and every type's speed."""
    latest = samples[-1]
    counts: dict[str, int] = {}
    for gpu in latest.busy:
        counts[latest.types[gpu]] = counts.get(latest.types[gpu], 0) + 1
    mean = {kind: _mean([sample.need.get(kind, 0.0) for sample in samples]) for kind in latest.need}
    usable = [kind for kind in mean if math.isfinite(mean[kind])]
    if not usable:
        return next(iter(latest.need), ""), {}
    reference = min(usable, key=lambda kind: (-counts.get(kind, 0), kind))
    speed = {}
    for kind, need in mean.items():
        if math.isfinite(need):
            speed[kind] = mean[reference] / need if need > 0 else 1.0
        else:
            speed[kind] = 0.0
    return reference, speed


def _slope(samples: Sequence[Sample], needs: Sequence[float], block_s: float, spread: float) -> float:
    """GPUs per second of the line that the means of blocks lie on; 0 if they lie on none.

    The median of the steps from block to block: a load that jumps once within the window has no slope.
    """
    blocks: dict[int, list[float]] = {}
    for sample, need in zip(samples, needs, strict=True):
        blocks.setdefault(int((samples[-1].at - sample.at) // (block_s * SECOND)), []).append(need)
    whole = sorted(block for block, values in blocks.items() if len(values) == len(blocks[0]))
    x = [-block * block_s for block in whole]
    y = [_mean(blocks[block]) for block in whole]
    if len(y) < 6:
        return 0.0
    mx, my = _mean(x), _mean(y)
    vx = sum((a - mx) ** 2 for a in x)
    vy = sum((b - my) ** 2 for b in y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    if vy <= 0 or cov * cov < STRAIGHT * vx * vy:
        return 0.0
    if abs(cov) < SURE_SLOPE * spread / math.sqrt(len(blocks[0])) * math.sqrt(vx):
        return 0.0
    return sorted(b - a for a, b in pairwise(reversed(y)))[(len(y) - 1) // 2] / block_s


def _idle(samples: Sequence[Sample], recent: Sequence[Sample], share: float) -> list[int]:
    """Ready GPUs that are in every sample and idle in them, highest number first."""
    busy: dict[int, float] = dict.fromkeys(samples[-1].busy, 0.0)
    lately = dict.fromkeys(busy, 0.0)
    for sample in samples:
        busy = {gpu: total + sample.busy[gpu] for gpu, total in busy.items() if gpu in sample.busy}
    for sample in recent:
        lately = {gpu: total + sample.busy.get(gpu, 0.0) for gpu, total in lately.items()}
    return sorted(
        (
            gpu
            for gpu, total in busy.items()
            if total <= share * len(samples) and lately[gpu] <= share * len(recent)
        ),
        reverse=True,
    )


def _bad(samples: Sequence[Sample]) -> float:
    offered = sum(sample.offered for sample in samples)
    bad = sum(sample.late + sample.dropped for sample in samples)
    return bad / max(offered, bad, 1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
