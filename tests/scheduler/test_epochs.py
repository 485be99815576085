"""The leader's state machine under a virtual clock: claims, epochs, revisions, and what others answer."""

from __future__ import annotations

import itertools
from typing import Any

from broker.planning import Planning
from scheduler.allocation import allocate
from scheduler.census import leader_of
from scheduler.epochs import Allocate, Epochs, Offer, Tell, View
from scheduler.offered import SECOND
from symphony.control import Holding, Member, ModelSpec
from symphony.messages import of_ranges, to_ranges
from symphony.plans import Accepted, ClusterPlan, PlanStamp, Propose
from symphony.scaling import EpochConfig

SETTINGS = EpochConfig(seconds=10, window_s=3, least_s=2, settle_s=1, grace_s=1, patience_s=5)
L = [5_000_000 + 1_000_000 * b for b in range(1, 9)]
MODELS = {f"m{i}": ModelSpec(name=f"m{i}", slo_ms=100, max_batch=8, profiles={"t": L}) for i in range(4)}


class World:
    """The true broker's rules, and shards and workers that do at once what the plan says."""

    def __init__(self, shards: int = 2, gpus: int = 8) -> None:
        self.planning = Planning()
        self.now = 100 * SECOND
        self.models = dict(MODELS)
        self.rates = dict.fromkeys(MODELS, 100.0)
        self.offered = dict.fromkeys(MODELS, 0.0)
        self.members: dict[str, Member] = {}
        for i in range(shards):
            self.put(id=f"shard-{i}", role="scheduler", state="ready")
            numbers = range(i * gpus // shards, (i + 1) * gpus // shards)
            mine = sorted(MODELS)[i * 4 // shards : (i + 1) * 4 // shards]
            self.put(
                id=f"worker-{i}",
                role="worker",
                state="ready",
                shard=f"shard-{i}",
                models=mine,
                gpus=[{"number": n, "type": "t"} for n in numbers],
            )
        self.leaders = {f"shard-{i}": Epochs(f"shard-{i}", SETTINGS) for i in range(shards)}
        self.seen: ClusterPlan | None = None
        self.told: list[dict[str, Any]] = []
        self.declined = 0
        self.hold_back: set[str] = set()
        """Leaders that go on although they are not the one to."""
        self.follow()

    def put(self, **fields: Any) -> None:
        self.members[fields["id"]] = Member.model_validate({"incarnation": 1, **fields})

    def change(self, name: str, **fields: Any) -> None:
        self.members[name] = self.members[name].model_copy(update=fields)

    def follow(self) -> None:
        """Workers hold what the plan wants, shards use what it gives them."""
        plan = self.planning.plan
        workers = [m for m in self.members.values() if m.role == "worker"]
        groups = [] if plan is None else plan.groups
        for worker in workers if plan is not None else ():
            numbers = {gpu.number for gpu in worker.gpus}
            holds = [
                Holding(gpus=to_ranges(mine), models=group.models)
                for group in groups
                if (mine := numbers & set(of_ranges(group.gpus)))
            ]
            self.change(worker.id, holds=holds, models=sorted({m for h in holds for m in h.models}))
        alive = {gpu.number for worker in workers for gpu in worker.gpus}
        for shard in [m for m in self.members.values() if m.role == "scheduler"]:
            if plan is None:
                taken = {m for w in workers if w.shard == shard.id for m in w.models}
                self.change(shard.id, models=sorted(taken))
                continue
            mine = [g for g in groups if g.shard == shard.id and g.active]
            owns = {n for g in mine for n in of_ranges(g.gpus)} & alive
            self.change(
                shard.id,
                owns=to_ranges(owns),
                adopted=plan.stamp,
                models=sorted({m for g in mine for m in g.models}),
            )

    def stats(self) -> None:
        plan = self.planning.plan
        for shard in [m for m in self.members.values() if m.role == "scheduler"]:
            models = {}
            for name in MODELS:
                route = {} if plan is None else plan.routes.get(name, {})
                share = route.get(shard.id, 0.0) / sum(route.values()) if route else 0.0
                models[name] = {"offered": int(self.offered[name] * (share or 1e-9)), "queued": 0}
            body = {"at": self.now, "models": models, "busy_share": 0.2, "gpus": 4}
            for leader in self.leaders.values():
                assert leader.census.saw(shard.id, body)

    def run(self, seconds: float) -> None:
        for step in range(round(seconds * 10)):
            self.now += SECOND // 10
            for name, rate in self.rates.items():
                self.offered[name] += rate / 10
            if step % 10 == 0:
                self.stats()
            for name in list(self.leaders):
                self.lead(name)
            self.follow()

    def view(self, name: str) -> View:
        leads = name in self.members and (leader_of(self.members.values()) == name or name in self.hold_back)
        return View(leads, self.members, self.models, self.planning.plan, 1)

    def lead(self, name: str) -> None:
        leader = self.leaders[name]
        actions = leader.step(self.now, self.view(name))
        while actions:
            action = actions.pop(0)
            match action:
                case Offer(plan, base):
                    message = Propose(id=name, incarnation=1, plan=plan, base=base)
                    answer = self.planning.propose(message, self.members.get(name))
                    accepted = isinstance(answer, Accepted)
                    self.declined += not accepted
                    leader.answered(self.now, accepted)
                case Allocate(cluster):
                    plan = allocate(cluster, time_limit_s=1.0)
                    actions += leader.allocated(self.now, plan, self.view(name))
                case Tell(event):
                    self.told.append(event)

    @property
    def plan(self) -> ClusterPlan:
        assert self.planning.plan is not None
        return self.planning.plan

    def shards_of(self, model: str) -> set[str]:
        return set(self.plan.routes[model])


def test_the_first_leader_takes_over_what_is_there_and_then_plans() -> None:
    world = World()
    world.run(1)
    assert world.plan.stamp.leader == "shard-0"
    assert {g.shard: list(of_ranges(g.gpus)) for g in world.plan.groups} == {
        "shard-0": [0, 1, 2, 3],
        "shard-1": [4, 5, 6, 7],
    }
    assert world.plan.routes["m3"] == {"shard-1": 1.0}
    world.run(9)
    assert world.plan.stamp.epoch >= 2
    assert [event["what"] for event in world.told].count("epoch") >= 1
    assert world.told[-1]["what"] == "settled"


def test_a_constant_load_moves_nothing_from_one_epoch_to_the_next() -> None:
    world = World()
    world.run(15)
    before = (world.plan.groups, world.plan.routes)
    epoch = world.plan.stamp.epoch
    world.run(60)
    assert (world.plan.groups, world.plan.routes) == before
    assert epoch + 4 <= world.plan.stamp.epoch <= epoch + 7


def test_a_load_that_moves_is_planned_for_before_the_epoch_is_over() -> None:
    world = World()
    world.run(20)
    epochs = [event["what"] for event in world.told].count("epoch")
    world.rates = {"m0": 1_500.0, "m1": 1_500.0, "m2": 1.0, "m3": 1.0}
    world.run(5)
    assert [event["what"] for event in world.told].count("epoch") > epochs
    world.run(20)
    need = dict.fromkeys(("shard-0", "shard-1"), 0.0)
    for model, route in world.plan.routes.items():
        for shard, weight in route.items():
            need[shard] += world.rates[model] * weight
    assert max(need.values()) < 0.8 * sum(need.values()), "both shards carry some of the load"


def test_a_load_that_moves_is_planned_for_once_and_not_from_rates_half_old() -> None:
    world = World()
    world.rates = {"m0": 1_500.0, "m1": 1_500.0, "m2": 1.0, "m3": 1.0}
    world.run(20.5)
    world.told.clear()
    world.rates = {"m0": 1.0, "m1": 1.0, "m2": 1_500.0, "m3": 1_500.0}
    world.run(9)
    plans = [event for event in world.told if event["what"] == "planning" or event["what"] == "epoch"]
    assert len(plans) <= 2  # one for the new load, and one because the epoch was over
    carried = [route for model, route in world.plan.routes.items() if model in ("m2", "m3")]
    assert len({shard for route in carried for shard in route}) == 2


def test_the_first_plan_waits_for_a_whole_window_of_rates() -> None:
    world = World()
    world.rates = dict.fromkeys(MODELS, 0.0)
    world.run(6)
    assert [event["what"] for event in world.told].count("epoch") == 0
    world.rates = dict.fromkeys(MODELS, 100.0)
    world.run(2.5)
    assert [event["what"] for event in world.told].count("epoch") == 0
    world.run(4)
    assert [event["what"] for event in world.told].count("epoch") == 1


def test_a_new_leader_waits_for_nothing_where_models_are_without_a_shard() -> None:
    world = World()
    world.run(12)
    told = len(world.told)
    del world.members["shard-0"]
    world.run(2.2)
    assert "epoch" in [event["what"] for event in world.told[told:]]


def test_the_next_shard_goes_on_where_a_dead_leader_stopped() -> None:
    world = World()
    world.run(12)
    stamp = world.plan.stamp
    del world.members["shard-0"]
    world.run(15)
    assert world.plan.stamp.leader == "shard-1"
    assert world.plan.stamp.epoch > stamp.epoch
    assert all(world.shards_of(model) == {"shard-1"} for model in MODELS)
    assert {g.shard for g in world.plan.groups} == {"shard-1"}


def test_of_two_leaders_one_is_heard() -> None:
    world = World()
    world.run(12)
    world.hold_back = {"shard-1"}
    world.run(30)
    stamps = []
    world.hold_back = set()
    for _ in range(200):
        world.run(0.1)
        stamps.append(world.plan.stamp)
    assert all(b == a or b.newer_than(a) for a, b in itertools.pairwise(stamps))
    assert world.plan.stamp.leader == "shard-0"
    assert world.declined == 0 or world.plan.stamp.epoch > 3


def test_a_leader_that_slept_is_declined_and_looks_again() -> None:
    world = World()
    world.run(12)
    old = world.plan
    sleeping = world.leaders.pop("shard-0")
    world.members["shard-0"] = world.members["shard-0"].model_copy(update={"state": "draining"})
    world.run(6)
    assert world.plan.stamp.leader == "shard-1"
    stale = old.model_copy(update={"stamp": PlanStamp(epoch=old.stamp.epoch, leader="shard-0", revision=99)})
    message = Propose(id="shard-0", incarnation=1, plan=stale, base=old.stamp)
    assert not isinstance(world.planning.propose(message, world.members["shard-0"]), Accepted)
    world.members["shard-0"] = world.members["shard-0"].model_copy(update={"state": "ready"})
    world.leaders["shard-0"] = sleeping
    world.run(6)
    assert world.plan.stamp.leader == "shard-0"


def test_what_a_worker_cannot_load_is_not_planned_there_again() -> None:
    world = World()
    world.run(12)
    victim = next(m for m in MODELS if world.shards_of(m))
    for name in ("worker-0", "worker-1"):
        world.change(name, failed={victim: "out of memory"})
    before = [event["what"] for event in world.told].count("epoch")
    world.run(5)
    assert [event["what"] for event in world.told].count("epoch") > before
    epoch = [event for event in world.told if event["what"] == "epoch"][-1]
    assert victim in epoch["unserved"]
    assert any(victim in reason for reason in epoch["reasons"])


def test_another_leader_knows_what_could_not_be_loaded_and_it_is_forgotten_in_the_end() -> None:
    world = World()
    world.run(12)
    victim = next(m for m in MODELS if world.shards_of(m))
    for name in ("worker-0", "worker-1"):
        world.change(name, failed={victim: "out of memory"})
    world.run(5)
    # Nobody is told to hold it, so no worker says any more that it cannot.
    for name in ("worker-0", "worker-1"):
        world.change(name, failed={})
    del world.members["shard-0"]
    told = len(world.told)
    world.run(15)
    assert world.plan.stamp.leader == "shard-1"
    assert [(failure.model, failure.gpu) for failure in world.plan.failures] == [(victim, "t")]
    epochs = [event for event in world.told[told:] if event["what"] == "epoch"]
    assert epochs
    assert all(victim in event["unserved"] for event in epochs)
    world.run(120)
    assert world.plan.failures == []
    assert [event for event in world.told if event["what"] == "epoch"][-1]["unserved"] == {}


def test_a_failing_allocator_is_told_and_the_plan_stays() -> None:
    world = World()
    world.run(12)
    leader = world.leaders["shard-0"]
    leader._pending = leader._planned
    told = leader.allocated(world.now, None, world.view("shard-0"), "boom")
    assert told == [Tell({"what": "epoch-failed", "reason": "boom"})]
    before = world.plan.groups
    world.run(3)
    assert world.plan.groups == before


def test_a_plan_is_what_the_allocator_says_on_concrete_gpus() -> None:
    world = World(shards=2, gpus=8)
    world.run(20)
    allotted = [event for event in world.told if event["what"] == "epoch"][-1]["gpus"]
    have: dict[str, int] = {}
    for group in world.plan.groups:
        have[group.shard] = have.get(group.shard, 0) + len(list(of_ranges(group.gpus)))
    assert have == {shard: counts["t"] for shard, counts in allotted.items() if counts}
