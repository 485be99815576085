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
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from .observing import Reading
from .plans import Ints, Load, Plan, Steps, planning
from .recording import Columns, Recorder
from .rehearsal import Lengths, Losses, Rehearsal, Scene, Stand
from .rules import RULES, Follower, Idle, Told, install, spare, thresholds

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
"""Between two looks while there is something to rehearse, or a plan to make."""
LOOK: Final = 12_000
"""What making a plan may take of one look, in rows of a pass over the models; then that step was the last."""
PASS: Final = 500
"""So many rows a pass counts for beside its own."""
READ: Final = 8
"""Passes that reading the load takes, and reading the models."""
TOLD: Final = 256
"""After having told more lanes than that, a look does not rehearse."""
TABLED: Final = 128
"""Models whose latencies are put together in one look."""
NOTHING, LOAD, TABLES, SCENE, PLAN = range(5)
"""What is next of the plan that is due: the load but for latencies, those, models and GPUs, its steps."""


class Unfinished(Protocol):
    """A load whose latencies are still to be put together; ``models``: its rows."""

    models: int

    def extend(self, first: int, last: int) -> None:
        """Those of the models in these rows; the rows before them have theirs."""

    def load(self) -> Load:
        """The load, when all rows have them."""


class Seen(Protocol):
    """What the slow loop reads of a core: see :class:`~scheduler.core.observing.Reading`."""

    def load(self, now: int) -> tuple[Unfinished, Ints] | None:
        """What came, and per model number its row in it (-1: none)."""

    def scene(self) -> Scene:
        """What there is to rehearse with."""


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
        self.stage = NOTHING
        self.draft: Unfinished
        self.done = 0
        self.load: Load
        self.next_row: Ints
        self.next_scene: Scene
        self.steps: Steps

    def tune(self, core: Window, now: int) -> int:
        """Bring the core's numbers up to date; returns when that is due next."""
        seen = Reading(core)
        gpus = seen.gpus()
        if self.look(now, core.work, gpus):
            self.lengths.note(core.ran, core.ran_over, core.ran_squares)
            core.ran = core.ran_over = core.ran_squares = 0
        core.work = 0
        busy = self.prepare(seen, now)
        if self.plan is not None:
            told = 0
            if self.told.differs(core.queues.lanes, self.losses.chosen, self.plan, self.idle.share):
                core.gpus.guard_ns = self.plan.guard_ns
                core.gpus.spare = spare(self.plan, gpus)
                told = install(core, self.row, thresholds(self.told.rule, self.plan, self.told.pressed))
            core.tape_room = self.rehearse(now, core.submitted, seen.tape(), busy or told > TOLD)
            core.taped = 0
        return self.next_look(now)

    def next_look(self, now: int) -> int:
        """When :meth:`tune` is due next."""
        waits = self.stage or (self.rehearsal is not None and self.rehearsal.pieces)
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
        if self.stage == NOTHING:
            self.stage = LOAD
        return True

    def prepare(self, seen: Seen, now: int) -> bool:
        """Go on with the plan that is due, as far as one look goes; returns whether that took anything."""
        room = LOOK
        while self.stage != NOTHING and room > 0:
            if self.stage == SCENE and room < min(LOOK, READ * (PASS + self.draft.models)):
                break
            room -= self._prepare(seen, now)
        return room < LOOK

    def _prepare(self, seen: Seen, now: int) -> int:
        """The next step of the plan that is due; returns what it took."""
        if self.stage == LOAD:
            found = seen.load(now)
            self.stage = NOTHING if found is None else TABLES
            if found is None:
                return 0
            self.draft, self.next_row = found
            self.done = 0
            return READ * (PASS + self.draft.models)
        if self.stage == TABLES:
            first, self.done = self.done, min(self.done + TABLED, self.draft.models)
            self.draft.extend(first, self.done)
            if self.done == self.draft.models:
                self.load = self.draft.load()
                self.stage = SCENE
            return (self.done - first) * LOOK // TABLED
        if self.stage == SCENE:
            self.next_scene = seen.scene()
            dispersion, spread = self.recorder.dispersion.value, self.lengths.spread
            self.load = replace(self.load, dispersion=dispersion, spread=spread)
            self.steps = planning(self.load, self.dial)
            self.stage = PLAN
            return READ * (PASS + len(self.next_scene.models)) + len(self.next_scene.gpus)
        try:
            return next(self.steps) * (PASS + len(self.load.rate))
        except StopIteration as done:
            self.stage = NOTHING
            self._adopt(done.value)
            return 0

    def _adopt(self, plan: Plan) -> None:
        """From now on this is the plan."""
        load, scene = self.load, self.next_scene
        weight = float(load.rate.sum())
        mean = float((load.rate * load.budget).sum()) / weight
        self.idle.memory_ns = max(SHORTEST_NS, int(MEMORY * mean * 1e9))
        self.recorder.window_ns = int(WINDOW * mean * 1e9)
        self.recorder.models = int(scene.models[:, 0].max(initial=-1)) + 1
        self.plan, self.row = plan, self.next_row
        if self.scene is None or not scene.like(self.scene):
            self.scene = scene
            self.rehearsal = Rehearsal(len(RULES), self.stand, int(mean * 1e9))

    def stand(self, rule: int) -> Stand:
        """A rule's stand in the present scene."""
        assert self.scene is not None
        return Stand(self.scene, Follower(rule), self.lengths.ppm)

    def rehearse(self, now: int, submitted: int, tape: Columns, busy: bool = False) -> int:
        """Take what was recorded and, unless ``busy`` with other things, rehearse a few requests.

        Returns how much to record until the next look.
        """
        rehearsal = self.rehearsal
        if rehearsal is None:
            return 0
        for piece in self.recorder.take(now, submitted, tape, len(rehearsal.pieces)):
            rehearsal.record(piece)
        if busy:
            return self.recorder.room
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
