"""The fluid model behind the allocator: how many GPUs keep busy with a share of a model's load.

A share of the rate r at one sub-cluster is run in batches of b, the largest with

    b / r + l(b) + b · data  ≤  SLO − control − result

(b requests gather, then run, then the first of them is just in time), or 1 where only a single request
fits. Its work is r · l(b) / b, in GPUs that are always busy. It is no linear function of r: a smaller
share forms smaller batches, which cost more per request. So shares are not continuous here: a model is
placed in equal parts, one for most, and work is computed exactly for every number of parts that may
meet at a shard. Nothing is linearised.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from .cluster import Cluster

Floats = npt.NDArray[np.float64]
Placement = dict[int, dict[int, float]]
"""Model → shard → share of the model's rate, all by position; a model that is placed nowhere is absent."""

EPSILON: Final = 1e-6
"""Work beyond a whole number of GPUs that is taken for rounding, in GPUs."""
NOWHERE: Final = 1.0
"""What a model that is placed nowhere counts for besides its unserved load, in requests/s."""


def batch_size(latency: Floats, rate: float, budget_ns: float, data_ns: float) -> int:
    """The batch of the module's formula; 0 if not even a single request is in time."""
    if latency[0] + data_ns > budget_ns:
        return 0
    sizes = np.arange(1, len(latency) + 1)
    need = latency + sizes * (data_ns + 1e9 / rate)
    return max(1, int(np.searchsorted(need, budget_ns * (1 + 1e-12), side="right")))


class Problem:
    """A cluster by positions and arrays, with the work of every share that planning asks for."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.models = cluster.models
        self.shards = len(cluster.shards)
        self.types = len(cluster.gpus)
        self.rate = np.array([model.rate for model in cluster.models])
        self.memory = np.array([model.memory_mb for model in cluster.models])
        self.count = [group.count for group in cluster.gpus]
        self.room = [group.memory_mb for group in cluster.gpus]
        self.headroom = cluster.headroom
        self.slack = self.shards if cluster.spares else 0
        """GPUs more or less that are no difference: where those to spare are handed out anyway, what the
        rounding up in each shard takes is not saved by leaving shards empty."""
        self.ease = self.slack
        """The same for packing alone, where balance matters more than the last GPUs."""
        self.near = 0.0
        """Relative distance from the best at which dividing GPUs among given placements is good enough."""
        self._latency: dict[tuple[int, int], Floats] = {}
        self._work: dict[tuple[int, int, float], tuple[float, int]] = {}
        self.why_not: dict[tuple[int, int], str] = {}
        """(model, type) → why that type can never run it."""
        self.fits = [[self._fit(m, t) for t in range(self.types)] for m in range(len(self.models))]
        self.least = np.array([self._least(m) for m in range(len(self.models))])
        """Work of each model's whole load on its best type; 0 where no type runs it."""
        self.order = sorted(range(len(self.models)), key=lambda m: (-self.least[m], -self.memory[m], m))
        """Models by work, most first."""
        self.parts = self._parts()
        """Model → number of equal parts that it may be placed in."""

    def _fit(self, m: int, t: int) -> bool:
        model, group, network = self.models[m], self.cluster.gpus[t], self.cluster.network
        profile = model.profile_on(group.type)
        reason = ""
        if group.count == 0:
            reason = "there is none of it"
        elif profile is None:
            reason = "it has no latency profile for it"
        elif (model.name, group.type) in self.cluster.forbidden:
            reason = "a worker could not load it there"
        elif model.memory_mb > group.memory_mb:
            short = model.memory_mb - group.memory_mb
            reason = f"it needs {model.memory_mb:,g} MB of {group.memory_mb:,g} MB, {short:,g} MB too much"
        else:
            alone = (
                profile.latency(1) / 1e6 + (network.control_us + network.data_us + network.result_us) / 1e3
            )
            if alone > model.slo_ms:
                reason = (
                    f"a single request takes {alone:g} ms, {alone - model.slo_ms:.3g} ms more "
                    f"than its objective of {model.slo_ms:g} ms"
                )
        if reason:
            self.why_not[m, t] = reason
            return False
        assert profile is not None
        self._latency[m, t] = np.array(profile.latency_ns, dtype=np.float64)
        return True

    def work(self, m: int, t: int, share: float = 1.0) -> float:
        """GPUs of type ``t`` that are busy with that share of model ``m``; inf if it cannot run there."""
        return self._of(m, t, share)[0]

    def batch(self, m: int, t: int, share: float = 1.0) -> int:
        """Predicted batch size of that share; 0 if it cannot run there."""
        return self._of(m, t, share)[1]

    def _of(self, m: int, t: int, share: float) -> tuple[float, int]:
        if not self.fits[m][t]:
            return math.inf, 0
        key = (m, t, round(share, 12))
        if key not in self._work:
            rate = float(self.rate[m]) * share
            if rate <= 0:
                return 0.0, 1
            network, latency = self.cluster.network, self._latency[m, t]
            budget = self.models[m].slo_ms * 1e6 - 1e3 * (network.control_us + network.result_us)
            b = batch_size(latency, rate, budget, 1e3 * network.data_us)
            self._work[key] = (rate * float(latency[b - 1]) / b / 1e9, b)
        return self._work[key]

    def unit(self, m: int, t: int) -> float:
        """The least work of the whole load over all ways to split it evenly: for bounds."""
        parts = self.parts[m]
        return min(self.work(m, t, k / parts) * parts / k for k in range(1, parts + 1))

    def _least(self, m: int) -> float:
        best = min((self.work(m, t) for t in range(self.types)), default=math.inf)
        return best if math.isfinite(best) else 0.0

    def _parts(self) -> list[int]:
        """One part, but for a model with more work than a shard's even share as many as shares it fills."""
        even = float(self.least.sum()) / self.shards
        return [
            1 if work <= even * (1 + 1e-9) else min(self.shards, math.ceil(work / even - 1e-9))
            for work in self.least.tolist()
        ]


def gpus_for(work: float, headroom: float) -> int:
    """GPUs that carry ``work`` at that headroom, at least one."""
    return max(1, math.ceil(work / headroom - EPSILON))
