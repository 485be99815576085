"""The rules that ``adaptive`` chooses from: when a lane may start early, and what the window drop aims at.

Each is a few numbers per model that the fast path (:mod:`scheduler.core.window`) compares. ``eager``,
``deferred`` and ``target`` are those policies; ``planned`` is what the plan derives from the load; ``linger``
waits a little for the rest of a burst.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from .limits import NEVER, PLANNED, SAMPLE_NS
from .plans import Ints, Plan

if TYPE_CHECKING:
    from .window import Window

RULES: Final = (
    ("planned", "burst", False),
    ("planned", "usual", False),
    ("planned", "burst", True),
    ("eager", "usual", False),
    ("eager", "usual", True),
    ("linger", "usual", False),
    ("target", "usual", True),
    ("deferred", "usual", False),
    ("deferred", "usual", True),
)
"""When to start, which drop target, and whether with the cushion; in order of preference: without losses,
the first."""

SLACK: Final = 0.2
"""Idle share from which the sustaining batch is all that is waited for; at half of it, the full one."""
LEVELS: Final = 32
"""Steps in which the feedback from the idle share moves."""
STEPS: Final = 16
"""Looks at the idle share within its time constant."""
FIRST_MEMORY_NS: Final = 200_000_000


class Idle:
    """The moving share of idle GPU time, from the work that was given out. ``share`` begins at 1."""

    def __init__(self) -> None:
        self.share = 1.0
        self.memory_ns = FIRST_MEMORY_NS
        self.seen = -1

    def note(self, now: int, work_ns: int, gpus: int) -> None:
        """So much work was given out since the last look."""
        if self.seen >= 0:
            spent = now - self.seen
            share = 1.0 - work_ns / (max(1, gpus) * max(1, spent))
            self.share += spent / (self.memory_ns + spent) * (share - self.share)
            self.share = min(1.0, max(0.0, self.share))
        self.seen = now

    def next_look(self) -> int:
        """When :meth:`note` is due next."""
        return self.seen + self.memory_ns // STEPS


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Per row of the plan: the queue from which a lane may start early, the GPUs that it must then leave
    to others, the drop target, and the cushion and how long to linger in ns."""

    early: Ints
    guard: Ints
    target: Ints
    cushion: Ints
    linger: Ints


def pressure(idle: float) -> int:
    """0 (GPUs to spare) … ``LEVELS``: how much of the full batch is waited for."""
    return math.ceil(LEVELS * min(1.0, max(0.0, 2.0 * (1.0 - idle / SLACK))))


def planned_early(plan: Plan, pressed: int) -> Ints:
    """Per model, the queue from which a lane may start early: less, the more GPUs are idle."""
    size = np.maximum(plan.sustain, -(-plan.full * pressed // LEVELS))
    return np.where(plan.waits, size, 1)


def thresholds(rule: int, plan: Plan, pressed: int) -> Thresholds:
    """What the rule of that number says under this plan."""
    start, drops, cushioned = RULES[rule]
    target = plan.target if drops == "burst" else plan.usual
    none = np.zeros_like(target)
    cushion = plan.cushion if cushioned else none
    if start == "planned":
        return Thresholds(planned_early(plan, pressed), plan.guard, target, cushion, none + NEVER)
    if start == "linger":
        return Thresholds(plan.full, none, target, cushion, plan.linger)
    early = {"eager": none + 1, "target": plan.usual, "deferred": none + NEVER}[start]
    return Thresholds(early, none, target, cushion, none + NEVER)


def install(core: Window, row: Ints, told: Thresholds) -> int:
    """Set the thresholds of all lanes of planned models; returns for how many they are new.

    ``row``: per model number its row, or -1.
    """
    lanes = core.queues.lanes
    model = view(core.lane_model)[:lanes]
    known = np.frombuffer(memoryview(core.models.known), np.int8)[model] != 0
    place = np.where(known, np.append(row, -1)[np.minimum(model, len(row))], -1)
    most = view(core.models.max_batch)[model]
    target = np.minimum(told.target[place], most)
    early, guard, cushion, linger = (
        column[place] for column in (told.early, told.guard, told.cushion, told.linger)
    )
    same = (view(core.lane_early)[:lanes] == early) & (view(core.lane_guard)[:lanes] == guard)
    same &= (view(core.lane_target)[:lanes] == target) & (view(core.lane_cushion)[:lanes] == cushion)
    same &= view(core.lane_linger)[:lanes] == linger
    same &= view(core.lane_target_sample)[:lanes] == PLANNED
    new = np.flatnonzero((place >= 0) & ~same)
    columns = (new, early[new], guard[new], target[new], cushion[new], linger[new])
    for lane in zip(*(column.tolist() for column in columns), strict=True):
        core.plan_lane(*lane)
    return len(new)


def view(column: Any) -> Ints:
    """A column of the core, Python's or compiled, as numpy sees it."""
    return np.frombuffer(memoryview(column), np.int64)


def live_gpus(core: Window) -> int:
    """GPUs that can be given work."""
    return sum(core.gpus.class_live[c] for c in range(core.gpus.classes))


class Follower:
    """The slow loop of a rehearsing core: one rule, the plan that it is given, its own idle share."""

    def __init__(self, rule: int) -> None:
        self.rule = rule
        self.idle = Idle()
        self.plan: Plan | None = None
        self.row: Ints = np.empty(0, np.int64)
        self.told = Told()

    def tune(self, core: Window, now: int) -> int:
        """Bring the core's numbers up to date; returns when that is due next."""
        gpus = live_gpus(core)
        feels = RULES[self.rule][0] == "planned"
        if feels:
            self.idle.note(now, core.work, gpus)
        core.work = 0
        if self.plan is not None and self.told.differs(
            core.queues.lanes, self.rule, self.plan, self.idle.share
        ):
            core.gpus.guard_ns = self.plan.guard_ns
            core.gpus.spare = spare(self.plan, gpus)
            install(core, self.row, thresholds(self.rule, self.plan, self.told.pressed))
        return self.idle.next_look() if feels else now + SAMPLE_NS


class Told:
    """What a core's lanes were last told, so that they are told only what is new."""

    def __init__(self) -> None:
        self.rule = -1
        self.pressed = 0
        self.lanes = 0
        self.plan: Plan | None = None

    def differs(self, lanes: int, rule: int, plan: Plan, idle: float) -> bool:
        """Whether there is anything new to tell; it then counts as told."""
        pressed = pressure(idle) if RULES[rule][0] == "planned" else 0
        same = plan is self.plan and rule == self.rule and pressed == self.pressed and lanes == self.lanes
        self.rule, self.pressed, self.lanes, self.plan = rule, pressed, lanes, plan
        return not same


def spare(plan: Plan, gpus: int) -> int:
    """GPUs that an early start must leave free."""
    return max(0, gpus - plan.gpus)
