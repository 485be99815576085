"""The allocator's model once more, by enumeration and without a line of the allocator's code.

docs/allocation.md defines what is computed here: work of a share, parts of a model, and the order of
the objectives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from scheduler.allocation import Cluster, Model

Vector = tuple[int, ...]


def work(cluster: Cluster, model: Model, share: float, kind: str) -> float:
    """Busy GPUs of a share of a model's rate; inf if a single request is too late."""
    profile, rate, network = model.profile_on(kind), model.rate * share, cluster.network
    if profile is None:
        return math.inf
    budget = model.slo_ms * 1e6 - 1e3 * (network.control_us + network.result_us)
    best = 0
    for b, latency in enumerate(profile.latency_ns, 1):
        lone = b == 1 and latency + 1e3 * network.data_us <= budget
        if lone or (rate > 0 and b / rate * 1e9 + latency + b * 1e3 * network.data_us <= budget):
            best = b
    if not best:
        return math.inf
    return rate * profile.latency_ns[best - 1] / best / 1e9


def parts(cluster: Cluster, kind: str) -> list[int]:
    """In how many equal parts each model may be placed."""
    loads = [work(cluster, model, 1.0, kind) for model in cluster.models]
    even = sum(loads) / len(cluster.shards)
    return [
        1 if load <= even * (1 + 1e-9) else min(len(cluster.shards), math.ceil(load / even - 1e-9))
        for load in loads
    ]


def ways(number: int, shards: int) -> list[Vector]:
    """All ways to lay ``number`` parts on shards."""
    return [way for way in itertools.product(range(number + 1), repeat=shards) if sum(way) == number]


def placements(cluster: Cluster, kind: str) -> Iterator[tuple[Vector, ...]]:
    """All of them: for each model its parts per shard."""
    shards = len(cluster.shards)
    yield from itertools.product(*(ways(number, shards) for number in parts(cluster, kind)))


def gpus_for(load: float, headroom: float) -> int:
    """At least one, and a whole number."""
    return max(1, math.ceil(load / headroom - 1e-6))


def best_one_type(cluster: Cluster) -> tuple[int, float]:
    """Fewest GPUs, then the smallest largest load, when all load is served on one GPU type."""
    group = cluster.gpus[0]
    numbers = parts(cluster, group.type)
    best = (10**9, math.inf)
    for placement in placements(cluster, group.type):
        value = value_of(cluster, placement, numbers, group.memory_mb)
        if value is not None and (value[0] < best[0] or (value[0] == best[0] and value[1] < best[1])):
            best = value
    return best


def value_of(
    cluster: Cluster, placement: tuple[Vector, ...], numbers: list[int], room: float
) -> tuple[int, float] | None:
    """GPUs and largest load; None if memory does not suffice."""
    total, peak = 0, 0.0
    for s in range(len(cluster.shards)):
        load = memory = 0.0
        for model, way, number in zip(cluster.models, placement, numbers, strict=True):
            if way[s]:
                load += work(cluster, model, way[s] / number, cluster.gpus[0].type)
                memory += model.memory_mb
        if memory > room:
            return None
        if any(way[s] for way in placement):
            total += gpus_for(load, cluster.headroom)
        peak = max(peak, load)
    return total, peak


def best_whole(cluster: Cluster) -> tuple[int, float]:
    """The same where no model is split, for up to 12 models on 4 shards: all 4^11 placements, in columns."""
    group = cluster.gpus[0]
    assert set(parts(cluster, group.type)) == {1}
    loads = np.array([work(cluster, model, 1.0, group.type) for model in cluster.models])
    sizes = np.array([model.memory_mb for model in cluster.models])
    shards, count = len(cluster.shards), len(loads)
    first = count - min(count, 9)
    tails = np.array(list(itertools.product(range(shards), repeat=count - first)), dtype=np.int8)
    tail_load = np.stack([(tails == s) @ loads[first:] for s in range(shards)])
    tail_size = np.stack([(tails == s) @ sizes[first:] for s in range(shards)])
    tail_held = np.stack([(tails == s).any(axis=1) for s in range(shards)])
    best = (10**9, math.inf)
    # Shards are alike: the first model is on the first shard.
    for head in itertools.product([0], *[range(shards)] * (first - 1)) if first else [()]:
        chosen = np.array(head)
        load = tail_load + np.array([[loads[:first][chosen == s].sum()] for s in range(shards)])
        size = tail_size + np.array([[sizes[:first][chosen == s].sum()] for s in range(shards)])
        held = tail_held | np.array([[bool((chosen == s).any())] for s in range(shards)])
        gpus = np.where(held, np.maximum(1, np.ceil(load / cluster.headroom - 1e-6)), 0).sum(axis=0)
        gpus[(size > group.memory_mb).any(axis=0)] = 10**9
        fewest = int(gpus.min())
        if fewest <= best[0] and fewest < 10**9:
            best = min(best, (fewest, float(load.max(axis=0)[gpus == fewest].min())))
    return best


def most_served(cluster: Cluster) -> float:
    """The first objective on one GPU type where GPUs are short: the least that stays unserved.

    Requests/s, and one more for each model that is placed nowhere. Models are not split.
    """
    group, shards = cluster.gpus[0], len(cluster.shards)
    loads = [work(cluster, model, 1.0, group.type) for model in cluster.models]
    best = math.inf
    for where in itertools.product(range(-1, shards), repeat=len(loads)):
        for counts in itertools.product(range(group.count + 1), repeat=shards):
            if sum(counts) > group.count:
                continue
            missed = 0.0
            for m, s in enumerate(where):
                if s < 0 or counts[s] == 0:
                    missed += cluster.models[m].rate + 1.0
            for s in range(shards):
                here = [m for m, place in enumerate(where) if place == s and counts[s]]
                if sum(cluster.models[m].memory_mb for m in here) > group.memory_mb:
                    missed = math.inf
                left = cluster.headroom * counts[s]
                for m in sorted(here, key=lambda m: loads[m] / max(cluster.models[m].rate, 1e-12)):
                    share = min(1.0, left / loads[m]) if loads[m] > 0 else 1.0
                    left -= share * loads[m]
                    missed += cluster.models[m].rate * (1 - share)
            best = min(best, missed)
    return best


def fewest_two_types(cluster: Cluster) -> int:
    """Fewest GPUs of two types that serve everything, models not split over shards."""
    a, b = cluster.gpus
    shards = len(cluster.shards)
    loads = [[work(cluster, model, 1.0, group.type) for group in (a, b)] for model in cluster.models]
    best = 10**9
    for where in itertools.product(range(shards), repeat=len(loads)):
        needs: list[list[tuple[int, int]]] = []
        for s in range(shards):
            here = [m for m, place in enumerate(where) if place == s]
            needs.append(_pairs(cluster, here, loads))
        for combination in itertools.product(*needs):
            if sum(n for n, _ in combination) <= a.count and sum(n for _, n in combination) <= b.count:
                best = min(best, sum(map(sum, combination)))
    return best


def _pairs(cluster: Cluster, here: list[int], loads: list[list[float]]) -> list[tuple[int, int]]:
    """Counts of both types that carry these models on one shard."""
    if not here:
        return [(0, 0)]
    a, b = cluster.gpus
    memory = sum(cluster.models[m].memory_mb for m in here)
    pairs = []
    for count_a in range(a.count + 1 if memory <= a.memory_mb else 1):
        if count_a and any(math.isinf(loads[m][0]) for m in here):
            continue
        # What takes b the most time for its time on a goes to a first.
        left, rest = cluster.headroom * count_a, 0.0
        for m in sorted(here, key=lambda m: loads[m][0] / loads[m][1]):
            share = min(1.0, left / loads[m][0]) if count_a else 0.0
            left -= share * loads[m][0] if share else 0.0
            rest += (1 - share) * loads[m][1] if share < 1 else 0.0
        count_b = math.ceil(rest / cluster.headroom - 1e-6) if math.isfinite(rest) else 10**9
        if count_b and (memory > b.memory_mb or any(math.isinf(loads[m][1]) for m in here)):
            continue
        if count_b <= b.count and count_a + count_b > 0:
            pairs.append((count_a, count_b))
    return pairs


def least_loading(cluster: Cluster) -> tuple[int, float, float]:
    """All objectives on one GPU type from a plan in force: GPUs, largest load, seconds of loading."""
    group = cluster.gpus[0]
    numbers = parts(cluster, group.type)
    rows = []
    for placement in placements(cluster, group.type):
        value = value_of(cluster, placement, numbers, group.memory_mb)
        if value is not None:
            rows.append((*value, loading(cluster, placement, numbers)))
    fewest = min(row[0] for row in rows)
    peak = min(row[1] for row in rows if row[0] == fewest)
    return fewest, peak, min(row[2] for row in rows if row[0] == fewest and row[1] <= peak + 1e-6)


def loading(cluster: Cluster, placement: tuple[Vector, ...], numbers: list[int]) -> float:
    """A new placement loads on the GPUs there are, an added GPU loads what its shard holds now."""
    group, current = cluster.gpus[0], cluster.current
    cost = 0.0
    for s, shard in enumerate(cluster.shards):
        there = current.gpus.get(shard, {}).get(group.type, 0)
        load = 0.0
        for model, way, number in zip(cluster.models, placement, numbers, strict=True):
            if way[s]:
                load += work(cluster, model, way[s] / number, group.type)
                if shard not in current.placements.get(model.name, {}):
                    cost += model.load_ms / 1e3 * max(1, there)
        count = gpus_for(load, cluster.headroom) if any(way[s] for way in placement) else 0
        holds = sum(
            model.load_ms for model in cluster.models if shard in current.placements.get(model.name, {})
        )
        cost += max(0, count - there) * holds / 1e3
    return cost
