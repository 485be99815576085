# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""The GPUs of a sub-cluster: which are idle, when the busy ones are free, what is still out.

GPUs that have the same type and hold the same models form a class. Each class keeps its idle GPUs by
number and its busy ones by predicted free time: one class costs one look, whatever the number of GPUs.
"""

from __future__ import annotations

from array import array

from .columns import widen
from .heap import Heap
from .limits import ABSENT, DEPTH, DRAINING, LIVE
from .numbers import Numbers


class Gpus:
    """Memory: about 150 bytes per GPU, and 24 per GPU and class."""

    def __init__(self, overdue_ns: int = 0) -> None:
        self.capacity = 0
        self.count = 0
        self.overdue_ns = overdue_ns
        self.state = array("b")
        self.stuck = array("b")
        self.cls = array("q")
        self.free_at = array("q")
        self.margin = array("q")
        self.out_head = array("q")
        self.out_count = array("q")
        self.out_batch = array("q")
        self.out_exec = array("q")
        self.out_len = array("q")
        self.classes = 0
        self.class_type = array("q")
        self.class_live = array("q")
        self.class_models: list[frozenset[int] | None] = []
        self.models = 0
        self.holds = array("b")
        self.idle: list[Numbers] = []
        self.busy: list[Heap] = []
        self.claimed = array("b")
        self.aside: list[int] = []
        self.spare = 0
        self.guard_ns = 0

    def reserve_gpus(self, capacity: int) -> None:
        """Allow GPU numbers below ``capacity``."""
        more = capacity - self.capacity
        if more <= 0:
            return
        self.capacity = capacity
        self.state = widen("b", self.state, more)
        self.stuck = widen("b", self.stuck, more)
        self.cls = widen("q", self.cls, more, -1)
        self.free_at = widen("q", self.free_at, more)
        self.margin = widen("q", self.margin, more)
        self.out_head = widen("q", self.out_head, more)
        self.out_count = widen("q", self.out_count, more)
        self.out_batch = widen("q", self.out_batch, DEPTH * more)
        self.out_exec = widen("q", self.out_exec, DEPTH * more)
        self.out_len = widen("q", self.out_len, DEPTH * more)
        for c in range(self.classes):
            self.idle[c].reserve(capacity)
            self.busy[c].reserve(capacity)

    def reserve_models(self, models: int) -> None:
        """Allow model numbers below ``models``."""
        if models > self.models:
            self.models = models
            self._fill_holds()

    def _fill_holds(self) -> None:
        flags = bytearray(self.classes * self.models)
        for c in range(self.classes):
            held = self.class_models[c]
            for m in range(self.models):
                flags[c * self.models + m] = held is None or m in held
        self.holds = array("b", bytes(flags))

    def class_of(self, gpu_type: int, models: frozenset[int] | None) -> int:
        """The class of GPUs of that type that hold these models (None: every model)."""
        for c in range(self.classes):
            if self.class_type[c] == gpu_type and self.class_models[c] == models:
                return c
        for c in range(self.classes):
            if self.class_live[c] == 0:  # an empty class is used again, so their number stays bounded
                self.class_type[c] = gpu_type
                self.class_models[c] = models
                self._fill_holds()
                return c
        self.classes += 1
        self.class_type = widen("q", self.class_type, 1, gpu_type)
        self.class_live = widen("q", self.class_live, 1, 0)
        self.class_models.append(models)
        self.claimed = widen("b", self.claimed, 1)
        self.idle.append(Numbers(self.capacity))
        self.busy.append(Heap(self.capacity))
        self._fill_holds()
        return self.classes - 1

    def join(self, gpu: int, c: int, now: int) -> None:
        """A new GPU, idle."""
        self.state[gpu] = LIVE
        self.stuck[gpu] = 0
        self.cls[gpu] = c
        self.class_live[c] += 1
        self.count += 1
        self.free_at[gpu] = now
        self.margin[gpu] = 0
        self.out_count[gpu] = 0
        self.out_head[gpu] = 0
        self._list(gpu, now)

    def leave(self, gpu: int) -> None:
        """Forget the GPU and what is out on it."""
        self._unlist(gpu)
        if self.state[gpu] == LIVE:
            self.class_live[self.cls[gpu]] -= 1
        self.state[gpu] = ABSENT
        self.out_count[gpu] = 0
        self.count -= 1

    def drain(self, gpu: int) -> None:
        """No more batches for it; what is out may finish."""
        if self.state[gpu] == LIVE:
            self._unlist(gpu)
            self.class_live[self.cls[gpu]] -= 1
            self.state[gpu] = DRAINING

    def move(self, gpu: int, c: int, now: int) -> None:
        """The GPU holds other models now."""
        old = self.cls[gpu]
        if self.state[gpu] == LIVE:
            self._unlist(gpu)
            self.class_live[old] -= 1
            self.class_live[c] += 1
        self.cls[gpu] = c
        if self.state[gpu] == LIVE:
            self._list(gpu, now)

    def _unlist(self, gpu: int) -> None:
        c = self.cls[gpu]
        idle = self.idle[c]
        idle.discard(gpu)
        busy = self.busy[c]
        busy.discard(gpu)

    def _list(self, gpu: int, now: int) -> None:
        c = self.cls[gpu]
        if self.state[gpu] != LIVE or self.stuck[gpu]:
            return
        if self.free_at[gpu] <= now:
            busy = self.busy[c]
            busy.discard(gpu)
            idle = self.idle[c]
            idle.put(gpu)
        else:
            idle = self.idle[c]
            idle.discard(gpu)
            busy = self.busy[c]
            busy.put(gpu, self.free_at[gpu])

    def settle(self, now: int) -> None:
        """Busy GPUs whose predicted free time has come become idle."""
        for c in range(self.classes):
            busy = self.busy[c]
            while busy.size > 0 and busy.keys[0] <= now:
                gpu = busy.ids[0]
                busy.discard(gpu)
                idle = self.idle[c]
                idle.put(gpu)

    def overdue(self, gpu: int, now: int) -> bool:
        """Whether the oldest batch that is out should have been reported long ago."""
        if self.overdue_ns == 0 or self.out_count[gpu] == 0:
            return False
        i = gpu * DEPTH + self.out_head[gpu]
        return now - (self.out_exec[i] + self.out_len[i]) > self.overdue_ns

    def _first_idle(self, c: int, now: int) -> int:
        """The lowest-numbered idle GPU, -1 without one; those that are overdue leave the class first."""
        idle = self.idle[c]
        while idle.size > 0:
            gpu = idle.first()
            if not self.overdue(gpu, now):
                return gpu
            self.stuck[gpu] = 1
            idle.discard(gpu)
        return -1

    def _skip_overdue(self, heap: Heap, now: int) -> None:
        """Take GPUs whose oldest batch is overdue from the top of the heap until they report."""
        while heap.size > 0 and self.overdue(heap.ids[0], now):
            self.stuck[heap.ids[0]] = 1
            heap.discard(heap.ids[0])

    def pick(self, now: int, model: int, reach: int, tried: int) -> int:
        """The lowest-numbered idle GPU that holds the model; else the first to be free, if by ``reach``.

        -1 if there is none. GPUs of the types in the bit mask ``tried`` do not count, nor those whose
        oldest batch is overdue, nor busy ones of claimed classes. (Idle ones do: the lane with the claim
        would have taken them if they could serve it.)
        """
        best = -1
        for c in range(self.classes):
            if self.holds[c * self.models + model] and (tried >> self.class_type[c]) & 1 == 0:
                gpu = self._first_idle(c, now)
                if gpu >= 0 and (best < 0 or gpu < best):
                    best = gpu
        if best >= 0:
            return best
        free = 0
        for c in range(self.classes):
            if (
                self.holds[c * self.models + model]
                and self.claimed[c] == 0
                and (tried >> self.class_type[c]) & 1 == 0
            ):
                heap = self.busy[c]
                self._skip_overdue(heap, now)
                if heap.size > 0 and heap.keys[0] <= reach:
                    gpu = heap.ids[0]
                    if best < 0 or heap.keys[0] < free or (heap.keys[0] == free and gpu < best):
                        best = gpu
                        free = heap.keys[0]
        return best

    def claim(self, model: int, tried: int) -> bool:
        """A lane waits for these GPUs: the lanes behind it must not take them ahead with a longer reach.

        The claim is on all classes that hold the model, but for the types in ``tried``, until
        :meth:`release`. Returns whether a class with GPUs is left unclaimed.
        """
        left = False
        for c in range(self.classes):
            if self.holds[c * self.models + model] and (tried >> self.class_type[c]) & 1 == 0:
                self.claimed[c] = 1
            elif self.class_live[c] > 0 and self.claimed[c] == 0:
                left = True
        return left

    def release(self) -> None:
        """No claims any more."""
        for c in range(self.classes):
            self.claimed[c] = 0

    def set_aside(self, gpu: int) -> None:
        """:meth:`pick` passes the GPU over until :meth:`restore`."""
        idle = self.idle[self.cls[gpu]]
        self.aside.append(2 * gpu + idle.has(gpu))
        self._unlist(gpu)

    def restore(self) -> None:
        """GPUs that were set aside can be picked again."""
        while self.aside:
            entry = self.aside.pop()
            gpu = entry >> 1
            if entry & 1:
                idle = self.idle[self.cls[gpu]]
                idle.put(gpu)
            else:
                heap = self.busy[self.cls[gpu]]
                heap.put(gpu, self.free_at[gpu])

    def taker_type(self, now: int, model: int, tried: int) -> int:
        """Type of the GPU that would take the model: lowest idle, else first to be free; -1 if none.

        GPUs of the types in the bit mask ``tried`` do not count.
        """
        best = -1
        kind = -1
        for c in range(self.classes):
            if self.holds[c * self.models + model] and (tried >> self.class_type[c]) & 1 == 0:
                gpu = self._first_idle(c, now)
                if gpu >= 0 and (best < 0 or gpu < best):
                    best = gpu
                    kind = self.class_type[c]
        if best >= 0:
            return kind
        free = 0
        for c in range(self.classes):
            if self.holds[c * self.models + model] and (tried >> self.class_type[c]) & 1 == 0:
                heap = self.busy[c]
                self._skip_overdue(heap, now)
                if heap.size > 0 and (
                    best < 0 or heap.keys[0] < free or (heap.keys[0] == free and heap.ids[0] < best)
                ):
                    best = heap.ids[0]
                    free = heap.keys[0]
                    kind = self.class_type[c]
        return kind

    def next_free(self, model: int, after: int) -> int:
        """Smallest predicted free time later than ``after`` at the top of a class that holds the model.

        -1 if there is none.
        """
        best = -1
        for c in range(self.classes):
            if self.holds[c * self.models + model]:
                heap = self.busy[c]
                if heap.size > 0 and heap.keys[0] > after and (best < 0 or heap.keys[0] < best):
                    best = heap.keys[0]
        return best

    def room(self, now: int, model: int, guard: int) -> bool:
        """Whether the model may start a batch early, for the sake of the others.

        If no GPU is free; or if more than ``spare`` are, and ``guard`` beside the one that it would
        take are free or will be within ``guard_ns``.
        """
        if guard == 0 and self.spare == 0:
            return True
        free = self.free_by(now, model, now, (guard if guard > self.spare else self.spare) + 1)
        if free == 0:
            return True
        if free <= self.spare:
            return False
        return free > guard or self.free_by(now, model, now + self.guard_ns, guard + 1) > guard

    def free_by(self, now: int, model: int, until: int, enough: int) -> int:
        """How many GPUs that hold the model are idle or free at ``until``, by prediction; at most ``enough``.

        Those whose oldest batch is overdue do not count.
        """
        found = 0
        for c in range(self.classes):
            if self.holds[c * self.models + model] == 0:
                continue
            idle = self.idle[c]
            if self.overdue_ns == 0:
                found = min(enough, found + idle.size)
            else:
                gpu = idle.next(0)
                while gpu >= 0 and found < enough:
                    if not self.overdue(gpu, now):
                        found += 1
                    gpu = idle.next(gpu + 1)
            i = 0
            heap = self.busy[c]
            i = 0
            while found < enough and until > now:  # down the heap, as far as its keys are small enough
                if i < heap.size and heap.keys[i] <= until:
                    if not self.overdue(heap.ids[i], now):
                        found += 1
                    i = 2 * i + 1
                    continue
                while i > 0 and i & 1 == 0:  # from a right child, or beyond one, back up
                    i = (i - 1) >> 1
                if i == 0:
                    break
                i += 1
        return found

    def take(self, gpu: int, batch: int, exec_at: int, length: int) -> None:
        """A batch goes out; there must be room (``out_count`` below DEPTH)."""
        i = gpu * DEPTH + (self.out_head[gpu] + self.out_count[gpu]) % DEPTH
        self.out_batch[i] = batch
        self.out_exec[i] = exec_at
        self.out_len[i] = length
        self.out_count[gpu] += 1
        self.free_at[gpu] = exec_at + length
        c = self.cls[gpu]
        idle = self.idle[c]
        idle.discard(gpu)
        heap = self.busy[c]
        if self.out_count[gpu] == DEPTH:
            self.stuck[gpu] = 1
            heap.discard(gpu)
        else:
            heap.put(gpu, exec_at + length)

    def give_back(self, gpu: int, batch: int, finished: int, now: int) -> bool:
        """A batch came back: it and the older ones are no longer out, the free time is corrected.

        Returns False if no such batch is out on the GPU.
        """
        head = self.out_head[gpu]
        n = self.out_count[gpu]
        at = 0
        while at < n and self.out_batch[gpu * DEPTH + (head + at) % DEPTH] != batch:
            at += 1
        if at == n:
            return False
        at += 1
        self.out_head[gpu] = (head + at) % DEPTH
        self.out_count[gpu] = n - at
        free = finished
        for k in range(at, n):
            i = gpu * DEPTH + (head + k) % DEPTH
            if self.out_exec[i] > free:
                free = self.out_exec[i]
            free += self.out_len[i]
        self.free_at[gpu] = free
        self.stuck[gpu] = 0
        self._list(gpu, now)
        return True
