"""Shepherd's FLEX: the largest batch first, and preemption for one that is three times as large.

Source: Zhang et al., "SHEPHERD: Serving DNNs in the Wild", NSDI 2023, by its abstract and by the
re-implementation of FLEX that Symphony's authors published (``flex_scheduler.cpp``), which quotes the
paper's algorithm line by line, with what Shepherd's authors said about it. The paper's own text was
not at hand.

Rule. A model's candidate is its largest feasible batch. A GPU that becomes free takes the largest
candidate of all models. When a request arrives, every GPU is looked at in turn: a free one takes the
largest candidate; a busy one is preempted if the candidate is at least λ = 3.03 times as large as the
batch that it runs. If that runs the same model, its requests are part of the candidate. The work of a
preempted batch is lost, and its requests are treated as new arrivals. A request that cannot be met
even alone is dropped.

Largest feasible, two readings. ``shepherd``: what its authors said they meant: the size is found from
the latest deadlines backwards, and filled with the earliest deadlines that such a batch meets.
``shepherd-head``: the pseudocode: requests are added in order of deadline until one more would be too
late for the first. Neither is better everywhere: the second carries up to 2 % more where one model has
all GPUs, 8 % less with eight models, and collapses above saturation; so both can be compared.

Choices in its favour: one group holds all models and all GPUs, so nothing is lost to the periodic
partition (HERD); the next batch is sent so that it arrives just as the GPU becomes free; preemption
takes effect at once when the order arrives; of the busy GPUs the one with the smallest batch is
preempted, not the first that qualifies.
"""

from __future__ import annotations

from bisect import bisect_left

from simulator.system import NEVER, Cluster

from .base import Base, Request

LAMBDA = 3.03
"""The published threshold of preemption."""

Known = tuple[tuple[int, int, int], int, int, int]
"""A model's largest batch, as size and first position: for which state of its queue, GPU's free time (ns)
and type, and until when (ns) it does not depend on the time: as long as inputs would be there first."""


class Shepherd(Base):
    """FLEX over all GPUs."""

    def __init__(self, cluster: Cluster, threshold: float = LAMBDA, from_head: bool = False) -> None:
        super().__init__(cluster)
        self.threshold = threshold
        self.from_head = from_head
        self.batches: dict[int, tuple[int, int, list[Request]]] = {}  # number → model, GPU, requests
        self.smallest = 0  # no batch in there is smaller
        self.known: list[Known | None] = [None] * len(cluster.models)

    def complete(self, now: int, gpu: int, number: int, finished: int) -> None:
        """Its requests are no longer held back for a preemption."""
        if number in self.batches:
            self._forget(number)
        super().complete(now, gpu, number, finished)

    def decide(self, now: int) -> None:
        """Fill GPUs that are free, then preempt."""
        self.wake = NEVER
        known = self.number
        while self.queued:
            self.drop_expired(now)
            longest = max(map(len, self.queues))
            opens = min(self.free) - self.lead(longest)
            if opens > now:  # for no batch is it time, whatever its size
                self.wake = opens
                self._preempt(now, known)
                return
            for gpu in self.candidates(now):
                found = self.candidate(now, gpu)
                if found is None:
                    continue
                size, model, first = found
                opens = self.free[gpu] - self.lead(size)
                if opens > now:
                    self.wake = min(self.wake, opens)
                    self._preempt(now, known)
                    return
                self._run(now, model, gpu, first, size)
                break
            else:
                return

    def candidate(self, now: int, gpu: int) -> tuple[int, int, int] | None:
        """The largest candidate on that GPU: (size, model, first position); ties to the lowest model."""
        best: tuple[int, int, int] | None = None
        for model, queue in enumerate(self.queues):
            if queue and (best is None or len(queue) > best[0]):
                state = self.changes[model], self.free[gpu], self.cluster.gpu_type[gpu]
                known = self.known[model]
                if known is None or known[0] != state or known[1] < now:
                    size, first = self._largest(queue, model, gpu, self.free[gpu], now)
                    known = state, self.free[gpu] - self.lead(len(queue)), size, first
                    self.known[model] = known
                _, _, size, first = known
                if size and (best is None or size > best[0]):
                    best = size, model, first
        return best

    def _largest(self, queue: list[Request], model: int, gpu: int, free: int, now: int) -> tuple[int, int]:
        """Size of the largest feasible batch of this queue and where its first request stands."""
        kind = self.cluster.gpu_type[gpu]
        table = self.cluster.models[model].latency[kind]
        control, data = now + self.cluster.control, self.cluster.data
        begin = 0
        if self.from_head:
            begin = bisect_left(queue, (max(control + data, free) + table[0], 0))
        low, high = 0, min(len(queue) - begin, len(table))
        while low < high:
            mid = (low + high + 1) // 2
            ends = max(control + mid * data, free) + table[mid - 1]
            if queue[begin if self.from_head else -mid][0] >= ends:
                low = mid
            else:
                high = mid - 1
        if not low or self.from_head:
            return low, begin
        return low, bisect_left(queue, (max(control + low * data, free) + table[low - 1], 0))

    def _run(self, now: int, model: int, gpu: int, first: int, size: int) -> None:
        requests = self.queues[model][first : first + size]
        number = self.send(now, model, gpu, first, size)
        self.smallest = min(self.smallest, size) if self.batches else size
        self.batches[number] = (model, gpu, requests)

    def _forget(self, number: int) -> None:
        """The batch is no longer on its GPU."""
        if len(self.batches.pop(number)[2]) == self.smallest:
            self.smallest = min([len(requests) for _, _, requests in self.batches.values()], default=0)

    def _preempt(self, now: int, known: int) -> None:
        """Kill the smallest running batch for a candidate that is λ times as large, while there is one.

        Batches with numbers above ``known`` were sent by this very decision.
        """
        longest = max(map(len, self.queues))
        while self.queued and longest >= (self.threshold - 1) * self.smallest:
            running = [
                (len(requests), number)
                for number, (_, gpu, requests) in self.batches.items()
                if longest >= (self.threshold - 1) * len(requests)
                and number <= known
                and len(self.out[gpu]) == 1
            ]
            if not running:
                return
            small, number = min(running)
            model, gpu, requests = self.batches[number]
            found: tuple[int, int, int] | None = None
            for other, queue in enumerate(self.queues):
                # A batch of the same model is part of what could run in its place.
                whole = sorted(queue + requests) if other == model else queue
                if whole and (found is None or len(whole) > found[0]):
                    size, first = self._largest(whole, other, gpu, 0, now)
                    if size and (found is None or size > found[0]):
                        found = size, other, first
            if found is None or found[0] < self.threshold * small:
                return
            size, chosen, first = found
            self.decisions.preempted.append(number)
            self._forget(number)
            self.out[gpu].clear()
            self.free[gpu] = now
            self.queues[model] = sorted(self.queues[model] + requests)
            self.changes[model] += 1
            self.queued += len(requests)
            self._run(now, chosen, gpu, first, size)
            self.drop_expired(now)
