"""What a record says of its batches: sizes, waits, and the time and number of GPUs, in total and by model.

All models are counted in one pass, since there may be thousands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .engine import Record
from .processes import Ints
from .system import NEVER

SECOND = 1_000_000_000
GPU_BITS = 20
USED_BITS = 40
WAIT_BITS = 43
"""Where numbers are joined to be sorted: more GPUs or models than 2^20 the core does not take, and an
experiment lasts at most a million seconds, a wait at most an objective and a batch."""


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """Of the batches that start in the time that counts; those without a result are *lost*.

    A wait is from a batch's first arrival to its start. ``busy_ns``: of GPUs, within that time, by all
    batches. ``gpus_used_mean``: GPUs that start a batch within a second, averaged over the seconds.
    """

    batches: int
    lost: int
    mean_size: float | None
    histogram: dict[str, int]
    wait_mean_ms: float | None
    wait_p99_ms: float | None
    busy_ns: float
    gpus_used_mean: float


class Batches:
    """Counts over a record.

    Args:
        oldest: per batch, when the first of its requests had arrived (ns).
        models: how many there are. begin, finish: ns, of the time that counts.
    """

    def __init__(self, record: Record, oldest: Ints, models: int, begin: int, finish: int) -> None:
        self._record = record
        self._models = models
        self._begin, self._finish = begin, finish
        self._seconds = max(1, -(-(finish - begin) // SECOND))
        during = (record.start >= begin) & (record.start < finish)
        ran = record.answered < NEVER
        counted = during & ran
        self._busy = np.clip(record.end, begin, finish) - np.clip(record.start, begin, finish)
        self._lost = record.model[during & ~ran]
        self._model, self._size = record.model[counted], record.size[counted]
        self._wait = record.start[counted] - oldest[counted]
        second = (record.start[during] - begin) // SECOND
        # The seconds by GPU: the whole second (the last one may be shorter), then the GPU.
        self._used = second << GPU_BITS | record.gpu[during]
        self._user = record.model[during]

    def total(self) -> BatchCounts:
        """Of all models together."""
        return _counts(
            np.bincount(self._size),
            len(self._lost),
            np.sort(self._wait),
            float(self._busy.sum()),
            float(np.mean(self.used_by_second())),
        )

    def by_model(self) -> Iterator[BatchCounts]:
        """Of each model, by number."""
        number, longest = self._models, int(self._size.max(initial=0)) + 1
        sizes = np.bincount(self._model * longest + self._size, minlength=number * longest)
        busy = np.bincount(self._record.model, self._busy, minlength=number)
        lost = np.bincount(self._lost, minlength=number)
        ends = np.cumsum(np.bincount(self._model, minlength=number))
        waits = np.sort(self._model << WAIT_BITS | self._wait) & ((1 << WAIT_BITS) - 1)
        used = _distinct(self._user << USED_BITS | self._used) >> USED_BITS
        distinct = np.bincount(used, minlength=number) / self._seconds
        table = sizes.reshape(number, longest)
        for model in range(number):
            mine = waits[ends[model - 1] if model else 0 : ends[model]]
            yield _counts(table[model], int(lost[model]), mine, float(busy[model]), float(distinct[model]))

    def used_by_second(self) -> list[int]:
        """GPUs that start a batch, in each second."""
        return [int(n) for n in np.bincount(_distinct(self._used) >> GPU_BITS, minlength=self._seconds)]

    def busy_by_second(self) -> list[float]:
        """Mean number of busy GPUs, in each second."""
        edges = np.unique(np.arange(self._begin, self._finish + SECOND, SECOND).clip(max=self._finish))
        start, end = np.sort(self._record.start), np.sort(self._record.end)
        # Busy time up to x is Σ min(x, end) − min(x, start).
        reached = _sum_below(end, edges) - _sum_below(start, edges)
        return [float(x) for x in np.diff(reached) / np.diff(edges)]


def _counts(sizes: Ints, lost: int, waits: Ints, busy_ns: float, gpus_used: float) -> BatchCounts:
    """From the number of batches by size and the waits in order."""
    n = len(waits)
    present = np.flatnonzero(sizes)
    return BatchCounts(
        n,
        lost,
        float(present @ sizes[present]) / n if n else None,
        {str(size): int(sizes[size]) for size in present.tolist()},
        float(waits.mean()) / 1e6 if n else None,
        float(waits[math.ceil(0.99 * (n - 1))]) / 1e6 if n else None,
        busy_ns,
        gpus_used,
    )


def _distinct(values: Ints) -> Ints:
    """Each value once, rising; an order of magnitude faster here than np.unique."""
    found = np.sort(values)
    return found[np.diff(found, prepend=-1) > 0]


def _sum_below(times: Ints, edges: Ints) -> npt.NDArray[np.int64]:
    """Σ min(x, t) over the sorted times, for every edge x."""
    base = edges[0]
    total = np.concatenate([[0], np.cumsum(np.maximum(times, base) - base)])
    n = np.searchsorted(times, edges, side="right")
    return np.asarray(total[n] + (len(times) - n) * (edges - base))
