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
from scheduler.core.rehearsal import Scene
from scheduler.core.rules import Thresholds, spare, thresholds

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
    """The plan and the rehearsals are the core's; what they are made from and what becomes of them is not."""
    live = [gpu for gpu in core.gpus.values() if gpu.live]
    due = tuner.look(core.now, core.work, len(live))
    core.work = 0
    if due:
        tuner.lengths.note(len(core.over), sum(core.over), sum(over * over for over in core.over))
        core.over = []
        plan(core, tuner, live)
    if tuner.plan is not None:
        at, model, deadline = zip(*core.tape, strict=True) if core.tape else ((), (), ())
        columns = np.array(at, np.int64), np.array(model, np.uint32), np.array(deadline, np.int64)
        core.tape_room = tuner.rehearse(core.now, core.submitted, columns)
        chosen, idle = tuner.losses.chosen, tuner.idle.share
        if tuner.told.differs(len(core.lanes), chosen, tuner.plan, idle):
            install(core, tuner, thresholds(chosen, tuner.plan, tuner.told.pressed))
            core.guard_ns, core.spare = tuner.plan.guard_ns, spare(tuner.plan, len(live))
    core.tape = []
    core.tune_at = tuner.next_look(core.now)


def install(core: Reference, tuner: Tuner, told: Thresholds) -> None:
    for lane in core.lanes.values():
        row = int(tuner.row[lane.model]) if lane.model < len(tuner.row) else -1
        if row >= 0 and lane.model in core.models:
            lane.early, lane.guard = int(told.early[row]), int(told.guard[row])
            lane.cushion = int(told.cushion[row])
            lane.target = min(int(told.target[row]), core.models[lane.model].max_batch)
            lane.planned = True


def plan(core: Reference, tuner: Tuner, live: list[Gpu]) -> None:
    sample = core.now // SAMPLE_NS
    rates: dict[int, float] = {}
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
    if not rates or not live:
        return
    tables = [mean_table(core, model) for model in rates]
    margins = [core.margin_of(core.fastest(model)) for model in rates]
    budgets = [
        (core.models[model].slo - core.result - core.control - margin) / 1e9
        for model, margin in zip(rates, margins, strict=True)
    ]
    most = [len(table) for table in tables]
    load = Load(
        np.maximum(np.array(list(rates.values())), 1e-3),
        np.array(budgets),
        np.cumsum([0, *most[:-1]]),
        np.array(most),
        np.concatenate(tables),
        core.data / 1e9,
        len(live),
        1.0,
        margin=np.array(margins) / 1e9,
    )
    row = np.full(max(rates) + 1, -1, np.int64)
    row[list(rates)] = range(len(rates))
    tuner.adopt(load, row, scene(core))


def scene(core: Reference) -> Scene:
    """What can be rehearsed with."""
    models = tuple(
        (
            number,
            model.slo,
            model.max_batch,
            tuple((kind, np.array(model.tables[kind], np.int64).tobytes()) for kind in sorted(model.tables)),
        )
        for number, model in sorted(core.models.items())
    )
    gpus = tuple((gpu.kind, gpu.models) for _, gpu in sorted(core.gpus.items()) if gpu.live)
    margins = tuple((kind, margin) for kind, margin in sorted(core.type_margin.items()) if margin)
    return Scene(models, gpus, core.control, core.data, core.result, core.margin, margins)


def mean_table(core: Reference, model: int) -> Any:
    """l(b) in s as a mean over the GPUs that serve the model."""
    serving = core.serving(model)
    total = np.zeros(core.models[model].max_batch)
    for table in sorted({tuple(core.models[model].tables[gpu.kind]) for gpu in serving}):
        total += sum(tuple(core.models[model].tables[g.kind]) == table for g in serving) * np.array(table)
    return total / (1e9 * len(serving))
