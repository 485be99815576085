"""The follower's copy: snapshots, numbers, gaps, restarts; no sockets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony.control import Member, MemberEvent, ModelEvent, ModelSpec, Snapshot, Stamp
from symphony.plans import ClusterPlan, PlanEvent, PlanStamp
from symphony.replica import (
    SETTLE_NS,
    MemberChanged,
    ModelChanged,
    PlanChanged,
    PlanRefused,
    Replica,
    same_record,
)

LEASE = 2_000_000_000


def member(name: str, incarnation: int = 1, **fields: Any) -> Member:
    return Member.model_validate({"id": name, "role": "worker", "incarnation": incarnation, **fields})


def model(name: str, slo_ms: float = 10.0) -> ModelSpec:
    return ModelSpec(name=name, slo_ms=slo_ms, max_batch=1)


def snapshot(
    number: int, *members: Member, broker: int = 1, models: list[ModelSpec] | None = None
) -> Snapshot:
    return Snapshot(
        broker=broker, sequences={"member": number, "model": 0}, members=list(members), models=models or []
    )


def event(name: str, kind: Any = "join", incarnation: int = 1) -> MemberEvent:
    return MemberEvent(event=kind, member=member(name, incarnation))


def told(changes: list[Any]) -> list[tuple[str, str]]:
    return [
        (c.event, c.member.id) if isinstance(c, MemberChanged) else ("model", c.model.name) for c in changes
    ]


def synced(*members: Member) -> Replica:
    replica = Replica(LEASE)
    replica.saw_snapshot(0, snapshot(0, *members))
    return replica


def test_it_asks_for_a_snapshot_at_first_and_then_follows() -> None:
    replica = Replica(LEASE)
    assert replica.due(0)
    assert told(replica.saw_snapshot(0, snapshot(4, member("a")))) == [("join", "a")]
    assert not replica.due(10**18)
    assert told(replica.saw_event(Stamp(broker=1, seq=5), event("b"))) == [("join", "b")]
    assert told(replica.saw_event(Stamp(broker=1, seq=6), event("a", "leave"))) == [("leave", "a")]
    assert set(replica.members) == {"b"}


def test_events_that_the_snapshot_contains_are_not_applied_again() -> None:
    replica = synced()
    replica.saw_snapshot(0, snapshot(5))
    assert replica.saw_event(Stamp(broker=1, seq=5), event("old")) == []
    assert replica.members == {}


def test_events_before_the_snapshot_wait_for_it() -> None:
    replica = Replica(LEASE)
    for seq, name in ((6, "b"), (5, "a"), (4, "in-snapshot")):
        assert replica.saw_event(Stamp(broker=1, seq=seq), event(name)) == []
    assert told(replica.saw_snapshot(0, snapshot(4, member("in-snapshot")))) == [
        ("join", "in-snapshot"),
        ("join", "a"),
        ("join", "b"),
    ]
    assert replica.synced


def test_a_gap_asks_for_a_snapshot_and_loses_nothing() -> None:
    replica = synced()
    assert replica.saw_event(Stamp(broker=1, seq=2), event("b")) == []
    assert replica.due(0)
    assert not replica.synced
    assert told(replica.saw_snapshot(0, snapshot(1, member("a")))) == [("join", "a"), ("join", "b")]
    assert not replica.due(10**18)


def test_a_higher_number_in_a_beat_is_given_a_moment() -> None:
    replica = synced()
    replica.saw_sequences(1_000, 1, {"member": 1, "model": 0})
    assert not replica.due(1_000)
    assert replica.next_wakeup() == 1_000 + SETTLE_NS
    assert replica.due(1_000 + SETTLE_NS)
    replica.saw_event(Stamp(broker=1, seq=1), event("a"))
    replica.saw_sequences(2_000, 1, {"member": 1, "model": 0})
    assert replica.next_wakeup() is None


def test_a_new_incarnation_of_a_member_is_a_death_and_a_join() -> None:
    replica = synced(member("a"))
    changes = replica.saw_snapshot(0, snapshot(2, member("a", 2)))
    assert told(changes) == [("death", "a"), ("join", "a")]
    assert told(replica.saw_event(Stamp(broker=1, seq=3), event("a", "death", incarnation=1))) == []
    assert replica.members["a"].incarnation == 2


def test_stats_alone_are_no_change_for_the_owner() -> None:
    replica = synced(member("a"))
    assert replica.saw_snapshot(0, snapshot(0, member("a", stats={"x": 1}))) == []
    assert replica.members["a"].stats == {"x": 1}


def test_whether_a_record_is_published_is_found_once_for_the_same_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[Member, Member]] = []

    def same(one: Member, other: Member) -> bool:
        compared.append((one, other))
        return same_record(one, other)

    monkeypatch.setattr("symphony.replica.same_record", same)
    gpus = [{"number": i, "type": "t"} for i in range(3)]
    replica = synced(member("a", gpus=gpus), member("b"))
    mine = member("a", gpus=gpus, stats={"x": 1})
    assert not replica.publishes(member("c"))
    assert [replica.publishes(mine) for _ in range(5)] == [True] * 5
    assert len(compared) == 1
    ready = mine.model_copy(update={"state": "ready"})
    assert [replica.publishes(ready) for _ in range(5)] == [False] * 5
    assert len(compared) == 2
    published = (
        Stamp(broker=1, seq=1),
        MemberEvent(event="update", member=ready.model_copy(update={"pid": 7})),
    )
    assert told(replica.saw_event(*published)) == [("update", "a")]
    assert not replica.publishes(ready)
    assert replica.publishes(ready.model_copy(update={"pid": 7}))
    assert replica.saw_snapshot(0, snapshot(1, member("a", state="ready", gpus=gpus[:2]))) != []
    assert not replica.publishes(ready)
    assert replica.members["a"].gpus == mine.gpus[:2]


def test_a_restarted_brokers_gaps_are_no_deaths_for_one_lease() -> None:
    replica = synced(member("a"), member("b"))
    replica.saw_snapshot(0, snapshot(0, member("a"), member("b"), models=(model("m"),)))
    assert replica.saw_broker(1_000, 2)
    assert replica.due(1_000)
    assert replica.saw_snapshot(2_000, snapshot(1, member("a"), broker=2)) == []
    assert set(replica.members) == {"a", "b"}
    assert set(replica.models) == {"m"}
    assert replica.next_wakeup() == 1_000 + LEASE
    # An end that the new broker itself has seen is one.
    assert told(replica.saw_event(Stamp(broker=2, seq=2), event("a", "death"))) == [("death", "a")]
    assert replica.due(1_000 + LEASE)
    assert told(replica.saw_snapshot(1_001 + LEASE, snapshot(2, broker=2))) == [("death", "b")]
    assert replica.models == {}
    assert replica.next_wakeup() is None


def test_an_event_of_another_broker_asks_and_does_not_decide() -> None:
    replica = synced(member("a"))
    assert replica.saw_event(Stamp(broker=2, seq=1), event("b")) == []
    assert replica.due(0)
    assert replica.broker == 1
    assert told(replica.saw_snapshot(0, snapshot(0, member("a"), broker=2))) == [("join", "b")]
    assert replica.broker == 2


def test_models_are_told_when_they_are_new_or_other() -> None:
    replica = synced()
    first = replica.saw_event(Stamp(broker=1, seq=1), ModelEvent(model=model("m")))
    assert first == [ModelChanged(model("m"))]
    assert replica.saw_event(Stamp(broker=1, seq=2), ModelEvent(model=model("m"))) == []
    assert replica.saw_event(Stamp(broker=1, seq=3), ModelEvent(model=model("m", 20.0))) != []
    assert replica.models["m"].slo_ms == 20.0


def plan(epoch: int, leader: str = "shard-0") -> ClusterPlan:
    return ClusterPlan(stamp=PlanStamp(epoch=epoch, leader=leader))


def test_plans_are_followed_and_older_ones_refused() -> None:
    replica = synced()
    assert replica.saw_event(Stamp(broker=1, seq=1), PlanEvent(plan=plan(5))) == [PlanChanged(plan(5))]
    older = replica.saw_event(Stamp(broker=1, seq=2), PlanEvent(plan=plan(4)))
    assert older == [PlanRefused(plan(4), plan(5))]
    other = replica.saw_event(Stamp(broker=1, seq=3), PlanEvent(plan=plan(5, "shard-1")))
    assert other == [PlanRefused(plan(5, "shard-1"), plan(5))]
    assert replica.plan == plan(5)
    assert replica.synced


def test_a_broker_without_a_plan_or_with_an_older_one_changes_nothing() -> None:
    replica = synced()
    replica.saw_snapshot(0, snapshot(0).model_copy(update={"plan": plan(5)}))
    assert replica.plan == plan(5)
    assert replica.saw_snapshot(1, snapshot(0, broker=2)) == []
    forgotten = snapshot(0, broker=3).model_copy(update={"plan": plan(2)})
    assert replica.saw_snapshot(2, forgotten) == [PlanRefused(plan(2), plan(5))]
    assert replica.plan == plan(5)


_LIFE = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["join", "leave", "death"])), max_size=30)


@given(life=_LIFE, lost=st.sets(st.integers(1, 30)), snapshots=st.sets(st.integers(0, 30)))
def test_whatever_is_lost_the_copy_is_right_after_the_next_snapshot(
    life: list[tuple[str, Any]], lost: set[int], snapshots: set[int]
) -> None:
    truth: dict[str, Member] = {}
    seen: dict[str, int] = {}
    replica = Replica(LEASE)

    def take(changes: list[Any]) -> None:
        for change in changes:
            if change.event in ("join", "update"):
                seen[change.member.id] = change.member.incarnation
            else:
                assert seen.pop(change.member.id) == change.member.incarnation

    for number, (name, kind) in enumerate(life, 1):
        if kind == "join":
            truth[name] = member(name, number)
            happened = MemberEvent(event="join", member=truth[name])
        else:
            happened = MemberEvent(event=kind, member=truth.pop(name, member(name, number)))
        if number not in lost:
            take(replica.saw_event(Stamp(broker=1, seq=number), happened))
        if number in snapshots:
            take(replica.saw_snapshot(0, snapshot(number, *truth.values())))
            assert replica.synced
        if replica.synced:
            assert {n: m.incarnation for n, m in replica.members.items()} == seen
    take(replica.saw_snapshot(0, snapshot(len(life), *truth.values())))
    assert replica.members == truth
    assert seen == {name: m.incarnation for name, m in truth.items()}
