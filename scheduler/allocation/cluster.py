"""What the allocator is told: shards, GPUs, models with their load, and the plan that is in force.

All of it is plain data that cannot change. :meth:`Cluster.check` refuses what makes no sense; load that
cannot be served is no error, but an answer that the plan gives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from symphony.profile import Profile
from symphony.status import SymphonyError

ANY_TYPE: Final = "*"
"""Key of a profile that holds on every GPU type without one of its own."""
HEADROOM: Final = 0.8
TOLERANCE: Final = 0.05


class AllocationError(SymphonyError, ValueError):
    """A cluster description that makes no sense; the text names the key and what was expected."""


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """``count`` GPUs of one type, each with ``memory_mb`` for models (10^6 bytes)."""

    type: str
    count: int
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its load.

    rate: requests/s offered. slo_ms: objective of a request, from submission to result. profiles: GPU
    type → l(b); :data:`ANY_TYPE` stands for all others; on a type without a profile the model never
    runs. memory_mb: weights and workspace at its largest batch, on each GPU that holds it. load_ms:
    time until one GPU has loaded it.
    """

    name: str
    rate: float
    slo_ms: float
    profiles: Mapping[str, Profile]
    memory_mb: float = 0.0
    load_ms: float = 0.0

    def profile_on(self, gpu_type: str) -> Profile | None:
        """l(b) on that type; None where there is none."""
        return self.profiles.get(gpu_type, self.profiles.get(ANY_TYPE))


@dataclass(frozen=True, slots=True)
class Network:
    """What a request spends outside the GPU, in µs: per batch, per request of a batch, per result."""

    control_us: float = 0.0
    data_us: float = 0.0
    result_us: float = 0.0


@dataclass(frozen=True, slots=True)
class Current:
    """A plan in force, to plan from: its ``placements`` and ``gpus``, as in :class:`Plan`."""

    placements: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gpus: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def only(self, shards: Collection[str], models: Collection[str], types: Collection[str]) -> Current:
        """What is left of it once everything else has gone: a leader plans from this after losses."""
        placements = {
            model: {shard: weight for shard, weight in where.items() if shard in shards}
            for model, where in self.placements.items()
            if model in models
        }
        gpus = {
            shard: {kind: count for kind, count in held.items() if kind in types}
            for shard, held in self.gpus.items()
            if shard in shards
        }
        return Current({model: where for model, where in placements.items() if where}, gpus)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything that a plan depends on.

    headroom: share of a sub-cluster's GPU time that planned work may take; the rest is for bursts.
    tolerance: how much worse than the best plan found one may be that moves less (see
    docs/allocation.md); 0 plans strictly in the order of the objectives. forbidden: (model, GPU type)
    that a worker could not carry out, such as for want of memory. spares: also hand out the GPUs beyond
    the needed ones, each where utilization is highest.
    """

    shards: tuple[str, ...]
    gpus: tuple[GpuGroup, ...]
    models: tuple[Model, ...]
    current: Current = Current()
    forbidden: frozenset[tuple[str, str]] = frozenset()
    headroom: float = HEADROOM
    tolerance: float = TOLERANCE
    network: Network = Network()
    spares: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            AllocationError: with the key as it stands in a cluster file, and what was expected.
        """
        if not self.shards:
            raise AllocationError("shards: expected at least one")
        _once("shards", self.shards)
        _once("gpus", [group.type for group in self.gpus])
        _once("models", [model.name for model in self.models])
        for i, group in enumerate(self.gpus):
            _number(f"gpus[{i}].count", group.count)
            _number(f"gpus[{i}].memory_mb", group.memory_mb)
        for i, model in enumerate(self.models):
            for key in ("rate", "memory_mb", "load_ms"):
                _number(f"models[{i}].{key} ({model.name})", getattr(model, key))
            _number(f"models[{i}].slo_ms ({model.name})", model.slo_ms, above=True)
            if not model.profiles:
                raise AllocationError(f"models[{i}] ({model.name}): expected a latency profile")
        if not 0 < self.headroom <= 1:
            raise AllocationError(f"headroom: expected a share above 0 and up to 1, not {self.headroom!r}")
        if not 0 <= self.tolerance <= 1:
            raise AllocationError(f"tolerance: expected a share from 0 to 1, not {self.tolerance!r}")
        for key in ("control_us", "data_us", "result_us"):
            _number(f"network.{key}", getattr(self.network, key))
        self._check_current()

    def _check_current(self) -> None:
        shards, names = set(self.shards), {model.name for model in self.models}
        types = {group.type for group in self.gpus}
        for model, where in self.current.placements.items():
            _known(f"current.placements.{model}", "model", model, names)
            for shard, weight in where.items():
                _known(f"current.placements.{model}.{shard}", "shard", shard, shards)
                _number(f"current.placements.{model}.{shard}", weight)
        for shard, held in self.current.gpus.items():
            _known(f"current.gpus.{shard}", "shard", shard, shards)
            for kind, count in held.items():
                _known(f"current.gpus.{shard}.{kind}", "GPU type", kind, types)
                _number(f"current.gpus.{shard}.{kind}", count)


def _once(key: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for i, name in enumerate(names):
        if not name:
            raise AllocationError(f"{key}[{i}]: expected a name")
        if name in seen:
            raise AllocationError(f"{key}[{i}]: the name {name!r} stands there twice")
        seen.add(name)


def _number(key: str, value: float, above: bool = False) -> None:
    if not math.isfinite(value) or value < 0 or (above and value == 0):
        raise AllocationError(
            f"{key}: expected a number {'above 0' if above else 'of 0 or more'}, not {value!r}"
        )


def _known(key: str, what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        listed = ", ".join(sorted(names)[:8]) or "none"
        raise AllocationError(f"{key}: no {what} {name!r} in this cluster (there are: {listed})")
