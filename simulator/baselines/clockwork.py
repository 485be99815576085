"""Clockwork: a central controller that plans every GPU's next action and rejects the rest in advance.

Source: Gujarati et al., "Serving DNNs like Clockwork: Performance Predictability from the Bottom Up",
OSDI 2020, sections 4 and 5.

Rule. A GPU runs one action at a time, in a window of time that the controller sets; the worker
discards an action that cannot start in its window. Batches have 1, 2, 4, 8 or 16 requests. For each
model and batch size that is no larger than its queue there is a strategy, whose required start is the
head's deadline less the batch's latency. Whenever a GPU has less work outstanding than the
controller schedules ahead, the strategy with the earliest required start that can still be met on
that GPU is taken (so the largest feasible batch of a model comes before its smaller ones). Work-
conserving: a free GPU never waits for a batch to grow. A request that cannot be met even alone on the
GPU that is free first is rejected at once.

Choices in its favour: all models are in GPU memory, so there are no LOAD actions; an action is
scheduled as late as its transfer allows and not 5 ms ahead, so batches are formed with more
knowledge; ``clockwork:N`` allows batches of powers of two up to N, beyond the published 16.
"""

from __future__ import annotations

from simulator.system import NEVER, Cluster

from .base import Base

PUBLISHED_LARGEST = 16


class Clockwork(Base):
    """The controller; ``largest``: the largest batch, a power of two."""

    def __init__(self, cluster: Cluster, largest: int = PUBLISHED_LARGEST) -> None:
        super().__init__(cluster)
        self.sizes = [1 << i for i in range(largest.bit_length()) if 1 << i <= largest]
        self.most_lead = self.lead(self.sizes[-1])

    def decide(self, now: int) -> None:
        """Give every GPU that is open its next action."""
        self.wake = NEVER
        while self.queued:
            gpu = self.earliest(now)
            opens = self.free[gpu] - self.most_lead
            if opens > now:
                self.wake = opens
                return
            self.drop_expired(now)
            found = self.strategy(now, gpu)
            if found is None:
                # Nothing fits this GPU; expired requests have gone, so the queues are empty or the
                # GPU is slower than another: look again when the head of a queue has expired.
                self.wake = min((q[0][0] for q in self.queues if q), default=NEVER)
                self.wake = max(self.wake, now + 1)
                return
            required, model, size = found
            opens = self.free[gpu] - self.lead(size)
            if opens > now:
                self.wake = opens
                return
            self.send(now, model, gpu, 0, size, latest=required)

    def strategy(self, now: int, gpu: int) -> tuple[int, int, int] | None:
        """The strategy to take on that GPU: (required start, model, size); ties go to the lowest model."""
        best: tuple[int, int, int] | None = None
        for model, queue in enumerate(self.queues):
            if not queue:
                continue
            most = min(len(queue), self.cluster.models[model].max_batch)
            for size in reversed(self.sizes):
                if size > most:
                    continue
                required = queue[0][0] - self.latency(model, gpu, size)
                if self.start(now, gpu, size) <= required:
                    if best is None or required < best[0]:
                        best = (required, model, size)
                    break
        return best
