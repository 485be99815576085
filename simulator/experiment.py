"""Experiment files: what is simulated, validated before anything runs.

The file is one YAML map; ``docs/evaluation.md`` explains every key. Relative paths in it are relative
to the file. Everything that cannot be simulated is refused here, by :func:`load_experiment` and
:meth:`Experiment.check`, with the file, the key and what was expected.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from symphony.profile import Profile, ProfileError
from symphony.status import SymphonyError

from .autoscaling import Autoscaling, Sharding, scaling_problem
from .modulation import Modulation, Strict
from .zoo import zoo_row

MS = 1_000_000
DEFAULT_MAX_BATCH = 128
"""Where neither the experiment nor the profile says how large a batch may be."""
DEFAULT_TYPE = "gpu"


class ExperimentError(SymphonyError, ValueError):
    """An experiment that cannot be run; the text says where and why."""


Micros = Annotated[float, Field(ge=0, le=60e6)]


class GpuGroup(Strict):
    """``count`` GPUs of one type; numbers go up in the order of the file."""

    type: str = DEFAULT_TYPE
    count: PositiveInt
    memory_mb: PositiveInt | None = None


class Network(Strict):
    """Latencies in µs; ``jitter_us`` is the mean of an exponential extra on each batch's way out."""

    control_us: Micros = 0.0
    data_us: Micros = 0.0
    result_us: Micros = 0.0
    jitter_us: Micros = 0.0


class Latency(Strict):
    """A profile on one GPU type, in one of the three ways that :class:`ModelGroup` knows."""

    alpha_ms: float | None = Field(default=None, ge=0)
    beta_ms: float | None = Field(default=None, ge=0)
    table: dict[int, float] | None = None
    profile: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Latency:
        ways = [(self.alpha_ms, self.beta_ms) != (None, None), self.table, self.profile]
        if sum(bool(way) for way in ways) != 1 or (self.alpha_ms is None) != (self.beta_ms is None):
            raise ValueError("expected one of alpha_ms with beta_ms, table and profile")
        return self


class ModelGroup(Strict):
    """``count`` copies of one model, with the same profile, objective and arrivals.

    rate: requests/s per copy on average (with ``popularity: zipf:S`` the group's total is spread
    unequally). Latency: ``alpha_ms`` and ``beta_ms``, or ``table`` (batch size → ms, interpolated), or
    ``profile`` (a profile file, else a row of the zoo), or ``profiles`` (GPU type → one of these).
    """

    name: str = Field(min_length=1)
    slo_ms: float = Field(gt=0, le=3.6e6)
    rate: float | None = Field(default=None, ge=0)
    count: PositiveInt = 1
    alpha_ms: float | None = Field(default=None, ge=0)
    beta_ms: float | None = Field(default=None, ge=0)
    table: dict[int, float] | None = None
    profile: str | None = None
    profiles: dict[str, Latency] | None = None
    max_batch: int | None = Field(default=None, ge=1, le=4096)
    arrivals: str = "poisson"
    trace_speed: float = Field(default=1.0, gt=0)
    modulation: Modulation | None = None
    popularity: str = "equal"
    memory_mb: float = Field(default=0.0, ge=0)
    load_ms: float = Field(default=0.0, ge=0)

    @field_validator("arrivals")
    @classmethod
    def _arrivals(cls, text: str) -> str:
        kind, _, rest = text.partition(":")
        fits = (kind in ("constant", "poisson") and not rest) or (kind == "trace" and bool(rest))
        if kind == "gamma":
            fits = _positive(rest)
        if not fits:
            raise ValueError("expected constant, poisson, gamma:SHAPE (above 0) or trace:FILE")
        return text

    @field_validator("popularity")
    @classmethod
    def _popularity(cls, text: str) -> str:
        kind, _, rest = text.partition(":")
        if text != "equal" and not (kind == "zipf" and _positive(rest)):
            raise ValueError("expected equal or zipf:S with S above 0")
        return text

    @model_validator(mode="after")
    def _complete(self) -> ModelGroup:
        ways = [(self.alpha_ms, self.beta_ms) != (None, None), self.table, self.profile, self.profiles]
        if sum(bool(way) for way in ways) != 1:
            raise ValueError("expected one of alpha_ms with beta_ms, table, profile and profiles")
        if (self.alpha_ms is None) != (self.beta_ms is None):
            raise ValueError("alpha_ms and beta_ms belong together")
        if self.rate is None and not self.arrivals.startswith("trace:"):
            raise ValueError("rate is missing (requests per second and copy)")
        return self


class Experiment(Strict):
    """One experiment as its file says it.

    network: true latencies. assumed: what the scheduler believes of them, if that differs.
    margin_us: kept free before every deadline. coalesce_us: arrivals, and completions, reach the scheduler
    together at the ends of intervals of that length (0: each at its own time). noise: standard deviation of a
    batch's length as a share of its profile's. warmup_s: arrivals before are simulated and not
    counted; a tenth of ``seconds``, at most 5, if not given. autoscale: who changes the number of GPUs.
    shards: several schedulers and an allocator, instead of one; the limits of autoscale hold for each.
    """

    models: tuple[ModelGroup, ...] = Field(min_length=1)
    gpus: tuple[GpuGroup, ...]
    network: Network = Network()
    assumed: Network | None = None
    margin_us: Micros = 0.0
    coalesce_us: Micros = 0.0
    noise: float = Field(default=0.0, ge=0, le=1)
    seconds: float = Field(default=60.0, gt=0, le=1e6)
    warmup_s: float | None = Field(default=None, ge=0)
    seed: int = Field(default=1, ge=0)
    policy: str = "deferred"
    autoscale: Autoscaling | None = None
    shards: Sharding | None = None
    kind: Literal["symphony-experiment-1"] = "symphony-experiment-1"
    base: Path = Field(default=Path("."), exclude=True)

    @field_validator("gpus", mode="before")
    @classmethod
    def _gpus(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            if value < 1:
                raise ValueError("expected at least 1 GPU")
            return ({"type": DEFAULT_TYPE, "count": value},)
        if not value:
            raise ValueError("expected a number of GPUs or a list of {type, count}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        names = [group.name for group in self.models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"models: the name {twice[0]!r} stands there twice")
        if self.warmup >= self.seconds:
            raise ValueError(f"warmup_s is {self.warmup:g}: expected less than seconds ({self.seconds:g})")
        return self

    @property
    def warmup(self) -> float:
        """Seconds before arrivals count."""
        return min(5.0, self.seconds / 10) if self.warmup_s is None else self.warmup_s

    @property
    def believed(self) -> Network:
        """The latencies that the scheduler is told."""
        return self.assumed or self.network

    @property
    def gpu_count(self) -> int:
        """All GPUs."""
        return sum(group.count for group in self.gpus)

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """Types in the order of the file, each once; their positions are the core's type numbers."""
        return tuple(dict.fromkeys(group.type for group in self.gpus))

    def profile(self, group: ModelGroup, gpu_type: str) -> Profile:
        """l(b) of the group's models on that type.

        Raises:
            ExperimentError: the group has no profile for the type, or a bad one.
        """
        source: Latency | ModelGroup = group
        if group.profiles is not None:
            if gpu_type not in group.profiles:
                raise ExperimentError(
                    f"model {group.name}: no profile for GPU type {gpu_type!r}; "
                    f"there are profiles for {', '.join(group.profiles)}"
                )
            source = group.profiles[gpu_type]
        try:
            return _profile(source, group.max_batch, self.base)
        except SymphonyError as error:
            raise ExperimentError(f"model {group.name}: {error}") from None

    def check(self) -> None:
        """Refuse what can be parsed but not served.

        Raises:
            ExperimentError: a profile is missing or bad, or an objective cannot be met even by a
                single request on an idle GPU of any type.
        """
        problem = scaling_problem(self.autoscale, self.shards, self.gpu_count, self.gpu_types)
        if problem:
            raise ExperimentError(problem)
        net = self.network
        around = net.control_us + net.data_us + net.result_us
        for group in self.models:
            alone = min(self.profile(group, kind).latency(1) for kind in self.gpu_types) / MS
            need = alone + around / 1e3
            if group.slo_ms < need:
                network = f" and the network {around / 1e3:g} ms" if around else ""
                raise ExperimentError(
                    f"model {group.name} can never be served: its SLO is {group.slo_ms:g} ms, but a single "
                    f"request takes {alone:g} ms{network}: {need - group.slo_ms:.3g} ms too much"
                )


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < 1e9
    except ValueError:
        return False


def _profile(source: Latency | ModelGroup, most: int | None, base: Path) -> Profile:
    if source.alpha_ms is not None and source.beta_ms is not None:
        return Profile.linear(source.alpha_ms, source.beta_ms, most or DEFAULT_MAX_BATCH)
    if source.table is not None:
        return Profile.points(source.table, most or max(source.table, default=0))
    assert source.profile is not None
    path = base / source.profile
    if path.is_file():
        profile = Profile.load(path)
        if most is None or most == profile.max_batch:
            return profile
        if most > profile.max_batch:
            raise ProfileError(f"{path} ends at batch size {profile.max_batch}, but max_batch is {most}")
        return Profile(profile.latency_ns[:most])
    try:
        row = zoo_row(source.profile)
    except SymphonyError as error:
        raise ProfileError(f"there is no file {path}, and {error}") from None
    return Profile.linear(row.alpha_ms, row.beta_ms, most or min(row.batch_max or DEFAULT_MAX_BATCH, 512))


def parse_experiment(content: Any, where: str, base: Path = Path(".")) -> Experiment:
    """An experiment from what YAML gave.

    Raises:
        ExperimentError: with ``where``, the key, and what was expected.
    """
    if not isinstance(content, dict):
        raise ExperimentError(f"{where}: expected a map with the keys gpus and models")
    try:
        experiment = Experiment.model_validate({**content, "base": base})
    except ValidationError as error:
        raise ExperimentError(f"{where}: {explain(error)}") from None
    try:
        experiment.check()
    except ExperimentError as error:
        raise ExperimentError(f"{where}: {error}") from None
    return experiment


def explain(error: ValidationError) -> str:
    """The first few faults, each with its key as it stands in the file."""
    faults = []
    found = error.errors()
    # A list whose items are all bad is also said to be too short.
    spoilt = {fault["loc"][:1] for fault in found if len(fault["loc"]) > 1}
    told = [fault for fault in found if fault["type"] != "too_short" or fault["loc"] not in spoilt]
    for fault in told[:4]:
        key = ""
        for part in fault["loc"]:
            key += f"[{part}]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
        text = {
            "extra_forbidden": "unknown key",
            "missing": "missing",
            "too_short": "expected at least one",
        }.get(fault["type"])
        if text is None:
            text = fault["msg"].removeprefix("Value error, ")
            if isinstance(fault["input"], int | float | str):
                text += f", not {fault['input']!r}"
        faults.append(f"{key}: {text}" if key else text)
    return "; ".join(faults)


def read_yaml(path: Path) -> Any:
    """What the file holds.

    Raises:
        ExperimentError: it is missing or no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ExperimentError(f"cannot read the experiment {path}: {reason}") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-02-31 is a ValueError
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise ExperimentError(f"{path}: not YAML{line}") from None


def load_experiment(path: Path, settings: Mapping[str, str] | None = None) -> Experiment:
    """Read a file; ``settings`` replace keys by dotted path (``models.0.slo_ms``, values as YAML).

    Raises:
        ExperimentError: the file is missing, no YAML, or says something that cannot be simulated.
    """
    content = read_yaml(path)
    for key, value in (settings or {}).items():
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError):
            raise ExperimentError(f"--set {key}: {value!r} is not YAML") from None
        set_key(content, key, parsed)
    return parse_experiment(content, str(path), path.parent)


def set_key(content: Any, key: str, value: Any) -> None:
    """Replace one value by its dotted path; ``models.slo_ms`` means that of every model.

    Raises:
        ExperimentError: there is no such place.
    """
    *path, last = key.split(".")
    places = [content]
    for part in path:
        below = []
        for place in places:
            if isinstance(place, list) and not part.isdigit():
                below += [item.setdefault(part, {}) for item in place if isinstance(item, dict)]
            elif isinstance(place, list) and int(part) < len(place):
                below.append(place[int(part)])
            elif isinstance(place, dict):
                below.append(place.setdefault(part, {}))
            else:
                raise ExperimentError(f"--set {key}: there is no {part!r} in the experiment")
        places = below
    for place in places:
        for item in place if isinstance(place, list) else [place]:
            if not isinstance(item, dict):
                raise ExperimentError(f"--set {key}: there is no {last!r} in the experiment")
            item[last] = value
