# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Drives a core through a column of arrivals in virtual time, with the GPUs behind it.

Events that fall together come in this order: completions, arrivals, timers. Every arrival is
submitted at its own time, and every completion reported at its own. Where ``tick_ns`` is set, those of a
tick come together at its end, as frontends that coalesce send them and as a shard reads what has
gathered in its sockets once in a turn.

A GPU runs its batches in the order in which they came: a batch starts when it and its inputs have
arrived and the batch before it has ended; its completion reaches the core ``report_ns`` later.

Completions of a tick come by GPU. So with ticks, those of the next TICKS are not kept in order: each tick
has a list of its GPUs, which are put in order when it comes.
"""

from __future__ import annotations

from array import array
from typing import Any

from .actions import Actions
from .columns import widen
from .heap import Heap
from .limits import DEPTH, NEVER, TICKS
from .machine import Core
from .numbers import Numbers


class Replay:
    """One run of one core; give arrivals to :meth:`run` in pieces, then :meth:`finish`.

    Columns over all batches so far, in the order of their numbers: ``decided``, ``start``, ``end``
    (int64 ns; ``batches`` entries are valid). What the core decided stays in its ``actions`` until
    the caller clears them through :meth:`clear`.

    Args:
        core: a fresh core with its models and GPUs; batch numbers begin at 0.
        gpus: one more than the largest GPU number.
        control_ns, data_ns: true latencies; the core believes its own.
        report_ns: from a batch's end to the core's notice of it.
        tick_ns: 0, or the length of the ticks whose arrivals and completions come together.
        control_extra: int64 ns, added to the latency of batch i as entry i modulo the number of entries,
            which is a power of two.
        length_ppm: int64, the true length of batch i in millionths of its profile's, in the same way.
    """

    def __init__(
        self,
        core: Core,
        gpus: int,
        control_ns: int,
        data_ns: int,
        report_ns: int,
        tick_ns: int,
        control_extra: Any,
        length_ppm: Any,
    ) -> None:
        self.core = core
        self.control = control_ns
        self.data = data_ns
        self.report = report_ns
        self.tick = tick_ns
        self.control_extra = control_extra
        self.length_ppm = length_ppm
        self.mask = len(length_ppm) - 1
        self.reports = Heap(gpus)
        self.turn = 0
        self.turns = Numbers(TICKS)
        self.first = array("q", [-1]) * TICKS
        self.following = array("q", bytes(8 * gpus))
        self.due = Numbers(gpus)
        self.free = array("q", bytes(8 * gpus))
        self.out_head = array("q", bytes(8 * gpus))
        self.out_count = array("q", bytes(8 * gpus))
        self.out_batch = array("q", bytes(8 * gpus * DEPTH))
        self.out_end = array("q", bytes(8 * gpus * DEPTH))
        self.seen = 0
        self.batches = 0
        self.decided = array("q", bytes(8 * 256))
        self.start = array("q", bytes(8 * 256))
        self.end = array("q", bytes(8 * 256))
        self.events = 0
        self.back_gpu = array("I", bytes(4 * 64))
        self.back_batch = array("Q", bytes(8 * 64))
        self.back_end = array("q", bytes(8 * 64))

    def clear(self) -> None:
        """Forget what has been read: the core's actions and the columns here."""
        self.core.clear_actions()
        self.seen = 0
        self.batches = 0

    def run(self, at: Any, model: Any, deadline: Any, key: Any) -> None:
        """Submit these arrivals and do everything that is due before the last of them.

        Args:
            at: int64 ns, when each reaches the core; never falling, nor before those of the last call.
            model, deadline, key: uint32, int64 and uint64, as ``Core.submit`` takes them.
        """
        t = memoryview(at)
        m = memoryview(model)
        d = memoryview(deadline)
        k = memoryview(key)
        core = self.core
        n = len(t)
        i = 0
        while i < n:
            now = t[i]
            if self.tick > 0:
                now = (now + self.tick - 1) // self.tick * self.tick
            self._until(now)
            self.events += 1
            if self.tick > 0:
                j = i + 1
                while j < n and t[j] <= now:
                    j += 1
                core.submit(now, m[i:j], d[i:j], k[i:j])
                i = j
            else:
                core.arrive(now, m[i], d[i], k[i])
                i += 1
            if core.actions.dispatched > self.seen:
                self._execute(now)

    def until(self, now: int) -> None:
        """Do everything that is due before ``now``, and carry out what the core has decided at ``now``.

        Called before and after the core is told at ``now`` of something that is no arrival: a GPU that
        joins, drains or leaves.
        """
        self._until(now)
        if self.core.actions.dispatched > self.seen:
            self._execute(now)

    def finish(self) -> None:
        """No more arrivals: go on until nothing is queued and everything has come back."""
        self._until(NEVER)

    def _until(self, limit: int) -> None:
        """All completions up to and with ``limit``, all timers before it."""
        core = self.core
        while True:
            timer = core.next_wakeup()
            now = self._next_report()
            if now <= limit and now <= timer and now < NEVER:
                if self.tick > 0:
                    self._report_all(now)
                else:
                    gpu = self.reports.ids[0]
                    first = self._back(gpu)
                    if self.out_count[gpu] > 0:
                        self._expect(gpu)
                    else:
                        self.reports.discard(gpu)
                    core.report(now, gpu, self.out_batch[first], self.out_end[first])
            elif timer < limit:
                now = timer
                core.advance(now)
            else:
                return
            self.events += 1
            if core.actions.dispatched > self.seen:
                self._execute(now)

    def _next_report(self) -> int:
        """When the next completion reaches the core; NEVER if none is to come."""
        due = NEVER
        if self.reports.size > 0:
            due = self.reports.keys[0]
        if self.turns.size > 0:
            at = self.turns.next(self.turn & (TICKS - 1))
            if at < 0:
                at = self.turns.first()
            at = (self.turn + ((at - self.turn) & (TICKS - 1))) * self.tick
            if at < due:
                due = at
        return due

    def _back(self, gpu: int) -> int:
        """The oldest batch of a GPU is back; returns where it stands in ``out_batch`` and ``out_end``."""
        first = gpu * DEPTH + self.out_head[gpu]
        self.out_head[gpu] = (self.out_head[gpu] + 1) % DEPTH
        self.out_count[gpu] -= 1
        return first

    def _expect(self, gpu: int) -> None:
        """List the oldest batch that is out on a GPU, of which there is one."""
        due = self.out_end[gpu * DEPTH + self.out_head[gpu]] + self.report
        if self.tick == 0:
            self.reports.put(gpu, due)
            return
        turn = (due + self.tick - 1) // self.tick
        if turn - self.turn >= TICKS:
            self.reports.put(gpu, turn * self.tick)
            return
        at = turn & (TICKS - 1)
        self.following[gpu] = self.first[at]
        self.first[at] = gpu
        self.turns.put(at)

    def _gather(self, now: int) -> None:
        """Bring together in ``due`` the GPUs whose reports are due at the end of this tick."""
        self.turn = now // self.tick
        at = self.turn & (TICKS - 1)
        gpu = self.first[at]
        while gpu >= 0:
            self.due.put(gpu)
            gpu = self.following[gpu]
        self.first[at] = -1
        self.turns.discard(at)
        while self.reports.size > 0 and self.reports.keys[0] <= now:
            gpu = self.reports.ids[0]
            self.due.put(gpu)
            self.reports.discard(gpu)

    def _report_all(self, now: int) -> None:
        """Tell the core of every batch whose report is due at the end of this tick."""
        self._gather(now)
        due = self.due
        n = 0
        while due.size > 0:
            gpu = due.first()
            first = self._back(gpu)
            if n == len(self.back_end):
                self.back_gpu = widen("I", self.back_gpu, n)
                self.back_batch = widen("Q", self.back_batch, n)
                self.back_end = widen("q", self.back_end, n)
            self.back_gpu[n] = gpu
            self.back_batch[n] = self.out_batch[first]
            self.back_end[n] = self.out_end[first]
            n += 1
            # Its next batch may have ended in the same tick.
            if self.out_count[gpu] == 0:
                due.discard(gpu)
            elif self.out_end[gpu * DEPTH + self.out_head[gpu]] + self.report > now:
                due.discard(gpu)
                self._expect(gpu)
        gpus = memoryview(self.back_gpu)
        batches = memoryview(self.back_batch)
        ends = memoryview(self.back_end)
        self.core.complete(now, gpus[:n], batches[:n], ends[:n])

    def _execute(self, now: int) -> None:
        """Run the batches that the last event sent out."""
        actions: Actions = self.core.actions
        while self.seen < actions.dispatched:
            i = self.seen
            self.seen = i + 1
            batch = actions.batch[i]
            gpu = actions.gpu[i]
            at = batch & self.mask
            start = now + self.control + actions.size[i] * self.data + self.control_extra[at]
            if start < self.free[gpu]:
                start = self.free[gpu]
            length = actions.finish_at[i] - actions.exec_at[i]
            # In two steps, so that the product stays below 2^63 for lengths up to an hour; no negative
            # operand, because C and Python round those differently.
            length = (length // 1000) * self.length_ppm[at] // 1000 + length % 1000
            end = start + length
            self.free[gpu] = end
            slot = gpu * DEPTH + (self.out_head[gpu] + self.out_count[gpu]) % DEPTH
            self.out_batch[slot] = batch
            self.out_end[slot] = end
            self.out_count[gpu] += 1
            if self.out_count[gpu] == 1:
                self._expect(gpu)
            n = self.batches
            if n == len(self.start):
                self.decided = widen("q", self.decided, n)
                self.start = widen("q", self.start, n)
                self.end = widen("q", self.end, n)
            self.decided[n] = now
            self.start[n] = start
            self.end[n] = end
            self.batches = n + 1
