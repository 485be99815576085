"""The registry's rules, without any socket or clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.registry import MS, Registry, stats_problem
from symphony import control
from symphony.control import GpuInfo, Member, MemberEvent, ModelSpec

LEASE = 2_000 * MS


def member(name: str, role: control.Role = "worker", incarnation: int = 1, **fields: Any) -> Member:
    return Member.model_validate({"id": name, "role": role, "incarnation": incarnation, **fields})


def model(name: str = "net", **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": name, "slo_ms": 100.0, "max_batch": 2, **fields})


def registry(**fields: Any) -> Registry:
    return Registry(7, 0, **{"fresh": True, **fields})


def ask(reg: Registry, message: control.Control, now: int = 0) -> Any:
    return reg.handle(now, now, message)


def join(reg: Registry, who: Member, now: int = 0, **fields: Any) -> Any:
    return ask(reg, control.Join(member=who, **fields), now)


def beat(reg: Registry, who: Member, now: int, **fields: Any) -> Any:
    return ask(reg, control.Heartbeat(id=who.id, incarnation=who.incarnation, **fields), now)


def published(reg: Registry) -> list[tuple[str, str]]:
    events = []
    while reg.events:
        _, event = reg.events.popleft()
        named = isinstance(event, MemberEvent)
        events.append((event.event, event.member.id) if named else ("model", event.model.name))  # type: ignore[union-attr]
    return events


def test_join_heartbeat_leave() -> None:
    reg = registry()
    joined = join(reg, member("w"))
    assert isinstance(joined, control.Joined)
    assert (joined.broker, joined.heartbeat_ms, joined.lease_ms) == (7, 500, 2_000)
    assert joined.sequences == {"member": 1, "model": 0, "plan": 0}
    assert beat(reg, member("w"), 0).known
    assert isinstance(ask(reg, control.Leave(id="w", incarnation=1)), control.Left)
    assert not beat(reg, member("w"), 0).known
    assert published(reg) == [("join", "w"), ("leave", "w")]


def test_a_lease_ends_without_heartbeats_and_not_with_them() -> None:
    reg = registry()
    join(reg, member("silent"))
    join(reg, member("alive"))
    beat(reg, member("alive"), LEASE - 1)
    reg.tick(LEASE - 1)
    assert set(reg.members) == {"silent", "alive"}
    assert reg.next_expiry() == LEASE
    reg.tick(LEASE)
    assert set(reg.members) == {"alive"}
    assert published(reg) == [("join", "silent"), ("join", "alive"), ("death", "silent")]


def test_events_are_numbered_without_gaps() -> None:
    reg = registry()
    for i in range(5):
        join(reg, member(f"w{i}"), models=[model(f"m{i}")])
    by_topic: dict[str, list[int]] = {"member": [], "model": []}
    for number, event in reg.events:
        by_topic[event.type].append(number)
    assert by_topic == {"member": [1, 2, 3, 4, 5], "model": [1, 2, 3, 4, 5]}
    assert reg.snapshot().sequences == {"member": 5, "model": 5, "plan": 0}


def test_a_heartbeat_of_another_incarnation_is_unknown() -> None:
    reg = registry()
    join(reg, member("w"))
    assert not beat(reg, member("w", incarnation=2), 0).known
    ask(reg, control.Leave(id="w", incarnation=2))
    assert "w" in reg.members


def test_stats_are_in_the_snapshot_and_make_no_event() -> None:
    reg = registry()
    join(reg, member("s", "scheduler"))
    published(reg)
    assert beat(reg, member("s"), 1, stats={"queued": 3}).known
    assert reg.snapshot().members[0].stats == {"queued": 3}
    assert published(reg) == []


def test_two_live_members_with_one_id() -> None:
    reg = registry()
    join(reg, member("w", pid=41, host="h1"))
    refused = join(reg, member("w", incarnation=2), MS)
    assert isinstance(refused, control.Refused)
    assert refused.retry_ms is not None
    assert "two processes with the same id" in refused.reason
    assert "41 on h1" in refused.reason
    beat(reg, member("w"), LEASE - MS)
    assert join(reg, member("w", incarnation=2), LEASE).retry_ms is not None
    beat(reg, member("w"), 2 * LEASE - 2 * MS)
    assert join(reg, member("w", incarnation=2), LEASE + 2 * MS).retry_ms is None, "asked for a whole lease"
    # A third one has its own patience.
    assert join(reg, member("w", incarnation=3), LEASE + 3 * MS).retry_ms is not None


def test_a_last_heartbeat_on_its_way_does_not_turn_a_successor_away() -> None:
    reg = registry()
    join(reg, member("w"))
    join(reg, member("w", incarnation=2), MS)
    beat(reg, member("w"), 2 * MS)
    asked = join(reg, member("w", incarnation=2), LEASE + MS + MS // 2)
    assert asked.retry_ms is not None, "nothing was heard of the first one since"
    published(reg)
    # The lease is over, and no tick has come yet.
    assert isinstance(join(reg, member("w", incarnation=2), LEASE + 3 * MS), control.Joined)
    assert published(reg) == [("death", "w"), ("join", "w")]


def test_a_restarted_member_comes_in_when_the_lease_of_the_one_before_is_over() -> None:
    reg = registry()
    join(reg, member("w"))
    retry = join(reg, member("w", incarnation=2), LEASE - 10 * MS).retry_ms
    assert 0 < retry <= 11
    reg.tick(LEASE + MS)
    assert isinstance(join(reg, member("w", incarnation=2), LEASE + MS), control.Joined)
    assert published(reg) == [("join", "w"), ("death", "w"), ("join", "w")]


def test_a_process_that_is_known_to_be_gone_needs_no_lease() -> None:
    reg = registry()
    join(reg, member("w"))
    reg.dead("w", 2)
    assert "w" in reg.members, "another incarnation"
    reg.dead("w", 1)
    assert isinstance(join(reg, member("w", incarnation=2)), control.Joined)


def test_a_repeated_join_changes_nothing() -> None:
    reg = registry()
    first = join(reg, member("w"), gpus_wanted=2, gpu_type="t")
    again = join(reg, member("w"), gpus_wanted=2, gpu_type="t")
    assert first.member == again.member
    front = join(reg, member("f", "frontend"))
    assert join(reg, member("f", "frontend")).member == front.member
    assert published(reg) == [("join", "w"), ("join", "f")]


def test_slots_are_unique_and_kept_if_free() -> None:
    reg = registry()
    one = join(reg, member("one", "frontend")).member
    two = join(reg, member("two", "frontend")).member
    assert one.slot != two.slot
    other = Registry(8, 0)
    assert join(other, one).member.slot == one.slot, "a returning frontend keeps its slot"
    thief = member("thief", "frontend", slot=one.slot)
    assert join(other, thief).member.slot not in (None, one.slot)
    assert join(other, member("w", slot=3)).member.slot is None, "only frontends have slots"


def test_a_freed_slot_is_not_soon_used_again() -> None:
    reg = registry()
    first = join(reg, member("a", "frontend")).member.slot
    ask(reg, control.Leave(id="a", incarnation=1))
    assert join(reg, member("b", "frontend")).member.slot != first


def test_slots_start_elsewhere_after_a_restart() -> None:
    starts = {join(Registry(i, 0), member("f", "frontend")).member.slot for i in range(10**18, 10**18 + 20)}
    assert len(starts) > 15


def test_gpu_numbers_are_the_lowest_free_ones_in_a_row() -> None:
    reg = registry()
    join(reg, member("a"), gpus_wanted=2, gpu_type="t")
    join(reg, member("b", gpus=[GpuInfo(number=3, type="t")]))
    granted = join(reg, member("c"), gpus_wanted=2, gpu_type="t").member.gpus
    assert [gpu.number for gpu in granted] == [4, 5]
    assert [g.number for g in join(reg, member("d"), gpus_wanted=1, gpu_type="x").member.gpus] == [2]
    ask(reg, control.Leave(id="a", incarnation=1))
    assert [g.number for g in join(reg, member("e"), gpus_wanted=2, gpu_type="t").member.gpus] == [0, 1]
    assert granted[0].type == "t"


MANY = [GpuInfo(number=number, type="t") for number in range(1, (1 << 16) + 2)]


def test_numbers_in_a_row_can_run_out() -> None:
    reg = registry()
    far_apart = [GpuInfo(number=number, type="t") for number in range(0, 1 << 20, 60_000)]
    assert isinstance(join(reg, member("a", gpus=far_apart)), control.Joined)
    refused = join(reg, member("b"), gpus_wanted=60_000)
    assert isinstance(refused, control.Refused)
    assert "there are no 60000 GPU numbers in a row left" in refused.reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"who": member("b", gpus=[GpuInfo(number=0, type="t")])}, "GPU 0 already belongs to 'a'"),
        ({"who": member("b", gpus=[GpuInfo(number=5, type="t")] * 2)}, "same number to two"),
        ({"who": member("b"), "gpus_wanted": -1}, "gpus_wanted is -1"),
        ({"who": member("b"), "gpus_wanted": 1 << 40}, "gpus_wanted is"),
        ({"who": member("b"), "gpus_wanted": (1 << 16) + 1}, "gpus_wanted is 65537; it must be 0 to 65536"),
        ({"who": member("b", gpus=MANY)}, "'b' has 65537 GPUs; one member may have 65536"),
        ({"who": member("b", "frontend"), "gpus_wanted": 1}, "only workers have GPUs"),
        ({"who": member("b", "scheduler", gpus=[GpuInfo(number=9, type="t")])}, "only workers have GPUs"),
        ({"who": member("b", stats={"x": "y" * 5_000})}, "text in stats"),
    ],
)
def test_what_cannot_be_granted_is_refused_with_a_reason(fields: dict[str, Any], reason: str) -> None:
    reg = registry()
    join(reg, member("a"), gpus_wanted=1, gpu_type="t")
    refused = join(reg, **fields)
    assert isinstance(refused, control.Refused)
    assert reason in refused.reason
    assert refused.retry_ms is None
    assert set(reg.members) == {"a"}


def test_new_gpu_numbers_wait_for_those_that_may_come_back() -> None:
    reg = Registry(7, 0, lease_ms=2_000)
    refused = join(reg, member("new"), 500 * MS, gpus_wanted=1, gpu_type="t")
    assert 1_500 <= refused.retry_ms <= 1_501
    assert "just started" in refused.reason
    back = member("old", gpus=[GpuInfo(number=0, type="t")])
    assert isinstance(join(reg, back, 600 * MS), control.Joined)
    joined = join(reg, member("new"), 2_001 * MS, gpus_wanted=1, gpu_type="t")
    assert [gpu.number for gpu in joined.member.gpus] == [1]


def test_an_update_replaces_the_record_but_not_slot_or_stats() -> None:
    reg = registry()
    slot = join(reg, member("f", "frontend")).member.slot
    beat(reg, member("f"), 0, stats={"a": 1})
    assert ask(reg, control.Update(member=member("f", "frontend", state="ready"))).known
    kept = reg.members["f"]
    assert (kept.slot, kept.state, kept.stats) == (slot, "ready", {"a": 1})
    ask(reg, control.Update(member=member("f", "frontend", state="ready")))
    assert published(reg) == [("join", "f"), ("update", "f")], "the same again is no event"


def test_updates_that_cannot_be() -> None:
    reg = registry()
    join(reg, member("w", gpus=[GpuInfo(number=0, type="t")]))
    join(reg, member("v"))
    assert not ask(reg, control.Update(member=member("w", incarnation=2))).known
    assert "cannot become" in ask(reg, control.Update(member=member("v", "frontend"))).reason
    stolen = member("v", gpus=[GpuInfo(number=0, type="t")])
    assert "already belongs" in ask(reg, control.Update(member=stolen)).reason


def test_one_model_name_means_the_same_everywhere() -> None:
    reg = registry()
    join(reg, member("a"), models=[model()])
    refused = join(reg, member("b"), models=[model(slo_ms=25.0)])
    assert "slo_ms is 25.0 here and 100.0 on a" in refused.reason
    assert "b" not in reg.members
    tensor = {"name": "x", "dtype": "FP32", "shape": [3]}
    assert "x FP32[3]" in join(reg, member("b"), models=[model(inputs=[tensor])]).reason
    ask(reg, control.Leave(id="a", incarnation=1))
    assert reg.snapshot().models == [model()], "known, although nobody serves it now"
    assert isinstance(join(reg, member("b"), models=[model(slo_ms=25.0)]), control.Joined)


def test_profiles_are_merged_by_gpu_type() -> None:
    reg = registry()
    join(reg, member("a"), models=[model(profiles={"x": [1, 2]})])
    join(reg, member("b"), models=[model(profiles={"y": [3, 4]})])
    join(reg, member("c"), models=[model(profiles={"x": [5, 6]})])
    join(reg, member("d"), models=[model()])
    assert reg.snapshot().models[0].profiles == {"x": [5, 6], "y": [3, 4]}
    assert [event for event, _ in published(reg)].count("model") == 3


@pytest.mark.parametrize(
    ("table", "reason"),
    [([1], "1 latencies"), ([0, 1], "no positive"), ([2, 1], "falls"), ([1, 1 << 63], "no positive")],
)
def test_a_malformed_profile_is_refused(table: list[int], reason: str) -> None:
    refused = join(registry(), member("a"), models=[model(profiles={"x": table})])
    assert reason in refused.reason


def test_a_message_for_members_is_refused() -> None:
    assert "'left'" in ask(registry(), control.Left()).reason


@pytest.mark.parametrize(
    "stats",
    [{"a": [[[[[[[[[1]]]]]]]]]}, {"a": list(range(5_000))}, {"a": b"x"}, {"a" * 2_000: 1}],
)
def test_stats_that_would_burden_every_snapshot_are_refused(stats: dict[str, Any]) -> None:
    reg = registry()
    join(reg, member("w"))
    assert stats_problem(stats)
    assert isinstance(beat(reg, member("w"), 1_900 * MS, stats=stats), control.Refused)
    assert reg.members["w"].stats == {}
    reg.tick(3_800 * MS)
    assert "w" in reg.members, "it lives, whatever it says of itself"


_NAMES = st.sampled_from(["a", "b", "c", "d"])
_ROLES = st.sampled_from(["worker", "frontend", "scheduler"])
_STEPS = st.one_of(
    st.tuples(
        st.just("join"),
        _NAMES,
        _ROLES,
        st.integers(1, 3),
        st.integers(0, 3),
        st.lists(st.integers(0, 5), max_size=2, unique=True),
    ),
    st.tuples(st.just("beat"), _NAMES, st.integers(1, 3)),
    st.tuples(st.just("leave"), _NAMES, st.integers(1, 3)),
    st.tuples(st.just("dead"), _NAMES, st.integers(1, 3)),
    st.tuples(st.just("tick"), st.integers(1, 3_000)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEPS, max_size=40))
def test_whatever_happens_numbers_are_unique_and_events_rebuild_the_state(steps: list[Any]) -> None:
    reg = registry()
    now = 0
    copy: dict[str, Member] = {}
    expected = 0
    for step in steps:
        if step[0] == "join":
            _, name, role, incarnation, wanted, numbers = step
            gpus = [GpuInfo(number=n, type="t") for n in numbers] if role == "worker" else []
            answer = join(reg, member(name, role, incarnation, gpus=gpus), now, gpus_wanted=wanted)
            if isinstance(answer, control.Joined):
                assert reg.members[name] == answer.member
        elif step[0] == "beat":
            beat(reg, member(step[1], incarnation=step[2]), now)
        elif step[0] == "leave":
            ask(reg, control.Leave(id=step[1], incarnation=step[2]), now)
        elif step[0] == "dead":
            reg.dead(step[1], step[2])
        else:
            now += step[1] * MS
            reg.tick(now)
        while reg.events:
            number, event = reg.events.popleft()
            assert isinstance(event, MemberEvent)
            expected += 1
            assert number == expected
            if event.event in ("join", "update"):
                assert (event.event == "update") == (event.member.id in copy)
                copy[event.member.id] = event.member
            else:
                del copy[event.member.id]
        assert copy == reg.members
        slots = [m.slot for m in reg.members.values() if m.role == "frontend"]
        assert None not in slots
        assert len(set(slots)) == len(slots)
        numbers_held = [gpu.number for m in reg.members.values() for gpu in m.gpus]
        assert len(set(numbers_held)) == len(numbers_held)
