"""What a record says of its batches: sizes, waits, and the time and number of GPUs, in total and by model.

All models are counted in one pass, since there may be thousands.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

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
        waits = self._wait.copy()
        if len(waits):
            waits.partition(_place(len(waits)))
        busy, used = float(self._busy.sum()), float(np.mean(self.used_by_second()))
        ends = np.array([len(waits)])
        return next(_counts(np.bincount(self._size)[None], [len(self._lost)], waits, ends, [busy], [used]))

    def by_model(self) -> Iterator[BatchCounts]:
        """Of each model, by number."""
        number, longest = self._models, int(self._size.max(initial=0)) + 1
        sizes = np.bincount(self._model * longest + self._size, minlength=number * longest)
        busy = np.bincount(self._record.model, self._busy, minlength=number)
        lost = np.bincount(self._lost, minlength=number)
        ends = np.cumsum(np.bincount(self._model, minlength=number))
        waits = self._model << WAIT_BITS
        waits |= self._wait
        waits.sort()
        waits &= (1 << WAIT_BITS) - 1
        used = _distinct(self._user << USED_BITS | self._used) >> USED_BITS
        distinct = np.bincount(used, minlength=number) / self._seconds
        table = sizes.reshape(number, longest)
        return _counts(table, lost.tolist(), waits, ends, busy.tolist(), distinct.tolist())

    def used_by_second(self) -> list[int]:
        """GPUs that start a batch, in each second."""
        seen = np.zeros((self._seconds, int(self._record.gpu.max(initial=0)) + 1), np.bool_)
        seen[self._used >> GPU_BITS, self._used & ((1 << GPU_BITS) - 1)] = True
        return [int(n) for n in seen.sum(axis=1)]

    def busy_by_second(self) -> list[float]:
        """Mean number of busy GPUs, in each second."""
        edges = np.unique(np.arange(self._begin, self._finish + SECOND, SECOND).clip(max=self._finish))
        # Busy time up to x is Σ min(x, end) − min(x, start).
        reached = _sum_below(self._record.end, edges) - _sum_below(self._record.start, edges)
        return [float(x) for x in np.diff(reached) / np.diff(edges)]


def _counts(
    sizes: Ints, lost: list[int], waits: Ints, ends: Ints, busy_ns: list[float], gpus_used: list[float]
) -> Iterator[BatchCounts]:
    """By model, from the numbers of batches by size and the waits, each model's up to ``ends``.

    In order, or as far as the 99th percentile is in its place.
    """
    longest = sizes.shape[1]
    names = [str(size) for size in range(longest)]
    requests = (sizes @ np.arange(longest)).tolist()
    up_to = np.concatenate([[0], np.cumsum(waits)])
    begin = 0
    for i, end in enumerate(ends.tolist()):
        n = end - begin
        place = begin + _place(n)
        yield BatchCounts(
            n,
            lost[i],
            requests[i] / n if n else None,
            {name: size for name, size in zip(names, sizes[i].tolist(), strict=True) if size},
            int(up_to[end] - up_to[begin]) / n / 1e6 if n else None,
            int(waits[place]) / 1e6 if n else None,
            busy_ns[i],
            gpus_used[i],
        )
        begin = end


def _place(number: int) -> int:
    """Of the 99th percentile, the upper neighbour."""
    return math.ceil(0.99 * (number - 1))


def _distinct(values: Ints) -> Ints:
    """Each value once, rising; an order of magnitude faster here than np.unique."""
    found = np.sort(values)
    return found[np.diff(found, prepend=-1) > 0]


def _sum_below(times: Ints, edges: Ints) -> Ints:
    """Σ min(x, t) over the times t, less the first edge, for every edge x: a second apart, but the last."""
    behind = times.clip(edges[0], edges[-1])
    behind -= edges[0]
    second = behind // SECOND
    number = np.bincount(second, minlength=len(edges))
    behind -= second * SECOND
    # Sums of whole numbers below 2^53 are exact: of 9 million times in a second.
    rest = np.bincount(second, behind, minlength=len(edges)).astype(np.int64)
    whole = rest + number * SECOND * np.arange(len(number))
    x = edges - edges[0]
    before = np.concatenate([[0], np.cumsum(number)])[: len(edges)]
    below = np.concatenate([[0], np.cumsum(whole)])[: len(edges)]
    # What lies before second i is below edge i; the last edge is behind all of it.
    return np.asarray(below + (len(times) - before) * x)
