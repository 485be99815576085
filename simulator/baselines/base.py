"""What the baselines share: queues in order of deadline, predicted free times of GPUs, sending."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import insort
from collections import deque

from simulator.system import NEVER, Cluster, Decisions, Sent

Request = tuple[int, int]
"""(finish-by in ns, key); finish-by = deadline − result latency − margin."""


class Base(ABC):
    """State and bookkeeping; a baseline adds its rule in :meth:`decide`.

    A batch is decided so that its inputs reach the GPU just when that becomes free: ``control +
    size·data`` ahead. That is in favour of the baselines, whose publications decide at the GPU or
    commit to more work ahead.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.decisions = Decisions()
        self.queues: list[list[Request]] = [[] for _ in cluster.models]
        self.queued = 0
        self.changes = [0] * len(cluster.models)  # of queues: what is known of one holds until its next
        self.free = [0] * len(cluster.gpu_type)
        self.out: list[deque[tuple[int, int, int]]] = [
            deque() for _ in cluster.gpu_type
        ]  # number, start, length
        self.number = 0
        self.wake = NEVER
        self.expires = NEVER  # no head of a queue expires if a GPU is free for it by then
        self.order = self._fast_first()
        self.fastest = [min(table[0] for table in model.latency) for model in cluster.models]
        self.one_type = len(set(cluster.gpu_type)) == 1
        self.of_type = {
            kind: [gpu for gpu, of in enumerate(cluster.gpu_type) if of == kind]
            for kind in sorted(set(cluster.gpu_type))
        }

    def _fast_first(self) -> list[int]:
        """GPUs by speed of their type (mean over the models of what a batch takes), then by number."""
        kinds = range(len(self.cluster.models[0].latency)) if self.cluster.models else range(0)
        slow = [sum(model.latency[kind][-1] for model in self.cluster.models) for kind in kinds]
        return sorted(range(len(self.free)), key=lambda gpu: (slow[self.cluster.gpu_type[gpu]], gpu))

    def submit(self, now: int, model: int, deadline: int, key: int) -> None:
        """A request arrives."""
        finish = deadline - self.cluster.result - self.cluster.margin
        queue = self.queues[model]
        if queue and queue[-1][0] > finish:
            insort(queue, (finish, key))
        else:
            queue.append((finish, key))
        self.queued += 1
        self.changes[model] += 1
        self.expires = min(self.expires, finish - self.fastest[model])
        self.decide(now)

    def complete(self, now: int, gpu: int, number: int, finished: int) -> None:
        """The GPU's predicted free time is corrected by the end as measured."""
        out = self.out[gpu]
        while out and out[0][0] <= number:
            out.popleft()
        free = finished
        for _, start, length in out:
            free = max(free, start) + length
        self.free[gpu] = free
        self.decide(now)

    def advance(self, now: int) -> None:
        """The wake-up has come."""
        self.decide(now)

    def next_wakeup(self) -> int:
        """As the last :meth:`decide` set it."""
        return self.wake

    @abstractmethod
    def decide(self, now: int) -> None:
        """Send, drop and preempt; set ``wake``, later than now."""

    def latency(self, model: int, gpu: int, size: int) -> int:
        """l(size) of the model on that GPU, ns."""
        return self.cluster.models[model].latency[self.cluster.gpu_type[gpu]][size - 1]

    def lead(self, size: int) -> int:
        """How long a batch is on its way to a GPU."""
        return self.cluster.control + size * self.cluster.data

    def start(self, now: int, gpu: int, size: int) -> int:
        """When a batch that is sent now would start."""
        return max(now + self.lead(size), self.free[gpu])

    def candidates(self, now: int) -> list[int]:
        """GPUs to look at, best first: the lowest-numbered free one, else the one that is free first.

        The publications do not say which of several free GPUs is taken; the lowest uses the fewest.
        With several types the fastest free GPU comes first, and all GPUs are candidates: what one
        type cannot serve in time another may.
        """
        if self.one_type:
            least = min(self.free)
            if least > now:
                return [self.free.index(least)]
            for gpu, free in enumerate(self.free):
                if free <= now:
                    return [gpu]
        return sorted(self.order, key=lambda gpu: max(self.free[gpu], now))

    def send(self, now: int, model: int, gpu: int, first: int, size: int, latest: int = NEVER) -> int:
        """Send ``size`` requests of the queue from position ``first``; returns the batch's number."""
        queue = self.queues[model]
        keys = [key for _, key in queue[first : first + size]]
        del queue[first : first + size]
        self.queued -= size
        self.changes[model] += 1
        start = self.start(now, gpu, size)
        length = self.latency(model, gpu, size)
        self.number += 1
        self.decisions.sent.append(Sent(self.number, model, gpu, keys, latest))
        self.out[gpu].append((self.number, start, length))
        self.free[gpu] = start + length
        return self.number

    def drop(self, model: int, size: int) -> None:
        """Give up the first ``size`` requests of the queue."""
        queue = self.queues[model]
        self.decisions.dropped += [key for _, key in queue[:size]]
        del queue[:size]
        self.queued -= size
        self.changes[model] += 1

    def drop_expired(self, now: int) -> None:
        """Give up what could not end in time even alone on the GPU where it would end first."""
        sent = now + self.cluster.control + self.cluster.data
        if self.one_type:
            start = max(sent, min(self.free))
            if start <= self.expires:
                return
            starts = {self.cluster.gpu_type[0]: start}
        else:
            starts = {
                kind: max(sent, min([self.free[gpu] for gpu in gpus])) for kind, gpus in self.of_type.items()
            }
        if max(starts.values()) <= self.expires:
            return
        self.expires = NEVER
        for model, queue in enumerate(self.queues):
            if queue:
                latency = self.cluster.models[model].latency
                ends = min([start + latency[kind][0] for kind, start in starts.items()])
                n = 0
                while n < len(queue) and queue[n][0] < ends:
                    n += 1
                if n:
                    self.drop(model, n)
                if queue:
                    self.expires = min(self.expires, queue[0][0] - self.fastest[model])
