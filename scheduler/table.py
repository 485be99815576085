"""The shard's model table: names to numbers, and what the core is told of each model."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from scheduler.core.limits import TYPES
from scheduler.core.machine import Core
from scheduler.recent import Ids
from symphony.control import ModelSpec
from symphony.faults import Faults

_log = logging.getLogger(__name__)


class ModelTable:
    """Numbers for models and GPU types, dense and never used again within one run of the shard.

    Args:
        core: is told of every model and profile.
        faults: counts what the core refuses.
    """

    def __init__(self, core: Core, faults: Faults) -> None:
        self.names: list[str] = []
        """Position = the number that SUBMIT messages use."""
        self._core = core
        self._faults = faults
        self._number: dict[str, int] = {}
        self._types: dict[str, int] = {}
        self._type_names: list[str] = []
        self._specs: dict[str, ModelSpec] = {}
        self._factors: dict[tuple[int, int], float] = {}
        self._slo = np.zeros(0, np.int64)  # by model
        self._at = np.full(0, -1, np.int64)  # by model and type: where its latencies begin
        self._largest = np.zeros(0, np.int64)  # likewise: the largest batch
        self._latency = np.zeros(0, np.int64)

    def number(self, name: str) -> int | None:
        """The model's number, None if it is not in the table."""
        return self._number.get(name)

    def type_number(self, gpu_type: str) -> int | None:
        """The GPU type's number; None if there are too many types."""
        if gpu_type not in self._types:
            if len(self._types) == TYPES:
                self._faults.count("too-many-gpu-types", gpu_type)
                return None
            self._types[gpu_type] = len(self._types)
            self._type_names.append(gpu_type)
        return self._types[gpu_type]

    def learn(self, now: int, spec: ModelSpec) -> bool:
        """Take in a specification, new or changed; True if the table has one more name.

        A model whose objective has changed is refused here as it was by the registry: its number
        would mean two things.
        """
        known = self._specs.get(spec.name)
        if known == spec:
            return False
        if known is None:
            number = len(self.names)
            self._core.add_model(number, round(spec.slo_ms * 1e6), spec.max_batch)
            self.names.append(spec.name)
            self._slo = np.append(self._slo, round(spec.slo_ms * 1e6))
            self._number[spec.name] = number
        elif (known.slo_ms, known.max_batch) != (spec.slo_ms, spec.max_batch):
            self._faults.count("model-redefined", spec.name)
            return False
        self._specs[spec.name] = spec
        number = self._number[spec.name]
        for gpu_type, latency in spec.profiles.items():
            kind = self.type_number(gpu_type)
            if kind is None or (known is not None and known.profiles.get(gpu_type) == latency):
                continue
            try:
                self._remember(number, kind, latency)
                factor = self._factors.get((number, kind), 1.0)
                self._core.set_profile(now, number, kind, [round(ns * factor) for ns in latency])
            except ValueError as error:
                self._faults.count("bad-profile", f"{spec.name} on {gpu_type}: {error}")
        return known is None

    def _remember(self, number: int, kind: int, latency: list[int]) -> None:
        """Keep a profile for :meth:`profiled_ns`; a later one takes the place of the one before."""
        pair = number * TYPES + kind
        if pair >= self._at.size:
            more = max(pair + 1, 2 * self._at.size) - self._at.size
            self._at = np.concatenate((self._at, np.full(more, -1, np.int64)))
            self._largest = np.concatenate((self._largest, np.zeros(more, np.int64)))
        if self._at[pair] < 0 or self._largest[pair] != len(latency):
            self._at[pair] = self._latency.size
            self._largest[pair] = len(latency)
            self._latency = np.concatenate((self._latency, np.zeros(len(latency), np.int64)))
        at = int(self._at[pair])
        self._latency[at : at + len(latency)] = latency

    def profiled_ns(self, number: Ids, kind: Ids, size: Ids) -> Ids:
        """l(size) as announced for these models, GPU types and sizes; 0 where nothing is known of it."""
        pair = number * TYPES + kind
        found = np.zeros(pair.size, np.int64)
        known = pair < self._at.size
        pair = np.where(known, pair, 0)
        if self._at.size:
            known &= (self._at[pair] >= 0) & (size >= 1) & (size <= self._largest[pair])
            found[known] = self._latency[(self._at[pair] + size - 1)[known]]
        return found

    def correct(self, now: int, number: int, kind: int, factor: float) -> None:
        """Let the core count with ``factor`` times the latencies announced, now and later."""
        self._factors[number, kind] = factor
        latency = self._profile(number, kind)
        if latency is not None:
            self._core.set_profile(now, number, kind, [round(ns * factor) for ns in latency])

    def _profile(self, number: int, kind: int) -> list[int] | None:
        return self._specs[self.names[number]].profiles.get(self._type_names[kind])

    @property
    def slo_ns(self) -> Ids:
        """The objectives by model number."""
        return self._slo

    def numbers(self, names: Iterable[str]) -> list[int]:
        """Numbers of those models that the table knows, in order."""
        return sorted({self._number[name] for name in names if name in self._number})

    def tightest_slo_ns(self) -> int:
        """The smallest objective in the table; 1 s while it is empty."""
        return min((round(spec.slo_ms * 1e6) for spec in self._specs.values()), default=1_000_000_000)
