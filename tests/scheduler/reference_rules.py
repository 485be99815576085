"""The rules of docs/algorithm.md, by searching and sorting: windows, batches, drops, GPUs, targets.

Lanes do hold their candidate and its timer, because the rules say when a candidate is formed: at an
arrival, when its timer has passed, after a dispatch, and when what could serve it has changed.
"""

from __future__ import annotations

import reference_adaptive
from reference_state import Dispatch, Drop, Gpu, Lane, Model

from scheduler.core.adaptive import Tuner
from scheduler.core.limits import DEPTH, EXPIRED, LAST_TIME, SAMPLE_NS, SAMPLES, UNSERVED, WINDOW


class Rules:
    """What the reference does of itself; the events that it is told are in ``reference.Reference``."""

    def __init__(
        self,
        policy: str = "deferred",
        control_ns: int = 0,
        data_ns: int = 0,
        result_ns: int = 0,
        margin_ns: int = 0,
        max_queue: int = 65_536,
        horizon_ns: int = 3_600_000_000_000,
        overdue_ns: int = 0,
    ) -> None:
        self.policy, *settings = policy.split(":")
        self.wait = int(float(settings[0]) * 1e6) if settings else 0
        self.tuner = Tuner(float(settings[0]) if settings else 0.0) if self.policy == "adaptive" else None
        self.tune_at, self.work, self.guard_ns, self.spare = 0, 0, 0, 0
        self.tape: list[tuple[int, int, int]] = []  # when, model, deadline: what the slow loop asked for
        self.tape_room, self.submitted = 0, 0
        self.over: list[int] = []  # by what share of its length, in 2^-20, each batch ended too late
        self.preferred = int(settings[1]) if len(settings) > 1 else 0
        self.control, self.data, self.result, self.margin = control_ns, data_ns, result_ns, margin_ns
        self.max_queue, self.horizon, self.overdue = max_queue, horizon_ns, overdue_ns
        self.now = 0
        self.batches = 0
        self.clock_steps = 0
        self.strange_completions = 0
        self.models: dict[int, Model] = {}
        self.gpus: dict[int, Gpu] = {}
        self.lanes: dict[tuple[int, int], Lane] = {}  # in the order of their numbers
        self.last_key: dict[int, int] = {}
        self.type_margin: dict[int, int] = {}
        self.claimed: set[int] = set()
        self.dispatches: list[Dispatch] = []
        self.drops: list[Drop] = []

    def clock(self, now: int) -> None:
        if now < self.now or now >= LAST_TIME:
            self.clock_steps += 1
        else:
            self.now = now
        for gpu in self.gpus.values():
            gpu.idle = gpu.free_at <= self.now

    # --- GPUs --------------------------------------------------------------------------------

    def serving(self, model: int) -> list[Gpu]:
        """Live GPUs that hold the model and whose type has its latencies, by number."""
        if model not in self.models:
            return []
        return [
            self.gpus[n]
            for n in sorted(self.gpus)
            if self.gpus[n].live
            and (self.gpus[n].models is None or model in (self.gpus[n].models or ()))
            and self.gpus[n].kind in self.models[model].tables
        ]

    def in_order(self, model: int) -> list[Gpu]:
        """Those that may get a batch, in the order in which they would be taken."""
        can = []
        for gpu in self.serving(model):
            late = bool(gpu.out) and self.now - sum(gpu.out[0][1:]) > self.overdue > 0
            if len(gpu.out) < DEPTH and not late:
                can.append(gpu)
        idle = [gpu for gpu in can if gpu.idle]
        busy = [gpu for gpu in can if not gpu.idle]
        return idle + sorted(busy, key=lambda gpu: (gpu.free_at, gpu.number))

    def fastest(self, model: int) -> int:
        """The type on which one request is done first; the smallest number among equals."""
        kinds = {gpu.kind for gpu in self.serving(model)}
        tables = self.models[model].tables
        return min(kinds, key=lambda kind: (tables[kind][0] + self.type_margin.get(kind, 0), kind))

    # --- the rules ---------------------------------------------------------------------------

    def run(self) -> None:
        if self.tuner and self.now >= self.tune_at:
            reference_adaptive.tune(self, self.tuner)
        self.claimed = set()
        while due := [
            lane for lane in self.lanes.values() if lane.state == "pending" and lane.due <= self.now
        ]:
            self.form(min(due, key=lambda lane: (lane.due, lane.number)))
        for priority in (3, 2, 1, 0):
            while due := [lane for lane in self.ready(priority) if lane.due < self.now]:
                self.form(due[0])
            self.match(priority)
        for lane in sorted(self.lanes.values(), key=lambda lane: lane.number):
            if lane.state == "ready" and not lane.waits:
                lane.waits = True
                if lane.size < len(lane.queue):
                    self.form(lane)

    def ready(self, priority: int) -> list[Lane]:
        found = [lane for lane in self.lanes.values() if lane.state == "ready" and lane.priority == priority]
        return sorted(found, key=lambda lane: (lane.due, lane.number))

    def match(self, priority: int) -> None:
        """The lane with the smallest latest goes first; one that no GPU can take is passed over."""
        passed: list[Lane] = []
        while waiting := [lane for lane in self.ready(priority) if lane not in passed]:
            if not self.place(waiting[0]):
                passed.append(waiting[0])

    def place(self, lane: Lane) -> bool:
        """Find a GPU for the lane; if there is none, those that it waits for are claimed."""
        reach = self.now + self.control + lane.size * self.data
        too_slow: set[int] = set()
        for gpu in self.in_order(lane.model):
            ahead = not gpu.idle and (gpu.number in self.claimed or gpu.free_at > reach)
            if ahead or gpu.kind in too_slow:
                continue
            if self.now < lane.opens and not reference_adaptive.room(self, lane):
                lane.state, lane.due, lane.waits = "pending", lane.opens, False
                return True
            if self.serve(lane, gpu):
                return True
            if gpu.margin <= self.type_margin.get(gpu.kind, 0):
                too_slow.add(gpu.kind)
        self.claimed |= {gpu.number for gpu in self.serving(lane.model) if gpu.kind not in too_slow}
        return False

    def serve(self, lane: Lane, gpu: Gpu) -> bool:
        """The batch is formed afresh against the GPU's true start time."""
        free = max(gpu.free_at, self.now)
        margin = self.margin + gpu.margin
        if not self.bears(lane, gpu.kind, free, margin):
            if gpu.kind != self.fastest(lane.model):
                return False
            if lane.waits and self.bearing(lane)[:1] in ([], [gpu.kind]):
                self.window_drop(lane, gpu.kind, free, margin)
        size = self.largest(lane, gpu.kind, free, margin)
        if size == 0:
            return False
        size = self.largest(lane, gpu.kind, free, margin + lane.cushion) or size
        batch, lane.queue = lane.queue[:size], lane.queue[size:]
        start = max(self.now + self.control + size * self.data, free)
        length = self.models[lane.model].tables[gpu.kind][size - 1]
        keys = tuple(request.key for request in batch)
        deadlines = tuple(request.deadline for request in batch)
        self.dispatches.append(
            (
                lane.model,
                lane.priority,
                gpu.number,
                size,
                self.batches,
                start,
                start + length,
                keys,
                deadlines,
            )
        )
        gpu.out.append((self.batches, start, length))
        gpu.free_at = start + length
        gpu.idle = False
        self.work += length
        self.batches += 1
        self.form(lane)
        return True

    def form(self, lane: Lane) -> None:
        """The candidate batch and its window."""
        waits, lane.waits = lane.waits, False
        lane.state, lane.size = "empty", 0
        if not lane.queue:
            return
        if not self.serving(lane.model):
            self.drop(lane, len(lane.queue), UNSERVED)
            return
        fast = self.fastest(lane.model)
        self.aim(lane, fast)
        while lane.queue and self.largest(lane, fast, self.now, self.margin_of(fast)) == 0:
            self.drop(lane, 1, EXPIRED)
        if not lane.queue:
            return
        if waits and not self.bearing(lane):
            self.window_drop(lane, fast, self.now, self.margin_of(fast))
        kind = (self.bearing(lane) or [fast])[0]
        size = self.largest(lane, kind, self.now, self.margin_of(kind))
        head = lane.queue[0]
        model = self.models[lane.model]
        latest = self.start_by(lane, kind, size)
        full = size == model.max_batch
        frontrun = latest if full else self.start_by(lane, kind, size + 1)
        arrived = head.deadline - model.slo
        opens = min(self.opens(size, lane.target, full, frontrun, latest, arrived), latest) - lane.cushion
        opens = min(opens, arrived + lane.linger)
        lane.opens = opens
        if len(lane.queue) >= lane.early and reference_adaptive.room(self, lane):
            opens = self.now
        lane.size = size
        lane.state, lane.due = ("ready", latest) if opens <= self.now else ("pending", opens)
        lane.waits = waits and lane.state == "ready"

    def bearing(self, lane: Lane) -> list[int]:
        """The types that the head would not keep from a good batch, in the order of their first GPUs."""
        kinds = dict.fromkeys(gpu.kind for gpu in self.in_order(lane.model))
        return [kind for kind in kinds if self.bears(lane, kind, self.now, self.margin_of(kind))]

    def bears(self, lane: Lane, kind: int, free: int, margin: int) -> bool:
        """Whether a batch of the target, or the whole queue, would be in time on that type."""
        want = min(lane.target, len(lane.queue))
        if kind != self.fastest(lane.model):
            model = self.models[lane.model]
            want = min(want, max(1, sum(length <= model.slo // 2 for length in model.tables[kind])))
        return self.ends(lane.model, kind, want, free) + margin <= lane.queue[0].finish_by

    def opens(self, size: int, target: int, full: bool, frontrun: int, latest: int, arrived: int) -> int:
        now = self.now
        if full or self.policy == "eager":
            return now
        if self.policy == "target" and size >= target:
            return now
        if self.policy == "latest":
            return latest
        if self.policy == "timeout":
            return now if 0 < self.preferred <= size else arrived + self.wait
        return frontrun

    def margin_of(self, kind: int) -> int:
        return self.margin + self.type_margin.get(kind, 0)

    def start_by(self, lane: Lane, kind: int, size: int) -> int:
        """When a batch of that size has to be dispatched for the head's sake."""
        length = self.models[lane.model].tables[kind][size - 1]
        return lane.queue[0].finish_by - self.margin_of(kind) - self.control - size * self.data - length

    def ends(self, model: int, kind: int, size: int, free: int) -> int:
        """When a batch that is dispatched now to a GPU free from ``free`` would end."""
        start = max(self.now + self.control + size * self.data, free)
        return start + self.models[model].tables[kind][size - 1]

    def largest(self, lane: Lane, kind: int, free: int, margin: int) -> int:
        """The largest batch from the head of the queue that ends in time."""
        best = 0
        for size in range(1, min(len(lane.queue), self.models[lane.model].max_batch) + 1):
            if self.ends(lane.model, kind, size, free) + margin <= lane.queue[0].finish_by:
                best = size
        return best

    def window_drop(self, lane: Lane, kind: int, free: int, margin: int) -> None:
        """Of the requests before T, those that could not end in a batch of b leave."""
        queue = lane.queue
        tail = 0
        for size in range(1, min(len(queue), self.models[lane.model].max_batch) + 1):
            if self.ends(lane.model, kind, size, free) + margin <= queue[-size].finish_by:
                tail = size
        b = min(lane.target, tail)
        if b == 0:
            return
        ends = self.ends(lane.model, kind, b, free) + margin
        before = queue[: len(queue) - tail]
        self.drop(lane, sum(request.finish_by < ends for request in before), WINDOW)

    def drop(self, lane: Lane, n: int, reason: int) -> None:
        gone, lane.queue = lane.queue[:n], lane.queue[n:]
        self.drops += [(request.key, lane.model, request.deadline, reason) for request in gone]

    # --- rates -------------------------------------------------------------------------------

    def look(self, lane: Lane) -> None:
        """Look at the lane's rate; after 5 s in which nobody did, its history is forgotten."""
        sample = self.now // SAMPLE_NS
        if lane.looked < 0 or sample - lane.looked > SAMPLES:
            lane.first, lane.arrivals = sample, []
        lane.looked = sample

    def aim(self, lane: Lane, kind: int) -> None:
        """The target size, worked out at the first look in each sample."""
        sample = self.now // SAMPLE_NS
        if lane.aimed == sample or lane.planned:
            return
        lane.aimed = sample
        self.look(lane)
        whole = min(sample - lane.first, SAMPLES)
        count = sum(sample - SAMPLES <= arrival < sample for arrival in lane.arrivals)
        model = self.models[lane.model]
        budget = model.slo - self.result - self.control
        lane.target = 1
        for b in range(1, model.max_batch + 1):
            length = model.tables[kind][b - 1]
            if count and whole:
                fits = length + b * self.data + b * whole * SAMPLE_NS // count <= budget
            else:
                fits = length <= model.slo // 2
            if fits:
                lane.target = b
