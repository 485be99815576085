# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Lanes and their timers.

A *lane* is one model at one priority: a queue in deadline order, its candidate batch, and one timer.
It is *empty*, *pending* (its window has not opened; the timer is the opening) or *ready* (it waits for a
GPU in an order by ``latest``; the timer is ``latest``).

Most arrivals only make a pending lane's batch longer and its opening earlier, in a way that is known
before they come. So when a lane is formed, a *stage* is fixed: up to so many requests, and until the
moment at which the window would open with so many, an arrival need not be looked at. The lane is listed
at that moment, a lower bound of its opening; when it comes, or the number is reached, the next stage is
fixed. A batch of 80 takes some five stages instead of 80 formings. What comes out is the same.
"""

from __future__ import annotations

from array import array

from .columns import widen
from .heap import Heap
from .limits import (
    AHEAD,
    FIELDS,
    FIRST,
    HEAD,
    MASK,
    NEVER,
    PLANNED,
    PRIORITIES,
    SAMPLE_NS,
    STOP,
    TAPE,
    UNTIL,
)
from .meter import Meter
from .models import Models
from .numbers import Numbers
from .policies import make_policy, make_tuner
from .queues import Queues


class Lanes:
    """The lanes' state; memory: about 720 bytes a lane beside its ring.

    ``lane_head`` is what the lane was last formed with: its head's deadline less everything that is kept
    free before it; ``lane_at`` where its latency table starts. ``lane_stage`` is 1 where the time under
    which the lane is listed in ``pending`` is a lower bound. With fewer than ``lane_calm`` requests an
    arrival only moves the opening. ``lane_waits`` is 1 where a lane was ready at the end of an event, so that
    no GPU took it; ``fresh`` lists those that became ready within this one.

    Where the policy has a slow loop, ``tuner``, that is called from ``tune_at`` on and sets
    ``lane_early``, the queue from which a lane may start before its window opens (NEVER without a slow
    loop), ``lane_guard``, the GPUs that it must then leave to others, ``lane_cushion``, the ns by which
    its windows open before they need to and its batches should end before they must, and ``lane_linger``,
    the ns after which they open in any case (NEVER: no such time). ``lane_open`` is when
    the window opens; ``work`` adds up the lengths of the batches that were sent, in ns. The slow loop may ask
    for the arrivals: the first ``tape_room`` are put down in the ``tape`` columns, ``taped`` says how many.
    """

    def __init__(self, policy: str) -> None:
        self.policy = make_policy(policy)
        self.now = 0
        self.sample = 0
        self.control = 0
        self.data = 0
        self.result = 0
        self.max_queue = 1
        self.queues = Queues()
        self.meter = Meter()
        self.models = Models()
        self.lane_of = array("q")
        self.lane_model = array("q")
        self.lane_priority = array("q")
        self.lane_target = array("q")
        self.lane_target_sample = array("q")
        self.lane_gap = array("q")
        self.lane_size = array("q")
        self.lane_head = array("q")
        self.lane_at = array("q")
        self.lane_calm = array("q")
        self.lane_stage = array("b")
        self.lane_waits = array("b")
        self.lane_early = array("q")
        self.lane_guard = array("q")
        self.lane_cushion = array("q")
        self.lane_linger = array("q")
        self.lane_open = array("q")
        self.tuner = make_tuner(self.policy)
        self.tune_at = NEVER if self.tuner is None else 0
        self.early = NEVER if self.tuner is None else 1
        self.work = 0
        self.tape_room = 0
        self.taped = 0
        self.tape_at = array("q", bytes(8 * TAPE) if self.tuner is not None else b"")
        self.tape_model = array("I", bytes(4 * TAPE) if self.tuner is not None else b"")
        self.tape_deadline = array("q", bytes(8 * TAPE) if self.tuner is not None else b"")
        self.pending = Heap(0)
        self.ready = [Heap(0) for _ in range(PRIORITIES)]
        self.touched = Numbers()
        self.fresh = Numbers()
        self.rows = array("q", bytes(8 * AHEAD))

    def candidate(self, lane: int) -> tuple[str, int, int]:
        """State (empty, pending, ready), timer (0 if empty) and size of a lane's candidate."""
        ready = self.ready[self.lane_priority[lane]]
        if ready.has(lane):
            return "ready", ready.keys[ready.place[lane]], self.lane_size[lane]
        if not self.pending.has(lane):
            return "empty", 0, 0
        if self.lane_stage[lane]:
            n = self.queues.count(lane)
            return "pending", self._opening(lane, n), n
        return "pending", self.pending.keys[self.pending.place[lane]], self.lane_size[lane]

    def _opening(self, lane: int, size: int) -> int:
        """When the window of a lane in a stage opens if ``size`` requests are queued."""
        at = self.lane_at[lane] + size
        head = self.lane_head[lane]
        latest = head - self.models.latency[at] - size * self.data
        frontrun = head - self.models.latency[at + 1] - (size + 1) * self.data
        arrived = self.queues.record[lane * FIELDS + FIRST] - self.models.slo[self.lane_model[lane]]
        opens = self.policy.opens(self.now, size, self.lane_target[lane], False, frontrun, latest, arrived)
        return self._bring(lane, opens if opens < latest else latest, arrived)

    def _bring(self, lane: int, opens: int, arrived: int) -> int:
        """Bring the opening forward as the slow loop says."""
        opens -= self.lane_cushion[lane]
        linger = self.lane_linger[lane]
        return arrived + linger if linger < NEVER and arrived + linger < opens else opens

    def _wait(self, lane: int, n: int, opens: int, now: int) -> None:
        """List the lane, whose n requests are its candidate, as pending, and fix its stage.

        The number of requests that end the stage is about that which will be there when the window
        opens: with ``most`` more requests it would be open at once, with as many more as are
        ``expected`` until the opening as it stands, it will be a little earlier.
        """
        more = 0
        calm = self.lane_calm[lane]
        if n < calm:
            budget = self.lane_head[lane] - self.lane_cushion[lane] - now - 1
            most = self.models.fit(self.lane_at[lane], calm, self.data, budget, NEVER) - 1 - n
            if most > 0:
                gap = self.lane_gap[lane]
                expected = most if gap == 0 else (opens - now) // gap
                more = most * expected // (most + expected)
        key = opens if more == 0 else self._opening(lane, n + more)
        self.lane_stage[lane] = more > 0
        self.pending.put(lane, key)
        self._calm(lane, key - 1 if more > 0 else -1, n + more)

    def _calm(self, lane: int, until: int, most: int) -> None:
        """Arrivals behind the last need no look until then, as long as there are at most ``most``."""
        row = lane * FIELDS
        # The rate, and with it the target size where no plan sets it, is looked at in each sample.
        sample = self.lane_target_sample[lane]
        if sample > self.sample:
            sample = self.sample
        end = (sample + 1) * SAMPLE_NS - 1
        self.queues.record[row + UNTIL] = until if until < end else end
        if most > self.max_queue:
            most = self.max_queue
        room = self.queues.record[row + MASK] + 1
        if most > room:
            most = room
        self.queues.record[row + STOP] = self.queues.record[row + HEAD] + most

    def _gather(self, lane: int, now: int) -> None:
        """The lane is formed at the end of this event; until then arrivals behind the last need no look."""
        row = lane * FIELDS
        most = self.queues.record[row + MASK] + 1
        if most > self.max_queue:
            most = self.max_queue
        self.queues.record[row + UNTIL] = now
        self.queues.record[row + STOP] = self.queues.record[row + HEAD] + most

    def _form(self, lane: int, at: int, now: int, free: int, margin: int) -> int:
        """Largest batch from the head of the queue that ends in time on a GPU free from ``free``.

        Here as in the rules below, ``margin`` is everything kept free before a deadline, the result's way
        among it.
        """
        most = self.queues.count(lane)
        largest = self.models.max_batch[self.lane_model[lane]]
        if most > largest:
            most = largest
        if most == 0:
            return 0
        end = self.queues.record[lane * FIELDS + FIRST] - margin
        hard = end - free
        budget = end - now - self.control
        return self.models.fit(at, most, self.data, budget, hard)

    def _firm(self, lane: int) -> None:
        """List the lane at its true opening; the next arrival forms it."""
        self.queues.record[lane * FIELDS + UNTIL] = -1
        if self.lane_stage[lane]:
            self.lane_stage[lane] = 0
            n = self.queues.count(lane)
            self.lane_size[lane] = n
            self.pending.put(lane, self._opening(lane, n))

    def plan_lane(self, lane: int, early: int, guard: int, target: int, cushion: int, linger: int) -> None:
        """What the slow loop says of a lane; its candidate keeps what it was formed with."""
        self._firm(lane)
        self.lane_early[lane] = early
        self.lane_guard[lane] = guard
        self.lane_cushion[lane] = cushion
        self.lane_linger[lane] = linger
        self.lane_target[lane] = target
        self.lane_target_sample[lane] = PLANNED

    def _firm_all(self) -> None:
        """What candidates are formed with is about to change; they keep what they were formed with."""
        for lane in range(self.queues.lanes):
            self._firm(lane)

    def _restage(self, lane: int, now: int) -> bool:
        """The time under which a lane is listed has come; False if that is its opening, no lower bound."""
        if self.lane_stage[lane] == 0:
            return False
        n = self.queues.count(lane)
        opens = self._opening(lane, n)
        if opens <= now:
            self._firm(lane)
        else:
            self.lane_size[lane] = n
            self._wait(lane, n, opens, now)
        return True

    def _rest(self, lane: int) -> None:
        """The lane is empty."""
        self.lane_size[lane] = 0
        self.lane_stage[lane] = 0
        self.lane_waits[lane] = 0
        self.fresh.discard(lane)
        self.queues.record[lane * FIELDS + UNTIL] = -1
        self.pending.discard(lane)
        ready = self.ready[self.lane_priority[lane]]
        ready.discard(lane)

    def _ends(self, at: int, size: int, now: int, free: int) -> int:
        start = now + self.control + size * self.data
        if start < free:
            start = free
        return start + self.models.latency[at + size]

    def _aim(self, lane: int, model: int, at: int) -> None:
        """Bring the lane's target size up to date, once per rate sample."""
        sample = self.sample
        if self.lane_target_sample[lane] >= sample:
            return
        self.lane_target_sample[lane] = sample
        self.meter.roll(lane, sample, self.queues.ever(lane))
        window = self.meter.window_ns(lane)
        count = self.meter.total[lane]
        self.lane_gap[lane] = window // count if count > 0 else 0
        budget = self.models.slo[model] - self.result - self.control
        self.lane_target[lane] = self.models.target(model, at, self.data, budget, count, window)

    def _new_lane(self, model: int, priority: int) -> int:
        lane = self.queues.add_lane()
        self.meter.add_lane()
        if lane == len(self.lane_model):
            more = max(8, lane)
            self.lane_model = widen("q", self.lane_model, more)
            self.lane_priority = widen("q", self.lane_priority, more)
            self.lane_target = widen("q", self.lane_target, more, 1)
            self.lane_target_sample = widen("q", self.lane_target_sample, more, -1)
            self.lane_gap = widen("q", self.lane_gap, more)
            self.lane_size = widen("q", self.lane_size, more)
            self.lane_head = widen("q", self.lane_head, more)
            self.lane_at = widen("q", self.lane_at, more)
            self.lane_calm = widen("q", self.lane_calm, more)
            self.lane_stage = widen("b", self.lane_stage, more)
            self.lane_waits = widen("b", self.lane_waits, more)
            self.lane_early = widen("q", self.lane_early, more, self.early)
            self.lane_guard = widen("q", self.lane_guard, more)
            self.lane_cushion = widen("q", self.lane_cushion, more)
            self.lane_linger = widen("q", self.lane_linger, more, NEVER)
            self.lane_open = widen("q", self.lane_open, more)
            self.touched.reserve(lane + more)
            self.fresh.reserve(lane + more)
            self.pending.reserve(lane + more)
            for heap in self.ready:
                heap.reserve(lane + more)
        self.lane_model[lane] = model
        self.lane_priority[lane] = priority
        self.lane_of[model * PRIORITIES + priority] = lane
        return lane
