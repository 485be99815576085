"""How much longer than profiled batches really take: a factor per model and GPU type, learned live.

A profile is measured once, on a device that has nothing else to do. Under load, beside other models or
on a throttled GPU the same batch takes longer, and a scheduler that starts batches at the last moment
would then be late with all of them. The factor is the 90th percentile of measured / profiled duration
over the last batches, never below one: what runs faster than profiled needs no correction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from scheduler.core.limits import TYPES
from scheduler.recent import Ids, Recent

REMEMBERED: Final = 64
"""Batches behind a factor."""
ENOUGH: Final = 8
"""Batches before there is a factor at all."""
STEP: Final = 0.05
"""A factor is given out again only when it has moved by that share."""
LARGEST: Final = 5.0
"""A device that is slower than that is broken, and no schedule helps."""
SLICE: Final = 128
"""Pairs of model and GPU type whose factors are worked out at a time."""


class Corrections:
    """The last durations of every model on every GPU type, and the factors that they call for."""

    def __init__(self) -> None:
        self._ratios = Recent(REMEMBERED, np.float64)
        self._factors: dict[tuple[int, int], float] = {}
        self._seen: dict[int, dict[int, tuple[float, float]]] = {}

    def observe(self, model: Ids, gpu_type: Ids, measured_ns: Ids, profiled_ns: Ids) -> None:
        """Batches took ``measured_ns`` where profiles say ``profiled_ns`` (ignored where that is 0)."""
        known = (profiled_ns > 0) & (measured_ns >= 0)
        if not known.all():
            model, gpu_type = model[known], gpu_type[known]
            measured_ns, profiled_ns = measured_ns[known], profiled_ns[known]
        self._ratios.add(model * TYPES + gpu_type, measured_ns / profiled_ns)

    @property
    def slices(self) -> int:
        """How many calls of :meth:`changes` cover every pair."""
        return self._ratios.sweeps(SLICE)

    def changes(self) -> Iterator[tuple[int, int, float]]:
        """(model, GPU type, factor) of the next slice where the factor has moved since it was given out."""
        series = self._ratios.sweep(SLICE)
        if not series.size:
            return
        high, count = self._ratios.percentile(series, 90)
        enough = count >= ENOUGH
        self._note(series[enough])
        factors = np.clip(high[enough], 1.0, LARGEST).tolist()
        for number, factor in zip(series[enough].tolist(), factors, strict=True):
            what = divmod(number, TYPES)
            before = self.of(*what)
            if abs(factor - before) > STEP * before:
                self._factors[what] = factor
                yield (*what, factor)

    def _note(self, series: Ids) -> None:
        if not series.size:
            return
        p50, p99 = (self._ratios.percentile(series, percent)[0].tolist() for percent in (50, 99))
        for number, *seen in zip(series.tolist(), p50, p99, strict=True):
            model, gpu_type = divmod(number, TYPES)
            self._seen.setdefault(model, {})[gpu_type] = (seen[0], seen[1])

    def measured(self, model: int) -> tuple[float, float] | None:
        """p50 and p99 of measured / profiled over the model's last batches, of the GPU type where p99 is
        highest; None before there are enough."""
        return max(self._seen.get(model, {}).values(), key=lambda pair: pair[1], default=None)

    def of(self, model: int, gpu_type: int) -> float:
        """The factor that was last given out; 1 without one."""
        return self._factors.get((model, gpu_type), 1.0)
