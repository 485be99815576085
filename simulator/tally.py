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

from scheduler.select import tallies

from .arrivals import Arrivals
from .processes import Ints

Short = npt.NDArray[np.uint32]
BITS = 12
"""Of a latency, from its highest one on, by which they are counted."""
LONG = (1 << 32) - 1
"""Stands for latencies of so many ns or more, which are kept by themselves."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of requests with a result.

    value: uint32 ns, or LONG. begin, end: int64, by model: where its own are. longer: model and ns of those
    for which LONG stands.
    """

    value: Short
    begin: Ints
    end: Ints
    longer: list[tuple[int, int]]

    @classmethod
    def of(cls, latency: Ints, size: Ints) -> Latencies:
        """Latencies in ns, so many of each model in turn."""
        end = np.cumsum(size)
        far = np.flatnonzero(latency >= LONG)
        model = np.searchsorted(end, far, side="right")
        longer = list(zip(model.tolist(), latency[far].tolist(), strict=True))
        return cls(np.minimum(latency, LONG).astype(np.uint32), end - size, end, longer)

    def percentiles(self, shares: Sequence[float]) -> tuple[list[int] | None, list[list[int] | None]]:
        """In ns, of all models together and of each (None without results): exact, upper neighbours.

        Args:
            shares: in percent, rising.
        """
        parts = [self.value[i:j] for i, j in zip(self.begin.tolist(), self.end.tolist(), strict=True)]
        of_models = [
            self._exact(_percentiles(part, shares), len(part), shares, i) for i, part in enumerate(parts)
        ]
        number = sum(len(part) for part in parts)
        longest = max((int(part.max()) for part in parts if len(part)), default=0)
        return self._exact(self._of_all(number, longest, shares), number, shares, None), of_models

    def _of_all(self, number: int, longest: int, shares: Sequence[float]) -> list[int] | None:
        """Percentiles of all together. Only the bins of a histogram that they lie in are put in order."""
        if not number:
            return None
        loops = tallies()
        shift = max(0, longest.bit_length() - BITS)
        bins = np.zeros(4 << BITS, np.uint32)
        loops.histogram(self.value, self.begin, self.end, shift, bins)
        up_to = np.cumsum(bins.reshape(4, -1).sum(axis=0, dtype=np.int64))
        places = [_place(number, share) for share in shares]
        which = np.searchsorted(up_to, places, side="right")
        wanted = np.zeros(1 << BITS, np.uint8)
        wanted[which] = 1
        size = np.diff(up_to, prepend=0)
        gathered = np.empty(int(size[np.unique(which)].sum()), np.uint32)
        loops.gather(self.value, self.begin, self.end, shift, wanted, gathered)
        gathered.sort()
        # Of what was gathered, so much was below the bin in which a percentile lies.
        below = [int(size[:i][wanted[:i] > 0].sum()) for i in which]
        return [
            int(gathered[place - int(up_to[i] - size[i]) + less])
            for place, i, less in zip(places, which, below, strict=True)
        ]

    def _exact(
        self, found: list[int] | None, number: int, shares: Sequence[float], model: int | None
    ) -> list[int] | None:
        """With the latencies for which LONG stands; ``model``: None for all of them."""
        if found is None or found[-1] < LONG:
            return found
        far = sorted(ns for of, ns in self.longer if model in (None, of))
        return [
            value if value < LONG else far[_place(number, share) - number + len(far)]
            for value, share in zip(found, shares, strict=True)
        ]


def _place(number: int, share: float) -> int:
    return math.ceil((number - 1) * (share / 100))


def _percentiles(values: npt.NDArray[Any], shares: Sequence[float]) -> list[int] | None:
    """Of values that may be reordered: what is behind one percentile is partitioned for the next."""
    if not len(values):
        return None
    found = []
    done = 0
    for share in shares:
        place = _place(len(values), share)
        values[done:].partition(place - done)
        found.append(int(values[place]))
        done = place
    return found


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts per model (int64), without warm-up, and what the percentiles are taken from.

    requests: arrivals in all, warm-up included. oldest: per batch, when the first of its requests had
    arrived (ns).
    """

    requests: int
    offered: Ints
    good: Ints
    late: Ints
    latencies: Latencies
    oldest: Ints

    @property
    def bad_share(self) -> float:
        """Late and given up, of all offered."""
        offered = int(self.offered.sum())
        return 1 - int(self.good.sum()) / offered if offered else 0.0

    def percentiles(self, shares: Sequence[float]) -> tuple[list[int] | None, list[list[int] | None]]:
        """In ns, of all models together and of each; see :meth:`Latencies.percentiles`."""
        return self.latencies.percentiles(shares)


def by_model(model: npt.NDArray[Any], number: int) -> Ints:
    """Positions, those of model 0 first, each model's in order; for fewer than ``number`` models."""
    small = model.astype(np.uint16) if number <= 1 << 16 else model  # 16 bits are sorted by radix
    return np.argsort(small, kind="stable")


class Counter:
    """Makes a tally from what arrives and what is answered, in pieces.

    Args:
        slos: ns, by model. begin: ns; what arrives before does not count.
        expected: requests of each model, about: room for so many is made in one piece (memory is used as
            it fills).
    """

    def __init__(self, slos: Sequence[int], begin: int, expected: Sequence[float] = ()) -> None:
        number = len(slos)
        self._slos = np.array(slos, dtype=np.int64)
        self._begin = begin
        self._requests = 0
        self._offered, self._good, self._late = (np.zeros(number, np.int64) for _ in range(3))
        self._loops = tallies()
        room = np.array(expected or [0.0] * number)
        self._value: Short = np.empty(0, np.uint32)
        self._first = self._end = np.zeros(number, np.int64)
        self._make_room((room + 6 * np.sqrt(room) + 64).astype(np.int64))
        self._longer: list[tuple[int, int]] = []
        self._oldest: list[Ints] = [np.empty(0, np.int64)]

    def _make_room(self, room: Ints) -> None:
        """Move all latencies to where there is room for so many of each model."""
        old, first, end = self._value, self._first.tolist(), self._end.tolist()
        self._stop = np.cumsum(room)
        self._value = np.empty(self._stop[-1] if len(room) else 0, np.uint32)
        self._end = self._end - self._first
        self._first = self._stop - room
        self._end += self._first
        for i, to in enumerate(self._first.tolist()):
            self._value[to : to + end[i] - first[i]] = old[first[i] : end[i]]

    def arrive(self, arrivals: Arrivals) -> None:
        """These have arrived, in order."""
        self._requests += len(arrivals.at)
        early = int(np.searchsorted(arrivals.at, self._begin))
        self._loops.count(arrivals.model, early, self._offered)

    def answer(self, model: Ints, size: Ints, answered: Ints, deadline: Ints) -> None:
        """Batches, each of at least one request, are answered at these times.

        Args:
            model, size, answered: per batch. deadline: of all their requests in turn.
        """
        oldest = np.empty(len(model), np.int64)
        self._oldest.append(oldest)
        while len(model):
            done = self._loops.answer(
                model,
                size,
                answered,
                deadline,
                self._slos,
                self._begin,
                self._good,
                self._late,
                oldest,
                self._value,
                self._end,
                self._stop,
            )
            self._note_long(model[:done], size[:done], answered[:done], deadline, oldest)
            if done == len(model):
                return
            # No room for a batch: twice as much for every model, and for this one.
            model, answered, oldest = model[done:], answered[done:], oldest[done:]
            deadline, size = deadline[size[:done].sum() :], size[done:]
            room = 2 * (self._stop - self._first)
            room[model[0]] += size[0]
            self._make_room(room)

    def _note_long(self, model: Ints, size: Ints, answered: Ints, deadline: Ints, oldest: Ints) -> None:
        """Keep the latencies for which LONG stands."""
        for i in np.flatnonzero(answered - oldest[: len(model)] >= LONG).tolist():
            start = int(size[:i].sum())
            arrived = deadline[start : start + size[i]] - self._slos[model[i]]
            latency = answered[i] - arrived[arrived >= self._begin]
            self._longer += [(int(model[i]), ns) for ns in latency[latency >= LONG].tolist()]

    def tally(self) -> Tally:
        """Everything so far."""
        latencies = Latencies(self._value, self._first, self._end, self._longer)
        oldest = np.concatenate(self._oldest)
        return Tally(self._requests, self._offered, self._good, self._late, latencies, oldest)
