"""Clockwork: a central controller that plans every GPU's next action and rejects the rest in advance.

Source: the controller of the published system (Gujarati et al., "Serving DNNs like Clockwork",
OSDI 2020), as its program has it: schedulers INFER5 (``infer5_scheduler.cpp``) and INFER4, read in
mirrors of the authors' repository. The paper's own text was not at hand.

Rule. A batch has 1, 2, 4, 8 or 16 requests. Each model has one queue per size, and from the queue of
size b those requests are taken out that could not end in time in a batch of b started when the GPU is
free; so the queue of b begins behind requests that still are in the queues of smaller sizes. The
largest size whose queue can fill it is the one that runs, with the first b of its queue; requests
before the last of them leave all queues and are lost. Among models, the strategy with the earliest
required start (deadline of its queue's head less the batch's latency) goes first. Work-conserving: a
free GPU never waits for a batch to grow. A request that cannot be met even alone is rejected at once.
An action has a latest start, and the worker discards it, unexecuted, after that.

Choices in its favour: all models are in GPU memory, so there are no LOAD actions; an action is
scheduled as late as its transfer allows and not 10 ms ahead, so batches are formed with more
knowledge; deadlines are not taken 5 ms early, as the program does; its estimates are the profiles
themselves; ``clockwork:N`` allows batches of powers of two up to N, beyond the published 16.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from simulator.system import NEVER, Cluster

from .base import Base

PUBLISHED_LARGEST = 16

Known = tuple[tuple[int, int, int], int, tuple[int, int, int, int] | None]
"""A model's strategy: for which state of its queue, GPU's free time (ns) and type, and until when (ns) the
passing of time does not change it: as long as its inputs would be there before the GPU is free."""


class Clockwork(Base):
    """The controller; ``largest``: the largest batch, a power of two."""

    def __init__(self, cluster: Cluster, largest: int = PUBLISHED_LARGEST) -> None:
        super().__init__(cluster)
        self.sizes = [1 << i for i in range(largest.bit_length()) if 1 << i <= largest]
        self.downwards = self.sizes[::-1]
        self.known: list[Known | None] = [None] * len(cluster.models)

    def decide(self, now: int) -> None:
        """Give every GPU that is open its next action."""
        self.wake = NEVER
        while self.queued:
            self.drop_expired(now)
            opens = min(self.free) - self.lead(self.sizes[-1])
            if opens > now:
                self.wake = opens
                return
            for gpu in self.candidates(now):
                found = self.strategy(now, gpu)
                if found is None:
                    continue  # a slower GPU than the one for which what waits is kept
                _, model, size, first = found
                opens = self.free[gpu] - self.lead(size)
                if opens > now:
                    self.wake = min(self.wake, opens)
                    return
                latest = self.queues[model][first][0] - self.latency(model, gpu, size)
                self.drop(model, first)
                self.send(now, model, gpu, 0, size, latest=latest)
                break
            else:
                heads = [queue[0][0] for queue in self.queues if queue]
                self.wake = max(now + 1, min(heads, default=NEVER))
                return

    def strategy(self, now: int, gpu: int) -> tuple[int, int, int, int] | None:
        """The strategy to take on that GPU: (required start, model, size, position of its first request).

        Ties go to the lowest model.
        """
        best: tuple[int, int, int, int] | None = None
        for model, queue in enumerate(self.queues):
            if not queue:
                continue
            state = self.changes[model], self.free[gpu], self.cluster.gpu_type[gpu]
            known = self.known[model]
            if known is None or known[0] != state or known[1] < now:
                known = self.known[model] = self._strategy(now, model, state)
            found = known[2]
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best

    def _strategy(self, now: int, model: int, state: tuple[int, int, int]) -> Known:
        """The strategy of one model, with what it holds for."""
        _, free, kind = state
        queue = self.queues[model]
        spec = self.cluster.models[model]
        table = spec.latency[kind]
        control, data = self.cluster.control, self.cluster.data
        fits = bisect_right(self.sizes, min(len(queue), spec.max_batch))
        until = free - control - self.sizes[fits - 1] * data
        required, chosen, begin = NEVER, 0, 0
        for size in self.downwards[-fits:]:
            length = table[size - 1]
            start = free if now <= until else max(now + control + size * data, free)
            if not chosen:
                if queue[-size][0] < start + length:
                    continue  # fewer than that many could end in time
                chosen = size
                first = begin = bisect_left(queue, (start + length, 0))
            else:
                first = bisect_left(queue, (start + length, 0), 0, first)
            required = min(required, queue[first][0] - length)
            if first == 0:
                break  # so it is for smaller sizes, and they end sooner
        return state, until, (required, model, chosen, begin) if chosen else None
