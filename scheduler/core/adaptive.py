"""The slow loop of the policy ``adaptive``: what the lanes wait for, worked out anew from the load.

The fast path (:mod:`scheduler.core.window`) only compares a lane's queue with ``lane_early``, the size
from which it may start early, and counts free GPUs. This module sets these numbers. It is called from
inside events: every few milliseconds of event time for the feedback from the idle share of the GPUs and a
piece of a rehearsal, every half second for the plan (:mod:`scheduler.core.plans`). Which of the rules
(:mod:`scheduler.core.rules`) the numbers come from is found by rehearsing them on the requests that came
(:mod:`scheduler.core.rehearsal`). It reads no clock and draws nothing at random.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from .limits import SAMPLE_NS, TYPES
from .plans import Floats, Ints, Load, Plan, make_plan
from .recording import Columns, Recorder
from .rehearsal import Lengths, Losses, Rehearsal, Scene, Stand, scene_of
from .rules import RULES, Follower, Idle, Told, install, live_gpus, spare, thresholds, view

if TYPE_CHECKING:
    from .window import Window

PLAN_NS: Final = 500_000_000
"""Between two plans; the first ones follow each other faster, from ``FIRST_NS`` on."""
FIRST_NS: Final = 100_000_000
SHORTEST_NS: Final = 1_000_000
MEMORY: Final = 4.0
"""Time constant of the idle share, in mean latency budgets."""
WINDOW: Final = 8.0
"""Recording goes on for so many mean latency budgets at least, unless too many pieces wait."""
STEP_NS: Final = 2_000_000
"""Between two looks while there is something to rehearse."""


class Tuner:
    """Keeps the plan and the idle share of one core, chooses the rule, and sets its lanes' numbers.

    Args:
        dial: 0 (lowest latency) … 1 (fewest GPUs).
    """

    def __init__(self, dial: float = 0.0) -> None:
        self.dial = dial
        self.idle = Idle()
        self.work = 0
        self.plan_at = -1
        self.wait_ns = FIRST_NS
        self.plan: Plan | None = None
        self.row: Ints = np.empty(0, np.int64)
        self.losses = Losses(len(RULES))
        self.recorder = Recorder(len(RULES))
        self.told = Told()
        self.rehearsal: Rehearsal | None = None
        self.scene: Scene | None = None
        self.lengths = Lengths()

    def tune(self, core: Window, now: int) -> int:
        """Bring the core's numbers up to date; returns when that is due next."""
        gpus = live_gpus(core)
        due = self.look(now, core.work, gpus)
        core.work = 0
        if due:
            self.lengths.note(core.ran, core.ran_over, core.ran_squares)
            core.ran = core.ran_over = core.ran_squares = 0
            found = observe(core, now, gpus)
            if found is not None:
                self.adopt(*found, scene_of(core))
        if self.plan is not None:
            core.tape_room = self.rehearse(now, core.submitted, tape(core))
            core.taped = 0
            if self.told.differs(core.queues.lanes, self.losses.chosen, self.plan, self.idle.share):
                core.gpus.guard_ns = self.plan.guard_ns
                core.gpus.spare = spare(self.plan, gpus)
                install(core, self.row, thresholds(self.told.rule, self.plan, self.told.pressed))
        return self.next_look(now)

    def next_look(self, now: int) -> int:
        """When :meth:`tune` is due next."""
        waits = self.rehearsal is not None and self.rehearsal.pieces
        return min(self.idle.next_look(), now + STEP_NS) if waits else self.idle.next_look()

    def look(self, now: int, work_ns: int, gpus: int) -> bool:
        """Note the work that was given out since the last look; returns whether a plan is due."""
        self.work += work_ns
        if self.idle.seen < 0 or now >= self.idle.next_look():
            self.idle.note(now, self.work, gpus)
            self.work = 0
        if self.plan_at < 0:
            self.plan_at = now + FIRST_NS
        if now < self.plan_at:
            return False
        self.wait_ns = min(PLAN_NS, 2 * self.wait_ns)
        self.plan_at = now + self.wait_ns
        return True

    def adopt(self, load: Load, row: Ints, scene: Scene) -> Plan:
        """Plan for this load from now on. ``row``: per model number its row in the load, or -1."""
        load = replace(load, dispersion=self.recorder.dispersion.value, spread=self.lengths.spread)
        plan = make_plan(load, self.dial)
        weight = float(load.rate.sum())
        mean = float((load.rate * load.budget).sum()) / weight
        self.idle.memory_ns = max(SHORTEST_NS, int(MEMORY * mean * 1e9))
        self.recorder.window_ns = int(WINDOW * mean * 1e9)
        self.recorder.models = max((model[0] for model in scene.models), default=-1) + 1
        self.plan, self.row = plan, row
        if self.scene is None or not scene.like(self.scene):
            self.scene = scene
            self.rehearsal = Rehearsal(len(RULES), self.stand)
        return plan

    def stand(self, rule: int) -> Stand:
        """A rule's stand in the present scene."""
        assert self.scene is not None
        return Stand(self.scene, Follower(rule), self.lengths.ppm)

    def rehearse(self, now: int, submitted: int, tape: Columns) -> int:
        """Take what was recorded, rehearse a piece; returns how much to record until the next look."""
        rehearsal = self.rehearsal
        if rehearsal is None:
            return 0
        for piece in self.recorder.take(now, submitted, tape, len(rehearsal.pieces)):
            rehearsal.record(piece)
        if not rehearsal.pieces:
            made = self.recorder.more()
            if made is not None:
                rehearsal.record(made)
        stand = rehearsal.stands[rehearsal.turn]
        if stand is not None and rehearsal.pieces:
            follower: Follower = stand.core.tuner  # type: ignore[assignment]
            follower.plan, follower.row = self.plan, self.row
            follower.idle.memory_ns = self.idle.memory_ns
        rehearsal.step(self.losses)
        return self.recorder.room


def tape(core: Window) -> Columns:
    """What was recorded since the last look."""
    n = core.taped
    model = np.frombuffer(memoryview(core.tape_model), np.uint32)[:n].copy()
    return view(core.tape_at)[:n].copy(), model, view(core.tape_deadline)[:n].copy()


def observe(core: Window, now: int, gpus: int) -> tuple[Load, Ints] | None:
    """What the core has seen: the load, and per model number its row in it (-1: none).

    Several GPU types: a model's l(b) is the mean over the types that serve it, weighted by their GPUs.
    """
    meter = core.meter
    sample = now // SAMPLE_NS
    row_of: dict[int, int] = {}
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
    if not row_of or gpus == 0:
        return None
    at, most, budget, margin, tables = [], [], [], [], []
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
        margin.append(core.margin + core.type_margin[kind])
        budget.append((core.models.slo[model] - core.result - core.control - margin[-1]) / 1e9)
    load = Load(
        np.maximum(np.array(rate), 1e-3),
        np.array(budget),
        np.array(at, np.int64),
        np.array(most, np.int64),
        np.concatenate(tables),
        core.data / 1e9,
        gpus,
        1.0,
        margin=np.array(margin) / 1e9,
    )
    row = np.full(core.models.capacity, -1, np.int64)
    row[list(row_of)] = np.arange(len(row_of))
    return load, row


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
