"""Autoscaling of every shard's sub-cluster: statistics in, decisions out. No I/O, no clock.

Each message of topic ``stats.<shard>`` becomes one sample; :func:`scheduler.autoscale.decide` looks at the
window of them. When an epoch's plan gives a shard other GPUs than it had, its state adopts that: what the
plan took away is not missing, and the window begins anew. While such a plan is on its way, loads and GPUs do
not belong together, and a shard that a plan gives nothing to serve needs no GPU: neither is decided about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scheduler.actuators.base import Outcome, message_of
from scheduler.autoscale import decide
from scheduler.decision import State, adopt, refuse
from scheduler.evidence import ModelLoad, Sample, fluid_need
from symphony.control import Member, ModelSpec, ScaleDecision
from symphony.messages import of_ranges
from symphony.plans import ClusterPlan
from symphony.scaling import AutoscaleConfig

COUNTERS = ("offered", "good", "late", "dropped")


@dataclass(slots=True)
class _Shard:
    window: deque[Sample] = field(default_factory=lambda: deque(maxlen=600))
    state: State = field(default_factory=State)
    counted: dict[str, int] = field(default_factory=dict)
    at: int = 0
    allotted: dict[str, int] | None = None


class SubClusters:
    """See the module's text.

    Args:
        leader: in whose name decisions are made.
        settings: the section ``autoscale`` of the configuration.
        network_ns: of a request's objective, what is spent outside the GPU; data_ns: per request of a batch.
    """

    def __init__(self, leader: str, settings: AutoscaleConfig, network_ns: int = 0, data_ns: int = 0) -> None:
        self._leader, self._settings = leader, settings
        self._network_ns, self._data_ns = network_ns, data_ns
        self._shards: dict[str, _Shard] = {}

    def saw(
        self,
        shard: str,
        body: Mapping[str, Any],
        members: Mapping[str, Member],
        models: Mapping[str, ModelSpec],
        plan: ClusterPlan | None,
        moving: bool = False,
    ) -> ScaleDecision | None:
        """One message of ``stats.<shard>``; the decision that it brings, None where it says nothing yet.

        ``moving``: a plan is on its way.

        Raises:
            KeyError, TypeError, ValueError: it is no such message.
        """
        known = self._shards.get(shard)
        if known is None:
            # An actuator takes a number that it knows for a request that it has carried out, so what this
            # leader asks for is never numbered like what one before it has asked for: at most one a second.
            known = self._shards[shard] = _Shard(state=State(sequence=max(0, int(body["at"])) // 1_000_000))
        entries = {str(name): entry for name, entry in body["models"].items()}
        counted = {key: sum(int(entry[key]) for entry in entries.values()) for key in COUNTERS}
        at, before, since = int(body["at"]), known.counted, known.at
        known.counted, known.at = counted, at
        if not before or at <= since or any(counted[key] < before[key] for key in COUNTERS):
            return None
        types, starting, draining = _gpus(shard, members, plan)
        gpu = body["gpu"]
        busy = {
            int(number): float(share)
            for number, share in zip(gpu["number"], gpu["busy"], strict=True)
            if number in types and number not in draining
        }
        rates = {name: float(entry["rate"]) for name, entry in entries.items()}
        loads = [self._load(models[name], rate) for name, rate in rates.items() if name in models]
        delta = {key: counted[key] - before[key] for key in COUNTERS}
        sample = Sample(
            at=at,
            seconds=(at - since) / 1e9,
            offered=delta["offered"],
            good=delta["good"],
            late=delta["late"],
            dropped=delta["dropped"],
            need=fluid_need(loads, sorted(set(types.values()))),
            busy=busy,
            types=types,
            starting=frozenset(starting - busy.keys()),
            draining=frozenset(draining),
            rates=rates,
        )
        self._adopt(known, shard, types, plan, at)
        known.window.append(sample)
        if moving or (plan is not None and _elsewhere(plan, shard)):
            return None
        decision, known.state = decide(list(known.window), known.state, self._settings)
        epoch = 0 if plan is None else plan.stamp.epoch
        return message_of(decision, epoch, self._leader, shard)

    def _load(self, spec: ModelSpec, rate: float) -> ModelLoad:
        budget = round(spec.slo_ms * 1e6) - self._network_ns
        return ModelLoad(rate, budget, spec.profiles, self._data_ns)

    def _adopt(
        self, known: _Shard, shard: str, types: Mapping[int, str], plan: ClusterPlan | None, now: int
    ) -> None:
        """A plan that gives the shard another number of GPUs is a request that has been granted."""
        if plan is None:
            return
        counts: dict[str, int] = {}
        for group in plan.groups:
            if group.shard == shard:
                for gpu in of_ranges(group.gpus):
                    if gpu in types:
                        counts[types[gpu]] = counts.get(types[gpu], 0) + 1
        if known.allotted is not None and counts != known.allotted:
            known.state = adopt(known.state, counts, now)
            known.window.clear()
        known.allotted = counts

    def answered(self, outcome: Outcome) -> None:
        """The actuator has taken a request, or not."""
        known = self._shards.get(outcome.shard)
        if known is not None and not outcome.accepted and outcome.code != "superseded":
            known.state = refuse(known.state)

    def gone(self, shard: str) -> None:
        """The shard has left or died."""
        self._shards.pop(shard, None)


def _elsewhere(plan: ClusterPlan, shard: str) -> bool:
    """Whether all that is served is served by other shards, on other GPUs."""
    owners = {group.shard for group in plan.groups}
    return bool(owners) and shard not in owners and not any(shard in route for route in plan.routes.values())


def _gpus(
    shard: str, members: Mapping[str, Member], plan: ClusterPlan | None
) -> tuple[dict[int, str], set[int], set[int]]:
    """Types of the sub-cluster's GPUs, those that are on their way to it, and those that leave it."""
    mine: set[int] | None = None
    planned: set[int] = set()
    if plan is not None:
        planned = {gpu for group in plan.groups for gpu in of_ranges(group.gpus)}
        mine = {gpu for group in plan.groups if group.shard == shard for gpu in of_ranges(group.gpus)}
    types: dict[int, str] = {}
    starting: set[int] = set()
    draining: set[int] = set()
    for worker in members.values():
        if worker.role != "worker":
            continue
        for info in worker.gpus:
            at_home = worker.shard == shard and (mine is None or info.number not in planned)
            if not at_home and (mine is None or info.number not in mine):
                continue
            types[info.number] = info.type
            if worker.state == "draining":
                draining.add(info.number)
            else:
                starting.add(info.number)
    return types, starting, draining
