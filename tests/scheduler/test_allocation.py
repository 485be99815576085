"""Epoch allocation: the answers to small, readable clusters, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scheduler.allocation import (
    ANY_TYPE,
    AllocationError,
    Cluster,
    Current,
    GpuGroup,
    Model,
    Network,
    Plan,
    allocate,
)
from scheduler.allocation.divide import divide
from scheduler.allocation.program import Clock
from scheduler.allocation.work import Problem
from symphony.profile import Profile

R50 = Profile.linear(1.082, 5.204, 128)
FIELDS = [
    "status",
    "gap",
    "solve_s",
    "gpus_needed",
    "placements",
    "gpus",
    "utilization",
    "memory_mb",
    "moved",
    "unserved",
    "reasons",
]


def line(alpha_ms: float, beta_ms: float) -> Profile:
    return Profile.linear(alpha_ms, beta_ms, 128)


def model(name: str, rate: float, memory_mb: float = 400, slo_ms: float = 100, **profiles: Profile) -> Model:
    return Model(name, rate, slo_ms, profiles or {ANY_TYPE: R50}, memory_mb, 900)


def cluster(*models: Model, shards: int = 4, gpus: int = 32, memory_mb: float = 16_000) -> Cluster:
    names = tuple(f"shard-{s}" for s in range(shards))
    return Cluster(names, (GpuGroup("v100", gpus, memory_mb),), models)


def after(what: Cluster, plan: Plan) -> Cluster:
    return replace(what, current=Current(plan.placements, plan.gpus))


def test_one_model_on_as_few_gpus_as_the_formula_says() -> None:
    # 4000 requests/s, SLO 100 ms: b = 74 is the largest with b / 4 + 1.082 b + 5.204 <= 100 (ms); its
    # work is 4 · 85.272 / 74 = 4.609 GPUs, at headroom 0.8 that is 5.76.
    plan = allocate(cluster(model("r50", 4000), shards=1))
    assert (plan.status, plan.gpus_needed, plan.gap) == ("optimal", 6, 0)
    b = max(b for b in range(1, 129) if b / 4 + 1.082 * b + 5.204 <= 100)
    assert plan.utilization["shard-0"] == pytest.approx(4 * (1.082 * b + 5.204) / b / 6)
    assert plan.placements == {"r50": {"shard-0": 1.0}}
    assert plan.gpus == {"shard-0": {"v100": 6}}
    assert plan.memory_mb == {"shard-0": 400}


def test_the_plan_as_json_has_exactly_the_documented_fields() -> None:
    plan = allocate(cluster(model("r50", 4000)))
    assert list(json.loads(json.dumps(plan.as_dict()))) == FIELDS


def test_network_latency_takes_from_the_budget() -> None:
    what = cluster(model("r50", 4000), shards=1)
    near = allocate(what)
    far = allocate(replace(what, network=Network(control_us=20_000, data_us=100, result_us=20_000)))
    assert far.gpus_needed > near.gpus_needed


def test_memory_keeps_models_apart_although_more_gpus_are_needed() -> None:
    models = [model(f"m{i}", 10, memory_mb=9_000) for i in range(3)]
    plan = allocate(cluster(*models))
    assert plan.gpus_needed == 3
    assert len({tuple(where) for where in plan.placements.values()}) == 3
    assert allocate(cluster(*[replace(m, memory_mb=5_000) for m in models])).gpus_needed == 1


def test_load_that_cannot_be_served_is_an_answer() -> None:
    plan = allocate(cluster(model("big", 50_000), model("small", 100), gpus=8))
    assert plan.status == "infeasible"
    assert plan.gpus_needed > 8
    assert 0 < plan.unserved["big"] < 50_000
    assert sum(sum(held.values()) for held in plan.gpus.values()) <= 8
    assert any("GPUs are short" in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (cluster(model("m", 10, memory_mb=20_000)), "20,000 MB of 16,000 MB, 4,000 MB too much"),
        (cluster(model("m", 10), gpus=0), "there is none of it"),
        (replace(cluster(model("m", 10)), gpus=()), "there are no GPUs"),
        (cluster(model("m", 10, slo_ms=6)), "a single request takes 6.286 ms, 0.286 ms more"),
        (cluster(model("m", 10, a100=R50)), "no latency profile"),
        (
            replace(cluster(model("m", 10)), forbidden=frozenset({("m", "v100")})),
            "a worker could not load it there",
        ),
    ],
)
def test_a_model_that_nothing_can_run_is_named_with_the_reason(what: Cluster, words: str) -> None:
    plan = allocate(what)
    assert (plan.status, plan.unserved, plan.placements) == ("infeasible", {"m": 10.0}, {})
    assert any(words in reason for reason in plan.reasons), plan.reasons


def test_a_model_that_nothing_can_run_takes_nothing_from_the_others() -> None:
    steep = Profile.linear(2, 8, 128)
    plan = allocate(
        cluster(
            model("r50", 4000),
            model("big", 2000, 12_000, 60, **{ANY_TYPE: steep}),
            model("huge", 20, 22_000, 60, **{ANY_TYPE: steep}),
        )
    )
    assert plan.unserved == {"huge": 20}
    assert plan.gpus_needed == sum(sum(kinds.values()) for kinds in plan.gpus.values()) == 12


def test_a_model_without_load_has_a_place_all_the_same() -> None:
    plan = allocate(cluster(model("busy", 1000), model("idle", 0)))
    assert plan.status == "optimal"
    assert set(plan.placements) == {"busy", "idle"}
    for where in plan.placements.values():
        assert all(plan.gpus[shard] for shard in where)


def test_no_models_at_all() -> None:
    plan = allocate(cluster())
    assert (plan.status, plan.gpus_needed, plan.placements) == ("optimal", 0, {})


def test_spare_gpus_are_handed_out_only_on_demand() -> None:
    what = cluster(*(model(f"m{i}", 1000 + i) for i in range(8)), gpus=32)
    tight = allocate(what)
    loose = allocate(replace(what, spares=True))
    assert sum(sum(held.values()) for held in tight.gpus.values()) == tight.gpus_needed
    assert sum(sum(held.values()) for held in loose.gpus.values()) == 32
    # Rounding up in each shard takes nothing from anybody then: no shard stays empty to save it.
    assert tight.gpus_needed <= loose.gpus_needed <= tight.gpus_needed + len(loose.gpus)
    assert all(loose.gpus.values())
    assert max(loose.utilization.values()) < 1.1 * min(loose.utilization.values())
    assert max(loose.utilization.values()) < max(tight.utilization.values())


BAD = cluster(model("a", 10), model("b", 20))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (replace(BAD, shards=()), "shards: expected at least one"),
        (replace(BAD, shards=("x", "x")), "shards[1]: the name 'x' stands there twice"),
        (cluster(model("a", 1), model("a", 2)), "models[1]: the name 'a' stands there twice"),
        (replace(BAD, gpus=(*BAD.gpus, *BAD.gpus)), "gpus[1]: the name 'v100'"),
        (cluster(model("a", -1)), "models[0].rate (a): expected a number of 0 or more, not -1"),
        (cluster(model("a", float("nan"))), "models[0].rate"),
        (cluster(model("a", 1, slo_ms=0)), "slo_ms (a): expected a number above 0"),
        (cluster(Model("a", 1, 10, {})), "models[0] (a): expected a latency profile"),
        (replace(BAD, headroom=0.0), "headroom"),
        (replace(BAD, tolerance=-1.0), "tolerance"),
        (cluster(model("a", 1), gpus=-3), "gpus[0].count"),
        (replace(BAD, current=Current({"c": {"shard-0": 1}})), "current.placements.c: no model 'c'"),
        (replace(BAD, current=Current({"a": {"x": 1}})), "current.placements.a.x: no shard 'x'"),
        (replace(BAD, current=Current({}, {"x": {}})), "current.gpus.x: no shard 'x'"),
        (replace(BAD, current=Current({}, {"shard-0": {"t4": 1}})), "no GPU type 't4'"),
        (replace(BAD, current=Current({}, {"shard-0": {"v100": -1}})), "current.gpus.shard-0.v100"),
    ],
)
def test_nonsense_is_refused_with_its_key(what: Cluster, words: str) -> None:
    with pytest.raises(AllocationError) as error:
        allocate(what)
    assert words in str(error.value)


def test_what_is_left_of_a_plan_after_losses() -> None:
    current = Current({"a": {"s": 0.5, "t": 0.5}, "b": {"t": 1}}, {"s": {"v": 1, "w": 2}, "t": {"v": 3}})
    left = current.only({"s"}, {"a", "b"}, {"v"})
    assert left == Current({"a": {"s": 0.5}}, {"s": {"v": 1}})


def test_the_same_cluster_gives_the_same_plan() -> None:
    what = cluster(*(model(f"m{i}", 300 * (i + 1)) for i in range(6)))
    one, two = (allocate(what, time_limit_s=60) for _ in range(2))
    assert replace(one, solve_s=0.0) == replace(two, solve_s=0.0)


def test_shares_that_sum_to_one_but_for_rounding_are_divided_once() -> None:
    """Normalizing these never comes to rest: dividing anew until nothing changed would never end."""
    groups = (GpuGroup("a", 60, 16_000), GpuGroup("b", 60, 16_000))
    many = tuple(
        Model(f"m{i}", 500.0, 100.0, {kind: line(1.0, 5.0) for kind in "ab"}, 100.0, 10.0) for i in range(5)
    )
    problem = Problem(Cluster(tuple(f"s{i}" for i in range(10)), groups, many))
    roots = [(i + 4) ** 0.5 for i in range(10)]
    placement = {m: {s: root / sum(roots) for s, root in enumerate(roots)} for m in range(5)}
    division = divide(problem, placement, Clock(5.0))
    assert division.missed == pytest.approx(0.0, abs=1e-6)
    assert all(set(where) == set(range(10)) for where in division.placement.values())


def test_a_time_limit_is_kept_where_types_differ() -> None:
    """When it is over, what is there is the answer, and it says how far it may be from the best."""
    kinds = {"a": 0.5, "b": 1.0, "c": 2.5}
    groups = tuple(GpuGroup(kind, 400, 16_000) for kind in kinds)
    many = tuple(
        Model(
            f"m{i}",
            40_000 / (i + 1) ** 0.9,
            80.0 + 10 * (i % 7),
            {kind: line(factor * (0.5 + i % 3), 5.0 * factor) for kind, factor in kinds.items()},
            50.0 + 10 * (i % 20),
            100.0,
        )
        for i in range(300)
    )
    what = Cluster(tuple(f"s{i}" for i in range(24)), groups, many)
    plan = allocate(what, time_limit_s=0.05)
    assert plan.status in ("feasible", "infeasible")
    assert plan.gap > 0
    assert {model.name for model in many} == plan.placements.keys() | plan.unserved.keys()
    for shard, held in plan.gpus.items():
        assert sum(held.values()) > 0 or not any(shard in where for where in plan.placements.values())
    assert all(sum(h.get(kind, 0) for h in plan.gpus.values()) <= 400 for kind in kinds)
    assert max(plan.memory_mb.values()) <= 16_000
