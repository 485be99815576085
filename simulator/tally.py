"""What became of the requests, gathered while an experiment runs or from its record afterwards.

A request is *good* if its result is at the frontend by its deadline, *late* if it comes later; every
other one was given up. Requests that arrive in the warm-up are simulated and not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrivals import Arrivals
from .processes import Ints

SHORT = 1 << 32
"""Latencies below, in ns, are kept in 32 bits."""
BLOCK = 1 << 15
CLASSES = 18
"""Percentiles are looked for in at most 2 to the power of that many classes, over all models."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts per model (int64), without warm-up, and what the percentiles are taken from.

    requests: arrivals in all, warm-up included. latency: ns, of requests with a result, in runs
    of one model each; run_model and run_size: of the runs. oldest: per batch, when the first of its
    requests had arrived.
    """

    requests: int
    offered: Ints
    good: Ints
    late: Ints
    latency: npt.NDArray[Any]
    run_model: Ints
    run_size: Ints
    oldest: Ints

    @property
    def bad_share(self) -> float:
        """Late and given up, of all offered."""
        offered = int(self.offered.sum())
        return 1 - int(self.good.sum()) / offered if offered else 0.0

    def percentiles(self, shares: Sequence[float]) -> tuple[list[int] | None, list[list[int] | None]]:
        """In ns, of all models together and of each (None without results): exact, upper neighbours.

        Counted in classes of model and latency first, so that only what lies in the classes with a
        percentile is sorted.
        """
        number = len(self.offered)
        if not len(self.latency):
            return None, [None] * number
        bits = int(self.latency.max()).bit_length()
        fine = min(bits, max(0, CLASSES - (number - 1).bit_length()))
        shift = bits - fine
        counts = np.zeros(number << fine, np.int64)
        for where, _ in self._classes(fine, shift):
            np.add.at(counts, where, 1)
        of_model = counts.reshape(number, -1)
        up_to = np.cumsum(of_model, axis=1)
        served = up_to[:, -1]
        places = np.ceil(np.outer(np.maximum(served - 1, 0), np.array(shares) / 100)).astype(np.int64)
        which = np.stack([(up_to <= place[:, None]).sum(axis=1) for place in places.T], axis=1)
        which = np.minimum(which, (1 << fine) - 1)  # of models without results
        all_up_to = np.cumsum(of_model.sum(axis=0))
        all_places = np.ceil((len(self.latency) - 1) * (np.array(shares) / 100)).astype(np.int64)
        all_which = np.searchsorted(all_up_to, all_places, side="right")
        wanted = np.zeros(of_model.shape, dtype=bool)
        wanted[np.arange(number)[:, None], which] = True
        wanted[:, all_which] = True
        # By model and latency: the class is the upper part of a latency.
        kept = [
            (where[chosen] << shift) | (latency[chosen] & ((1 << shift) - 1))
            for where, latency in self._classes(fine, shift)
            for chosen in (np.flatnonzero(wanted.ravel().take(where)),)
        ]
        keys = np.sort(np.concatenate(kept))
        begins = np.cumsum(np.where(wanted, of_model, 0).ravel()) - counts
        rows = np.arange(number)[:, None]
        below = up_to[rows, which] - of_model[rows, which]
        at = begins.reshape(of_model.shape)[rows, which] + places - below
        found = keys.take(at, mode="clip") & ((1 << bits) - 1)
        values = np.sort(keys & ((1 << bits) - 1))
        all_found = []
        for place, cls in zip(all_places.tolist(), all_which.tolist(), strict=True):
            inside = place - int(all_up_to[cls] - of_model[:, cls].sum())
            all_found.append(int(values[np.searchsorted(values, cls << shift) + inside]))
        return all_found, [row if n else None for row, n in zip(found.tolist(), served.tolist(), strict=True)]

    def _classes(self, fine: int, shift: int) -> Iterator[tuple[Ints, npt.NDArray[Any]]]:
        """In blocks: model and class of each latency as one number, and the latencies."""
        ends = np.cumsum(self.run_size)
        cuts = np.unique(np.searchsorted(ends, np.arange(0, len(self.latency), BLOCK), side="right"))
        first = (self.run_model << fine).astype(np.uint32 if len(self.offered) << fine < SHORT else np.int64)
        begin = 0
        for i, j in pairwise([*cuts.tolist(), len(ends)]):
            end = int(ends[j - 1]) if j else 0
            latency = self.latency[begin:end]
            begin = end
            where = np.repeat(first[i:j], self.run_size[i:j])
            yield (where + (latency >> shift)).astype(np.int64), latency


def by_model(model: npt.NDArray[Any], number: int) -> Ints:
    """Positions, those of model 0 first, each model's in order; for fewer than ``number`` models."""
    small = model.astype(np.uint16) if number <= 1 << 16 else model  # 16 bits are sorted by radix
    return np.argsort(small, kind="stable")


class Counter:
    """Makes a tally from what arrives and what is answered, in pieces.

    Args:
        slos: ns, by model. begin: ns; what arrives before does not count.
    """

    def __init__(self, slos: Sequence[int], begin: int) -> None:
        self._slos = np.array(slos, dtype=np.int64)
        self._begin = begin
        self._requests = 0
        self._offered = np.zeros(len(slos), np.int64)
        self._parts: list[tuple[npt.NDArray[Any], ...]] = []

    def arrive(self, arrivals: Arrivals) -> None:
        """These have arrived, in order."""
        self._requests += len(arrivals.at)
        counted = arrivals.model[np.searchsorted(arrivals.at, self._begin) :]
        self._offered += np.bincount(counted, minlength=len(self._offered))

    def answer(self, model: Ints, size: Ints, answered: Ints, deadline: Ints) -> None:
        """Batches, each of at least one request, are answered at these times.

        Args:
            model, size, answered: per batch. deadline: of all their requests in turn.
        """
        if not len(size):
            return
        slo = self._slos[model]
        lateness = np.repeat(answered, size)
        lateness -= deadline
        first = np.cumsum(size) - size
        oldest = np.minimum.reduceat(deadline, first) - slo
        spread = np.repeat(slo, size)
        late = np.zeros(len(size), np.int64)
        missed = np.flatnonzero(lateness > 0)
        run = size
        counts: Any = slice(None)
        if oldest.min() < self._begin:
            counts = deadline - spread >= self._begin
            run = np.add.reduceat(counts, first, dtype=np.int64)
            missed = missed[counts[missed]]
        if len(missed):
            late = np.bincount(np.searchsorted(first, missed, side="right") - 1, minlength=len(size))
        lateness += spread
        latency = lateness[counts]
        short = latency.astype(np.uint32 if not len(latency) or latency.max() < SHORT else np.int64)
        self._parts.append((short, model, run, late, oldest))

    def tally(self) -> Tally:
        """Everything so far."""
        nothing = np.empty(0, np.int64)
        self._parts = self._parts or [(np.empty(0, np.uint32), nothing, nothing, nothing, nothing)]
        latency, model, run, late, oldest = (
            np.concatenate(column) for column in zip(*self._parts, strict=True)
        )
        number = len(self._offered)
        served = np.bincount(model, run, minlength=number).astype(np.int64)
        missed = np.bincount(model, late, minlength=number).astype(np.int64)
        return Tally(self._requests, self._offered, served - missed, missed, latency, model, run, oldest)
