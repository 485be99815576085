"""How much later than predicted batches end: a margin per GPU, learned from completions.

A margin is the 95th percentile of (measured end − predicted end) over the GPU's last batches, never
below zero: a batch is formed so that it would still be in time if it ran that much over. Every margin
costs capacity, since the time it keeps free serves nobody, so the caller caps it by a small share of the
objectives: a GPU that runs over by more than that is broken or starved, and no margin cures it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from scheduler.recent import Ids, Recent
from scheduler.slow import SlowGpus

REMEMBERED: Final = 128
"""Completions per GPU behind a margin."""
ENOUGH: Final = 16
"""Completions before a GPU has a margin at all."""
SLOW_CAP: Final = 10
SLICE: Final = 64
"""GPUs whose margins are worked out at a time: some 100 µs, in which no timer is served."""


class Margins:
    """The last overruns of every GPU, and the margins they call for. About 1 KiB per GPU."""

    def __init__(self) -> None:
        self._overruns = Recent(REMEMBERED, np.int64)
        self._margins = np.zeros(0, np.int64)

    def observe(self, gpu: Ids, overrun_ns: Ids) -> None:
        """Batches on these GPUs ended that much later than predicted (negative: earlier)."""
        self._overruns.add(gpu, overrun_ns)

    @property
    def slices(self) -> int:
        """How many calls of :meth:`changes` cover every GPU."""
        return self._overruns.sweeps(SLICE)

    def changes(self, cap_ns: int, slow: SlowGpus | None = None) -> list[tuple[int, int]]:
        """(GPU, margin in ns, at most ``cap_ns``) of the next slice's GPUs that have new completions.

        The margins of GPUs that are ``slow`` may be :data:`SLOW_CAP` times as long.
        """
        gpus = self._overruns.sweep(SLICE)
        if not gpus.size:
            return []
        high, count = self._overruns.percentile(gpus, 95)
        gpus, high = gpus[count >= ENOUGH], high[count >= ENOUGH]
        caps = np.full(gpus.size, cap_ns)
        if slow is not None:
            caps[slow.are_slow(gpus)] *= SLOW_CAP
        margins = np.clip(high, 0, caps)
        if gpus.size and gpus[-1] >= self._margins.size:
            more = max(int(gpus[-1]) + 1, 2 * self._margins.size) - self._margins.size
            self._margins = np.concatenate((self._margins, np.zeros(more, np.int64)))
        changed = self._margins[gpus] != margins
        self._margins[gpus] = margins
        return list(zip(gpus[changed].tolist(), margins[changed].tolist(), strict=True))

    def of(self, gpus: Ids) -> Ids:
        """The margins as last worked out; 0 for a GPU without enough completions."""
        found = np.zeros(gpus.size, np.int64)
        known = gpus < self._margins.size
        found[known] = self._margins[gpus[known]]
        return found

    def forget(self, gpu: int) -> None:
        """The GPU has gone."""
        self._overruns.forget(gpu)
        if gpu < self._margins.size:
            self._margins[gpu] = 0
