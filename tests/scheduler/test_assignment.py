"""Which GPUs of a worker are a shard's: with and without a plan."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scheduler.assignment import Assignment
from symphony.control import Holding, Member
from symphony.messages import to_ranges
from symphony.plans import ClusterPlan, Group, PlanStamp

STAMP = PlanStamp(epoch=1, leader="shard-0")


def worker(gpus: int = 4, models: tuple[str, ...] = ("a", "b"), **fields: Any) -> Member:
    return Member.model_validate(
        {
            "id": "w",
            "role": "worker",
            "incarnation": 1,
            "shard": "shard-0",
            "models": list(models),
            "gpus": [{"number": i, "type": "t"} for i in range(gpus)],
            **fields,
        }
    )


def held(assignment: Assignment, member: Member) -> dict[int, tuple[str, ...]]:
    return {number: models for number, (_, models) in assignment.of(member).items()}


def test_without_a_plan_a_worker_is_of_the_shard_that_it_names() -> None:
    mine, other = Assignment("shard-0"), Assignment("shard-1")
    assert mine.serves(worker())
    assert held(mine, worker(2)) == {0: ("a", "b"), 1: ("a", "b")}
    assert not other.serves(worker())
    assert held(other, worker()) == {}


def test_a_plan_assigns_gpus_one_by_one_whatever_the_worker_names() -> None:
    groups = [
        Group(shard="shard-0", gpus=[0, 0], models=["a"]),
        Group(shard="shard-1", gpus=[1, 2], models=["b", "a"]),
        Group(shard="shard-1", gpus=[3, 3], models=["b"], active=False),
    ]
    for shard, expected in (
        ("shard-0", {0: ("a",)}),
        ("shard-1", {1: ("a", "b"), 2: ("a", "b")}),
        ("shard-2", {}),
    ):
        assignment = Assignment(shard)
        assignment.follow(ClusterPlan(stamp=STAMP, groups=groups))
        assert held(assignment, worker()) == expected
        assert assignment.serves(worker()) == bool(expected)


def test_a_gpu_holds_what_its_worker_says_as_far_as_the_plan_wants_it() -> None:
    assignment = Assignment("shard-0")
    assignment.follow(
        ClusterPlan(stamp=STAMP, groups=[Group(shard="shard-0", gpus=[0, 3], models=["a", "c"])])
    )
    holds = [Holding(gpus=[0, 1], models=["a", "b"]), Holding(gpus=[2, 2], models=["c"])]
    member = worker(models=("a", "b", "c"), holds=holds)
    assert held(assignment, member) == {0: ("a",), 1: ("a",), 2: ("c",), 3: ()}


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=8, max_size=8))
def test_no_gpu_is_two_shards(owners: list[tuple[int, bool]]) -> None:
    groups = [
        Group(shard=f"shard-{s}", gpus=gpus, models=["a"], active=active)
        for s in range(3)
        for active in (True, False)
        if (gpus := to_ranges(i for i, owner in enumerate(owners) if owner == (s, active)))
    ]
    used: list[int] = []
    for s in range(3):
        assignment = Assignment(f"shard-{s}")
        assignment.follow(ClusterPlan(stamp=STAMP, groups=groups))
        used += assignment.of(worker(8))
    assert sorted(used) == [i for i, (_, active) in enumerate(owners) if active]
