"""Cluster files: the description that ``symphony plan`` reads, as YAML or JSON.

docs/allocation.md explains every key. Whatever is wrong is refused with the file, the key and what was
expected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from symphony.profile import MAX_BATCH, Profile, ProfileError

from .cluster import (
    ANY_TYPE,
    HEADROOM,
    TOLERANCE,
    AllocationError,
    Cluster,
    Current,
    GpuGroup,
    Model,
    Network,
)

DEFAULT_MAX_BATCH = 128
"""Where neither the model nor its profile says how large a batch may be."""
MOST_SHARDS = 4096

Count = Annotated[int, Field(ge=0, le=10_000_000)]
Amount = Annotated[float, Field(ge=0, le=1e12)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_min_length=1)


class GpuFile(_Strict):
    """A group of GPUs of one type."""

    type: str
    count: Count
    memory_mb: Amount


class LatencyFile(_Strict):
    """l(b): ``alpha_ms`` and ``beta_ms``, or ``points`` (batch size → ms), or ``profile`` (a file)."""

    alpha_ms: float | None = Field(default=None, ge=0)
    beta_ms: float | None = Field(default=None, ge=0)
    points: dict[int, float] | None = None
    profile: str | None = None

    @property
    def ways(self) -> int:
        """How many of the three are given."""
        line = self.alpha_ms is not None or self.beta_ms is not None
        return line + (self.points is not None) + (self.profile is not None)

    def table(self, max_batch: int | None, base: Path) -> Profile:
        """The profile; raises ProfileError."""
        if self.alpha_ms is not None and self.beta_ms is not None:
            return Profile.linear(self.alpha_ms, self.beta_ms, max_batch or DEFAULT_MAX_BATCH)
        if self.points is not None:
            return Profile.points(self.points, max_batch or max(self.points, default=0))
        if self.profile is None:
            raise ProfileError("expected alpha_ms and beta_ms, points, or profile")
        loaded = Profile.load(base / self.profile)
        if max_batch is not None and max_batch > loaded.max_batch:
            raise ProfileError(f"{self.profile} ends at batch size {loaded.max_batch}, not {max_batch}")
        return Profile(loaded.latency_ns[:max_batch])


class ModelFile(LatencyFile):
    """A model, its load and what it takes; ``profiles``: GPU type → latency, instead of one for all."""

    name: str
    slo_ms: float = Field(gt=0, le=3.6e6)
    rate: Amount
    memory_mb: Amount = 0.0
    load_ms: Amount = 0.0
    max_batch: int | None = Field(default=None, ge=1, le=MAX_BATCH)
    profiles: dict[str, LatencyFile] | None = None

    @model_validator(mode="after")
    def _complete(self) -> ModelFile:
        if self.ways + (self.profiles is not None) != 1:
            raise ValueError(
                "expected one of: alpha_ms with beta_ms, points, profile (a file), "
                "profiles (GPU type → one of these)"
            )
        return self


class NetworkFile(_Strict):
    """Latencies in µs."""

    control_us: float = Field(default=0.0, ge=0)
    data_us: float = Field(default=0.0, ge=0)
    result_us: float = Field(default=0.0, ge=0)


class CurrentFile(_Strict):
    """An earlier plan's ``placements`` and ``gpus``."""

    placements: dict[str, dict[str, Amount]] = {}
    gpus: dict[str, dict[str, Count]] = {}


class ForbiddenFile(_Strict):
    """A model that GPUs of a type could not carry."""

    model: str
    gpu: str


class ClusterFile(_Strict):
    """The whole file."""

    shards: Annotated[int, Field(ge=1, le=MOST_SHARDS)] | list[str]
    gpus: list[GpuFile]
    models: list[ModelFile]
    current: CurrentFile = CurrentFile()
    headroom: float = Field(default=HEADROOM, gt=0, le=1)
    tolerance: float = Field(default=TOLERANCE, ge=0, le=1)
    network: NetworkFile = NetworkFile()
    forbidden: list[ForbiddenFile] = []
    spares: bool = False

    @field_validator("shards", mode="before")
    @classmethod
    def _shards(cls, value: Any) -> Any:
        if not isinstance(value, list) and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError("expected a number of shards or a list of their ids")
        if isinstance(value, int) and not 1 <= value <= MOST_SHARDS:
            raise ValueError(f"expected 1 to {MOST_SHARDS:,} shards, not {value}")
        return value

    @field_validator("current", mode="before")
    @classmethod
    def _current(cls, value: Any) -> Any:
        return {} if value is None else value


def load_cluster(path: Path) -> Cluster:
    """Read a cluster file.

    Raises:
        AllocationError: the file is missing, no YAML, or says something that makes no sense.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise AllocationError(f"cannot read the cluster file {path}: {reason}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-02-31 is a ValueError
        mark = getattr(error, "problem_mark", None)
        raise AllocationError(f"{path}: not YAML{f' (line {mark.line + 1})' if mark else ''}") from None
    return parse_cluster(content, str(path), path.parent)


def parse_cluster(content: Any, where: str, base: Path = Path(".")) -> Cluster:
    """A cluster from what YAML gave; profile files are relative to ``base``.

    Raises:
        AllocationError: with ``where``, the key, and what was expected.
    """
    if not isinstance(content, dict):
        raise AllocationError(f"{where}: expected a map with the keys shards, gpus and models")
    try:
        file = ClusterFile.model_validate(content)
        cluster = _cluster(file, base)
        cluster.check()
    except ValidationError as error:
        raise AllocationError(f"{where}: {_explain(error)}") from None
    except AllocationError as error:
        raise AllocationError(f"{where}: {error}") from None
    return cluster


def _cluster(file: ClusterFile, base: Path) -> Cluster:
    shards = file.shards
    types = [group.type for group in file.gpus]
    names = {model.name for model in file.models}
    for i, pair in enumerate(file.forbidden):
        if pair.model not in names:
            raise AllocationError(f"forbidden[{i}].model: no model {pair.model!r} in this cluster")
        _type(f"forbidden[{i}].gpu", pair.gpu, types)
    models = []
    for i, model in enumerate(file.models):
        latencies: dict[str, LatencyFile] = model.profiles or {ANY_TYPE: model}
        profiles = {}
        for kind, latency in latencies.items():
            key = f"models[{i}]" + (f".profiles.{kind}" if model.profiles else "") + f" ({model.name})"
            if model.profiles:
                _type(key, kind, types)
            try:
                profiles[kind] = latency.table(model.max_batch, base)
            except ProfileError as error:
                raise AllocationError(f"{key}: {error}") from None
        models.append(Model(model.name, model.rate, model.slo_ms, profiles, model.memory_mb, model.load_ms))
    return Cluster(
        shards=tuple(f"shard-{s}" for s in range(shards)) if isinstance(shards, int) else tuple(shards),
        gpus=tuple(GpuGroup(group.type, group.count, group.memory_mb) for group in file.gpus),
        models=tuple(models),
        current=Current(file.current.placements, file.current.gpus),
        forbidden=frozenset((pair.model, pair.gpu) for pair in file.forbidden),
        headroom=file.headroom,
        tolerance=file.tolerance,
        network=Network(file.network.control_us, file.network.data_us, file.network.result_us),
        spares=file.spares,
    )


def _type(key: str, kind: str, types: list[str]) -> None:
    if kind not in types and kind != ANY_TYPE:
        listed = ", ".join(types) or "none"
        raise AllocationError(f"{key}: no GPU type {kind!r} in this cluster (there are: {listed})")


def _explain(error: ValidationError) -> str:
    """The first few faults, each with its key as it stands in the file."""
    faults = []
    for fault in error.errors()[:4]:
        key = ""
        for part in fault["loc"]:
            if part in ("list[str]", "constrained-int"):
                continue
            key += f"[{part}]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
        text = {"extra_forbidden": "unknown key", "missing": "missing"}.get(fault["type"])
        if text is None:
            text = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
            if isinstance(fault["input"], int | float | str) and not text.endswith(f"not {fault['input']}"):
                text += f", not {fault['input']!r}"
        faults.append(f"{key}: {text}" if key else text)
    return "; ".join(faults)
