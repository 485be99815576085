"""From the plan in force to the one that is wanted, step by step, so that nothing is broken before its
successor is made. Pure: a plan, a target and facts go in, the next plan comes out; no I/O, no clock.

Every GPU goes its own way; each arrow is one revision of the plan, taken when the facts allow it::

    used by A ──► A gives it back ──► loads for B ──► used by B
       (A drains it; no shard owns it any more)  (its worker says that it holds the models)

    A's models {a, b} ──► {a, b, c} ──► {b, c}       where memory holds all three; a GPU whose memory
       (c is loaded; routes of a leave A and a while passes)    does not is given back in between

Routes follow what is ready: a shard's weight for a model grows with the share of its wanted GPUs that hold
it; what is missing stays with the shards that served it before. At most half of a shard's GPUs are on
their way at once unless the rest has room for its load. Where that leads nowhere (every step waits for
another) for ``patience_ns``, make-before-break is given up and the step is taken.

What decides is only the plan in force and the facts, so another leader can go on at any point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from symphony.messages import of_ranges, to_ranges
from symphony.plans import ClusterPlan, Group, PlanStamp, rank

LEAST: Final = 1e-4
"""Smallest weight of a shard in a route."""
ROOM: Final = 0.85
"""Share of the GPUs that stay which a shard's load may take while the others leave at once."""

Models = frozenset[str]
Routes = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Use:
    """What one GPU is for."""

    shard: str
    models: Models
    active: bool = True


@dataclass(frozen=True, slots=True)
class Gpu:
    """One live GPU: what it has and holds. ``memory_mb`` 0: not known. ``failed``: what it could not load."""

    type: str
    memory_mb: float = 0.0
    holds: Models = frozenset()
    failed: Models = frozenset()


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted: a shard for every GPU, models for every shard, weights for every model."""

    gpus: Mapping[int, str]
    models: Mapping[str, Models]
    routes: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What members say now.

    owner: GPU → the live shard that uses it. adopted: live shard that is ready → the plan that it follows.
    takes: shard → models that it takes. busy: shard → GPUs' worth of work. queued: (shard, model) with
    requests in the queue. memory_mb: of models.
    """

    gpus: Mapping[int, Gpu]
    owner: Mapping[int, str] = field(default_factory=dict)
    adopted: Mapping[str, PlanStamp | None] = field(default_factory=dict)
    takes: Mapping[str, Models] = field(default_factory=dict)
    busy: Mapping[str, float] = field(default_factory=dict)
    queued: frozenset[tuple[str, str]] = frozenset()
    memory_mb: Mapping[str, float] = field(default_factory=dict)


def uses_of(plan: ClusterPlan) -> dict[int, Use]:
    """The plan's groups, GPU by GPU."""
    uses: dict[int, Use] = {}
    for group in plan.groups:
        use = Use(group.shard, frozenset(group.models), group.active)
        uses.update(dict.fromkeys(of_ranges(group.gpus), use))
    return uses


def groups_of(uses: Mapping[int, Use]) -> list[Group]:
    """GPUs of the same use together, in an order that depends on nothing else."""
    together: dict[Use, list[int]] = {}
    for gpu, use in uses.items():
        together.setdefault(use, []).append(gpu)
    ordered = sorted(together, key=lambda use: (rank(use.shard), not use.active, sorted(use.models)))
    return [
        Group(shard=u.shard, gpus=to_ranges(together[u]), models=sorted(u.models), active=u.active)
        for u in ordered
    ]


class Transition:
    """See the module's text.

    Args:
        grace_ns: how long after a route has left a shard its model is kept there.
        patience_ns: how long the plan may stand still before its target is reached.
    """

    def __init__(self, grace_ns: int, patience_ns: int) -> None:
        self._grace_ns, self._patience_ns = grace_ns, patience_ns
        self._unrouted: dict[tuple[str, str], int] = {}
        self._moved_at: int | None = None
        self._base: Mapping[str, Mapping[str, float]] = {}

    def step(
        self, now: int, plan: ClusterPlan, target: Target, facts: Facts
    ) -> tuple[list[Group], Routes] | None:
        """The next groups and routes; None where nothing is to be changed now. ``now``: ns of any clock."""
        uses = uses_of(plan)
        self._note_routes(now, plan.routes, uses)
        if self._moved_at is None:
            self.begin(now, plan)
        assert self._moved_at is not None
        stuck = now - self._moved_at > self._patience_ns
        work = _Step(now, plan, uses, target, facts, self._retired(now, facts), stuck, self._base)
        after = work.uses_after()
        routes = work.routes_after(after)
        if after == uses and routes == plan.routes:
            return None
        self._moved_at = now
        return groups_of(after), routes

    def begin(self, now: int, plan: ClusterPlan) -> None:
        """There is a new target; what is not ready yet stays as ``plan`` routes it."""
        self._moved_at = now
        self._base = plan.routes

    def settled(self, plan: ClusterPlan, target: Target, facts: Facts) -> bool:
        """Whether the plan in force is what is wanted, as far as it can be."""
        wanted = {
            gpu: Use(shard, target.models.get(shard, frozenset()))
            for gpu, shard in target.gpus.items()
            if gpu in facts.gpus
        }
        return uses_of(plan) == wanted and all(
            plan.routes.get(model) == dict(route) for model, route in target.routes.items()
        )

    def _note_routes(self, now: int, routes: Mapping[str, Mapping[str, float]], uses: dict[int, Use]) -> None:
        held = {(use.shard, model) for use in set(uses.values()) for model in use.models}
        for shard, model in held:
            if shard in routes.get(model, {}):
                self._unrouted.pop((shard, model), None)
            else:
                self._unrouted.setdefault((shard, model), now)
        self._unrouted = {pair: since for pair, since in self._unrouted.items() if pair in held}

    def _retired(self, now: int, facts: Facts) -> frozenset[tuple[str, str]]:
        return frozenset(
            pair
            for pair, since in self._unrouted.items()
            if now - since >= self._grace_ns and pair not in facts.queued
        )


class _Step:
    """One call of :meth:`Transition.step`."""

    def __init__(
        self,
        now: int,
        plan: ClusterPlan,
        uses: dict[int, Use],
        target: Target,
        facts: Facts,
        retired: frozenset[tuple[str, str]],
        stuck: bool,
        base: Mapping[str, Mapping[str, float]],
    ) -> None:
        self.plan, self.uses, self.target, self.facts = plan, uses, target, facts
        self.retired, self.stuck = retired, stuck
        self.followed = all(stamp == plan.stamp for stamp in facts.adopted.values())
        self.base = base
        self.ready = self._ready(uses)
        self.withdrawn: set[tuple[str, str]] = set()
        """(shard, model) that requests are to leave, so that GPUs can."""

    def uses_after(self) -> dict[int, Use]:
        """The next use of every GPU that is there."""
        after: dict[int, Use] = {}
        leaving: dict[str, list[int]] = {}
        for gpu in sorted(self.facts.gpus):
            use, shard = self.uses.get(gpu), self.target.gpus.get(gpu)
            if shard is None:
                if use is not None:
                    after[gpu] = use
                continue
            wanted = self.target.models.get(shard, frozenset())
            if use is None:
                after[gpu] = Use(shard, wanted, active=False)
            elif not use.active:
                after[gpu] = self._on_its_way(gpu, use, Use(shard, wanted, active=False))
            elif use.shard == shard:
                after[gpu] = self._in_place(gpu, use, wanted)
                if after[gpu] == use and wanted - use.models and self._must_reload(use, wanted):
                    leaving.setdefault(use.shard, []).append(gpu)
            else:
                after[gpu] = use
                leaving.setdefault(use.shard, []).append(gpu)
        for shard, gpus in leaving.items():
            for gpu in self._may_leave(shard, gpus):
                use = after[gpu]
                after[gpu] = Use(use.shard, use.models, active=False)
        return after

    def _spared(self, gpu: int) -> bool:
        """Whether every model that its shard is still asked for is held by another GPU of the shard, too.

        Where not, requests for the model are to go to other shards first.
        """
        use = self.uses[gpu]
        models = use.models & self.facts.gpus[gpu].holds
        sole = {(use.shard, model) for model in models if self.ready.get((use.shard, model), 0) == 1}
        self.withdrawn |= sole
        if any(self._asked(*pair) for pair in sole):
            return False
        for model in models:
            self.ready[use.shard, model] = self.ready.get((use.shard, model), 1) - 1
        return True

    def _asked(self, shard: str, model: str) -> bool:
        return shard in self.plan.routes.get(model, {}) or (shard, model) not in self.retired

    def _on_its_way(self, gpu: int, use: Use, wanted: Use) -> Use:
        if gpu in self.facts.owner or not self.followed:
            return use
        if use != wanted:
            return wanted
        there = self.facts.gpus[gpu]
        if wanted.models - there.failed <= there.holds:
            return Use(wanted.shard, wanted.models)
        return use

    def _gone(self, use: Use) -> Models:
        """Models that requests for the shard have stopped asking for."""
        return frozenset(model for model in use.models if (use.shard, model) in self.retired)

    def _in_place(self, gpu: int, use: Use, wanted: Models) -> Use:
        """Other models on a GPU that stays with its shard: drop what nobody asks for, add what fits."""
        surplus = use.models - wanted
        models = use.models - (surplus & self._gone(use))
        memory = self.facts.gpus[gpu].memory_mb
        room = memory - sum(self.facts.memory_mb.get(model, 0.0) for model in models)
        for model in sorted(wanted - models):
            need = self.facts.memory_mb.get(model, 0.0)
            if memory <= 0 or need <= room:
                models |= {model}
                room -= need
        return Use(use.shard, models)

    def _must_reload(self, use: Use, wanted: Models) -> bool:
        """Whether what takes the room is still asked for here, so that waiting alone does not help."""
        surplus = use.models - wanted
        return self.stuck or any(use.shard in self.plan.routes.get(model, {}) for model in surplus)

    def _may_leave(self, shard: str, gpus: list[int]) -> list[int]:
        """Which of the GPUs that are to leave the shard may do so now, highest numbers first."""
        if shard not in self.facts.adopted or self.stuck:
            return gpus
        active = sum(use.active for _, use in self._living(shard))
        away = sum(not use.active and gpu in self.facts.owner for gpu, use in self._living(shard))
        most = len(gpus)
        if ROOM * (active - most) < self.facts.busy.get(shard, active):
            most = max((active + away) // 2 - away, 0 if away else 1)
        chosen: list[int] = []
        for gpu in sorted(gpus, reverse=True):
            if len(chosen) < most and self._spared(gpu):
                chosen.append(gpu)
        return chosen

    def _living(self, shard: str) -> Iterable[tuple[int, Use]]:
        return ((g, use) for g, use in self.uses.items() if g in self.facts.gpus and use.shard == shard)

    # -- routes ----------------------------------------------------------------------------------

    def routes_after(self, uses: Mapping[int, Use]) -> Routes:
        """Weights by what is ready now, under the uses that come into force with them."""
        ready = self._ready(uses)
        wanted: dict[str, int] = {}
        for gpu, shard in self.target.gpus.items():
            if gpu in self.facts.gpus:
                wanted[shard] = wanted.get(shard, 0) + 1
        routes: Routes = {}
        for model in sorted(self.plan.routes.keys() | self.target.routes.keys()):
            route = self._route(model, ready, wanted)
            if route:
                routes[model] = route
        return routes

    def _ready(self, uses: Mapping[int, Use]) -> dict[tuple[str, str], int]:
        """(shard, model) → GPUs that the shard uses for it, if it takes the model."""
        counts: dict[tuple[str, str], int] = {}
        alike: dict[tuple[Use, Models], int] = {}
        for gpu, use in uses.items():
            there = self.facts.gpus.get(gpu)  # its shard may not know yet that it has gone
            if there is not None and use.active and self.facts.owner.get(gpu) == use.shard:
                alike[use, there.holds] = alike.get((use, there.holds), 0) + 1
        for (use, holds), count in alike.items():
            for model in use.models & holds & self.facts.takes.get(use.shard, frozenset()):
                counts[use.shard, model] = counts.get((use.shard, model), 0) + count
        return counts

    def _route(
        self, model: str, ready: Mapping[tuple[str, str], int], wanted: Mapping[str, int]
    ) -> dict[str, float]:
        target = self.target.routes.get(model, {})
        there = {
            shard: weight * min(1.0, ready.get((shard, model), 0) / max(1, wanted.get(shard, 0)))
            for shard, weight in target.items()
        }
        if target and all(
            there[shard] == weight and (shard, model) not in self.withdrawn
            for shard, weight in target.items()
        ):
            return dict(target)
        route = {shard: weight for shard, weight in there.items() if weight > 0}
        missing = (sum(target.values()) or 1.0) - sum(route.values())
        # Who served it before, above all who is not wanted for it, keeps what is missing.
        before = {s: w for s, w in self.base.get(model, {}).items() if (s, model) in ready}
        others = {shard: weight for shard, weight in before.items() if shard not in target} or before
        total = sum(others.values())
        for shard, weight in others.items():
            route[shard] = route.get(shard, 0.0) + missing * weight / total
        route = {shard: weight for shard, weight in route.items() if weight > LEAST}
        staying = {shard: w for shard, w in route.items() if (shard, model) not in self.withdrawn}
        if not staying and route:
            first = min(route, key=rank)
            staying = {first: route[first]}
        if not staying:
            return dict(self.plan.routes.get(model, {})) if target else {}
        total = sum(staying.values())
        return {shard: round(weight / total, 6) for shard, weight in sorted(staying.items())}
