"""What holds for every plan, whatever the cluster: memory, compute, everybody served or named."""

from __future__ import annotations

from dataclasses import replace

import allocation_oracle as oracle
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scheduler.allocation import Cluster, Current, GpuGroup, Model, Plan, allocate
from symphony.profile import Profile

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without shrinking: a plan takes a tenth of a second, and shrinking makes thousands."""
LINES = st.tuples(st.floats(0.1, 5), st.floats(0, 10), st.integers(1, 64))


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    types = draw(st.sampled_from([("a",), ("a",), ("a", "b")]))
    groups = tuple(
        GpuGroup(kind, draw(st.integers(0, 12)), draw(st.sampled_from([1_000, 4_000, 8_000])))
        for kind in types
    )
    models = []
    for i in range(draw(st.integers(1, 6))):
        there = draw(st.lists(st.sampled_from(types), min_size=1, unique=True))
        profiles = {kind: Profile.linear(*draw(LINES)) for kind in there}
        rate = draw(st.one_of(st.just(0.0), st.floats(0.1, 5_000)))
        slo = draw(st.sampled_from([5, 20, 100, 400]))
        models.append(
            Model(f"m{i}", rate, slo, profiles, draw(st.integers(0, 5_000)), draw(st.integers(0, 900)))
        )
    shards = tuple(f"s{i}" for i in range(draw(st.integers(1, 3))))
    forbidden = draw(st.frozensets(st.tuples(st.just("m0"), st.sampled_from(types)), max_size=1))
    return Cluster(shards, groups, tuple(models), forbidden=forbidden, spares=draw(st.booleans()))


def check(cluster: Cluster, plan: Plan, headroom: float) -> None:
    """Every rule that a plan keeps, recomputed from the cluster alone."""
    models = {model.name: model for model in cluster.models}
    groups = {group.type: group for group in cluster.gpus}
    for kind, group in groups.items():
        assert sum(held.get(kind, 0) for held in plan.gpus.values()) <= group.count
    for where in plan.placements.values():
        assert sum(where.values()) == pytest.approx(1)
        assert set(where) <= set(cluster.shards)
        assert all(plan.gpus[shard] for shard in where), "a place without a GPU is none"
    for shard in cluster.shards:
        here = [name for name, where in plan.placements.items() if shard in where]
        memory = sum(models[name].memory_mb for name in here)
        assert plan.memory_mb[shard] == pytest.approx(memory)
        for kind in plan.gpus[shard]:
            assert memory <= groups[kind].memory_mb + 1e-3
            for name in here:
                assert (name, kind) not in cluster.forbidden
                assert oracle.work(cluster, replace(models[name], rate=0.0), 1.0, kind) == 0.0
        count = sum(plan.gpus[shard].values())
        assert plan.utilization[shard] <= headroom + 1e-5
        if not plan.unserved and len(plan.gpus[shard]) == 1:
            (kind,) = plan.gpus[shard]
            load = sum(oracle.work(cluster, models[n], plan.placements[n][shard], kind) for n in here)
            assert load <= headroom * count + 1e-5
            assert plan.utilization[shard] == pytest.approx(load / count, abs=1e-6)
    assert (plan.status == "infeasible") == bool(plan.unserved)
    for name, model in models.items():
        assert name in plan.placements or name in plan.unserved
        assert 0 <= plan.unserved.get(name, 0) <= model.rate + 1e-6
    for name in plan.unserved:
        why = [reason for reason in plan.reasons if reason.startswith(f"{name}: ") and "unserved" in reason]
        assert len(why) == 1
        assert "short" in why[0] or "no GPU" in why[0]


@settings(max_examples=40, deadline=None, phases=PHASES)
@given(clusters())
def test_every_plan_keeps_the_rules(cluster: Cluster) -> None:
    plan = allocate(cluster, time_limit_s=2)
    check(cluster, plan, cluster.headroom)


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(clusters(), st.lists(st.floats(0.2, 5), min_size=6, max_size=6))
def test_so_does_one_that_follows_another(cluster: Cluster, factors: list[float]) -> None:
    plan = allocate(cluster, time_limit_s=2)
    models = tuple(
        replace(model, rate=model.rate * factor)
        for model, factor in zip(cluster.models, factors, strict=False)
    )
    later = replace(cluster, models=models, current=Current(plan.placements, plan.gpus))
    check(later, allocate(later, time_limit_s=2), min(1.0, cluster.headroom * (1 + 2 * cluster.tolerance)))


@settings(max_examples=20, deadline=None, phases=PHASES)
@given(clusters())
def test_constant_load_moves_nothing(cluster: Cluster) -> None:
    # A solver that is cut short finds something better the next time: none is, however busy the machine.
    plan = allocate(cluster, time_limit_s=60)
    again = allocate(replace(cluster, current=Current(plan.placements, plan.gpus)), time_limit_s=60)
    assert (again.moved, again.placements, again.gpus) == (0, plan.placements, plan.gpus)
    # A plan in force may run a little above the planned headroom, so it never serves less.
    assert sum(again.unserved.values()) <= sum(plan.unserved.values()) * (1 + 1e-3) + 1e-3


def test_a_part_that_finds_no_memory_goes_where_the_rest_of_its_model_is() -> None:
    """Two shards of 1,000 MB: with 258 and 717 MB on one there is no room for a half of the first there."""
    models = (
        Model("m0", 461.7, 20, {"a": Profile.linear(3.959, 7.497, 14)}, 400),
        Model("m1", 0.0, 400, {"a": Profile.linear(3.032, 0.85, 8)}, 258),
        Model("m2", 889.3, 20, {"a": Profile.linear(0.591, 0.0, 27)}, 717),
        Model("m3", 0.1, 5, {"a": Profile.linear(4.981, 1.1, 11)}, 4_661),
    )
    cluster = Cluster(("s0", "s1"), (GpuGroup("a", 7, 1_000),), models, headroom=0.8, spares=True)
    plan = allocate(cluster, time_limit_s=2)
    check(cluster, plan, cluster.headroom)
    assert plan.unserved == {"m3": 0.1}
