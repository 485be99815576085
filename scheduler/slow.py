"""GPUs that turned slow, told from the others of their type.

A correction per model and GPU type cannot see that one GPU of many is throttled or has a noisy neighbour; it
would make all of them slower. So each GPU's own ratio of measured to profiled time (the median over its last
batches) is compared with the median of its type's GPUs: one that takes :data:`SLOW` times as long is slow,
until it takes less than :data:`FINE` times. What its batches teach is kept from its type's corrections, and
its own margin may be as long as they need: batches for it are formed smaller, and so stay in time.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from scheduler.recent import Ids, Recent

REMEMBERED: Final = 32
"""Batches behind a GPU's ratio."""
ENOUGH: Final = 16
"""Batches before a GPU is judged at all."""
PEERS: Final = 3
"""GPUs of a type with enough batches before one of them can be told from the others."""
SLOW: Final = 1.3
FINE: Final = 1.15
SLICE: Final = 64
"""GPUs whose ratios are worked out at a time."""


class SlowGpus:
    """The last ratios of every GPU, and which GPUs are slow. About 300 bytes per GPU."""

    def __init__(self) -> None:
        self._ratios = Recent(REMEMBERED, np.float64)
        self._median = np.zeros(0)
        self._slow = np.zeros(0, np.bool_)
        self.factors: dict[int, float] = {}
        """How many times as long as its type's each slow GPU takes."""

    def observe(self, gpu: Ids, measured_ns: Ids, profiled_ns: Ids) -> None:
        """Batches took ``measured_ns`` where profiles say ``profiled_ns`` (ignored where that is 0)."""
        known = (profiled_ns > 0) & (measured_ns >= 0)
        self._ratios.add(gpu[known], measured_ns[known] / profiled_ns[known])

    def sweep(self) -> None:
        """Work out the ratios of the next slice of GPUs with new batches."""
        gpus = self._ratios.sweep(SLICE)
        if not gpus.size:
            return
        median, count = self._ratios.percentile(gpus, 50)
        self._grow(int(gpus[-1]) + 1)
        self._median[gpus] = np.where(count >= ENOUGH, median, 0.0)

    def judge(self, gpus: Ids, kinds: Ids) -> list[tuple[int, float | None]]:
        """(GPU, factor) of those that turned slow since the last call, (GPU, None) of those that recovered.

        Args:
            gpus: all that there are.
            kinds: their types.
        """
        if not gpus.size:
            return []
        self._grow(int(gpus.max()) + 1)
        changed: list[tuple[int, float | None]] = []
        for kind in np.flatnonzero(np.bincount(kinds)).tolist():
            mine = gpus[(kinds == kind) & (self._median[gpus] > 0)]
            if mine.size < PEERS:
                continue
            factor = self._median[mine] / np.median(self._median[mine])
            was = self._slow[mine]
            now = np.where(was, factor >= FINE, factor >= SLOW)
            self._slow[mine] = now
            self.factors.update(zip(mine[now].tolist(), factor[now].tolist(), strict=True))
            for gpu in mine[now & ~was].tolist():
                changed.append((gpu, self.factors[gpu]))
            for gpu in mine[was & ~now].tolist():
                del self.factors[gpu]
                changed.append((gpu, None))
        return changed

    def are_slow(self, gpus: Ids) -> npt.NDArray[np.bool_]:
        """Which of these are."""
        found = np.zeros(gpus.size, np.bool_)
        known = gpus < self._slow.size
        found[known] = self._slow[gpus[known]]
        return found

    def forget(self, gpu: int) -> None:
        """The GPU has gone."""
        self._ratios.forget(gpu)
        self.factors.pop(gpu, None)
        if gpu < self._slow.size:
            self._slow[gpu] = False
            self._median[gpu] = 0.0

    def _grow(self, needed: int) -> None:
        more = max(needed, 2 * self._median.size) - self._median.size
        if needed > self._median.size:
            self._median = np.concatenate((self._median, np.zeros(more)))
            self._slow = np.concatenate((self._slow, np.zeros(more, np.bool_)))
