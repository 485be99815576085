"""Several shards in virtual time: each epoch the allocator divides models and GPUs anew.

Every shard is a core of its own with its own GPUs (:mod:`simulator.subcluster`). At the end of an epoch
the rates of its last seconds go to :func:`scheduler.allocation.allocate`, together with the plan in force.
Its plan is carried out make-before-break: a shard's GPUs first load the models that are new there; a GPU
that changes its shard drains, at most half of a shard's at once, loads the models of the new one, and
joins it; requests follow as the GPUs come, and what the old place holds it serves to its end. Until the
next epoch GPUs hold the models of both plans, whatever their memory. With an autoscaler every shard has
one (:mod:`simulator.shard_scaling`), and a plan divides the GPUs that there are when it is made.
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
from symphony.scaling import planned_headroom

from .arrivals import START_NS, Arrivals
from .engine import DRAWS, Disturbance, Progress, Record, network_ns
from .experiment import Experiment
from .shard_scaling import ShardScaling
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
        self.count = {
            text: len(_numbers(cluster, kind)) for kind, text in enumerate(experiment.gpu_types)
        }  # GPUs that are there or start
        self.plan = self._allocate([model.rate for model in cluster.models], allocation.Current())
        self.next: allocation.Plan | None = None
        self.switch_at = 0
        self.waiting: list[tuple[int, int, str, str]] = []  # GPU, its type, from where, where to
        self.moving: list[tuple[int, int, str]] = []  # GPU, its type, where it goes once it has drained
        self.awaited: dict[int, str] = {}
        """GPUs that the plan on its way has given to another shard: from where, or nothing."""
        self.usable_at: dict[int, int] = {}
        """GPU that changes its shard → when its start-up is over, ns."""
        capacity = len(cluster.gpu_type)
        if experiment.autoscale is not None:
            # GPUs that drain still have their numbers while their successors start.
            capacity = 2 * max(experiment.autoscale.max * settings.count, capacity) + 8
        numbers = {kind: iter(_numbers(cluster, kind)) for kind in range(len(experiment.gpu_types))}
        self.shards: dict[str, SubCluster] = {}
        for name in self.names:
            shard = SubCluster(
                experiment,
                replace(cluster, gpu_type=[]),
                policy,
                arrivals,
                capacity,
                [],
                START_NS,
            )
            for kind, text in enumerate(experiment.gpu_types):
                for _ in range(self.plan.gpus.get(name, {}).get(text, 0)):
                    number = next(numbers[kind])
                    shard.gpus[number] = Gpu(kind, START_NS, START_NS, self._held(self.plan, name))
            self.shards[name] = shard
        self.spare = {kind: list(rest) for kind, rest in numbers.items()}
        self.capacity = capacity
        self.scaling: ShardScaling | None = None
        if experiment.autoscale is not None:
            self.scaling = ShardScaling(experiment.autoscale, self.shards, self._free)
        self._log(START_NS, self.plan)

    def scale(self, now: int) -> None:
        """A second is over: the autoscalers, if there are any, decide, and it is done."""
        if self.scaling is None:
            return
        for shard in self.shards.values():
            shard.change(now)
        coming: dict[str, dict[int, str]] = {}
        for number, kind, name in self.moving:
            coming.setdefault(name, {})[number] = self.experiment.gpu_types[kind]
        paid = sum(len(shard.gpus) for shard in self.shards.values()) + sum(map(len, self.spare.values()))
        self.scaling.step(now, coming, self._wanted, self.load, paid, moving=self.next is not None)

    def _free(self) -> int:
        taken = {number for shard in self.shards.values() for number in shard.gpus}
        taken |= {number for number, _, _ in self.moving} | {n for rest in self.spare.values() for n in rest}
        return next(n for n in range(self.capacity) if n not in taken)

    def _there(self, kind: int) -> dict[str, int]:
        """By shard, GPUs of a type that it has, starts or is about to be handed."""
        counts = {
            name: sum(gpu.kind == kind and not gpu.draining for gpu in shard.gpus.values())
            for name, shard in self.shards.items()
        }
        for _, moved, name in self.moving:
            counts[name] += moved == kind
        for _, moved, source, name in self.waiting:
            counts[source] -= moved == kind
            counts[name] += moved == kind
        return counts

    def step(self, now: int, counts: npt.NDArray[np.int64] | None) -> None:
        """A whole second has come; ``counts``: requests in the window before an epoch's end, by model."""
        if counts is not None:
            rates = (counts / min(self.settings.window_s, self.settings.epoch_s)).tolist()
            self.next = self._allocate(rates, self._current())
            self.switch_at = now + self._loading(self.next)
            self._log(now, self.next)
            self._move(now, self.next)
        for shard in self.shards.values():
            shard.change(now)
        self._settle(now)
        if self.next is not None and now >= self.switch_at and not self._missing():
            self._switch(now, self.next)

    def split(self, model: npt.NDArray[np.uint32], now: int) -> npt.NDArray[np.int64]:
        """To which shard each request goes: by the plan in force, and on the way to the next one by both."""
        weights = self._weights(self.plan)
        if self.next is not None and now >= self.switch_at:
            # As many requests go where the plan wants them as GPUs have come to where it wants them.
            part = 1 - len(self._missing()) / max(1, len(self.awaited))
            weights = (1 - part) * weights + part * self._weights(self.next)
        reach = np.cumsum(weights, axis=1)
        draws = self.rng.random(len(model))
        shard: npt.NDArray[np.int64] = (draws[:, None] >= reach[model]).sum(axis=1)
        return np.minimum(shard, len(self.names) - 1)

    def _weights(self, plan: allocation.Plan) -> npt.NDArray[np.float64]:
        """By model and shard; each model's sum to 1."""
        weights = np.zeros((len(self.cluster.models), len(self.names)))
        for number, spec in enumerate(self.cluster.models):
            for name, weight in plan.placements.get(spec.name, {}).items():
                weights[number, self.names.index(name)] = weight
            if not weights[number].any():
                weights[number, 0] = 1.0  # placed nowhere: shard-0 refuses it
        parts: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return parts

    def _missing(self) -> list[int]:
        """GPUs that change their shard and do not serve there yet."""
        there = {n for shard in self.shards.values() for n, gpu in shard.gpus.items() if gpu.joined}
        gone = {n for n, _, _ in self.moving} | {n for n, _, _, _ in self.waiting}
        here = {n for shard in self.shards.values() for n in shard.gpus}
        return [n for n in self.awaited if n in gone or (n in here and n not in there)]

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
        memory = {group.type: float(group.memory_mb or 1_000_000) for group in self.experiment.gpus}
        net = self.experiment.believed
        return allocation.allocate(
            allocation.Cluster(
                tuple(self.names),
                tuple(allocation.GpuGroup(kind, count, memory[kind]) for kind, count in self.count.items()),
                models,
                current,
                headroom=planned_headroom(self.settings.headroom, self.experiment.autoscale),
                network=allocation.Network(net.control_us, net.data_us, net.result_us),
                spares=True,
            ),
            time_limit_s=self.settings.time_limit_s,
        )

    def _current(self) -> allocation.Current:
        """The plan in force on the GPUs that there are now; counts them."""
        gpus: dict[str, dict[str, int]] = {name: {} for name in self.names}
        for kind, text in enumerate(self.experiment.gpu_types):
            there = self._there(kind)
            self.count[text] = sum(there.values()) + len(self.spare[kind])
            for name, number in there.items():
                if number:
                    gpus[name][text] = number
        return allocation.Current(self.plan.placements, gpus)

    def _wanted(self, shard: str) -> tuple[int, ...]:
        """Numbers of the models that the shard's GPUs hold, or load for the plan on its way."""
        held = self._held(self.plan, shard)
        return held if self.next is None else tuple(sorted({*held, *self._held(self.next, shard)}))

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
            loads = sum(self.load[model] for model in new if model not in old)
            longest = max(longest, loads)
            for gpu in shard.gpus.values():
                if not gpu.joined and gpu.models is not None:
                    gpu.ready += round(loads * MS)
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
        """GPUs that are too many in their shard are to go, those with the highest numbers first."""
        if self.scaling is not None:
            self.scaling.adopt(now, {name: plan.gpus.get(name, {}) for name in self._changed(plan)})
        self.awaited.clear()
        for kind, text in enumerate(self.experiment.gpu_types):
            free = self.spare[kind]
            wants: list[str] = []
            leaving: list[tuple[int, str]] = []
            for name, shard in self.shards.items():
                mine = [n for n, gpu in shard.gpus.items() if gpu.kind == kind and not gpu.draining]
                target = plan.gpus.get(name, {}).get(text, 0)
                leaving += [(n, name) for n in sorted(mine, reverse=True)[: max(0, len(mine) - target)]]
                wants += [name] * max(0, target - len(mine))
            for name in wants:
                if free:
                    number = free.pop()
                    self.awaited[number] = ""
                    self.moving.append((number, kind, name))
                elif leaving:
                    number, source = leaving.pop(0)
                    self.awaited[number] = source
                    self.waiting.append((number, kind, source, name))

    def _changed(self, plan: allocation.Plan) -> list[str]:
        """Shards that have other GPUs under the plan than now."""
        now = self._current().gpus
        return [name for name in self.names if plan.gpus.get(name, {}) != now[name]]

    def _settle(self, now: int) -> None:
        """GPUs drain, at most half of a shard's at once, load the models of the new shard, and join it."""
        missing = set(self._missing())
        for source, shard in self.shards.items():
            mine = [move for move in self.waiting if move[2] == source]
            away = sum(n in missing and self.awaited[n] == source for n in missing) - len(mine)
            active = sum(gpu.joined and not gpu.draining for gpu in shard.gpus.values())
            for move in mine[: max((active + away) // 2 - away, 0 if away else 1)]:
                number, kind, _, name = move
                self.waiting.remove(move)
                self.usable_at[number] = shard.gpus[number].ready
                shard.drain(number, now)
                self.moving.append((number, kind, name))
        left = []
        for number, kind, name in self.moving:
            if any(number in shard.gpus for shard in self.shards.values()):
                left.append((number, kind, name))
                continue
            models = self._wanted(name)
            ready = max(now, self.usable_at.pop(number, now)) + round(
                sum(self.load[model] for model in models) * MS
            )
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
        if i % every == max(0, every - run.settings.window_s):
            seen = np.zeros_like(seen)
        if i:
            run.scale(now)
        run.step(now, seen if ends else None)
        if i + 1 == len(edges):
            break
        which = np.arange(places[i], places[i + 1])
        model = arrivals.model[which]
        seen += np.bincount(model, minlength=len(seen))
        shard = run.split(model, now)
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
    scaling = None if run.scaling is None else run.scaling.scaling
    return Record(
        of, gpu, size, decided, start, end, answered, request, dropped, events, wall, scaling, run.log
    )


def _numbers(cluster: Cluster, kind: int) -> list[int]:
    return [number for number, found in enumerate(cluster.gpu_type) if found == kind]
