"""Emulated GPUs: they keep a GPU's time by its profile and do nothing else; no I/O, no clock.

A batch starts when it arrives or when its GPU has finished what it was given before, whichever is
later, and finishes l(size) after that. So its end is known when it arrives, and one heap of ends
stands for thousands of GPUs.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from symphony.profile import Profile
from worker.batch import Batch


class EmulatedGpus:
    """GPUs by their number in the cluster.

    Args:
        profiles: by model; a batch of another model, or larger than the profile, is refused upstream.
    """

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._profiles = profiles
        self._free: dict[int, int] = {}
        self._ends: list[tuple[int, int, Batch]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._ends)

    def start(self, batch: Batch) -> None:
        """Take in a batch that arrived at ``batch.received_ns``; fills in its start and end."""
        size = int(batch.key.size)
        batch.started_ns = max(batch.received_ns, self._free.get(batch.gpu, 0))
        batch.finished_ns = batch.started_ns + self._profiles[batch.model].latency(size)
        batch.ran = size
        self._free[batch.gpu] = batch.finished_ns
        self._count += 1  # ties of the heap break by arrival
        heapq.heappush(self._ends, (batch.finished_ns, self._count, batch))

    def next_wakeup(self) -> int | None:
        """Monotonic ns of the next end; None if every GPU is idle."""
        return self._ends[0][0] if self._ends else None

    def finish(self, now: int) -> Iterator[Batch]:
        """Batches whose end has come, in order of their ends, their rows OK."""
        while self._ends and self._ends[0][0] <= now:
            _, _, batch = heapq.heappop(self._ends)
            batch.succeed()
            yield batch

    def abandon(self) -> list[Batch]:
        """Give up what has not finished."""
        batches = [batch for _, _, batch in sorted(self._ends, key=lambda end: end[:2])]
        self._ends.clear()
        return batches
