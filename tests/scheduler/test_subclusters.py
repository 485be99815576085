"""From published statistics to decisions, shard by shard."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.actuators.base import Outcome, request_of
from scheduler.subclusters import SubClusters
from symphony.control import Member, ModelSpec, ScaleDecision
from symphony.plans import ClusterPlan, Group, PlanStamp
from symphony.scaling import AutoscaleConfig

S = 1_000_000_000
SETTINGS = AutoscaleConfig(
    actuator="local", max=10, startup_s=2, window_s=6, fast_s=2, cooldown_up_s=2, cooldown_down_s=6
)
MODEL = ModelSpec(
    name="m", slo_ms=100, max_batch=4, profiles={"t": [10_000_000, 12_000_000, 14_000_000, 16_000_000]}
)


class World:
    """One shard whose GPUs are as busy as the load makes them."""

    def __init__(self, gpus: int = 2) -> None:
        self.scaling = SubClusters("shard-0", SETTINGS)
        self.now, self.offered = 100 * S, 0
        self.gpus = gpus
        self.plan: ClusterPlan | None = None
        self.moving = False

    def members(self, draining: bool = False) -> dict[str, Member]:
        gpus = [{"number": n, "type": "t"} for n in range(self.gpus)]
        worker = {"id": "w", "role": "worker", "incarnation": 1, "shard": "shard-0", "gpus": gpus}
        return {"w": Member.model_validate({**worker, "state": "draining" if draining else "ready"})}

    def second(self, rate: int, **changes: Any) -> ScaleDecision | None:
        self.now += S
        self.offered += rate
        need = rate * 16e-3 / 4
        share = min(1.0, need / max(1, self.gpus))
        body = {
            "at": self.now,
            "models": {
                "m": {"offered": self.offered, "good": self.offered, "late": 0, "dropped": 0, "rate": rate}
            },
            "gpu": {"number": list(range(self.gpus)), "busy": [share] * self.gpus},
            **changes,
        }
        return self.scaling.saw("shard-0", body, self.members(), {"m": MODEL}, self.plan, self.moving)

    def run(self, rate: int, seconds: int = 12) -> list[ScaleDecision]:
        decisions = [self.second(rate) for _ in range(seconds)]
        return [decision for decision in decisions if decision is not None and decision.kind != "hold"]


def test_more_load_asks_for_more_gpus_once() -> None:
    world = World()
    assert world.run(350) == []
    first = world.run(800, 4)
    assert [decision.kind for decision in first] == ["up"]
    assert 4 <= first[0].requested["t"] <= 5
    assert (first[0].shard, first[0].leader, first[0].epoch) == ("shard-0", "shard-0", 0)
    world.gpus = first[0].requested["t"]
    assert world.run(800) == []


def test_another_leaders_requests_are_no_repetition_of_the_first_ones() -> None:
    """Without epochs numbers are all that tells them apart, and what an actuator knows it does not do."""
    world = World()
    world.run(350)
    first = world.run(800, 4)
    world.scaling = SubClusters("shard-0", SETTINGS)
    second = [*world.run(350), *world.run(800, 4)]
    asked = [request_of(decision).key for decision in first + second]
    assert first
    assert second
    assert len(set(asked)) == len(asked)
    assert second[0].sequence > first[-1].sequence


def test_while_a_plan_is_on_its_way_nothing_is_decided_and_afterwards_it_is() -> None:
    world = World()
    world.moving = True
    assert world.run(800) == []
    world.moving = False
    assert [decision.kind for decision in world.run(800, 4)] == ["up"]


def test_a_shard_that_a_plan_gives_nothing_to_serve_is_not_filled_up_to_the_minimum() -> None:
    world = World(gpus=0)
    stamp = PlanStamp(epoch=1, leader="shard-0")
    other = Group(shard="shard-1", gpus=[0, 1], models=["m"])
    world.plan = ClusterPlan(stamp=stamp, at=1, groups=[other], routes={"m": {"shard-1": 1.0}})
    empty = {"gpu": {"number": [], "busy": []}}
    assert [world.second(0, **empty) for _ in range(4)] == [None] * 4
    world.plan = ClusterPlan(stamp=stamp, at=1, groups=[], routes={})
    assert world.second(0, **empty) is not None  # a cluster without any GPU is another matter


def test_gpus_that_a_plan_takes_away_are_not_missed() -> None:
    world = World(gpus=6)
    stamp = PlanStamp(epoch=4, leader="shard-0")
    world.plan = ClusterPlan(stamp=stamp, groups=[Group(shard="shard-0", gpus=[0, 5], models=["m"])])
    world.run(1_000)
    taken = [Group(shard="shard-0", gpus=[0, 3]), Group(shard="shard-1", gpus=[4, 5])]
    world.plan = ClusterPlan(stamp=stamp.model_copy(update={"epoch": 5}), groups=taken)
    world.gpus = 4
    decisions = world.run(700, 20)
    assert not [d for d in decisions if "did not come" in d.reason]


def test_a_request_that_was_refused_is_made_again() -> None:
    world = World()
    world.run(350)
    first = world.run(800, 5)
    world.scaling.answered(Outcome("k", "shard-0", "refused", "no room"))
    again = world.run(800, 10)
    assert again
    assert again[0].requested == first[0].requested
    assert again[0].attempt > 1


@pytest.mark.parametrize(
    "body", [{}, {"at": 1}, {"at": 1, "models": {"m": {}}}, {"at": "x", "models": {}, "gpu": {}}]
)
def test_what_are_no_statistics_is_refused(body: dict[str, Any]) -> None:
    world = World()
    with pytest.raises((KeyError, TypeError, ValueError)):
        world.scaling.saw("shard-0", body, {}, {}, None)


def test_a_restarted_shards_counters_begin_anew() -> None:
    world = World()
    world.run(350)
    world.offered = 0
    assert world.second(5) is None
    assert world.second(5) is not None
