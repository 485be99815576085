"""How much later than predicted batches end: a margin per GPU, learned from completions.

A margin is the 95th percentile of (measured end − predicted end) over the GPU's last batches, never
below zero: a batch is formed so that it would still be in time if it ran that much over. Every margin
costs capacity, since the time it keeps free serves nobody, so the caller caps it by a small share of the
objectives: a GPU that runs over by more than that is broken or starved, and no margin cures it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

REMEMBERED: Final = 128
"""Completions per GPU behind a margin."""
ENOUGH: Final = 16
"""Completions before a GPU has a margin at all."""


class Margins:
    """The last overruns of every GPU, and the margins they call for."""

    def __init__(self) -> None:
        self._overruns: dict[int, deque[int]] = {}
        self._margins: dict[int, int] = {}
        self._fresh: set[int] = set()

    def observe(self, gpu: int, overrun_ns: int) -> None:
        """One batch ended that much later than predicted (negative: earlier)."""
        overruns = self._overruns.get(gpu)
        if overruns is None:
            overruns = self._overruns[gpu] = deque(maxlen=REMEMBERED)
        overruns.append(overrun_ns)
        self._fresh.add(gpu)

    def by_gpu(self, cap_ns: int) -> Iterator[tuple[int, int]]:
        """(GPU, margin in ns, at most ``cap_ns``) of those with new completions since the last call."""
        fresh, self._fresh = self._fresh, set()
        for gpu in sorted(fresh):
            overruns = self._overruns[gpu]
            if len(overruns) >= ENOUGH:
                high = sorted(overruns)[len(overruns) * 95 // 100]
                self._margins[gpu] = min(max(high, 0), cap_ns)
                yield gpu, self._margins[gpu]

    def of(self, gpu: int) -> int:
        """The margin as last worked out; 0 for a GPU without enough completions."""
        return self._margins.get(gpu, 0)

    def forget(self, gpu: int) -> None:
        """The GPU has gone."""
        self._overruns.pop(gpu, None)
        self._margins.pop(gpu, None)
        self._fresh.discard(gpu)
