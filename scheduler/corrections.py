"""How much longer than profiled batches really take: a factor per model and GPU type, learned live.

A profile is measured once, on a device that has nothing else to do. Under load, beside other models or
on a throttled GPU the same batch takes longer, and a scheduler that starts batches at the last moment
would then be late with all of them. The factor is the 90th percentile of measured / profiled duration
over the last batches, never below one: what runs faster than profiled needs no correction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

REMEMBERED: Final = 64
"""Batches behind a factor."""
ENOUGH: Final = 8
"""Batches before there is a factor at all."""
STEP: Final = 0.05
"""A factor is given out again only when it has moved by that share."""
LARGEST: Final = 5.0
"""A device that is slower than that is broken, and no schedule helps."""


class Corrections:
    """The last durations of every model on every GPU type, and the factors that they call for."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[int, int], deque[float]] = {}
        self._factors: dict[tuple[int, int], float] = {}
        self._fresh: set[tuple[int, int]] = set()

    def observe(self, model: int, gpu_type: int, measured_ns: int, profiled_ns: int) -> None:
        """One batch took ``measured_ns`` where its profile says ``profiled_ns`` (ignored where that is 0)."""
        if profiled_ns <= 0 or measured_ns < 0:
            return
        what = (model, gpu_type)
        ratios = self._ratios.get(what)
        if ratios is None:
            ratios = self._ratios[what] = deque(maxlen=REMEMBERED)
        ratios.append(measured_ns / profiled_ns)
        self._fresh.add(what)

    def changes(self) -> Iterator[tuple[int, int, float]]:
        """(model, GPU type, factor) where the factor has moved since it was last given out."""
        fresh, self._fresh = self._fresh, set()
        for what in sorted(fresh):
            ratios = self._ratios[what]
            if len(ratios) < ENOUGH:
                continue
            high = sorted(ratios)[len(ratios) * 90 // 100]
            factor = min(max(1.0, high), LARGEST)
            before = self.of(*what)
            if abs(factor - before) > STEP * before:
                self._factors[what] = factor
                yield (*what, factor)

    def of(self, model: int, gpu_type: int) -> float:
        """The factor that was last given out; 1 without one."""
        return self._factors.get((model, gpu_type), 1.0)
