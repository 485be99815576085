"""Several shards in virtual time: each epoch the allocator divides models and GPUs anew.

Every shard is a core of its own with its own GPUs (:mod:`simulator.subcluster`). At the end of an epoch the
rates that were seen go to :func:`scheduler.allocation.allocate`, together with the plan in force. Its plan is
carried out make-before-break: a shard's GPUs first load the models that are new there; a GPU that changes its
shard drains, loads the models of the new one, and joins it; then the routes switch, and what the old
place holds it serves to its end. Until the next epoch GPUs hold the models of both plans, whatever their
memory.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

import scheduler.allocation as allocation
from symphony.profile import Profile

from .arrivals import START_NS, Arrivals
from .engine import DRAWS, Disturbance, Progress, Record, network_ns
from .experiment import Experiment
from .subcluster import SECOND, Gpu, SubCluster
from .system import Cluster

MS = 1_000_000


class Epochs:
    """State of one run: shards, the plan in force, and the plan that is on its way."""

    def __init__(self, experiment: Experiment, cluster: Cluster, policy: str, arrivals: Arrivals) -> None:
        settings = experiment.shards
        assert settings is not None
        self.settings = settings
        self.experiment = experiment
        self.cluster = cluster
        self.names = [f"shard-{i}" for i in range(settings.count)]
        self.load = [group.load_ms for group in experiment.models for _ in range(group.count)]
        self.memory = [group.memory_mb for group in experiment.models for _ in range(group.count)]
        self.log: list[dict[str, Any]] = []
        self.rng = np.random.default_rng([experiment.seed, 1 << 41])
        self.plan = self._allocate([model.rate for model in cluster.models], allocation.Current())
        self.next: allocation.Plan | None = None
        self.switch_at = 0
        self.moving: list[tuple[int, int, str]] = []  # GPU, its type, where it goes once it has drained
        numbers = {kind: iter(_numbers(cluster, kind)) for kind in range(len(experiment.gpu_types))}
        self.shards: dict[str, SubCluster] = {}
        for name in self.names:
            shard = SubCluster(
                experiment,
                replace(cluster, gpu_type=[]),
                policy,
                arrivals,
                len(cluster.gpu_type),
                [],
                START_NS,
            )
            for kind, text in enumerate(experiment.gpu_types):
                for _ in range(self.plan.gpus.get(name, {}).get(text, 0)):
                    number = next(numbers[kind])
                    shard.gpus[number] = Gpu(kind, START_NS, START_NS, self._held(self.plan, name))
            self.shards[name] = shard
        self.spare = {kind: list(rest) for kind, rest in numbers.items()}
        self._log(START_NS, self.plan)

    def step(self, now: int, counts: npt.NDArray[np.int64] | None) -> None:
        """A whole second has come; ``counts``: requests of the epoch that ends now, by model."""
        if counts is not None:
            current = allocation.Current(self.plan.placements, self.plan.gpus)
            rates = (counts / self.settings.epoch_s).tolist()
            self.next = self._allocate(rates, current)
            self.switch_at = now + self._loading(self.next)
            self._log(now, self.next)
            self._move(now, self.next)
        for shard in self.shards.values():
            shard.change(now)
        self._settle(now)
        waits = self.moving or any(not gpu.joined for s in self.shards.values() for gpu in s.gpus.values())
        if self.next is not None and now >= self.switch_at and not waits:
            self._switch(now, self.next)

    def split(self, model: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """To which shard each request goes, by the weights of the plan in force."""
        weights = np.zeros((len(self.cluster.models), len(self.names)))
        for number, spec in enumerate(self.cluster.models):
            for name, weight in self.plan.placements.get(spec.name, {}).items():
                weights[number, self.names.index(name)] = weight
            if not weights[number].any():
                weights[number, 0] = 1.0  # placed nowhere: shard-0 refuses it
        reach = np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)
        draws = self.rng.random(len(model))
        shard: npt.NDArray[np.int64] = (draws[:, None] >= reach[model]).sum(axis=1)
        return np.minimum(shard, len(self.names) - 1)

    def _allocate(self, rates: list[float], current: allocation.Current) -> allocation.Plan:
        types = self.experiment.gpu_types
        models = tuple(
            allocation.Model(
                spec.name,
                rate,
                spec.slo / MS,
                {kind: Profile(table) for kind, table in zip(types, spec.latency, strict=True)},
                self.memory[number],
                self.load[number],
            )
            for number, (spec, rate) in enumerate(zip(self.cluster.models, rates, strict=True))
        )
        counts = dict.fromkeys(types, 0)
        memory: dict[str, float] = {}
        for group in self.experiment.gpus:
            counts[group.type] += group.count
            memory[group.type] = float(group.memory_mb or 1_000_000)
        net = self.experiment.believed
        return allocation.allocate(
            allocation.Cluster(
                tuple(self.names),
                tuple(allocation.GpuGroup(kind, count, memory[kind]) for kind, count in counts.items()),
                models,
                current,
                headroom=self.settings.headroom,
                network=allocation.Network(net.control_us, net.data_us, net.result_us),
                spares=True,
            ),
            time_limit_s=self.settings.time_limit_s,
        )

    def _held(self, plan: allocation.Plan, shard: str) -> tuple[int, ...]:
        """Numbers of the models that the plan places on the shard."""
        specs = self.cluster.models
        return tuple(
            i for i, spec in enumerate(specs) if plan.placements.get(spec.name, {}).get(shard, 0) > 0
        )

    def _loading(self, plan: allocation.Plan) -> int:
        """Begin to load; ns until the shard with most to load has done so, one model after the other."""
        longest = 0.0
        for name, shard in self.shards.items():
            old, new = self._held(self.plan, name), self._held(plan, name)
            longest = max(longest, sum(self.load[model] for model in new if model not in old))
            for gpu in shard.gpus.values():
                gpu.models = tuple(sorted({*old, *new}))
        return round(longest * MS)

    def _switch(self, now: int, plan: allocation.Plan) -> None:
        """What is new is loaded, and GPUs that change their shard are there: requests follow the plan."""
        before = self.plan
        self.plan, self.next = plan, None
        for name, shard in self.shards.items():
            both = sorted({*self._held(before, name), *self._held(plan, name)})
            shard.replay.until(now)
            for number, gpu in shard.gpus.items():
                if gpu.joined and not gpu.draining:
                    # What the shard has queued of a model that leaves is still served here.
                    shard.core.set_gpu_models(now, number, both)
                    shard.replay.until(now)

    def _move(self, now: int, plan: allocation.Plan) -> None:
        """GPUs that are too many in their shard drain, those with the highest numbers first."""
        for kind, text in enumerate(self.experiment.gpu_types):
            free = self.spare[kind]
            wants: list[str] = []
            for name, shard in self.shards.items():
                mine = [n for n, gpu in shard.gpus.items() if gpu.kind == kind and not gpu.draining]
                target = plan.gpus.get(name, {}).get(text, 0)
                for number in sorted(mine, reverse=True)[: max(0, len(mine) - target)]:
                    shard.drain(number, now)
                    free.append(number)
                wants += [name] * max(0, target - len(mine))
            for name in wants:
                if free:
                    self.moving.append((free.pop(), kind, name))

    def _settle(self, now: int) -> None:
        """GPUs that have drained at their old shard load the models of the new one, and join it."""
        left = []
        for number, kind, name in self.moving:
            if any(number in shard.gpus for shard in self.shards.values()):
                left.append((number, kind, name))
                continue
            models = self._held(self.plan, name)
            if self.next is not None:
                models = tuple(sorted({*models, *self._held(self.next, name)}))
            ready = now + round(sum(self.load[model] for model in models) * MS)
            self.shards[name].ask(number, kind, now, ready, models)
        self.moving = left

    def _log(self, now: int, plan: allocation.Plan) -> None:
        self.log.append(
            {
                "at_s": (now - START_NS) / SECOND,
                "status": plan.status,
                "moved": plan.moved,
                "gpus": {name: sum(held.values()) for name, held in plan.gpus.items()},
                "gpus_needed": plan.gpus_needed,
                "unserved": dict(plan.unserved),
            }
        )


def run_epochs(
    experiment: Experiment,
    cluster: Cluster,
    policy: str,
    arrivals: Arrivals,
    progress: Progress | None = None,
) -> Record:
    """Run the experiment on several shards; the record's ``epochs`` tells every plan."""
    clock = time.perf_counter()
    run = Epochs(experiment, cluster, policy, arrivals)
    edges = START_NS + SECOND * np.arange(math.ceil(experiment.seconds) + 1)
    places = np.searchsorted(arrivals.at, edges)
    seen = np.zeros(len(cluster.models), np.int64)
    every = run.settings.epoch_s
    for i, now in enumerate(edges.tolist()):
        ends = i > 0 and i % every == 0
        run.step(now, seen if ends else None)
        if ends:
            seen = np.zeros_like(seen)
        if i + 1 == len(edges):
            break
        which = np.arange(places[i], places[i + 1])
        model = arrivals.model[which]
        seen += np.bincount(model, minlength=len(seen))
        shard = run.split(model)
        for number, name in enumerate(run.names):
            run.shards[name].run(which[shard == number])
        if progress is not None:
            progress(i / len(edges))
    parts: list[tuple[Any, ...]] = []
    for sub in run.shards.values():
        sub.finish()
        parts += sub.columns
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    of, gpu, size, decided, start, end, request, dropped = columns
    back = Disturbance.of(experiment).back[np.arange(len(end)) % DRAWS]
    answered = end + network_ns(experiment.network)[2] + back
    events = sum(sub.replay.events for sub in run.shards.values())
    wall = time.perf_counter() - clock
    return Record(of, gpu, size, decided, start, end, answered, request, dropped, events, wall, None, run.log)


def _numbers(cluster: Cluster, kind: int) -> list[int]:
    return [number for number, found in enumerate(cluster.gpu_type) if found == kind]
