"""Between the cluster as members tell of it and the allocator's terms: description in, target out. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from scheduler.allocation import Cluster, Current, GpuGroup, Model, Network, Plan
from scheduler.transition import Facts, Gpu, Target, Use
from symphony.control import Member, ModelSpec
from symphony.plans import rank
from symphony.profile import Profile

UNLIMITED_MB: Final = 1e12
"""Memory of a GPU that does not tell how much it has."""


def describe(
    shards: Collection[str],
    facts: Facts,
    models: Mapping[str, ModelSpec],
    rates: Mapping[str, float],
    uses: Mapping[int, Use],
    routes: Mapping[str, Mapping[str, float]],
    *,
    forbidden: frozenset[tuple[str, str]] = frozenset(),
    headroom: float = 0.8,
    network: Network | None = None,
) -> Cluster:
    """The cluster as the allocator wants it.

    GPUs of one type count with the least memory that one of them has. Models without a profile for a type
    that is there are left out: nobody can say what they take.

    Args:
        shards: those that live and are ready.
        facts: members' word.
        models: the catalogue.
        rates: requests/s by model.
        uses, routes: the plan in force.
        forbidden: (model, GPU type) that could not be carried out.
        headroom: share of GPU time that may be planned.
        network: what a request spends outside the GPU.
    """
    by_type: dict[str, list[Gpu]] = {}
    for gpu in facts.gpus.values():
        by_type.setdefault(gpu.type, []).append(gpu)
    groups = tuple(
        GpuGroup(kind, len(gpus), min(gpu.memory_mb or UNLIMITED_MB for gpu in gpus))
        for kind, gpus in sorted(by_type.items())
    )
    described = []
    for name in sorted(models):
        spec = models[name]
        profiles = {
            kind: Profile(tuple(table)) for kind, table in spec.profiles.items() if table and kind in by_type
        }
        if profiles:
            rate = max(0.0, rates.get(name, 0.0))
            described.append(Model(name, rate, spec.slo_ms, profiles, spec.memory_mb, spec.load_ms))
    gpus: dict[str, dict[str, int]] = {}
    for number, use in uses.items():
        if number in facts.gpus and use.shard in shards:
            held = gpus.setdefault(use.shard, {})
            kind = facts.gpus[number].type
            held[kind] = held.get(kind, 0) + 1
    ordered = tuple(sorted(shards, key=rank))
    shares = {
        model: {shard: weight / sum(route.values()) for shard, weight in route.items()}
        for model, route in routes.items()
    }
    current = Current(shares, gpus).only(ordered, [m.name for m in described], list(by_type))
    return Cluster(
        ordered,
        groups,
        tuple(described),
        current,
        forbidden,
        headroom=headroom,
        network=network or Network(),
        spares=True,
    )


def target_of(plan: Plan, facts: Facts, uses: Mapping[int, Use]) -> Target:
    """Which GPUs in particular, so that as few as possible change hands.

    Each shard keeps the lowest-numbered of its own and gives up the highest, which are idle most.
    """
    left: dict[tuple[str, str], int] = {
        (shard, kind): count for shard, counts in plan.gpus.items() for kind, count in counts.items()
    }
    chosen: dict[int, str] = {}
    for gpu in sorted(facts.gpus):
        use = uses.get(gpu)
        if use is None:
            continue
        what = use.shard, facts.gpus[gpu].type
        if left.get(what, 0) > 0:
            left[what] -= 1
            chosen[gpu] = use.shard
    needy = sorted((rank(shard), shard, kind) for (shard, kind), count in left.items() if count > 0)
    for gpu in sorted(facts.gpus):
        if gpu in chosen:
            continue
        for _, shard, kind in needy:
            if kind == facts.gpus[gpu].type and left[shard, kind] > 0:
                left[shard, kind] -= 1
                chosen[gpu] = shard
                break
    models: dict[str, set[str]] = {}
    for model, where in plan.placements.items():
        for shard in where:
            models.setdefault(shard, set()).add(model)
    routes = {
        model: {shard: round(weight, 6) for shard, weight in sorted(where.items()) if weight > 1e-6}
        for model, where in plan.placements.items()
    }
    return Target(
        chosen,
        {shard: frozenset(names) for shard, names in models.items()},
        {model: route for model, route in routes.items() if route},
    )


def as_it_is(
    members: Mapping[str, Member], facts: Facts
) -> tuple[dict[int, Use], dict[str, dict[str, float]]]:
    """The plan that says what is done without one: workers' own shards, and evenly among who announces."""
    shards = {m.id: m for m in members.values() if m.role == "scheduler" and m.state == "ready"}
    uses: dict[int, Use] = {}
    for worker in members.values():
        if worker.role == "worker" and worker.shard in shards:
            for info in worker.gpus:
                if info.number in facts.gpus:
                    uses[info.number] = Use(worker.shard, facts.gpus[info.number].holds)
    routes: dict[str, dict[str, float]] = {}
    held = {(use.shard, model) for use in set(uses.values()) for model in use.models}
    for shard, model in sorted(held):
        if model in facts.takes.get(shard, frozenset()):
            routes.setdefault(model, {})[shard] = 1.0
    return uses, routes
