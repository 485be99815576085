"""Emulated GPUs that hold different models: divided by a plan, united when they are alike again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from symphony.messages import of_ranges
from symphony.plans import ClusterPlan, Group, PlanStamp
from worker.cohorts import Cohorts
from worker.definition import Definition, load_definition
from worker.following import Following

MS = 1_000_000
MODELS = {
    name: load_definition(
        {
            "name": name,
            "slo_ms": 100,
            "max_batch": 2,
            "loader": "emulated",
            "memory_mb": 400,
            "load_ms": 10,
            "profile": {"alpha_ms": 1, "beta_ms": 2},
        }
    )
    for name in "abc"
}


def some(names: str) -> list[Definition]:
    return [MODELS[name] for name in names]


def held(cohorts: Cohorts, gpus: int) -> dict[int, str]:
    ready = cohorts.ready()
    assert ready is not None
    everything = "".join(sorted(ready.profiles))
    found = dict.fromkeys(range(gpus), everything)
    for holding in cohorts.holds():
        found.update(dict.fromkeys(of_ranges(holding.gpus), "".join(holding.models)))
    return found


def started(first: str, memory_mb: int = 0) -> Cohorts:
    cohorts = Cohorts("t", memory_mb)
    cohorts.want(0, some(first))
    cohorts.advance(1_000 * MS)
    assert cohorts.ready() is not None
    return cohorts


def test_a_plan_divides_and_what_is_alike_unites() -> None:
    cohorts = started("ab")
    assert cohorts.holds() == []
    cohorts.assign(0, range(4), [((0, 1), some("ab")), ((2, 3), some("bc"))])
    assert held(cohorts, 4) == {0: "ab", 1: "ab", 2: "b", 3: "b"}
    assert cohorts.next_wakeup() == 10 * MS
    cohorts.advance(10 * MS)
    assert held(cohorts, 4) == {0: "ab", 1: "ab", 2: "bc", 3: "bc"}
    assert set(cohorts.profiles) == {"a", "b", "c"}
    cohorts.changes()
    cohorts.assign(20 * MS, range(4), [(range(4), some("bc"))])
    cohorts.advance(40 * MS)
    cohorts.changes()
    cohorts.assign(50 * MS, range(4), [(range(4), some("bc"))])
    assert cohorts.holds() == []
    assert held(cohorts, 4) == dict.fromkeys(range(4), "bc")


def test_what_does_not_fit_fails_on_those_gpus_and_is_told() -> None:
    cohorts = started("a", memory_mb=800)
    cohorts.assign(0, range(2), [((0,), some("a")), ((1,), some("abc"))])
    cohorts.advance(1_000 * MS)
    assert list(cohorts.failed()) == ["c"]
    assert "MB" in cohorts.failed()["c"]
    assert held(cohorts, 2) == {0: "a", 1: "ab"}


def test_a_worker_says_what_it_has_no_definition_of() -> None:
    following = Following(some("ab"))
    stamp = PlanStamp(epoch=1, leader="shard-0")
    plan = ClusterPlan(stamp=stamp, groups=[Group(shard="s", gpus=[0, 3, 9, 9], models=["a", "z"])])
    wants = following.wants(plan, {2, 3, 4})
    assert wants is not None
    assert [(tuple(gpus), [d.name for d in models]) for gpus, models in wants] == [((2, 3), ["a"])]
    assert list(following.unknown) == ["z"]
    assert following.wants(plan, {2, 3, 4}) is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["", "a", "ab", "bc", "abc"]), min_size=5, max_size=5),
        min_size=1,
        max_size=5,
    )
)
def test_every_gpu_holds_what_it_was_told_last(plans: list[list[str]]) -> None:
    cohorts = started("a")
    now = 0
    for plan in plans:
        cohorts.assign(now, range(5), [((gpu,), some(names)) for gpu, names in enumerate(plan)])
        now += 100 * MS
        for _ in range(4):
            cohorts.advance(now)
        assert held(cohorts, 5) == dict(enumerate(plan))
