"""The slow loop of the policy ``adaptive``: what the lanes wait for, worked out anew from the load.

The fast path (:mod:`scheduler.core.window`) only compares a lane's queue with ``lane_early``, the size
from which it may start early, and counts free GPUs. This module sets these numbers. It is called from
inside events: every few milliseconds of event time for the feedback from the idle share of the GPUs,
every half second for the plan (:mod:`scheduler.core.plans`). It reads no clock and draws nothing at
random.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .limits import PLANNED, SAMPLE_NS, SAMPLES, TYPES
from .plans import Floats, Ints, Load, Plan, make_plan

if TYPE_CHECKING:
    from .window import Window

PLAN_NS: Final = 500_000_000
"""Between two plans; the first ones follow each other faster, from ``FIRST_NS`` on."""
FIRST_NS: Final = 100_000_000
FIRST_MEMORY_NS: Final = 200_000_000
SHORTEST_NS: Final = 1_000_000
STEPS: Final = 16
"""Looks at the idle share within its time constant."""
MEMORY: Final = 4.0
"""Time constant of the idle share, in mean latency budgets."""
SLACK: Final = 0.2
"""Idle share from which the sustaining batch is all that is waited for; at half of it, the full one."""


class Tuner:
    """Keeps the plan and the idle share of one core, and sets its lanes' numbers.

    Args:
        dial: 0 (lowest latency) … 1 (fewest GPUs).
    """

    def __init__(self, dial: float = 0.0) -> None:
        self.dial = dial
        self.idle = 1.0
        self.memory_ns = FIRST_MEMORY_NS
        self.seen = -1
        self.plan_at = 0
        self.wait_ns = FIRST_NS
        self.plan: Plan | None = None
        self.lanes: Ints = np.empty(0, np.int64)
        self.row: Ints = np.empty(0, np.int64)

    def tune(self, core: Window, now: int) -> int:
        """Bring the core's numbers up to date; returns when that is due next."""
        gpus = live_gpus(core)
        due = self.look(now, core.work, gpus)
        core.work = 0
        found = observe(core, now, gpus) if due else None
        if found is not None:
            load, self.lanes, self.row = found
            plan = self.adopt(load)
            core.gpus.guard_ns = plan.guard_ns
            core.gpus.spare = self.spare(gpus)
            view(core.lane_target)[self.lanes] = plan.target[self.row]
            view(core.lane_target_sample)[self.lanes] = PLANNED
            view(core.lane_guard)[self.lanes] = plan.guard[self.row]
        if self.plan is not None:
            view(core.lane_early)[self.lanes] = self.early(self.plan)[self.row]
        return self.next_look()

    def look(self, now: int, work_ns: int, gpus: int) -> bool:
        """Note the work that was given out since the last look; returns whether a plan is due."""
        if self.seen < 0:
            self.seen = now
            self.plan_at = now + FIRST_NS
            return False
        spent = now - self.seen
        self.seen = now
        share = 1.0 - work_ns / (max(1, gpus) * max(1, spent))
        self.idle += spent / (self.memory_ns + spent) * (share - self.idle)
        self.idle = min(1.0, max(0.0, self.idle))
        if now < self.plan_at:
            return False
        self.wait_ns = min(PLAN_NS, 2 * self.wait_ns)
        self.plan_at = now + self.wait_ns
        return True

    def next_look(self) -> int:
        """When :meth:`tune` is due next."""
        return self.seen + self.memory_ns // STEPS

    def adopt(self, load: Load) -> Plan:
        """Plan for this load from now on."""
        self.plan = make_plan(load, self.dial)
        weight = float(load.rate.sum())
        mean = float((load.rate * load.budget).sum()) / weight
        self.memory_ns = max(SHORTEST_NS, int(MEMORY * mean * 1e9))
        return self.plan

    def spare(self, gpus: int) -> int:
        """GPUs that an early start must leave free."""
        return 0 if self.plan is None else max(0, gpus - self.plan.gpus)

    def early(self, plan: Plan) -> Ints:
        """Per model, the queue from which a lane may start early: less, the more GPUs are idle."""
        pressed = min(1.0, 2.0 * (1.0 - self.idle / SLACK))
        size = np.maximum(plan.sustain, np.ceil(plan.full * pressed).astype(np.int64))
        return np.where(plan.waits, size, 1)


def view(column: Any) -> Ints:
    """A column of the core, Python's or compiled, as numpy sees it."""
    return np.frombuffer(memoryview(column), np.int64)


def live_gpus(core: Window) -> int:
    """GPUs that can be given work."""
    return sum(core.gpus.class_live[c] for c in range(core.gpus.classes))


def observe(core: Window, now: int, gpus: int) -> tuple[Load, Ints, Ints] | None:
    """What the core has seen: the load, the lanes that it stands for, and each lane's row in it.

    Several GPU types: a model's l(b) is the mean over the types that serve it, weighted by their GPUs.
    """
    meter = core.meter
    sample = now // SAMPLE_NS
    lanes = []
    row_of: dict[int, int] = {}
    rows = []
    rate: list[float] = []
    for lane in range(core.queues.lanes):
        if meter.sample[lane] < 0 or core.fast[core.lane_model[lane]] < 0:
            continue
        meter.roll(lane, sample, core.queues.ever(lane))
        window = meter.window_ns(lane)
        if window == 0:
            continue
        model = core.lane_model[lane]
        if model not in row_of:
            row_of[model] = len(rate)
            rate.append(0.0)
        rate[row_of[model]] += meter.total[lane] * 1e9 / window
        lanes.append(lane)
        rows.append(row_of[model])
    if not lanes or gpus == 0:
        return None
    numbers = np.array(lanes, np.int64)
    at, most, budget, tables = [], [], [], []
    places: dict[tuple[tuple[int, int], ...], int] = {}
    length = 0
    for model in row_of:
        mix = _mix(core, model)
        largest = core.models.max_batch[model]
        if mix not in places:
            places[mix] = length
            length += largest
            tables.append(_mean_table(core, mix, largest))
        at.append(places[mix])
        most.append(largest)
        kind = core.fast[model]
        lost = core.result + core.control + core.margin + core.type_margin[kind]
        budget.append((core.models.slo[model] - lost) / 1e9)
    load = Load(
        np.maximum(np.array(rate), 1e-3),
        np.array(budget),
        np.array(at, np.int64),
        np.array(most, np.int64),
        np.concatenate(tables),
        core.data / 1e9,
        gpus,
        _dispersion(core, numbers, sample),
    )
    return load, numbers, np.array(rows, np.int64)


def _mix(core: Window, model: int) -> tuple[tuple[int, int], ...]:
    """(table, GPUs) of the types that serve the model."""
    gpus = core.gpus
    found: dict[int, int] = {}
    for c in range(gpus.classes):
        if gpus.holds[c * gpus.models + model]:
            table = core.models.table[model * TYPES + gpus.class_type[c]]
            found[table] = found.get(table, 0) + gpus.class_live[c]
    return tuple(sorted(found.items()))


def _mean_table(core: Window, mix: tuple[tuple[int, int], ...], largest: int) -> Floats:
    latency = view(core.models.latency)
    total = np.zeros(largest)
    for table, count in mix:
        total += count * latency[table + 1 : table + 1 + largest]
    return np.asarray(total / (1e9 * sum(count for _, count in mix)))


def _dispersion(core: Window, lanes: Ints, sample: int) -> float:
    """Index of dispersion of the arrivals per sample: variance / mean, over all lanes' samples."""
    counts = np.frombuffer(memoryview(core.meter.counts), np.int32)
    counts = counts[: core.meter.lanes * SAMPLES].reshape(-1, SAMPLES)[lanes].astype(np.float64)
    first = view(core.meter.first)[lanes]
    known = np.minimum(sample - first, SAMPLES)
    total = counts.sum(axis=1)
    # Samples before the first one are zero and no observations.
    squares = (counts * counts).sum(axis=1) - total * total / known
    inside = known >= 2
    offered = float((total[inside] * (known[inside] - 1) / known[inside]).sum())
    return float(squares[inside].sum()) / offered if offered > 0 else 1.0
