"""The leader's state machine: when to plan anew, and the plan's way into force. No I/O, no clock.

An **epoch** is one run of the allocator. It is due every ``seconds``, and before that when the load has
moved by more than ``drift``, when shards or GPUs have come or gone for good, or when a worker could not do
what it was told. What the allocator answers becomes the target; :mod:`scheduler.transition` says by which
steps the plan in force gets there, and each step is proposed to the broker as one more revision.

A shard that begins to lead first **claims** the plan: the same content under its own name and the next
epoch's number. From then on whatever an earlier leader still says is older. One proposal is under way at a
time, made from the plan in force; if the broker declines it, somebody else leads, or has led meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from scheduler.allocation import Cluster, Network, Plan
from scheduler.census import Census
from scheduler.offered import SECOND, Offered
from scheduler.targets import as_it_is, describe, target_of
from scheduler.transition import Facts, Target, Transition, groups_of, uses_of
from symphony.control import Member, ModelSpec
from symphony.plans import ClusterPlan, Failure, Group, PlanStamp
from symphony.scaling import EpochConfig

ANSWER_NS: Final = 2 * SECOND
"""How long the broker's answer to a proposal is waited for."""
FORGET: Final = 10
"""Epochs after which what a worker could not load is tried again."""
LONGEST_NS: Final = 30 * SECOND
"""A plan that has been on its way for so long holds nothing else up any more."""
NOTE: Final = 2_000
MOST_FAILURES: Final = 10_000
"""That a plan carries."""


@dataclass(frozen=True, slots=True)
class View:
    """The cluster as the leader's membership has it. ``leads``: this shard is the one that is to."""

    leads: bool
    members: Mapping[str, Member]
    models: Mapping[str, ModelSpec]
    plan: ClusterPlan | None
    broker: int | None


@dataclass(frozen=True, slots=True)
class Offer:
    """Propose this plan, made from the one of stamp ``base``."""

    plan: ClusterPlan
    base: PlanStamp | None


@dataclass(frozen=True, slots=True)
class Allocate:
    """Run the allocator; its answer goes to :meth:`Epochs.allocated`."""

    cluster: Cluster
    why: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Publish this as an event of the leader."""

    event: dict[str, Any]


Action = Offer | Allocate | Tell


@dataclass(slots=True)
class _Planned:
    """What the last epoch was planned on."""

    at: int
    offered: Offered
    signature: tuple[object, ...]


class Epochs:
    """See the module's text. Times are cluster time in ns.

    Args:
        shard: in whose name it leads.
        settings: the section ``epoch`` of the configuration.
        network: what requests spend outside of GPUs.
    """

    def __init__(self, shard: str, settings: EpochConfig, network: Network | None = None) -> None:
        self.census = Census(settings.window_s)
        self._shard = shard
        self._settings = settings
        self._network = network
        self._transition = Transition(int(settings.grace_s * SECOND), int(settings.patience_s * SECOND))
        self._forbidden: dict[tuple[str, str], int] = {}
        self._failed: set[tuple[str, str]] = set()
        self._reset()

    def _reset(self) -> None:
        self._offered: tuple[PlanStamp, int] | None = None
        self._claim_at = 0
        self._target: Target | None = None
        self._fresh: Target | None = None
        self._note = ""
        self._allocating = False
        self._planned: _Planned | None = None
        self._pending: _Planned | None = None
        self._loaded: int | None = None
        """Since when there has been something to plan, before the first plan."""
        self._seen: tuple[int, tuple[object, ...]] = (0, ())
        self._broker: int | None = None
        self._since: int | None = None
        """When the target was set; None once it is reached."""

    @property
    def moving(self) -> bool:
        """Whether a plan is on its way, so that every moment may bring a next step."""
        return self._offered is not None or self._fresh is not None or self._since is not None

    def under_way(self, now: int) -> bool:
        """Whether GPUs or models change hands, or may still do; one that never gets there ends to count."""
        return self._since is not None and now - self._since < LONGEST_NS

    # -- events ----------------------------------------------------------------------------------

    def answered(self, now: int, accepted: bool) -> None:
        """The broker has answered the proposal."""
        if not accepted:
            self._offered = None
            self._claim_at = now + SECOND

    def allocated(self, now: int, plan: Plan | None, facts_of: View, problem: str = "") -> list[Action]:
        """The allocator has answered, or failed with ``problem``."""
        self._allocating = False
        if self._pending is None:  # it was asked by a leader that is none any more
            return []
        planned, self._pending = self._pending, None
        if plan is None:
            self._planned = planned  # not again at once
            return [Tell({"what": "epoch-failed", "reason": problem[:1_000]})]
        self._planned = planned
        facts = self.census.facts(now, facts_of.members, facts_of.models)
        uses = {} if facts_of.plan is None else uses_of(facts_of.plan)
        self._fresh = target_of(plan, facts, uses)
        self._note = f"{plan.status}, {plan.gpus_needed} GPUs needed, {plan.moved} placements new"
        if plan.unserved:
            self._note += f"; no room for {', '.join(sorted(plan.unserved)[:20])}"
        summary = plan.as_dict()
        return [
            Tell(
                {
                    "what": "epoch",
                    **{key: summary[key] for key in ("status", "gap", "solve_s", "gpus_needed", "moved")},
                    **{key: summary[key] for key in ("gpus", "utilization", "unserved")},
                    "reasons": [reason[:500] for reason in plan.reasons[:50]],
                }
            )
        ]

    # -- time ------------------------------------------------------------------------------------

    def step(self, now: int, view: View) -> list[Action]:
        """What is to be done now."""
        if not view.leads:
            if self._claim_at or self._offered or self._target or self._planned:
                self._reset()
            return []
        if self._offered is not None:
            stamp, since = self._offered
            if (view.plan is None or view.plan.stamp != stamp) and now - since < ANSWER_NS:
                return []
            self._offered = None
        facts = self.census.facts(now, view.members, view.models)
        signature = _signature(facts, view.models)
        if signature != self._seen[1]:
            self._seen = now, signature
        plan = view.plan
        if plan is None or plan.stamp.leader != self._shard or self._broker is None:
            return self._claim(now, view, facts)
        if view.broker != self._broker:  # it has restarted and may know no plan
            self._broker = view.broker
            return self._offer(now, plan, plan.stamp)
        self._recall(plan)
        actions: list[Action] = []
        why = self._why(now, plan, facts)
        if why:
            actions.append(self._allocate(now, why, view, facts))
        return actions + self._move(now, plan, view, facts)

    def _claim(self, now: int, view: View, facts: Facts) -> list[Action]:
        settled = now - self._seen[0] >= self._settings.settle_s * SECOND / 2
        if now < self._claim_at or not settled:
            return []
        self._claim_at, self._broker = now + SECOND, view.broker
        if view.plan is None:
            uses, routes = as_it_is(view.members, facts)
            stamp = PlanStamp(epoch=1, leader=self._shard)
            return self._offer(now, ClusterPlan(stamp=stamp, at=now, groups=groups_of(uses), routes=routes))
        stamp = PlanStamp(epoch=view.plan.stamp.epoch + 1, leader=self._shard)
        note = f"claimed by {self._shard}"
        claimed = view.plan.model_copy(update={"stamp": stamp, "at": now, "note": note})
        return self._offer(now, claimed, view.plan.stamp)

    def _offer(self, now: int, plan: ClusterPlan, base: PlanStamp | None = None) -> list[Action]:
        self._offered = plan.stamp, now
        return [Offer(plan, base)]

    def _move(self, now: int, plan: ClusterPlan, view: View, facts: Facts) -> list[Action]:
        """The next revision towards the target, or the first of a new epoch."""
        stamp = PlanStamp(epoch=plan.stamp.epoch, leader=self._shard, revision=plan.stamp.revision + 1)
        if self._fresh is not None:
            self._target, self._fresh, self._since = self._fresh, None, now
            self._transition.begin(now, plan)
            stamp = PlanStamp(epoch=plan.stamp.epoch + 1, leader=self._shard)
        if self._target is None:
            return self._follow(now, plan, stamp, view, facts)
        after = self._transition.step(now, plan, self._target, facts)
        if after is not None:
            return self._revise(now, plan, stamp, *after)
        if stamp.revision == 0:
            return self._revise(now, plan, stamp, plan.groups, plan.routes)
        if self._since is not None and self._transition.settled(plan, self._target, facts):
            seconds, self._since = (now - self._since) / SECOND, None
            return [Tell({"what": "settled", "epoch": plan.stamp.epoch, "seconds": round(seconds, 3)})]
        return []

    def _follow(
        self, now: int, plan: ClusterPlan, stamp: PlanStamp, view: View, facts: Facts
    ) -> list[Action]:
        """Before the first epoch: who joins takes part as it would without a plan."""
        uses, routes = as_it_is(view.members, facts)
        known = uses_of(plan)
        after = {gpu: use for gpu, use in known.items() if gpu in facts.gpus}
        after |= {gpu: use for gpu, use in uses.items() if gpu not in known}
        grown = {
            model: {**routes.get(model, {}), **plan.routes.get(model, {})} for model in routes | plan.routes
        }
        if after == known and grown == plan.routes:
            return []
        return self._revise(now, plan, stamp, groups_of(after), grown)

    def _revise(
        self, now: int, plan: ClusterPlan, stamp: PlanStamp, groups: list[Group], routes: Any
    ) -> list[Action]:
        revised = ClusterPlan(
            stamp=stamp,
            at=now,
            groups=groups,
            routes=routes,
            note=self._note[:NOTE],
            failures=[
                Failure(model=model, gpu=gpu, epoch=epoch)
                for (model, gpu), epoch in sorted(self._forbidden.items())[:MOST_FAILURES]
            ],
        )
        return self._offer(now, revised, plan.stamp)

    # -- when ------------------------------------------------------------------------------------

    def _why(self, now: int, plan: ClusterPlan, facts: Facts) -> str:
        """Why the allocator should run now; empty if it need not."""
        settings = self._settings
        if self._allocating or self._fresh is not None or not facts.gpus:
            return ""
        self._note_failures(plan, facts)
        if not self.census.known(facts.adopted):
            return ""
        offered = self._offered_now(facts)
        since, signature = self._seen
        if self._planned is None:
            return self._why_first(now, plan, facts, offered)
        elapsed = now - self._planned.at
        if elapsed < settings.least_s * SECOND:
            return ""
        if self._failed:
            return f"a worker could not load {', '.join(sorted(model for model, _ in self._failed))}"
        changed = signature != self._planned.signature
        if changed and now - since >= settings.settle_s * SECOND:
            return "shards, GPUs or models have come or gone"
        late = elapsed >= (settings.seconds + settings.window_s) * SECOND
        if (changed or offered.fresh) and not late:  # in a second or two more will be known
            return ""
        moved = offered.moved_from(self._planned.offered)
        if moved > settings.drift:
            return f"the load has moved by {moved:.0%}"
        return "epoch" if elapsed >= settings.seconds * SECOND else ""

    def _why_first(self, now: int, plan: ClusterPlan, facts: Facts, offered: Offered) -> str:
        """The first plan: from a whole window of rates, unless something is not served meanwhile."""
        settings = self._settings
        uses = uses_of(plan)
        since, _ = self._seen
        calm = now - since >= settings.settle_s * SECOND
        idle = not any(offered.rates.values()) and not facts.gpus.keys() - uses.keys()
        if idle or not calm:
            self._loaded = None
            return ""
        if self._loaded is None:
            self._loaded = now
        lost = {use.shard for use in uses.values()} - facts.adopted.keys()
        waited = now - self._loaded >= 2 * settings.window_s * SECOND
        return "first plan of this leader" if offered.whole or lost or self._failed or waited else ""

    def _offered_now(self, facts: Facts) -> Offered:
        return self.census.offered({model for models in facts.takes.values() for model in models})

    def _recall(self, plan: ClusterPlan) -> None:
        """What could not be loaded, also under earlier leaders, until it is forgotten."""
        known = {(failure.model, failure.gpu): failure.epoch for failure in plan.failures}
        self._forbidden = {
            what: learned
            for what, learned in (known | self._forbidden).items()
            if plan.stamp.epoch - learned < FORGET
        }

    def _note_failures(self, plan: ClusterPlan, facts: Facts) -> None:
        """What members say they could not load; ``_failed``: since the last plan."""
        epoch = plan.stamp.epoch
        new = {(model, gpu.type) for gpu in set(facts.gpus.values()) for model in gpu.failed}
        new -= self._forbidden.keys()
        self._failed |= new
        self._forbidden |= dict.fromkeys(new, epoch)

    def _allocate(self, now: int, why: str, view: View, facts: Facts) -> Allocate:
        offered = self._offered_now(facts)
        self._allocating = True
        self._failed = set()
        self._pending = _Planned(now, offered, self._seen[1])
        assert view.plan is not None
        cluster = describe(
            facts.adopted,
            facts,
            view.models,
            offered.rates,
            uses_of(view.plan),
            view.plan.routes if self._target is None else self._target.routes,
            forbidden=frozenset(self._forbidden),
            headroom=self._settings.headroom,
            network=self._network,
        )
        return Allocate(cluster, why)


def _signature(facts: Facts, models: Mapping[str, ModelSpec]) -> tuple[object, ...]:
    """What a plan depends on besides the load."""
    counts: dict[tuple[str, float], int] = {}
    for gpu in facts.gpus.values():
        what = gpu.type, gpu.memory_mb
        counts[what] = counts.get(what, 0) + 1
    known = frozenset((name, *sorted(spec.profiles)) for name, spec in models.items())
    return frozenset(facts.adopted), frozenset(counts.items()), known
