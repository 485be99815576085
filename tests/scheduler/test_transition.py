"""From one plan to another with shards and workers that take their time: nothing breaks on the way."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.transition import Facts, Gpu, Models, Target, Transition, Use, groups_of, uses_of
from symphony.plans import ClusterPlan, Group, PlanStamp

S = 1_000_000_000
GRACE, PATIENCE = 2 * S, 30 * S


@dataclass
class World:
    """Shards that adopt plans and drain GPUs late, workers that load late; time passes in steps."""

    plan: ClusterPlan
    target: Target
    random: random.Random
    memory_mb: float = 0.0
    holds: dict[int, Models] = field(default_factory=dict)
    owner: dict[int, str] = field(default_factory=dict)
    adopted: dict[str, PlanStamp | None] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    revision: int = 0
    now: int = 0
    unserved: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for gpu, use in uses_of(self.plan).items():
            self.holds[gpu] = use.models
            if use.active:
                self.owner[gpu] = use.shard
        for shard in {use.shard for use in uses_of(self.plan).values()} | set(self.target.models):
            self.adopted[shard] = self.plan.stamp
        self.transition = Transition(GRACE, PATIENCE)

    def facts(self) -> Facts:
        takes: dict[str, set[str]] = {shard: set() for shard in self.adopted}
        for gpu, shard in self.owner.items():
            takes[shard] |= self.holds.get(gpu, frozenset())
        return Facts(
            gpus={gpu: Gpu("t", self.memory_mb, holds) for gpu, holds in self.holds.items()},
            owner=dict(self.owner),
            adopted=dict(self.adopted),
            takes={shard: frozenset(models) for shard, models in takes.items()},
            busy=self.busy,
            memory_mb=dict.fromkeys("abcdefgh", 1.0),
        )

    def tick(self) -> bool:
        """The leader's step, then some of what the others have to do; whether the plan was revised."""
        self.now += S // 4
        after = self.transition.step(self.now, self.plan, self.target, self.facts())
        if after is not None:
            self.revision += 1
            stamp = PlanStamp(epoch=2, leader="s0", revision=self.revision)
            self.plan = ClusterPlan(stamp=stamp, groups=after[0], routes=after[1])
        uses = uses_of(self.plan)
        for shard in self.adopted:
            if self.random.random() < 0.7:
                self.adopted[shard] = self.plan.stamp
        for gpu, use in uses.items():
            owner = self.owner.get(gpu)
            current = owner is not None and self.adopted[owner] == self.plan.stamp
            if current and (owner != use.shard or not use.active) and self.random.random() < 0.5:
                del self.owner[gpu]
            elif owner is None and use.active and self.adopted[use.shard] == self.plan.stamp:
                self.owner[gpu] = use.shard
            if self.random.random() < 0.5:
                self.holds[gpu] = use.models
        self.check(uses)
        return after is not None

    def check(self, uses: dict[int, Use]) -> None:
        for gpu, owner in self.owner.items():
            use = uses[gpu]
            if use.active:
                assert use.shard == owner, f"GPU {gpu} was given to {use.shard} while {owner} used it"
            assert not self.memory_mb or len(use.models) <= self.memory_mb
        facts = self.facts()
        for model, route in self.plan.routes.items():
            served = any(
                model in facts.gpus[gpu].holds & uses[gpu].models
                for gpu, shard in self.owner.items()
                if shard in route
            )
            if not served:
                self.unserved.add(model)


def plan_of(gpus: dict[int, tuple[str, str]], routes: dict[str, dict[str, float]]) -> ClusterPlan:
    uses = {gpu: Use(shard, frozenset(models)) for gpu, (shard, models) in gpus.items()}
    return ClusterPlan(stamp=PlanStamp(epoch=1, leader="s0"), groups=groups_of(uses), routes=routes)


def run(world: World, ticks: int = 400) -> None:
    for _ in range(ticks):
        world.tick()
        if world.transition.settled(world.plan, world.target, world.facts()):
            return
    raise AssertionError(f"not settled: {world.plan}, wanted {world.target}")


def test_a_gpu_that_has_gone_before_its_shard_knows_serves_nothing() -> None:
    plan = plan_of({0: ("s0", "a"), 1: ("s1", "b")}, {"a": {"s0": 1.0}, "b": {"s1": 1.0}})
    target = Target({0: "s0"}, {"s0": frozenset("ab")}, {"a": {"s0": 1.0}, "b": {"s0": 1.0}})
    world = World(plan, target, random.Random(1))
    del world.holds[1]  # its worker has died; s1 still says that it uses it
    facts = replace(world.facts(), takes={"s0": frozenset("a"), "s1": frozenset("b")})
    assert facts.owner[1] == "s1"
    after = world.transition.step(S, plan, target, facts)
    assert after is not None
    assert uses_of(ClusterPlan(stamp=plan.stamp, groups=after[0], routes=after[1])).keys() == {0}


def test_a_gpu_and_a_model_move_without_a_gap() -> None:
    before = plan_of({0: ("s0", "ab"), 1: ("s0", "ab"), 2: ("s1", "c")}, {m: {"s0": 1.0} for m in "ab"})
    target = Target(
        {0: "s0", 1: "s1", 2: "s1"},
        {"s0": frozenset("a"), "s1": frozenset("bc")},
        {"a": {"s0": 1.0}, "b": {"s1": 1.0}, "c": {"s1": 1.0}},
    )
    world = World(before, target, random.Random(1))
    run(world)
    assert world.unserved == set()
    assert world.plan.groups == [
        Group(shard="s0", gpus=[0, 0], models=["a"]),
        Group(shard="s1", gpus=[1, 2], models=["b", "c"]),
    ]


def test_routes_grow_with_what_is_ready() -> None:
    before = plan_of(dict.fromkeys(range(8), ("s0", "a")), {"a": {"s0": 1.0}})
    target = Target(
        {i: "s0" if i < 4 else "s1" for i in range(8)},
        {"s0": frozenset("a"), "s1": frozenset("a")},
        {"a": {"s0": 0.5, "s1": 0.5}},
    )
    world = World(before, target, random.Random(2), busy={"s0": 7.9})
    shares = [0.0]
    while not world.transition.settled(world.plan, world.target, world.facts()):
        world.tick()
        shares.append(world.plan.routes["a"].get("s1", 0.0))
        assert sum(world.plan.routes["a"].values()) == 1.0
        assert len(world.owner) >= 4, "half of the GPUs of a busy shard stay"
    assert shares == sorted(shares)
    assert len(set(shares)) > 2


def test_models_that_do_not_fit_together_change_places_gpu_by_gpu() -> None:
    before = plan_of(dict.fromkeys(range(4), ("s0", "ab")), {"a": {"s0": 1.0}, "b": {"s0": 1.0}})
    target = Target(
        dict.fromkeys(range(4), "s0"), {"s0": frozenset("ac")}, {"a": {"s0": 1.0}, "c": {"s0": 1.0}}
    )
    world = World(before, target, random.Random(3), memory_mb=2.0)
    run(world)
    assert "a" not in world.unserved


def test_what_waits_for_itself_is_broken_up_in_the_end() -> None:
    """Two shards of one GPU each, full of memory, that are to exchange their models."""
    before = plan_of({0: ("s0", "a"), 1: ("s1", "b")}, {"a": {"s0": 1.0}, "b": {"s1": 1.0}})
    target = Target(
        {0: "s0", 1: "s1"},
        {"s0": frozenset("b"), "s1": frozenset("a")},
        {"a": {"s1": 1.0}, "b": {"s0": 1.0}},
    )
    world = World(before, target, random.Random(4), memory_mb=1.0)
    run(world)
    assert world.now > PATIENCE


def test_a_dead_shards_gpus_are_free_at_once() -> None:
    before = plan_of({0: ("s0", "a"), 1: ("s1", "b")}, {"a": {"s0": 1.0}, "b": {"s1": 1.0}})
    target = Target({0: "s0", 1: "s0"}, {"s0": frozenset("ab")}, {m: {"s0": 1.0} for m in "ab"})
    world = World(before, target, random.Random(5))
    del world.adopted["s1"], world.owner[1]
    run(world)


def test_gpus_that_have_gone_are_left_out_and_new_ones_are_prepared() -> None:
    before = plan_of({0: ("s0", "a"), 1: ("s0", "a")}, {"a": {"s0": 1.0}})
    target = Target({0: "s0", 7: "s0"}, {"s0": frozenset("a")}, {"a": {"s0": 1.0}})
    world = World(before, target, random.Random(6))
    del world.holds[1], world.owner[1]
    world.holds[7] = frozenset()
    run(world)
    assert sorted(uses_of(world.plan)) == [0, 7]


SHARDS = ["s0", "s1", "s2"]
LAYOUT = st.tuples(
    st.lists(st.sampled_from(SHARDS), min_size=6, max_size=9),
    st.lists(st.sets(st.sampled_from(SHARDS), min_size=1), min_size=5, max_size=5),
)
"""The shard of every GPU, and the shards of every model."""


def layout(drawn: tuple[list[str], list[set[str]]], gpus: int) -> tuple[dict[int, str], dict[str, set[str]]]:
    """Shards with GPUs, and models on those only."""
    owners = {gpu: drawn[0][gpu % len(drawn[0])] for gpu in range(gpus)}
    there = sorted(set(owners.values()))
    return owners, {
        model: {shard for shard in where if shard in there} or {there[0]}
        for model, where in zip("abcde", drawn[1], strict=True)
    }


@settings(max_examples=40, deadline=None)
@given(LAYOUT, LAYOUT, st.integers(0, 1_000), st.floats(0, 1))
def test_every_plan_is_reached_and_no_gpu_is_two_shards(
    first: tuple[list[str], list[set[str]]],
    second: tuple[list[str], list[set[str]]],
    seed: int,
    load: float,
) -> None:
    gpus = len(first[0])
    owners, placed = layout(first, gpus)
    models = {s: "".join(sorted(m for m, where in placed.items() if s in where)) for s in SHARDS}
    routes = {m: {s: 1 / len(where) for s in sorted(where)} for m, where in placed.items()}
    before = plan_of({gpu: (shard, models[shard]) for gpu, shard in owners.items()}, routes)
    owners, placed = layout(second, gpus)
    target = Target(
        owners,
        {s: frozenset(m for m, where in placed.items() if s in where) for s in SHARDS},
        {m: {s: round(1 / len(where), 6) for s in sorted(where)} for m, where in placed.items()},
    )
    world = World(before, target, random.Random(seed), busy=dict.fromkeys(SHARDS, load * gpus / 3))
    run(world)
    if world.now < PATIENCE:
        assert world.unserved == set()
