"""The rules of ``adaptive`` for the reference scheduler: who may start early, and what a plan is made from.

The plan itself is a pure function of the load, tested by itself; the reference calls the core's. What
it is made from, and what becomes of it, are found here by looking at everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scheduler.core.adaptive import Tuner
from scheduler.core.limits import SAMPLE_NS, SAMPLES
from scheduler.core.plans import Load

if TYPE_CHECKING:
    from reference import Gpu, Lane, Reference


def room(core: Reference, lane: Lane) -> bool:
    """Whether the lane may start before its window opens."""
    if lane.guard == 0 and core.spare == 0:
        return True
    holding = core.in_order(lane.model)
    free = sum(gpu.idle for gpu in holding)
    soon = sum(gpu.free_at <= core.now + core.guard_ns for gpu in holding)
    return free == 0 or (free > core.spare and soon > lane.guard)


def tune(core: Reference, tuner: Tuner) -> None:
    """The plan itself is the core's; what it is made from and what becomes of it are found here."""
    live = [gpu for gpu in core.gpus.values() if gpu.live]
    due = tuner.look(core.now, core.work, len(live))
    core.work = 0
    if due:
        plan(core, tuner, live)
    if tuner.plan is not None:
        early = tuner.early(tuner.plan)
        for lane, row in core.planned:
            lane.early = int(early[row])
    core.tune_at = tuner.next_look()


def plan(core: Reference, tuner: Tuner, live: list[Gpu]) -> None:
    sample = core.now // SAMPLE_NS
    rates: dict[int, float] = {}
    planned: list[tuple[Lane, int]] = []
    squares = offered = 0.0
    for lane in core.lanes.values():
        if lane.looked < 0 or not core.serving(lane.model):
            continue
        core.look(lane)
        whole = min(sample - lane.first, SAMPLES)
        if whole == 0:
            continue
        counts = [lane.arrivals.count(sample - 1 - i) for i in range(whole)]
        rates.setdefault(lane.model, 0.0)
        rates[lane.model] += sum(counts) * 1e9 / (whole * SAMPLE_NS)
        planned.append((lane, list(rates).index(lane.model)))
        if whole >= 2:
            squares += sum(c * c for c in counts) - sum(counts) * sum(counts) / whole
            offered += sum(counts) * (whole - 1) / whole
    if not planned or not live:
        return
    tables = [mean_table(core, model) for model in rates]
    budgets = []
    for model in rates:
        lost = core.result + core.control + core.margin_of(core.fastest(model))
        budgets.append((core.models[model].slo - lost) / 1e9)
    most = [len(table) for table in tables]
    load = Load(
        np.maximum(np.array(list(rates.values())), 1e-3),
        np.array(budgets),
        np.cumsum([0, *most[:-1]]),
        np.array(most),
        np.concatenate(tables),
        core.data / 1e9,
        len(live),
        squares / offered if offered > 0 else 1.0,
    )
    made = tuner.adopt(load)
    core.planned = planned
    core.guard_ns, core.spare = made.guard_ns, tuner.spare(len(live))
    for lane, row in planned:
        lane.target, lane.planned, lane.guard = int(made.target[row]), True, int(made.guard[row])


def mean_table(core: Reference, model: int) -> Any:
    """l(b) in s as a mean over the GPUs that serve the model."""
    serving = core.serving(model)
    total = np.zeros(core.models[model].max_batch)
    for table in sorted({tuple(core.models[model].tables[gpu.kind]) for gpu in serving}):
        total += sum(tuple(core.models[model].tables[g.kind]) == table for g in serving) * np.array(table)
    return total / (1e9 * len(serving))
