"""Yardsticks: what the GPUs could carry if work were a fluid.

Both are exact under constant arrivals where batches of one model are evenly staggered over its GPUs,
and yardsticks, not proofs, elsewhere: random arrivals usually stay below them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .system import Cluster, ModelSpec


@dataclass(frozen=True, slots=True)
class Staggered:
    """Batch size and requests/s of :func:`staggered`."""

    batch: int
    rps: float


def staggered(latency_ns: Sequence[int], gpus: int, budget_ns: int) -> Staggered:
    """One model on ``gpus`` GPUs: the largest b with l(b)·(1 + 1/gpus) ≤ budget, and gpus·b/l(b).

    While a GPU runs a batch, the batches of the others start l(b)/gpus apart; a request waits at most
    that long for its batch to start. Batch 0 and rate 0 if not even b = 1 fits.
    """
    best = Staggered(0, 0.0)
    for b, length in enumerate(latency_ns, 1):
        if length * (gpus + 1) <= budget_ns * gpus:
            best = Staggered(b, gpus * b / length * 1e9)
    return best


def fluid_scale(cluster: Cluster) -> float | None:
    """The largest y such that all rates times y fit: Σ y·r·l(b)/b ≤ GPUs.

    b is the model's largest batch with b/(y·r) + l(b) + b·data ≤ SLO − control − result. 0 if a model
    cannot be served at all. GPUs of several types: :mod:`.fluid_types`. None without a rate.
    """
    if not any(model.rate > 0 for model in cluster.models):
        return None
    kinds = sorted(set(cluster.gpu_type))
    if len(kinds) > 1:
        from .fluid_types import fluid_scale_of_types  # HiGHS takes a fifth of a second to load

        return fluid_scale_of_types(cluster)
    kind = kinds[0]
    groups: dict[tuple[int, tuple[int, ...], float], int] = {}
    for model in cluster.models:
        if model.rate > 0:
            key = (gather_budget(cluster, model), model.latency[kind], model.rate)
            groups[key] = groups.get(key, 0) + 1
    # As y grows, a model's batch b becomes possible at y = b / (r·(budget − l(b) − b·data)); between
    # such points the need is linear in y, so the largest y is found exactly.
    points: list[float] = []
    changes: list[float] = []
    for (budget, latency, rate), count in groups.items():
        b = np.arange(1, len(latency) + 1)
        table = np.array(latency)
        room = budget - table - b * cluster.data
        fits = room > 0
        if not fits[0]:
            return 0.0
        b, table, room = b[fits], table[fits], room[fits]
        cost = count * rate * table / b / 1e9  # GPUs per unit of y
        gather = (b / (room / 1e9) / rate).tolist()
        points += [0.0, *gather[1:]]  # a single request waits for nobody
        changes += np.diff(cost, prepend=0.0).tolist()
    order = np.argsort(points, kind="stable")
    at = np.array(points)[order]
    slope = np.cumsum(np.array(changes)[order])
    gpus = len(cluster.gpu_type)
    until = np.append(at[1:], np.inf)
    reach = np.minimum(gpus / np.maximum(slope, 1e-300), until)
    valid = np.flatnonzero(at * slope <= gpus)
    return float(reach[valid[-1]]) if len(valid) else 0.0


def fluid_ideal(cluster: Cluster) -> float | None:
    """The fluid ideal in requests/s over all models: the offered rates times :func:`fluid_scale`."""
    scale = fluid_scale(cluster)
    return None if scale is None else scale * sum(model.rate for model in cluster.models)


def gather_budget(cluster: Cluster, model: ModelSpec) -> int:
    """What a request may spend on gathering, inputs and its batch, ns."""
    return model.slo - cluster.control - cluster.result
