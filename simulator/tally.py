"""What became of the requests, gathered while an experiment runs or from its record afterwards.

A request is *good* if its result is at the frontend by its deadline, *late* if it comes later; every
other one was given up. Requests that arrive in the warm-up are simulated and not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
"""So many latencies are put in another order at a time: they stay in the processor's cache."""


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

        Args:
            shares: in percent, rising.
        """
        grouped, ends = self._grouped()
        parts = (grouped[begin:end] for begin, end in pairwise([0, *ends.tolist()]))
        of_models = [_percentiles(part, shares) for part in parts]
        return _percentiles(grouped, shares), of_models

    def _grouped(self) -> tuple[npt.NDArray[Any], Ints]:
        """A copy of the latencies, those of model 0 first, and where each model's end."""
        number = len(self.offered)
        of_models = np.cumsum(np.bincount(self.run_model, self.run_size, minlength=number)).astype(np.int64)
        order = by_model(self.run_model, number)
        size = self.run_size[order]
        ends = np.cumsum(self.run_size)
        away = np.empty_like(ends)  # of a run's place from where it is
        away[order] = np.cumsum(size) - size
        away -= ends - self.run_size
        out = np.empty_like(self.latency)
        cuts = np.unique(np.searchsorted(ends, np.arange(0, len(out), BLOCK), side="right"))
        begin = 0
        for i, j in pairwise([*cuts.tolist(), len(ends)]):
            end = int(ends[j - 1]) if j else 0
            place = np.repeat(away[i:j], self.run_size[i:j])
            place += np.arange(begin, end)
            out[place] = self.latency[begin:end]
            begin = end
        return out, of_models


def _percentiles(values: npt.NDArray[Any], shares: Sequence[float]) -> list[int] | None:
    """Of values that may be reordered: what is behind one percentile is partitioned for the next."""
    if not len(values):
        return None
    found = []
    done = 0
    for share in shares:
        place = math.ceil((len(values) - 1) * (share / 100))
        values[done:].partition(place - done)
        found.append(int(values[place]))
        done = place
    return found


def by_model(model: npt.NDArray[Any], number: int) -> Ints:
    """Positions, those of model 0 first, each model's in order; for fewer than ``number`` models."""
    small = model.astype(np.uint16) if number <= 1 << 16 else model  # 16 bits are sorted by radix
    return np.argsort(small, kind="stable")


class Counter:
    """Makes a tally from what arrives and what is answered, in pieces.

    Args:
        slos: ns, by model. begin: ns; what arrives before does not count.
        expected: requests, about; room for so many is made in one piece (memory is used as it fills).
    """

    def __init__(self, slos: Sequence[int], begin: int, expected: int = 0) -> None:
        self._slos = np.array(slos, dtype=np.int64)
        self._begin = begin
        self._requests = 0
        self._offered = np.zeros(len(slos), np.int64)
        self._latency: npt.NDArray[Any] = np.empty(max(expected, BLOCK), np.uint32)
        self._answered = 0
        nothing = np.empty(0, np.int64)
        self._parts: list[tuple[Ints, ...]] = [(nothing, nothing, nothing, nothing)]

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
        first = np.cumsum(size) - size
        earliest = np.minimum.reduceat(deadline, first)
        oldest = earliest - slo
        # A latency is answered + slo - deadline; in 32 bits while that is exact (differences wrap).
        kind = np.uint32 if int((answered - oldest).max()) < SHORT else np.int64
        latency = np.repeat((answered + slo).astype(kind), size)
        latency -= deadline.astype(kind)
        run = size
        counts: Any = None
        if oldest.min() < self._begin:
            counts = deadline - np.repeat(slo, size) >= self._begin
            run = np.add.reduceat(counts, first, dtype=np.int64)
            latency = latency[counts]
        late = np.zeros(len(size), np.int64)
        if (answered > earliest).any():
            missed = np.repeat(answered, size) > deadline
            if counts is not None:
                missed &= counts
            late = np.add.reduceat(missed, first, dtype=np.int64)
        self._keep(latency)
        self._parts.append((model, run, late, oldest))

    def _keep(self, latency: npt.NDArray[Any]) -> None:
        end = self._answered + len(latency)
        kept = self._latency
        kind = np.result_type(kept, latency)
        if end > len(kept) or kind != kept.dtype:
            self._latency = np.empty(2 * end if end > len(kept) else len(kept), kind)
            self._latency[: self._answered] = kept[: self._answered]
        self._latency[self._answered : end] = latency
        self._answered = end

    def tally(self) -> Tally:
        """Everything so far."""
        model, run, late, oldest = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        number = len(self._offered)
        served = np.bincount(model, run, minlength=number).astype(np.int64)
        missed = np.bincount(model, late, minlength=number).astype(np.int64)
        latency = self._latency[: self._answered]
        return Tally(self._requests, self._offered, served - missed, missed, latency, model, run, oldest)
