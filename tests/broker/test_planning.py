"""Which plans the broker takes, and from whom."""

from __future__ import annotations

from typing import Any

import pytest

from broker.registry import Registry
from symphony import control
from symphony.control import Member
from symphony.plans import Accepted, ClusterPlan, Declined, PlanEvent, PlanStamp, Propose


def stamp(epoch: int, leader: str = "shard-0", revision: int = 0) -> PlanStamp:
    return PlanStamp(epoch=epoch, leader=leader, revision=revision)


def propose(reg: Registry, what: PlanStamp, base: PlanStamp | None = None, **fields: Any) -> Any:
    values = {"id": what.leader, "incarnation": 1, "plan": ClusterPlan(stamp=what), "base": base, **fields}
    return reg.handle(0, 0, Propose(**values))


@pytest.fixture
def reg() -> Registry:
    reg = Registry(7, 0, fresh=True)
    for name, role in (("shard-0", "scheduler"), ("shard-1", "scheduler"), ("worker-0", "worker")):
        member = Member.model_validate({"id": name, "role": role, "incarnation": 1})
        reg.handle(0, 0, control.Join(member=member))
    reg.events.clear()
    return reg


def test_an_accepted_plan_is_kept_and_published_once(reg: Registry) -> None:
    assert reg.snapshot().plan is None
    assert propose(reg, stamp(1)) == Accepted(stamp=stamp(1))
    assert reg.snapshot().plan == ClusterPlan(stamp=stamp(1))
    assert list(reg.events) == [(1, PlanEvent(plan=ClusterPlan(stamp=stamp(1))))]
    assert reg.snapshot().sequences["plan"] == 1


@pytest.mark.parametrize(
    ("what", "base", "words"),
    [
        (stamp(4), stamp(5), "older than what is in force"),
        (stamp(5), stamp(5), "older than what is in force"),
        (stamp(5, "shard-1", 9), stamp(5), "older than what is in force"),
        (stamp(6, "shard-1"), None, "made from no plan, but epoch 5.0 of shard-0 is in force"),
        (stamp(6), stamp(4), "made from epoch 4.0 of shard-0"),
    ],
)
def test_an_older_plan_or_one_made_in_ignorance_is_declined(
    reg: Registry, what: PlanStamp, base: PlanStamp | None, words: str
) -> None:
    propose(reg, stamp(5))
    reg.events.clear()
    answer = propose(reg, what, base)
    assert isinstance(answer, Declined)
    assert words in answer.reason
    assert answer.have == stamp(5)
    assert reg.planning.plan == ClusterPlan(stamp=stamp(5))
    assert not reg.events


def test_the_next_leader_goes_on_from_what_is_in_force(reg: Registry) -> None:
    propose(reg, stamp(5, revision=3))
    assert isinstance(propose(reg, stamp(6, "shard-1"), stamp(5, revision=3)), Accepted)
    assert isinstance(propose(reg, stamp(5, revision=4), stamp(5, revision=3)), Declined)


@pytest.mark.parametrize(
    ("what", "fields", "words"),
    [
        (stamp(1, "shard-9"), {}, "no live scheduler"),
        (stamp(1, "worker-0"), {}, "no live scheduler"),
        (stamp(1), {"incarnation": 2}, "no live scheduler of that incarnation"),
        (stamp(1), {"id": "shard-1"}, "'shard-1' proposes in the name of 'shard-0'"),
    ],
)
def test_only_live_schedulers_plan_and_in_their_own_name(
    reg: Registry, what: PlanStamp, fields: dict[str, Any], words: str
) -> None:
    answer = propose(reg, what, **fields)
    assert isinstance(answer, Declined)
    assert words in answer.reason
    assert answer.have is None
