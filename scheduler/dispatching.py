"""How long a GPU waits for a batch that it could have started: what dispatching really takes, learned live.

A plan that is to find its GPU free must leave so much earlier as it takes to arrive and to gather its inputs.
What that is was configured as a guess; here it is seen: a batch should start at its planned time, or when the
one before it on the GPU ended if that was later. So much later as it did start, the look-ahead was too short.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from scheduler.recent import Ids

REMEMBERED: Final = 512
"""Batches behind a latency, of all GPUs together."""
ENOUGH: Final = 64
"""Batches before it is learned, anew after each change."""
PERCENT: Final = 75
"""That many of a hundred batches shall find their GPU waiting for nothing but the batch before."""
STEP_NS: Final = 100_000
"""It is given out again only when it has moved by that much."""
LONGEST_NS: Final = 1_000_000_000
"""What counts of one batch's wait, at most: a worker may say anything of its times."""


class Dispatching:
    """The last waits, and the control latency that they call for; all times in ns.

    Args:
        configured_ns: the control latency to begin with, and the least.
    """

    def __init__(self, configured_ns: int) -> None:
        self.control_ns = configured_ns
        self._configured = configured_ns
        self._waits = np.zeros(REMEMBERED, np.int64)
        self._seen = 0
        self._ended = np.zeros(0, np.int64)  # by GPU, the last end

    def observe(self, gpu: Ids, exec_at: Ids, started: Ids, finished: Ids) -> None:
        """Batches have come back; those of one GPU in any order."""
        if not gpu.size:
            return
        largest = int(gpu.max())
        if largest >= self._ended.size:
            more = max(largest + 1, 2 * self._ended.size) - self._ended.size
            self._ended = np.concatenate((self._ended, np.zeros(more, np.int64)))
        order = np.lexsort((started, gpu))
        gpu, exec_at, started, finished = gpu[order], exec_at[order], started[order], finished[order]
        before = self._ended[gpu]
        same = gpu[1:] == gpu[:-1]
        before[1:][same] = finished[:-1][same]
        self._ended[gpu] = finished  # of equal GPUs the last stays
        waits = np.clip(started - np.maximum(exec_at, before), -LONGEST_NS, LONGEST_NS)[-REMEMBERED:]
        self._waits[(self._seen + np.arange(waits.size)) % REMEMBERED] = waits
        self._seen += waits.size

    def learn(self, longest_ns: int) -> int:
        """The control latency from now on, at most ``longest_ns`` where that is above the configured one."""
        if self._seen >= ENOUGH:
            wait = int(np.percentile(self._waits[: min(self._seen, REMEMBERED)], PERCENT))
            found = max(self._configured, min(self.control_ns + wait, longest_ns))
            if abs(found - self.control_ns) >= STEP_NS or found == self._configured != self.control_ns:
                self.control_ns = found
                self._seen = 0
        return self.control_ns
