"""Plans: which of two is newer, ranges of GPU numbers, what is malformed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from symphony.messages import of_ranges, to_ranges
from symphony.plans import ClusterPlan, Group, PlanStamp, rank

STAMPS = st.builds(
    PlanStamp,
    epoch=st.integers(1, 3),
    leader=st.sampled_from(["shard-0", "shard-2", "shard-10"]),
    revision=st.integers(0, 2),
)


def stamp(epoch: int, leader: str = "shard-0", revision: int = 0) -> PlanStamp:
    return PlanStamp(epoch=epoch, leader=leader, revision=revision)


def test_newer_is_the_higher_epoch_then_the_lower_leader_then_the_higher_revision() -> None:
    rising = [
        stamp(1, "shard-10", 7),
        stamp(1, "shard-2"),
        stamp(1, "shard-2", 1),
        stamp(1, "shard-0"),
        stamp(2, "shard-9"),
    ]
    for before, after in itertools.combinations(rising, 2):
        assert after.newer_than(before)
        assert not before.newer_than(after)
    assert stamp(1).newer_than(None)


@given(STAMPS, STAMPS, STAMPS)
def test_newer_is_an_order(a: PlanStamp, b: PlanStamp, c: PlanStamp) -> None:
    assert (a == b) + a.newer_than(b) + b.newer_than(a) == 1
    if a.newer_than(b) and b.newer_than(c):
        assert a.newer_than(c)


def test_ids_rank_as_people_count() -> None:
    assert sorted(["shard-10", "shard-2", "a-1", "shard-2b"], key=rank) == [
        "a-1",
        "shard-2",
        "shard-2b",
        "shard-10",
    ]


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_exactly_their_numbers(numbers: set[int]) -> None:
    ranges = to_ranges(numbers)
    assert list(of_ranges(ranges)) == sorted(numbers)
    assert Group(shard="s", gpus=ranges).gpus == ranges
    firsts, lasts = ranges[::2], ranges[1::2]
    assert all(last + 1 < first for last, first in zip(lasts, firsts[1:], strict=False))


@pytest.mark.parametrize("gpus", [[1], [3, 2], [0, 4, 4, 5], [5, 6, 0, 1], [-1, 3], [0, 1 << 20]])
def test_what_are_no_ranges(gpus: list[int]) -> None:
    with pytest.raises(ValidationError):
        Group(shard="s", gpus=gpus)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_what_is_no_weight(weight: float) -> None:
    with pytest.raises(ValidationError):
        ClusterPlan(stamp=stamp(1), routes={"m": {"shard-0": weight}})


def test_a_gpu_is_in_one_group() -> None:
    def plan(*gpus: list[int]) -> dict[str, Any]:
        return {"stamp": {"epoch": 1, "leader": "s"}, "groups": [{"shard": "s", "gpus": g} for g in gpus]}

    assert len(ClusterPlan.model_validate(plan([0, 3, 8, 9], [4, 7])).groups) == 2
    with pytest.raises(ValidationError, match="GPU 8 is in two groups"):
        ClusterPlan.model_validate(plan([0, 3, 8, 9], [4, 8]))
