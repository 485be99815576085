"""What no scheduler can do better, even one that knows all arrivals beforehand: the least bad requests.

A request that is answered in time takes part in a batch that starts no earlier than its inputs can be there,
release = arrival + control + data, and ends by its finish-by = deadline − result. So:

1. *Work.* Divide a batch's time among those of its requests that are in time, g of them: each costs
   l(b)/g ≥ l(g)/g of GPU time, since l never falls and g ≤ b. All g share one start s and one end ≥ s + l(g),
   so they arrived within SLO − control − result − g·data − l(g) of each other. Hence g is at most the largest
   number G for which so many requests of the model, this one among them, came that close together, and the
   request costs at least w = min over g ≤ G of l(g)/g. To leave requests out makes no G larger.
2. *Demand.* That work is done within [release, finish-by]. So the requests with both in [s, t] that are
   answered in time have Σ w ≤ GPUs · (t − s).
3. *Give-ups.* Where Σ w of all requests inside is more, some must be given up: at least as many as it takes
   of the largest w to make up for the excess. Intervals that do not overlap have no requests in common, so
   their numbers add up. The largest sum over disjoint intervals from a fixed set of candidates (weighted
   interval scheduling) is a lower bound of the bad requests, whichever the candidates are.

It lets batches be preempted, spread over GPUs and share time as if they were fluid, so it can be far above
what can be reached, and is no less than what any scheduler reaches. Batches last as long as the profile says:
with ``noise`` it bounds what can be done on average, not each run. Of several GPU types the fastest counts.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from .arrivals import Arrivals, make_arrivals
from .engine import cluster_of
from .experiment import Experiment
from .results import count_from
from .system import Cluster, ModelSpec

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

FINE: Final = 8
"""Starts of candidates are so many times closer than the shortest time from a release to its finish-by."""
LENGTHS: Final = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Lengths of candidates, in each model's time from release to finish-by; beyond these, doubled up to all."""
STARTS: Final = 16
"""Starts of long candidates are a so-many-th of their length apart."""
SLACK: Final = 1e-6
"""Share by which work must exceed what the GPUs do, for the sake of rounding."""


def least_work(at: Ints, model: ModelSpec, cluster: Cluster) -> Floats:
    """Of requests that arrive ``at`` (sorted, ns): the least GPU time in ns that each costs if in time."""
    table = _fastest(model, cluster)
    budget = model.slo - cluster.control - cluster.result
    n = len(at)
    work = np.full(n, np.inf)
    for g in range(1, min(n, len(table)) + 1):
        room = budget - g * cluster.data - table[g - 1]
        if room < 0:
            break
        close = np.flatnonzero(at[g - 1 :] - at[: n - g + 1] <= room)
        if not len(close):
            break
        # A run of g that begins at k holds k … k + g − 1.
        edges = np.zeros(n + 1, np.int64)
        np.add.at(edges, close, 1)
        np.add.at(edges, close + g, -1)
        inside = np.cumsum(edges[:n]) > 0
        work[inside] = np.minimum(work[inside], table[g - 1] / g)
    return work


def least_bad(arrivals: Arrivals, cluster: Cluster, since: int) -> int:
    """How many requests, of those that arrive at ``since`` (ns) or later, are bad under every scheduler."""
    counts = arrivals.at >= since
    at, number = arrivals.at[counts], arrivals.model[counts]
    hopeless = 0
    releases: list[Ints] = []
    spans: list[int] = []
    works: list[Floats] = []
    for which, model in enumerate(cluster.models):
        mine = np.sort(at[number == which])
        work = least_work(mine, model, cluster)
        can = np.isfinite(work)
        hopeless += int((~can).sum())
        if can.any():
            releases.append(mine[can] + cluster.control + cluster.data)
            spans.append(model.slo - cluster.control - cluster.data - cluster.result)
            works.append(work[can])
    if not releases:
        return hopeless
    found = _candidates(releases, spans, works, len(cluster.gpu_type))
    return hopeless + _heaviest(found)


def least_bad_share(experiment: Experiment, scale: float) -> float:
    """A share of the requests that is bad under every scheduler, with all rates times ``scale``."""
    arrivals = make_arrivals(experiment, scale)
    since = count_from(experiment)
    offered = int((arrivals.at >= since).sum())
    return least_bad(arrivals, cluster_of(experiment, scale), since) / offered if offered else 0.0


def _fastest(model: ModelSpec, cluster: Cluster) -> Sequence[int]:
    kinds = sorted(set(cluster.gpu_type))
    return [min(lengths) for lengths in zip(*(model.latency[kind] for kind in kinds), strict=True)]


def _candidates(
    releases: list[Ints], spans: list[int], works: list[Floats], gpus: int
) -> list[tuple[int, int, int]]:
    """Begin, end and least give-ups of the intervals that ask for more than the GPUs can do."""
    sums = [np.concatenate([[0.0], np.cumsum(work)]) for work in works]
    first = min(int(release[0]) for release in releases)
    last = max(int(release[-1]) + span for release, span in zip(releases, spans, strict=True))
    lengths = sorted({int(span * share) for span in set(spans) for share in LENGTHS})
    while lengths[-1] < last - first:
        lengths.append(2 * lengths[-1])
    fine = max(1, min(spans) // FINE)
    found = []
    for length in lengths:
        starts = np.arange(first, last, max(fine, length // STARTS), dtype=np.int64)
        total = np.zeros(len(starts))
        for release, span, summed in zip(releases, spans, sums, strict=True):
            low = np.searchsorted(release, starts, "left")
            high = np.searchsorted(release, starts + length - span, "right")
            total += summed[np.maximum(high, low)] - summed[low]
        capacity = gpus * length * (1 + SLACK)
        for i in np.flatnonzero(total > capacity).tolist():
            start = int(starts[i])
            inside = []
            for release, span, work in zip(releases, spans, works, strict=True):
                low, high = np.searchsorted(release, (start, start + length - span + 1), "left")
                inside.append(work[low : max(low, high)])
            largest = np.sort(np.concatenate(inside))[::-1]
            excess = float(largest.sum()) - capacity
            if excess > 0:
                found.append((start, start + length, int(np.searchsorted(np.cumsum(largest), excess)) + 1))
    return found


def _heaviest(found: list[tuple[int, int, int]]) -> int:
    """The largest sum of give-ups over intervals that do not overlap."""
    ends: list[int] = []
    best = [0]
    for start, end, bad in sorted(found, key=lambda entry: entry[1]):
        value = best[bisect_right(ends, start)] + bad
        ends.append(end)
        best.append(max(best[-1], value))
    return best[-1]
