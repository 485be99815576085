"""How much is asked for of each model, from counters that every shard tells about once a second.

Rates are means over a window, but a mean over a window in which the load has moved is the rate of nothing:
half old, half new, and a plan made from it has to be made again. So the seconds of two windows are looked at
as two groups, the last k and those before, for every k; if the counts of some two groups differ by more than
chance makes them, only the last k − 1 seconds count (shards do not tell theirs at the same moment, so the
first may be half old).

Chance: counts of requests that arrive independently scatter by their square root, so over n models
Σ (a − b)² / variance is n ± √(2n). Real arrivals come in bursts and scatter more, by a factor that
neighbouring seconds tell (the smaller half of such pairs, since a change is in one or two of them).
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

SECOND: Final = 1_000_000_000
OVERDUE_NS: Final = 3 * SECOND // 2
MOST: Final = 128
"""Samples kept per shard."""
SURE: Final = 6.0
"""Standard deviations of the sum over models that are no movement of the load."""
ALONE: Final = 9.0
"""Added to the sum's limit: with few models it is spread wider than the normal distribution."""
LEAST: Final = 0.1
"""Share of the load that must be elsewhere for what was before to be forgotten."""

Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Offered:
    """Requests/s by model, over the last ``seconds``, since the load last moved.

    dispersion: variance of counts beside that of independent arrivals, at least 1. whole: measured over the
    whole window. fresh: it moved so lately that this says little yet.
    """

    rates: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    dispersion: float = 1.0
    whole: bool = False
    fresh: bool = False

    def moved_from(self, before: Offered) -> float:
        """Share of the load that is elsewhere than ``before``, beyond what counts scatter by.

        Something that has gone from one model to another counts twice; 0 if it may be chance.
        """
        names = list(self.rates.keys() | before.rates.keys())
        if not names or self.seconds <= 0 or before.seconds <= 0:
            return 0.0
        a = np.array([self.rates.get(name, 0.0) for name in names]) * self.seconds
        b = np.array([before.rates.get(name, 0.0) for name in names]) * before.seconds
        return _moved(a, self.seconds, b, before.seconds, max(self.dispersion, before.dispersion))


class Meter:
    """The counters of all shards, and the rates that they tell.

    Args:
        window_s: over which rates are measured at most.
    """

    def __init__(self, window_s: float) -> None:
        window_s = min(window_s, MOST / 2 - 4)
        self._window_ns = int((window_s + 0.5) * SECOND)  # what is told each second comes a little apart
        self._enough = max(2, math.ceil(window_s / 4))
        self._samples: dict[str, deque[tuple[int, Counts]]] = {}
        self._number: dict[str, int] = {}
        self._now: Offered | None = None
        self._told: set[str] = set()
        self._measured_at = 0

    def saw(self, shard: str, at: int, offered: Mapping[str, int]) -> None:
        """Requests by model since the shard's start, as of ``at`` (cluster time, ns)."""
        for name in offered:
            self._number.setdefault(name, len(self._number))
        counts = np.zeros(len(self._number))
        counts[[self._number[name] for name in offered]] = list(offered.values())
        samples = self._samples.setdefault(shard, deque(maxlen=MOST))
        if samples and (at <= samples[-1][0] or (counts < self._padded(samples[-1][1], len(counts))).any()):
            samples.clear()  # another run of the shard, or another clock: its counters began anew
        samples.append((at, counts))
        self._told.add(shard)
        if self._told >= self._samples.keys() or at - self._measured_at > OVERDUE_NS:
            self._now = None

    def gone(self, shard: str) -> None:
        """The shard has left or died."""
        self._samples.pop(shard, None)
        self._told.discard(shard)
        self._now = None

    def known(self, shards: Collection[str]) -> bool:
        """Whether there are rates of all of these."""
        return all(len(self._samples.get(shard, ())) > 1 for shard in shards)

    def offered(self) -> Offered:
        """What is offered, over all shards, as of when the last of them told it; one that is silent is not
        waited for."""
        if self._now is None:
            self._now = self._measured()
            self._told.clear()
            self._measured_at = max((samples[-1][0] for samples in self._samples.values()), default=0)
        return self._now

    @staticmethod
    def _padded(counts: Counts, models: int) -> Counts:
        return np.concatenate((counts, np.zeros(models - len(counts)))) if len(counts) < models else counts

    def _measured(self) -> Offered:
        shards = [samples for samples in self._samples.values() if len(samples) > 1]
        if not shards:
            return Offered()
        steps = max(self._steps(samples, 2 * self._window_ns) for samples in shards)
        # counts[k], rates[k]: of the last k seconds; a shard that has told of fewer counts with those.
        counts = np.zeros((steps + 1, len(self._number)))
        rates, seconds = np.zeros_like(counts), np.zeros(steps + 1)
        for samples in shards:
            at, last = samples[-1]
            last = self._padded(last, len(self._number))
            for k in range(1, steps + 1):
                then, before = samples[-1 - min(k, len(samples) - 1)]
                took = (at - then) / SECOND
                step = last - self._padded(before, len(self._number))
                counts[k] += step
                rates[k] += step / took
                seconds[k] = max(seconds[k], took)
        dispersion = _dispersion(np.diff(counts, axis=0))
        since = _since(counts, seconds, dispersion)
        known = steps if since is None else max(1, since - 1)  # the first second may be half old
        window = min(steps, max(self._steps(samples, self._window_ns) for samples in shards))
        told = min(len(samples) - 1 for samples in shards)
        used = min(known, window)
        return Offered(
            dict(zip(self._number, rates[used].tolist(), strict=True)),
            float(seconds[used]),
            dispersion,
            whole=min(known, told) >= window and seconds[window] > self._window_ns / SECOND - 1.5,
            fresh=since is not None and known < min(window, self._enough),
        )

    @staticmethod
    def _steps(samples: deque[tuple[int, Counts]], span_ns: int) -> int:
        """Samples before the last that are within that time, at least one."""
        last = samples[-1][0]
        return max(1, sum(1 for at, _ in samples if last - at <= span_ns) - 1)


def _since(counts: Counts, seconds: Counts, dispersion: float) -> int | None:
    """How many seconds ago the load moved; None if it has not."""
    steps = len(counts) - 1
    best, found = 0.0, None
    for k in range(1, steps):
        earlier, spent = counts[steps] - counts[k], seconds[steps] - seconds[k]
        if spent <= 0:
            continue
        excess = _excess(counts[k], seconds[k], earlier, spent, dispersion)
        if excess > best and _moved(counts[k], seconds[k], earlier, spent, dispersion) > LEAST:
            best, found = excess, k
    return found


def _excess(a: Counts, a_s: float, b: Counts, b_s: float, dispersion: float) -> float:
    """By how much Σ (a/a_s − b/b_s)² / variance exceeds what chance makes of it; above 0: the load moved."""
    mean = (a + b) / (a_s + b_s)
    some = mean > 0
    n = int(np.count_nonzero(some))
    if not n:
        return 0.0
    variance = mean[some] * (1 / a_s + 1 / b_s) * dispersion
    chi = float(np.sum((a[some] / a_s - b[some] / b_s) ** 2 / variance))
    return chi - n - SURE * math.sqrt(2 * n) - ALONE


def _moved(a: Counts, a_s: float, b: Counts, b_s: float, dispersion: float) -> float:
    """Σ |difference of rates| ÷ the larger load, less what chance adds to the sum."""
    total = max(float(a.sum()) / a_s, float(b.sum()) / b_s)
    if total <= 0 or _excess(a, a_s, b, b_s, dispersion) <= 0:
        return 0.0
    mean = (a + b) / (a_s + b_s)
    chance = np.sqrt(2 / math.pi * mean * (1 / a_s + 1 / b_s) * dispersion)
    return max(0.0, float(np.sum(np.abs(a / a_s - b / b_s) - chance))) / total


def _dispersion(steps: Counts) -> float:
    """Variance of counts ÷ their mean, from neighbouring seconds; 1 where that cannot be told."""
    ratios = []
    for a, b in itertools.pairwise(steps):
        both = a + b
        some = both > 0
        ratios.append(float(np.mean((a[some] - b[some]) ** 2 / both[some])) if some.any() else 1.0)
    return max(1.0, sorted(ratios)[(len(ratios) - 1) // 2]) if ratios else 1.0
