"""What became of the requests, gathered while an experiment runs or from its record afterwards.

A request is *good* if its result is at the frontend by its deadline, *late* if it comes later; every
other one was given up. Requests that arrive in the warm-up are simulated and not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrivals import Arrivals
from .processes import Ints

SHORT = 1 << 32
"""Latencies below, in ns, are kept in 32 bits."""
BLOCK = 1 << 15
FINE = 1 << 12
"""Classes in which a percentile is looked for."""


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
        """In ns, of all models together and of each (None without results): exact, upper neighbours."""
        number = len(self.offered)
        order = by_model(self.run_model, number)
        ends = np.cumsum(np.bincount(self.run_model, minlength=number))
        first = np.cumsum(self.run_size) - self.run_size
        models: list[list[int] | None] = []
        most = np.bincount(self.run_model, self.run_size, minlength=number).max(initial=0)
        numbers = np.arange(int(most))
        for runs in np.split(order, ends[:-1]):
            size = self.run_size[runs]
            n = int(size.sum())
            places = np.repeat(first[runs] - (np.cumsum(size) - size), size)
            places += numbers[:n]
            mine = np.sort(self.latency.take(places))
            models.append([int(mine[math.ceil(share / 100 * (n - 1))]) for share in shares] if n else None)
        n = len(self.latency)
        places_of_all = [math.ceil(share / 100 * (n - 1)) for share in shares]
        return _selected(self.latency, places_of_all) if n else None, models


def by_model(model: npt.NDArray[Any], number: int) -> Ints:
    """Positions, those of model 0 first, each model's in order; for fewer than ``number`` models."""
    small = model.astype(np.uint16) if number <= 1 << 16 else model  # 16 bits are sorted by radix
    return np.argsort(small, kind="stable")


def _selected(values: npt.NDArray[Any], places: list[int]) -> list[int]:
    """The values that would stand at these places if all were sorted.

    Counted in classes first, so that only the classes with those places are sorted.
    """
    blocks = [values[i : i + BLOCK] for i in range(0, len(values), BLOCK)]
    shift = max(0, int(values.max()).bit_length() - (FINE.bit_length() - 1))
    counts = np.zeros(FINE, np.int64)
    for block in blocks:
        counts += np.bincount(block >> shift, minlength=FINE)
    up_to = np.cumsum(counts)
    found = []
    for place in places:
        which = int(np.searchsorted(up_to, place, side="right"))
        mine = np.sort(np.concatenate([block[block >> shift == which] for block in blocks]))
        found.append(int(mine[place - int(up_to[which] - counts[which])]))
    return found


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
