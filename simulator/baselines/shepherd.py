"""Shepherd's FLEX: the largest batch first, and preemption for one that is three times as large.

Source: Zhang et al., "SHEPHERD: Serving DNNs in the Wild", NSDI 2023, section 4.2 (FLEX).

Rule. A model's candidate is its largest feasible batch: the largest k for which k queued requests
would end by their deadlines if run now. A GPU that becomes free takes the largest candidate of all
models. When a candidate is at least λ = 3.03 times as large as a batch that is running, that batch is
preempted: its work is lost, its requests go back into their queue, and the candidate runs in its
place. A request that cannot be met even alone is dropped.

Choices in its favour: one group holds all models and all GPUs, so nothing is lost to the periodic
partition (HERD); the next batch is sent so that it arrives just as the GPU becomes free; of the
requests that could be in a batch of k, those with the earliest deadlines are taken; preemption takes
effect at once when the order arrives; the smallest running batch is the one that is preempted.
"""

from __future__ import annotations

from bisect import bisect_left

from simulator.system import NEVER, Cluster

from .base import Base, Request

LAMBDA = 3.03
"""The published threshold of preemption."""


class Shepherd(Base):
    """FLEX over all GPUs."""

    def __init__(self, cluster: Cluster, threshold: float = LAMBDA) -> None:
        super().__init__(cluster)
        self.threshold = threshold
        self.batches: dict[int, tuple[int, int, list[Request]]] = {}  # number → model, GPU, requests

    def complete(self, now: int, gpu: int, number: int, finished: int) -> None:
        """Its requests are no longer held back for a preemption."""
        self.batches.pop(number, None)
        super().complete(now, gpu, number, finished)

    def decide(self, now: int) -> None:
        """Fill GPUs that are free, then preempt."""
        self.wake = NEVER
        while self.queued:
            self.drop_expired(now)
            gpu = self.earliest(now)
            found = self.candidate(now, gpu)
            if found is None:
                break
            size, model, first = found
            opens = self.free[gpu] - self.lead(size)
            if opens > now:
                self.wake = opens
                self._preempt(now)
                return
            self._run(now, model, gpu, first, size)

    def candidate(self, now: int, gpu: int, at_once: bool = False) -> tuple[int, int, int] | None:
        """The largest candidate on that GPU: (size, model, first position); ties to the lowest model.

        ``at_once``: as if the GPU were free now, for a preemption.
        """
        best: tuple[int, int, int] | None = None
        for model, queue in enumerate(self.queues):
            if not queue:
                continue
            low, high = 0, min(len(queue), self.cluster.models[model].max_batch)
            while low < high:
                mid = (low + high + 1) // 2
                if queue[-mid][0] >= self._ends(now, model, gpu, mid, at_once):
                    low = mid
                else:
                    high = mid - 1
            if low and (best is None or low > best[0]):
                ends = self._ends(now, model, gpu, low, at_once)
                best = (low, model, bisect_left(queue, (ends, 0)))
        return best

    def _ends(self, now: int, model: int, gpu: int, size: int, at_once: bool) -> int:
        start = now + self.lead(size) if at_once else self.start(now, gpu, size)
        return start + self.latency(model, gpu, size)

    def _run(self, now: int, model: int, gpu: int, first: int, size: int) -> None:
        requests = self.queues[model][first : first + size]
        number = self.send(now, model, gpu, first, size)
        self.batches[number] = (model, gpu, requests)

    def _preempt(self, now: int) -> None:
        """Kill the smallest running batch for a candidate that is λ times as large, while there is one."""
        while True:
            running = [
                (len(requests), number)
                for number, (_, gpu, requests) in self.batches.items()
                if len(self.out[gpu]) == 1
            ]
            victim = min(running, default=None)
            if victim is None:
                return
            small, number = victim
            model, gpu, requests = self.batches[number]
            found = self.candidate(now, gpu, at_once=True)
            if found is None or found[0] < self.threshold * small:
                return
            size, chosen, first = found
            # Take the candidate out before the victim's requests come back: they are not part of it.
            self.decisions.preempted.append(number)
            del self.batches[number]
            self.out[gpu].clear()
            self.free[gpu] = now
            self._run(now, chosen, gpu, first, size)
            self.queues[model] = sorted(self.queues[model] + requests)
            self.queued += len(requests)
            self.drop_expired(now)
