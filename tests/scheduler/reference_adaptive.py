"""The rules of ``adaptive`` for the reference scheduler: who may start early, and what a plan is made from.

The plan itself is a pure function of the load, tested by itself; the reference calls the core's. What
it is made from, and what becomes of it, are found here by looking at everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scheduler.core.adaptive import TOLD, Tuner
from scheduler.core.limits import SAMPLE_NS, SAMPLES
from scheduler.core.plans import Load
from scheduler.core.rehearsal import Scene
from scheduler.core.rules import Thresholds, spare, thresholds

if TYPE_CHECKING:
    from reference import Lane, Reference


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
    if tuner.look(core.now, core.work, len(live)):
        tuner.lengths.note(len(core.over), sum(core.over), sum(over * over for over in core.over))
        core.over = []
    core.work = 0
    busy = tuner.prepare(Seen(core), core.now)
    if tuner.plan is not None:
        chosen, idle, told = tuner.losses.chosen, tuner.idle.share, 0
        if tuner.told.differs(len(core.lanes), chosen, tuner.plan, idle):
            told = install(core, tuner, thresholds(chosen, tuner.plan, tuner.told.pressed))
            core.guard_ns, core.spare = tuner.plan.guard_ns, spare(tuner.plan, len(live))
        at, model, deadline = zip(*core.tape, strict=True) if core.tape else ((), (), ())
        columns = np.array(at, np.int64), np.array(model, np.uint32), np.array(deadline, np.int64)
        core.tape_room = tuner.rehearse(core.now, core.submitted, columns, busy or told > TOLD)
    core.tape = []
    core.tune_at = tuner.next_look(core.now)


class Draft:
    """A load that has its latencies from the beginning."""

    def __init__(self, found: Load) -> None:
        self.found = found
        self.models = len(found.rate)

    def extend(self, first: int, last: int) -> None:
        assert 0 <= first < last <= self.models

    def load(self) -> Load:
        return self.found


class Seen:
    """What the slow loop reads."""

    def __init__(self, core: Reference) -> None:
        self.core = core

    def load(self, now: int) -> tuple[Draft, Any] | None:
        found = load(self.core)
        return None if found is None else (Draft(found[0]), found[1])

    def scene(self) -> Scene:
        return scene(self.core)


def install(core: Reference, tuner: Tuner, told: Thresholds) -> int:
    new = 0
    for lane in core.lanes.values():
        row = int(tuner.row[lane.model]) if lane.model < len(tuner.row) else -1
        if row >= 0 and lane.model in core.models:
            before = lane.early, lane.guard, lane.cushion, lane.linger, lane.target, lane.planned
            lane.early, lane.guard = int(told.early[row]), int(told.guard[row])
            lane.cushion, lane.linger = int(told.cushion[row]), int(told.linger[row])
            lane.target = min(int(told.target[row]), core.models[lane.model].max_batch)
            lane.planned = True
            after = lane.early, lane.guard, lane.cushion, lane.linger, lane.target, lane.planned
            new += before != after
    return new


def load(core: Reference) -> tuple[Load, Any] | None:
    live = [gpu for gpu in core.gpus.values() if gpu.live]
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
        return None
    tables = [mean_table(core, model) for model in rates]
    margins = [core.margin_of(core.fastest(model)) for model in rates]
    budgets = [
        (core.models[model].slo - core.result - core.control - margin) / 1e9
        for model, margin in zip(rates, margins, strict=True)
    ]
    most = [len(table) for table in tables]
    found = Load(
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
    return found, row


def scene(core: Reference) -> Scene:
    """What can be rehearsed with."""
    models = [(number, model.slo, model.max_batch) for number, model in sorted(core.models.items())]
    profiles: list[tuple[int, int, int]] = []
    tables: list[int] = []
    for row, (number, _, _) in enumerate(models):
        for kind, table in sorted(core.models[number].tables.items()):
            profiles.append((row, kind, len(tables)))
            tables.extend(table)
    gpus = tuple((gpu.kind, gpu.models) for _, gpu in sorted(core.gpus.items()) if gpu.live)
    margins = tuple((kind, margin) for kind, margin in sorted(core.type_margin.items()) if margin)
    columns = np.array(models, np.int64).reshape(-1, 3), np.array(profiles, np.int64).reshape(-1, 3)
    return Scene(
        *columns,
        np.array(tables, np.int64).tobytes(),
        gpus,
        core.control,
        core.data,
        core.result,
        core.margin,
        margins,
    )


def mean_table(core: Reference, model: int) -> Any:
    """l(b) in s as a mean over the GPUs that serve the model."""
    serving = core.serving(model)
    total = np.zeros(core.models[model].max_batch)
    for table in sorted({tuple(core.models[model].tables[gpu.kind]) for gpu in serving}):
        total += sum(tuple(core.models[model].tables[g.kind]) == table for g in serving) * np.array(table)
    return total / (1e9 * len(serving))
