"""What a load calls for: batch sizes, who waits, drop targets and the guard, as one pure function.

The rules and their derivations are in ``docs/algorithm.md``, which also names the ones that are only
empirical. Floating point, but never compiled: both flavours of the core carry out the very same
operations.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
T = TypeVar("T")

BUSY: Final = 0.8
"""The sustaining batch would keep this share of the GPUs busy."""
SPREAD: Final = 1.5
"""GPUs that a model must need at saturation for deferring to pay."""
POOLED: Final = 0.5
"""As a share of ``SPREAD``, what is enough where the GPUs are many: one is free when it is needed."""
MAJORITY: Final = 0.75
"""Share of the need that waiting models must have, or none waits."""
HEADROOM: Final = 0.2
"""GPUs above the need, as a share of it, with the dial at its end."""
BURST: Final = 4.0
"""Standard deviations, beyond those of Poisson arrivals, that count as a burst within a budget."""
GUARDED: Final = 2.0
"""Standard deviations of the jobs of tight models that the guard keeps GPUs for."""
SURE: Final = 2.6
"""Standard deviations of a full batch's length that margin and cushion are together."""
LINGER: Final = 0.1
"""Share of l(1) for which a batch lingers, that the rest of its burst may join it."""
LOSS: Final = 0.01
"""Share of bad requests that the drop target is chosen for."""

Steps = Generator[int, None, "Plan"]
"""A plan in the making: each step says how many passes over the models it took."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a plan is made from, as columns over the models that have requests.

    rate: requests/s. budget, data: s, latency budget and time per request before a batch starts.
    at, most: where the model's l(1) … l(most) begin in ``table`` (s). gpus: how many. dispersion: index
    of dispersion of the arrivals. spread: standard deviation of a batch's end, as a share of its length.
    margin: s that are kept free before every deadline for that and anything else.
    """

    rate: Floats
    budget: Floats
    at: Ints
    most: Ints
    table: Floats
    data: float
    gpus: int
    dispersion: float
    spread: float = 0.0
    margin: Floats | float = 0.0

    def latency(self, batch: Ints) -> Floats:
        """l(batch) per model in s."""
        return np.asarray(self.table[self.at + batch - 1])

    def smooth(self, batch: Floats) -> Floats:
        """l between whole batches, on straight lines."""
        low = np.minimum(batch.astype(np.int64), self.most)
        high = np.minimum(low + 1, self.most)
        first = self.latency(low)
        return first + (batch - low) * (self.latency(high) - first)


@dataclass(frozen=True, slots=True)
class Plan:
    """Per model: ``full`` and ``sustain``, batch sizes; ``waits``; ``guard`` K; two targets of the window
    drop, ``target`` after the dispersion and ``usual``, that of the other policies; ``cushion``, ns that are
    kept free beyond the margin where that costs no request; ``linger``, ns for which a batch may wait for the
    rest of its burst.

    guard_ns: a GPU that is free within that time counts as free for the guard. gpus: early starts are
    for so many GPUs only. scale: the largest y such that the GPUs carry y times the rates.
    """

    full: Ints
    sustain: Ints
    waits: npt.NDArray[np.bool_]
    target: Ints
    usual: Ints
    guard: Ints
    cushion: Ints
    linger: Ints
    guard_ns: int
    gpus: int
    scale: float


def fluid_batch(load: Load, scale: float, least: Ints | None = None, most: Ints | None = None) -> Floats:
    """The continuous b ≥ 1 with (b − 1)/(scale·rate) + l(b) + b·data = budget, at most the largest batch.

    The first request of a batch waits for nobody: it starts the clock. ``least``, ``most``: whole batches
    between which ⌊b⌋ is known to be.
    """
    gather = 1.0 / np.maximum(scale * load.rate, 1e-9)
    gap = gather + load.data
    budget = load.budget + gather
    low = np.ones(len(load.rate), dtype=np.int64) if least is None else least
    high = load.most if most is None else most
    while True:
        open_ = low < high
        if not open_.any():
            break
        middle = (low + high + 1) // 2
        fits = load.latency(middle) + middle * gap <= budget
        low = np.where(open_ & fits, middle, low)
        high = np.where(open_ & ~fits, middle - 1, high)
    first = load.latency(low) + low * gap
    rise = load.latency(np.minimum(low + 1, load.most)) - load.latency(low) + gap
    part = np.where(low < load.most, (budget - first) / rise, 0.0)
    return np.asarray(low + np.clip(part, 0.0, 1.0))


def saturation(load: Load) -> Generator[int, None, tuple[float, Floats, Floats]]:
    """The largest y that the GPUs carry in fluid batches; those batches; GPUs per model at y."""
    alone = float((load.rate * load.latency(np.ones_like(load.at))).sum())
    low, high = load.gpus / max(alone, 1e-12), 0.0
    high = load.gpus / max(float((load.rate * load.latency(load.most) / load.most).sum()), 1e-12)
    batch = fluid_batch(load, low)
    whole = _passes(load.most)
    yield whole
    # Fluid batches grow with y: those at both ends leave ever less to look for between them.
    least, most = batch.astype(np.int64), fluid_batch(load, high).astype(np.int64)
    yield whole
    for _ in range(14):
        y = 0.5 * (low + high)
        between = fluid_batch(load, y, least, np.maximum(least, most))
        if float((y * load.rate * load.smooth(between) / between).sum()) <= load.gpus:
            low, batch, least = y, between, between.astype(np.int64)
        else:
            high, most = y, between.astype(np.int64)
        yield _passes(most - least)
    return low, batch, low * load.rate * load.smooth(batch) / batch


def sustaining(load: Load, fluid: Floats, gpus: float) -> Generator[int, None, Ints]:
    """The smallest batches, all in one proportion to the fluid ones, that need ``gpus`` or less.

    The largest of them where that is not enough.
    """
    best = np.ones_like(load.at)
    for step in range(1, 31):
        best = _rounded(load, 0.05 * step * fluid)
        if float((load.rate * load.latency(best) / best).sum()) <= gpus:
            break
        yield 1
    return best


def drop_target(load: Load, fluid: Floats) -> Generator[int, None, Ints]:
    """The share of the fluid batches that carries most where ``LOSS`` is lost at random.

    A lane with a backlog room of R batches, seen as a diffusion between an empty and a full queue,
    loses ``LOSS`` when it is loaded to 1 − δ, with δ/(exp(2 δ R) − 1) = LOSS. Bursts use R up as many times
    faster as the variance is larger: R is divided by the dispersion. Large batches carry more and leave
    less room; where none leaves enough, the smallest are best.
    """
    best = np.ones_like(load.at)
    most = -1.0
    for step in range(14):
        batch = np.clip(np.rint((0.35 + 0.05 * step) * fluid).astype(np.int64), 1, load.most)
        length = load.latency(batch)
        carried = load.gpus / max(float((load.rate * length / batch).sum()), 1e-12)
        backlog = float((carried * load.rate * (load.budget - length)).sum())
        room = 0.5 * (backlog - 0.75 * float(batch.sum()))
        room = max(1.0, room / max(1.0, load.dispersion))
        spare = _spare(room)
        value = carried * (1.0 - spare) if spare < 0.99 else 0.0
        if value > most:
            most, best = value, batch
        yield 2
    return best


def usual_target(load: Load) -> Ints:
    """The target of the other policies: the largest b with l(b) + b·data + b/rate ≤ budget, at least 1.

    Theirs takes no account of margins.
    """
    gap = 1.0 / load.rate + load.data
    budget = load.budget + load.margin
    low = np.ones_like(load.at)
    high = load.most.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = load.latency(middle) + middle * gap <= budget
        low = np.where(fits, middle, low)
        high = np.where(fits, high, middle - 1)
        high = np.maximum(low, high)
    return low


def _spare(room: float) -> float:
    """δ with δ/(exp(2·δ·room) − 1) = LOSS."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        power = 2.0 * middle * room
        if power < 50.0 and middle > LOSS * float(np.expm1(power)):
            low = middle
        else:
            high = middle
    return low


def make_plan(load: Load, dial: float = 0.0) -> Plan:
    """The plan for this load; ``dial``: 0 (lowest latency) … 1 (fewest GPUs)."""
    return finish(planning(load, dial))


def finish(steps: Generator[int, None, T]) -> T:
    """All steps that are left, at once."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return cast(T, done.value)


def planning(load: Load, dial: float = 0.0) -> Steps:
    """:func:`make_plan` in steps."""
    scale, fluid, share = yield from saturation(load)
    full = _rounded(load, fluid)
    one = load.latency(np.ones_like(full))
    second = np.minimum(np.maximum(full, 2), load.most)
    slope = (load.latency(second) - one) / np.maximum(second - 1, 1)
    # Bursts take many GPUs at once: as many are as good as so many fewer under Poisson arrivals.
    pool = load.gpus / max(1.0, load.dispersion)
    spread = SPREAD * (POOLED + (1.0 - POOLED) * min(1.0, 8.0 / pool))
    waits = (share > spread) & (one >= 2.0 * slope)
    if float(share[waits].sum()) < MAJORITY * float(share.sum()):
        waits = np.zeros_like(waits)
    # A batch started early costs its fixed time c if a burst follows, and is worth its work a·b: where a
    # burst would be too much for the GPUs in such batches, b must be worth it.
    inflow = float((load.rate * load.budget).sum())
    surge = BURST * math.sqrt(max(0.0, load.dispersion - 1.0) / max(inflow, 1e-9))
    fixed = np.maximum(one - slope, 0.0) / np.maximum(slope, 1e-12)
    worth = _rounded(load, np.minimum(surge * fixed, load.most))
    need = float((load.rate * load.latency(full) / full).sum())
    gpus, shared = load.gpus, float(load.gpus)
    if dial > 0.0:
        shared = min(shared, need * (1.0 + HEADROOM / dial))
        gpus = min(gpus, math.ceil(shared) + 1)
    now = fluid_batch(load, 1.0)
    yield _passes(load.most)
    worth = np.minimum(worth, (yield from sustaining(load, now, shared / (1.0 + surge))))
    sustain = np.minimum(np.maximum((yield from sustaining(load, now, BUSY * shared)), worth), full)
    guard, guard_ns = _guard(load, sustain, one)
    yield 4
    cushion = np.maximum(SURE * load.spread * load.latency(full) - load.margin, 0.0)
    target = yield from drop_target(load, fluid)
    usual = usual_target(load)
    yield _passes(load.most)
    return Plan(
        full,
        sustain,
        waits,
        target,
        usual,
        guard,
        (1e9 * cushion).astype(np.int64),
        (1e9 * LINGER * one).astype(np.int64),
        guard_ns,
        gpus,
        scale,
    )


def _guard(load: Load, sustain: Ints, one: Floats) -> tuple[Ints, int]:
    """GPUs that batches of each model must leave free for models with less time to spare than they last."""
    spare = load.budget - one - load.data
    length = load.latency(sustain)
    order = np.argsort(spare, kind="stable")
    # Models in order of their spare time: a batch that lasts x is long for all before the first with
    # spare time ≥ x, and for none with more than 0.7 of its own spare time.
    limit = np.minimum(length, 0.7 * spare)
    count = np.searchsorted(spare[order], limit, side="left")
    flow = np.concatenate([[0.0], np.cumsum((load.rate / sustain)[order])])[count]
    least = max(0.0, float(spare[order[0]])) if len(order) else 0.0
    jobs = least * flow
    guard = np.ceil(jobs + GUARDED * np.sqrt(load.dispersion * jobs))
    guard = np.where(count > 0, np.minimum(guard, load.gpus // 2), 0)
    return guard.astype(np.int64), int(least * 1e9)


def _passes(sizes: Ints) -> int:
    """Looks into the tables for a search among so many sizes, and what follows it."""
    return 5 + int(sizes.max()).bit_length()


def _rounded(load: Load, batch: Floats) -> Ints:
    """Whole batches: a quarter above a whole one still counts as that one."""
    return np.clip(np.ceil(batch - 0.25).astype(np.int64), 1, load.most)
