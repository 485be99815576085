"""Planning from a plan in force: what stays, what moves, and what happens when the solver does not help."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from test_allocation_rules import check

from scheduler.allocation import Cluster, Current, GpuGroup, Model, Plan, allocate
from scheduler.allocation.program import Answer, Program
from symphony.profile import Profile


def cluster(models: int, shards: int, total: float, gpus: int = 400, memory_mb: float = 16_000) -> Cluster:
    """Random models with Zipf rates."""
    rng = random.Random(models)
    weights = [(i + 1) ** -0.9 for i in range(models)]
    return Cluster(
        tuple(f"shard-{s}" for s in range(shards)),
        (GpuGroup("v100", gpus, memory_mb),),
        tuple(
            Model(
                f"m{i}",
                total * weight / sum(weights),
                rng.choice([50, 100, 200]),
                {"v100": Profile.linear(rng.uniform(0.3, 4), rng.uniform(0.8, 8), 64)},
                rng.uniform(50, 800),
                rng.uniform(5, 50),
            )
            for i, weight in enumerate(weights)
        ),
    )


def after(what: Cluster, plan: Plan) -> Cluster:
    return replace(what, current=Current(plan.placements, plan.gpus))


def scaled(what: Cluster, factors: list[float]) -> Cluster:
    models = (replace(m, rate=m.rate * factor) for m, factor in zip(what.models, factors, strict=True))
    return replace(what, models=tuple(models))


def pairs(plan: Plan) -> set[tuple[str, str]]:
    return {(model, shard) for model, where in plan.placements.items() for shard in where}


@pytest.mark.parametrize(("models", "shards", "total"), [(40, 4, 8_000), (120, 12, 40_000)])
@pytest.mark.parametrize("spares", [False, True])
def test_small_drifts_move_hardly_anything(models: int, shards: int, total: float, spares: bool) -> None:
    what = replace(cluster(models, shards, total), spares=spares)
    plan = allocate(what, time_limit_s=1)
    rng = random.Random(7)
    moved = 0
    for _ in range(20):
        what = after(scaled(what, [1 + rng.uniform(-0.05, 0.05) for _ in what.models]), plan)
        plan = allocate(what, time_limit_s=1)
        check(what, plan, 0.88)
        assert plan.moved < 0.02 * len(pairs(plan)) + 1
        moved += plan.moved
    assert moved < 0.02 * 20 * models


def test_a_new_model_is_placed_without_moving_the_others() -> None:
    what = cluster(20, 4, 5_000)
    plan = allocate(replace(what, models=what.models[:-1]), time_limit_s=2)
    again = allocate(after(what, plan), time_limit_s=2)
    assert again.moved == 0
    assert "m19" in again.placements
    assert {pair for pair in pairs(again) if pair[0] != "m19"} == pairs(plan)


def test_balance_is_no_matter_where_gpus_are_plenty() -> None:
    """Hundreds of GPUs that would load, for shards that are busy with a tenth and with six tenths of one."""
    what = replace(cluster(20, 4, 100, gpus=2_000), spares=True)
    plan = allocate(what, time_limit_s=2)
    lean = [model.name for model in what.models if plan.placements[model.name].keys() == {"shard-0"}]
    factors = [6.0 if model.name in lean else 1.0 for model in what.models]
    again = allocate(after(scaled(what, factors), plan), time_limit_s=2)
    assert again.moved == 0


def test_a_lost_shard_gives_its_models_to_the_others() -> None:
    what = cluster(20, 4, 5_000)
    plan = allocate(what, time_limit_s=2)
    names = {model.name for model in what.models}
    left = Current(plan.placements, plan.gpus).only(set(what.shards[:3]), names, {"v100"})
    smaller = replace(what, shards=what.shards[:3], current=left)
    again = allocate(smaller, time_limit_s=2)
    check(smaller, again, 0.88)
    assert not again.unserved
    stayed = {pair for pair in pairs(plan) if pair[1] != "shard-3"} & pairs(again)
    assert len(stayed) >= 0.8 * len({pair for pair in pairs(plan) if pair[1] != "shard-3"})


def test_what_a_worker_could_not_load_goes_elsewhere() -> None:
    what = cluster(6, 2, 500)
    both = tuple(replace(m, profiles={**m.profiles, "t4": m.profiles["v100"]}) for m in what.models)
    what = replace(what, models=both, gpus=(*what.gpus, GpuGroup("t4", 20, 16_000)))
    plan = allocate(what, time_limit_s=2)
    again = allocate(replace(after(what, plan), forbidden=frozenset({("m0", "v100")})), time_limit_s=2)
    assert not again.unserved
    for shard in again.placements["m0"]:
        assert set(again.gpus[shard]) == {"t4"}


def test_load_that_wanders_to_the_other_half_is_followed() -> None:
    what = cluster(20, 4, 4_000)
    plan = allocate(what, time_limit_s=2)
    shifted = after(scaled(what, [5.0 if i % 2 else 0.05 for i in range(20)]), plan)
    again = allocate(shifted, time_limit_s=2)
    check(shifted, again, 0.88)
    assert not again.unserved
    fresh = allocate(replace(shifted, current=Current()), time_limit_s=2)
    shards = sum(1 for held in fresh.gpus.values() if held)
    assert again.gpus_needed <= fresh.gpus_needed * 1.05 + 0.5 * shards


def test_gpus_are_given_up_when_load_goes() -> None:
    what = cluster(20, 4, 8_000)
    plan = allocate(what, time_limit_s=2)
    again = allocate(after(scaled(what, [0.1] * 20), plan), time_limit_s=2)
    assert again.gpus_needed < 0.4 * plan.gpus_needed
    assert sum(sum(held.values()) for held in again.gpus.values()) < 0.4 * plan.gpus_needed


def test_without_time_for_the_solver_the_packing_is_the_plan() -> None:
    what = cluster(60, 4, 20_000)
    plan = allocate(what, time_limit_s=0.001)
    check(what, plan, what.headroom)
    assert plan.status in ("feasible", "optimal")
    assert plan.gap < 0.1
    better = allocate(what, time_limit_s=3)
    assert better.gpus_needed <= plan.gpus_needed


def test_memory_that_just_suffices_is_packed_without_the_solver() -> None:
    """Forty equal models, GPUs that hold ten: with or without a plan in force it is known at once."""
    names = [f"m{i}" for i in range(40)]
    profile = Profile.linear(30, 85, 16)
    what = Cluster(
        tuple(f"shard-{s}" for s in range(4)),
        (GpuGroup("v100", 12, 1_000),),
        tuple(
            Model(n, 6.5 if i < 20 else 0.1, 1_000, {"v100": profile}, 100, 20) for i, n in enumerate(names)
        ),
        spares=True,
    )
    plan = allocate(what, time_limit_s=0.001)
    check(what, plan, what.headroom)
    assert not plan.unserved
    placed = {name: {f"shard-{i // 10}": 1.0} for i, name in enumerate(names)}
    there = {"shard-0": {"v100": 2}, "shard-1": {"v100": 1}, "shard-2": {"v100": 5}, "shard-3": {"v100": 4}}
    again = allocate(replace(what, current=Current(placed, there)), time_limit_s=0.001)
    assert not again.unserved
    assert again.moved == 0
    assert min(again.gpus[shard]["v100"] for shard in ("shard-0", "shard-1")) >= 4


@pytest.mark.parametrize("types", [1, 2])
@pytest.mark.parametrize("total", [2_000, 60_000])
def test_a_solver_that_fails_leaves_the_packing(
    monkeypatch: pytest.MonkeyPatch, types: int, total: float
) -> None:
    nothing = Answer(None, float("inf"), float("-inf"), False)
    monkeypatch.setattr(Program, "minimize", lambda *_args, **_options: nothing)
    what = cluster(20, 4, total, gpus=60)
    if types == 2:
        both = tuple(replace(m, profiles={**m.profiles, "t4": m.profiles["v100"]}) for m in what.models)
        what = replace(what, models=both, gpus=(*what.gpus, GpuGroup("t4", 20, 8_000)))
    plan = allocate(what, time_limit_s=1)
    check(what, plan, what.headroom)
    assert bool(plan.unserved) == (total == 60_000)
    assert plan.status != "optimal"


def test_shards_stay_even_where_the_gpus_of_a_type_are_used_to_the_last() -> None:
    """None is left to round up with in every shard."""
    rng = random.Random(3)
    weights = [(i + 1) ** -0.9 for i in range(250)]
    speed = {"a": (200, 1.0), "b": (400, 0.7), "c": (400, 0.45)}
    models = tuple(
        Model(
            f"m{i}",
            950_000 * weight / sum(weights),
            rng.choice([50, 100, 200]),
            {
                kind: Profile.linear(rng.uniform(0.3, 3) * factor, rng.uniform(2, 10) * factor, 64)
                for kind, (_, factor) in speed.items()
            },
            rng.uniform(50, 400),
        )
        for i, weight in enumerate(weights)
    )
    groups = tuple(GpuGroup(kind, count, 16_000) for kind, (count, _) in speed.items())
    what = Cluster(tuple(f"shard-{s}" for s in range(16)), groups, models)
    plan = allocate(what, time_limit_s=15)
    check(what, plan, what.headroom)
    load = [plan.utilization[shard] * sum(held.values()) for shard, held in plan.gpus.items()]
    assert plan.status != "infeasible"
    assert plan.gpus_needed > 850
    assert max(load) < 1.35 * sum(load) / 16


def test_a_thousand_models_on_sixty_four_shards() -> None:
    what = cluster(1_000, 64, 6_000_000, gpus=20_000)
    plan = allocate(what, time_limit_s=5)
    check(what, plan, what.headroom)
    assert plan.status != "infeasible"
    assert plan.gap < 0.01
    moved = allocate(after(scaled(what, [1.0] * 999 + [3.0]), plan), time_limit_s=5)
    assert moved.moved <= 20
