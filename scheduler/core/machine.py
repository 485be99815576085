# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""The scheduling core: events in, actions out, ``now`` an argument.

It never touches a clock, a socket, a random number or a log; the shard process drives it in real
time, the simulator in virtual time. The same events give the same actions; ties go to the smallest
number. ``docs/algorithm.md`` holds the theory; the names here are its names.

Every event ends in the same three steps: open the windows whose time has come, form anew what is too
late as it stands, match ready lanes with GPUs (:mod:`scheduler.core.window`).

The source is plain Python; ``scheduler/compiled`` holds the C types with which the same files are
compiled.
"""

from __future__ import annotations

from typing import Any

from . import plain
from .columns import packed
from .fleet import Fleet
from .limits import (
    AHEAD,
    BASE,
    DEPTH,
    DUPLICATE,
    FIELDS,
    FULL,
    LAST,
    LONGEST,
    MASK,
    NEVER,
    OUT_OF_RANGE,
    PRIORITIES,
    STOP,
    TAIL,
    UNKNOWN,
    UNSERVED,
    UNTIL,
)
from .plain import PLAIN, append_calm


class Core(Fleet):
    """One shard's scheduler.

    Args:
        policy: a name that :func:`~scheduler.core.policies.make_policy` knows.
        control_ns: from a decision to its arrival at the worker.
        data_ns: per request of the batch, to fetch its input.
        result_ns: from a batch's end to the result's arrival at the frontend.
        margin_ns: kept free before every deadline, for late timers and uncertain clocks.
        max_queue: requests that one lane may hold; further ones are refused as full.
        horizon_ns: a deadline further ahead than this is refused as out of range.
        overdue_ns: a GPU whose oldest batch should have been reported that long ago gets no more
            until it reports; 0 trusts every GPU for ever.

    Raises:
        ValueError: a negative time, or an unknown policy.
    """

    def submit(
        self,
        now: int,
        model: Any,
        deadline: Any,
        key: Any,
        priority: Any = None,
        again: bool = False,
    ) -> None:
        """Requests arrive, as columns of one length.

        Args:
            now: ns.
            model: uint32 model numbers.
            deadline: int64 ns, when the result must be at the frontend.
            key: uint64, rising within each slot (top 16 bits): a key that does not rise is a
                duplicate.
            priority: uint8, 0 … 3 (highest), None for all 0; larger values count as 3.
            again: requests that were dispatched before and came back: keys need not rise.

        A request that cannot be taken is dropped with its reason: unknown model, unserved (no GPU
        holds the model, or it drains), deadline further ahead than the horizon or out of range,
        duplicate, full, or expired (its deadline cannot be met even alone).

        Raises:
            ValueError: columns of different lengths or types.
        """
        ranked = priority is not None
        try:
            # Compiled code takes the columns as they are; a view in between would cost as much again.
            m = memoryview(model) if PLAIN else model
            d = memoryview(deadline) if PLAIN else deadline
            k = memoryview(key) if PLAIN else key
            n = len(m)
            if ranked:
                p = memoryview(priority) if PLAIN else priority
            elif PLAIN:
                p = memoryview(bytes(n))
                ranked = True
        except (BufferError, ValueError):
            columns = packed(model, deadline, key, priority)
            if columns is None:
                raise
            self.submit(now, columns[0], columns[1], columns[2], columns[3], again)
            return
        if len(d) != n or len(k) != n or (ranked and len(p) != n):
            raise ValueError("columns of different lengths")
        now = self._clock(now)
        fresh = not again
        if self.taped < self.tape_room and fresh:
            self._record(now, m, d)
        self.submitted += n
        capacity = self.models.capacity
        farthest = now + self.horizon
        last_key = self.last_key
        if PLAIN and n > 0:
            m, d, k, p, fresh = append_calm(self, now, farthest, last_key, (m, d, k, p), fresh)
            n = len(m)
        queues = self.queues
        record = queues.record
        slab = queues.slab
        moves = queues.moves
        rows = self.rows
        lane_of = self.lane_of
        start = 0
        while start < n:
            end = start + AHEAD
            if end > n:
                end = n
            # What these requests will touch is fetched first, so that the waits for memory overlap: the
            # lanes' records, then the slots.
            for i in range(start, end):
                which = m[i]
                rank = p[i] if ranked else 0
                row = -1
                if which < capacity and rank < PRIORITIES:
                    row = lane_of[which * PRIORITIES + rank] * FIELDS
                    if row >= 0 and not PLAIN:
                        plain.fetch_signed(record, row)
                rows[i - start] = row
            if not PLAIN:
                for i in range(end - start):
                    row = rows[i]
                    if row >= 0:
                        slot = record[row + BASE] + (record[row + TAIL] & record[row + MASK])
                        plain.fetch(slab, 2 * slot)
            for i in range(start, end):
                row = rows[i - start]
                due = d[i]
                ident = k[i]
                if row >= 0:
                    tail = record[row + TAIL]
                    if (
                        now <= record[row + UNTIL]
                        and tail < record[row + STOP]
                        and record[row + LAST] <= due <= farthest
                        and (not fresh or last_key[ident >> 48] < ident)
                    ):
                        # It only makes the queue longer (Lanes._calm), or the lane is formed anyhow.
                        if fresh:
                            last_key[ident >> 48] = ident
                        slot = 2 * (record[row + BASE] + (tail & record[row + MASK]))
                        slab[slot] = due
                        slab[slot + 1] = ident
                        record[row + LAST] = due
                        record[row + TAIL] = tail + 1
                        continue
                lane = self._admit(now, m[i], due, ident, p[i] if ranked else 0, fresh)
                if queues.moves != moves:
                    moves = queues.moves
                    record = queues.record
                    slab = queues.slab
                if lane >= 0:
                    self.touched.put(lane)
                    self._gather(lane, now)
            start = end
        touched = self.touched
        lane = touched.next(0)
        while lane >= 0:
            touched.discard(lane)
            after = touched.next(lane)
            if not PLAIN and after >= 0:
                self._foresee_lane(after)
            self._reform(lane, now)
            lane = after
        self._run(now)

    def _foresee_lane(self, lane: int) -> None:
        """Begin to bring into the cache what forming the lane looks at."""
        plain.fetch_signed(self.lane_model, lane)
        plain.fetch_signed(self.lane_priority, lane)
        plain.fetch_signed(self.lane_target, lane)
        plain.fetch_signed(self.lane_target_sample, lane)
        plain.fetch_signed(self.lane_gap, lane)
        plain.fetch_signed(self.lane_size, lane)
        plain.fetch_signed(self.lane_head, lane)
        plain.fetch_signed(self.lane_at, lane)
        plain.fetch_signed(self.lane_calm, lane)
        plain.fetch_signed(self.lane_early, lane)
        plain.fetch_signed(self.lane_open, lane)
        plain.fetch_signed(self.pending.place, lane)

    def _record(self, now: int, model: memoryview, deadline: memoryview) -> None:
        """Put down these arrivals, as far as there is room, for the slow loop."""
        n = len(model)
        to = self.taped
        if n > self.tape_room - to:
            n = self.tape_room - to
        for i in range(n):
            self.tape_at[to + i] = now
            self.tape_model[to + i] = model[i]
            self.tape_deadline[to + i] = deadline[i]
        self.taped = to + n

    def arrive(self, now: int, model: int, deadline: int, key: int) -> None:
        """One fresh request of priority 0 arrives: what :meth:`submit` does for columns of one."""
        now = self._clock(now)
        self.submitted += 1
        taped = self.taped
        if taped < self.tape_room:
            self.tape_at[taped] = now
            self.tape_model[taped] = model
            self.tape_deadline[taped] = deadline
            self.taped = taped + 1
        lane = -1
        if model < self.models.capacity:
            lane = self.lane_of[model * PRIORITIES]
        row = lane * FIELDS
        record = self.queues.record
        if (
            lane >= 0
            and now <= record[row + UNTIL]
            and record[row + TAIL] < record[row + STOP]
            and record[row + LAST] <= deadline <= now + self.horizon
            and self.last_key[key >> 48] < key
        ):
            self.last_key[key >> 48] = key
            self.queues.push(lane, deadline, key)
        else:
            lane = self._admit(now, model, deadline, key, 0, True)
            if lane >= 0:
                self._reform(lane, now)
        self._run(now)

    def _admit(self, now: int, which: int, due: int, ident: int, rank: int, fresh: bool) -> int:
        """Queue a request or drop it with its reason; returns its lane, -1 if it was dropped."""
        models = self.models
        if which >= models.capacity or models.known[which] == 0:
            self.actions.drop(ident, which, due, UNKNOWN)
            return -1
        if fresh:
            slot = ident >> 48
            if ident <= self.last_key[slot]:
                self.actions.drop(ident, which, due, DUPLICATE)
                return -1
            self.last_key[slot] = ident
        if due > now + self.horizon or due < 0:
            self.actions.drop(ident, which, due, OUT_OF_RANGE)
            return -1
        if self.fast[which] < 0 or models.draining[which] != 0:
            self.actions.drop(ident, which, due, UNSERVED)
            return -1
        if rank >= PRIORITIES:
            rank = PRIORITIES - 1
        lane = self.lane_of[which * PRIORITIES + rank]
        if lane < 0:
            lane = self._new_lane(which, rank)
        if self.queues.count(lane) >= self.max_queue:
            self.actions.drop(ident, which, due, FULL)
            return -1
        self.meter.roll(lane, self.sample, self.queues.ever(lane))
        self.queues.push(lane, due, ident)
        return lane

    def complete(self, now: int, gpu: Any, batch: Any, finished: Any) -> None:
        """Batches came back, as columns: GPU (uint32), batch (uint64), end as measured (int64 ns).

        The GPU's free time is corrected by the end. A batch that is not out on that GPU (unknown,
        or done already) is counted in ``strange_completions`` and changes nothing; an end in the
        future counts as now.

        Raises:
            ValueError: columns of different lengths or types.
        """
        g = memoryview(gpu) if PLAIN else gpu
        b = memoryview(batch) if PLAIN else batch
        f = memoryview(finished) if PLAIN else finished
        n = len(g)
        if len(b) != n or len(f) != n:
            raise ValueError("columns of different lengths")
        now = self._clock(now)
        for i in range(n):
            if not PLAIN and i + 4 < n and g[i + 4] < self.gpus.capacity:
                self._foresee_gpu(g[i + 4])
            self._give_back(now, g[i], b[i], f[i])
        self._run(now)

    def _foresee_gpu(self, gpu: int) -> None:
        """Begin to bring into the cache what a completion looks at."""
        gpus = self.gpus
        plain.fetch_signed(gpus.cls, gpu)
        plain.fetch_signed(gpus.free_at, gpu)
        plain.fetch_signed(gpus.out_head, gpu)
        plain.fetch_signed(gpus.out_count, gpu)
        plain.fetch_signed(gpus.out_batch, gpu * DEPTH)
        plain.fetch_signed(gpus.out_exec, gpu * DEPTH)
        plain.fetch_signed(gpus.out_len, gpu * DEPTH)

    def report(self, now: int, gpu: int, batch: int, finished: int) -> None:
        """One batch came back: what :meth:`complete` does for columns of one."""
        now = self._clock(now)
        self._give_back(now, gpu, batch, finished)
        self._run(now)

    def _give_back(self, now: int, which: int, batch: int, ended: int) -> None:
        if ended > now or ended < 0:
            ended = now
        if self.tuner is not None and which < self.gpus.capacity:
            self._note_length(which, batch, ended)
        if which >= self.gpus.capacity or not self.gpus.give_back(which, batch, ended, now):
            self.strange_completions += 1

    def _note_length(self, which: int, batch: int, ended: int) -> None:
        """Add up, for the slow loop, by how much of its length (in 2^-20) the batch took longer than that.

        It began when it was told to, or when the one before it had ended: else the delay of a long batch
        would count as that of the short one behind it.
        """
        gpus = self.gpus
        i = which * DEPTH + gpus.out_head[which]
        length = gpus.out_len[i]
        if gpus.out_count[which] == 0 or gpus.out_batch[i] != batch:
            return
        start = gpus.out_exec[i]
        if start < self.ended[which]:
            start = self.ended[which]
        self.ended[which] = ended
        if not 0 < length < LONGEST >> 8:
            return
        took = ended - start
        if took < 0:
            took = 0
        if took > 2 * length:
            took = 2 * length
        over = (took << 20) // length - (1 << 20)
        self.ran += 1
        self.ran_over += over
        self.ran_squares += over * over

    def advance(self, now: int) -> None:
        """Time has passed: open windows, drop what expired, dispatch."""
        now = self._clock(now)
        self._run(now)

    def next_wakeup(self) -> int:
        """When :meth:`advance` is due next, later than the last event; NEVER (2^63 - 1) if it is not."""
        due = NEVER
        pending = self.pending
        while pending.size > 0 and self.lane_stage[pending.ids[0]]:
            self._firm(pending.ids[0])
        if pending.size > 0:
            due = pending.keys[0]
        for priority in range(PRIORITIES):
            ready = self.ready[priority]
            if ready.size > 0:
                if ready.keys[0] + 1 < due:
                    due = ready.keys[0] + 1
                # Lanes behind the first count only where it was passed over; else it claims every GPU.
                # Those may also wait for a busy GPU within reach that is claimed, until it is idle.
                for i in range(ready.size if self.skipped else 1):
                    lane = ready.ids[i]
                    reach = self.control + self.lane_size[lane] * self.data
                    free = self.gpus.next_free(self.lane_model[lane], self.now + reach)
                    if free >= 0 and free - reach < due:
                        due = free - reach
                    if self.skipped:
                        free = self.gpus.next_free(self.lane_model[lane], self.now)
                        if 0 <= free < due:
                            due = free
        return due if due > self.now else self.now + 1

    def queued_by_model(self, models: int) -> list[int]:
        """Requests that are queued for each of the first ``models`` models, over all priorities."""
        queued = [0] * models
        for lane in range(self.queues.lanes):
            model = self.lane_model[lane]
            if model < models:
                queued[model] += self.queues.count(lane)
        return queued

    def clear_actions(self) -> None:
        """Forget the actions that have been read."""
        self.actions.clear()
