# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Candidates, windows and matching: the algorithm of the scheduling core.

``docs/algorithm.md`` holds the theory; the names here are its names. Times are int ns below 2^62.
"""

from __future__ import annotations

from array import array

from .actions import Actions
from .gpus import Gpus
from .lanes import Lanes
from .limits import (
    EXPIRED,
    FIELDS,
    FIRST,
    LARGEST_BATCH,
    LAST_TIME,
    LONGEST,
    MOST_QUEUED,
    PRIORITIES,
    SAMPLE_NS,
    SLOTS,
    TYPES,
    UNSERVED,
    WINDOW,
)


class Window(Lanes):
    """Forms lanes and matches them with GPUs: the three steps in which every event ends (:meth:`_run`).

    The arguments are those of :class:`~scheduler.core.machine.Core`.
    """

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
        if min(control_ns, data_ns, result_ns, margin_ns, horizon_ns, overdue_ns) < 0 or max_queue < 1:
            raise ValueError("latencies, margin and horizon cannot be negative, nor max_queue below 1")
        if max(control_ns, data_ns * LARGEST_BATCH, result_ns, margin_ns, horizon_ns, overdue_ns) >= LONGEST:
            raise ValueError("latencies, margin and horizon must be below 3 days, data_ns below 1 minute")
        if max_queue > MOST_QUEUED:
            raise ValueError(f"max_queue is {max_queue}; {MOST_QUEUED} is the most")
        super().__init__(policy)
        self.control = control_ns
        self.data = data_ns
        self.result = result_ns
        self.margin = margin_ns
        self.max_queue = max_queue
        self.horizon = horizon_ns
        self.batches = 0
        self.clock_steps = 0
        self.submitted = 0
        self.ran = 0
        self.ran_over = 0
        self.ran_squares = 0
        self.ended = array("q")
        self.strange_completions = 0
        self.gpus = Gpus(overdue_ns)
        self.actions = Actions()
        self.fast = array("q")
        self.fast_at = array("q")
        self.steady = array("b")
        self.last_key = array("Q", bytes(8 * SLOTS))
        self.type_margin = array("q", bytes(8 * TYPES))
        self.parked: list[int] = []
        self.refused = False
        self.skipped = False

    def _clock(self, now: int) -> int:
        if now < self.now or now >= LAST_TIME:
            self.clock_steps += 1
            now = self.now
        self.now = now
        self.sample = now // SAMPLE_NS
        self.gpus.settle(now)
        return now

    def _run(self, now: int) -> None:
        if now >= self.tune_at and self.tuner is not None:
            self.tune_at = self.tuner.tune(self, now)
        self.gpus.release()
        self.refused = False
        self.skipped = False
        pending = self.pending
        while pending.size > 0 and pending.keys[0] <= now:
            lane = pending.ids[0]
            if not self._restage(lane, now):
                self._reform(lane, now)
        for priority in range(PRIORITIES - 1, -1, -1):
            ready = self.ready[priority]
            while ready.size > 0 and ready.keys[0] < now:
                self._reform(ready.ids[0], now)
            if ready.size > 0:
                self._match(priority, now)
        while self.fresh.size > 0:
            self._pass_over(self.fresh.first(), now)

    def _pass_over(self, lane: int, now: int) -> None:
        """The lane is ready, and no GPU has taken it: from now on its head may be given up."""
        self.fresh.discard(lane)
        self.lane_waits[lane] = 1
        if self.lane_size[lane] < self.queues.count(lane):
            self._reform(lane, now)

    def _match(self, priority: int, now: int) -> None:
        """Give GPUs to ready lanes, smallest ``latest`` first.

        A lane that none can take is passed over; those that it waits for are not for lanes behind it.
        """
        ready = self.ready[priority]
        gpus = self.gpus
        passed = self.parked
        while ready.size > 0:
            lane = ready.ids[0]
            model = self.lane_model[lane]
            reach = now + self.control + self.lane_size[lane] * self.data
            tried = 0
            gpu = gpus.pick(now, model, reach, 0)
            if gpu >= 0 and now < self.lane_open[lane] and not gpus.room(now, model, self.lane_guard[lane]):
                # Ready early only while no GPU was free; those that are now are kept for others.
                ready.discard(lane)
                self.fresh.discard(lane)
                self.lane_waits[lane] = 0
                self.pending.put(lane, self.lane_open[lane])
                continue
            while gpu >= 0 and not self._serve(lane, gpu, now):
                # Too slow or too late for the head; a GPU of another type, or a steadier one, may not be.
                kind = gpus.class_type[gpus.cls[gpu]]
                if gpus.margin[gpu] > self.type_margin[kind]:
                    gpus.set_aside(gpu)
                else:
                    tried |= 1 << kind
                gpu = gpus.pick(now, model, reach, tried)
            if gpu < 0:
                if tried != 0 or len(gpus.aside) > 0:
                    self.refused = True  # GPUs that this lane cannot use may be idle for another
                more = gpus.claim(model, tried)
                gpus.restore()
                if not more and not self.refused:
                    break
                # Set aside with its key, so that the lanes behind it are looked at.
                self.skipped = True
                passed.append(lane)
                passed.append(ready.keys[0])
                ready.discard(lane)
            else:
                gpus.restore()
                self._reform(lane, now)
        while passed:
            latest = passed.pop()
            ready.put(passed.pop(), latest)

    def _serve(self, lane: int, gpu: int, now: int) -> bool:
        """Form the batch afresh against the GPU's true start time and dispatch it; False if none fits."""
        queues = self.queues
        models = self.models
        gpus = self.gpus
        model = self.lane_model[lane]
        at = models.table[model * TYPES + gpus.class_type[gpus.cls[gpu]]]
        margin = self.margin + gpus.margin[gpu] + self.result
        free = gpus.free_at[gpu]
        if free < now:
            free = now
        waits = self.lane_waits[lane]
        if self.steady[model]:
            if waits:
                self._give_up(lane, at, now, free, margin)
        else:
            kind = gpus.class_type[gpus.cls[gpu]]
            if not self._bears(lane, model, kind, now, free, margin):
                if kind != self.fast[model]:
                    return False
                taker = self._taker(lane, model, now)
                if waits and (taker < 0 or taker == kind):
                    self._give_up(lane, at, now, free, margin)
        size = self._form(lane, at, now, free, margin)
        if size == 0:
            return False
        if size > 1 and self.lane_cushion[lane] > 0:
            cut = self._form(lane, at, now, free, margin + self.lane_cushion[lane])
            if cut > 0:
                size = cut
        start = now + self.control + size * self.data
        if start < free:
            start = free
        length = models.latency[at + size]
        batch = self.batches
        self.batches = batch + 1
        actions = self.actions
        to = actions.open_batch(model, self.lane_priority[lane], gpu, size, batch, start, start + length)
        queues.copy(lane, size, actions.key, actions.deadline, to)
        queues.pop(lane, size)
        gpus.take(gpu, batch, start, length)
        self.work += length
        return True

    def _give_up(self, lane: int, at: int, now: int, free: int, margin: int) -> None:
        """The window drop: give up the head where it would keep the batch small.

        Only of a lane that waits: where a GPU is there for the head at once, nothing is lost by serving
        it. T is the longest tail of the queue that, run now as one batch, would end by its own first
        finish-by; b = min(target, |T|). Of the requests before T, those that could not end in a
        batch of b started now are dropped.
        """
        queues = self.queues
        models = self.models
        n = queues.count(lane)
        if n < 2:
            return
        target = self.lane_target[lane]
        want = target if target < n else n
        if self._ends(at, want, now, free) + margin <= queues.record[lane * FIELDS + FIRST]:
            return
        largest = models.max_batch[self.lane_model[lane]]
        low = n - largest if n > largest else 0
        high = n
        while low < high:
            mid = (low + high) >> 1
            if self._ends(at, n - mid, now, free) + margin <= queues.at(lane, mid):
                high = mid
            else:
                low = mid + 1
        tail = n - low
        want = target if target < tail else tail
        if want == 0:
            return
        ends = self._ends(at, want, now, free) + margin
        drops = 0
        while drops < low and queues.at(lane, drops) < ends:
            drops += 1
        self._drop(lane, drops, WINDOW)

    def _drop(self, lane: int, n: int, reason: int) -> None:
        """The first n requests of the lane leave."""
        queues = self.queues
        actions = self.actions
        to = actions.open_drops(n, self.lane_model[lane], reason)
        queues.copy(lane, n, actions.drop_key, actions.drop_deadline, to)
        if n > 0:
            queues.pop(lane, n)

    def _reform(self, lane: int, now: int) -> None:
        """Form the lane's candidate and set its timer: the heart of the policy."""
        queues = self.queues
        models = self.models
        n = queues.count(lane)
        if n == 0:
            self._rest(lane)
            return
        model = self.lane_model[lane]
        kind = self.fast[model]
        if kind < 0:
            self._drop(lane, n, UNSERVED)
            self._rest(lane)
            return
        at = self.fast_at[model]
        self._aim(lane, model, at)
        if not self.steady[model]:
            taker = self._taker(lane, model, now)
            if taker < 0:
                # None could serve the head well; perhaps it has expired, and the next one is better off.
                if self._expire(lane, model, now) == 0:
                    return
                taker = self._taker(lane, model, now)
                if taker < 0:
                    self._reduce(lane, model, kind, now)
                    taker = self._taker(lane, model, now)
                n = queues.count(lane)
            if taker >= 0:
                kind = taker
                at = models.table[model * TYPES + kind]
        most = models.max_batch[model]
        row = lane * FIELDS
        kept = self.margin + self.type_margin[kind] + self.control + self.result
        head = queues.record[row + FIRST] - kept
        size = n
        if n > most or models.latency[at + n] + n * self.data > head - now:
            # The queue does not fit into one batch: what expired goes, perhaps the head too.
            if self._reduce(lane, model, kind, now) < 0:
                return
            head = queues.record[row + FIRST] - kept
            n = queues.count(lane)
            size = self.lane_size[lane]
        latest = head - models.latency[at + size] - size * self.data
        full = size == most
        frontrun = latest
        if not full:
            frontrun = head - models.latency[at + size + 1] - (size + 1) * self.data
        arrived = queues.record[row + FIRST] - models.slo[model]
        target = self.lane_target[lane]
        opens = self.policy.opens(now, size, target, full, frontrun, latest, arrived)
        if opens > latest:
            opens = latest
        opens = self._bring(lane, opens, arrived)
        self.lane_open[lane] = opens
        if n >= self.lane_early[lane] and self.gpus.room(now, model, self.lane_guard[lane]):
            opens = now
        calm = self.policy.calm(target, most) if self.steady[model] else 0
        if calm > self.lane_early[lane]:
            calm = self.lane_early[lane]
        self.lane_size[lane] = size
        self.lane_head[lane] = head
        self.lane_at[lane] = at
        self.lane_calm[lane] = calm
        ready = self.ready[self.lane_priority[lane]]
        if opens <= now:
            self.lane_stage[lane] = 0
            self.pending.discard(lane)
            ready.put(lane, latest)
            queues.fetch(lane)
            if not self.lane_waits[lane]:
                self.fresh.put(lane)
            # Where one more would not fit, and the target is reached, more change nothing.
            settled = calm > 0 and size >= target and (full or frontrun < now)
            self._calm(lane, latest if settled else -1, self.max_queue)
        else:
            ready.discard(lane)
            self.fresh.discard(lane)
            self.lane_waits[lane] = 0
            if size == n:
                self._wait(lane, n, opens, now)
            else:
                self.lane_stage[lane] = 0
                self.pending.put(lane, opens)
                self._calm(lane, -1, n)

    def _taker(self, lane: int, model: int, now: int) -> int:
        """Type of the GPU that would take the candidate: lowest idle, else first to be free.

        Types on which the head would keep the batch small are passed over; -1 if all are.
        """
        tried = 0
        kind = self.gpus.taker_type(now, model, 0)
        while kind >= 0:
            margin = self.margin + self.type_margin[kind] + self.result
            if self._bears(lane, model, kind, now, now, margin):
                return kind
            tried |= 1 << kind
            kind = self.gpus.taker_type(now, model, tried)
        return -1

    def _bears(self, lane: int, model: int, kind: int, now: int, free: int, margin: int) -> bool:
        """Whether the head allows a batch of the target size, or the whole queue, on a GPU of that type.

        The target is that of the fastest type; on another it is no more than what runs in half of the
        SLO: a request that just missed such a batch can wait for it and go with the next.
        """
        at = self.models.table[model * TYPES + kind]
        want = self.queues.count(lane)
        if want > self.lane_target[lane]:
            want = self.lane_target[lane]
        if kind != self.fast[model]:
            half = self.models.target(model, at, 0, 0, 0, 0)
            if want > half:
                want = half
        return self._ends(at, want, now, free) + margin <= self.queues.record[lane * FIELDS + FIRST]

    def _reduce(self, lane: int, model: int, kind: int, now: int) -> int:
        """Drop what cannot be served in time, and set the size of the largest batch that can be on ``kind``.

        That is the model's fastest type, or one that can serve the head well. Returns -1 if the lane is
        empty now, else 0.
        """
        if self._expire(lane, model, now) == 0:
            return -1
        at = self.models.table[model * TYPES + kind]
        margin = self.margin + self.type_margin[kind] + self.result
        if kind == self.fast[model] and self.lane_waits[lane]:
            self._give_up(lane, at, now, now, margin)
        self.lane_size[lane] = self._form(lane, at, now, now, margin)
        return 0

    def _expire(self, lane: int, model: int, now: int) -> int:
        """Drop what could not finish even alone on the model's fastest type; returns how many are left."""
        queues = self.queues
        fast = self.fast[model]
        alone = now + self.control + self.data + self.models.latency[self.fast_at[model] + 1]
        alone += self.margin + self.type_margin[fast] + self.result
        n = queues.count(lane)
        drops = 0
        while drops < n and queues.at(lane, drops) < alone:
            drops += 1
        if drops > 0:
            self._drop(lane, drops, EXPIRED)
            if drops == n:
                self._rest(lane)
        return n - drops
