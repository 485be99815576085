"""Model definition files: what a model is called, promises, takes and gives, and how it is loaded.

A definition is a YAML map::

    name: crepe-tiny            # what requests call it
    slo_ms: 100                 # a request's deadline unless it brings its own, ms from its arrival
    max_batch: 32
    loader: my.module:function  # called as function(device, **options) → torch.nn.Module; or a file that
                                # torch.export (.pt2) or TorchScript (.ts, .torchscript) saved; or `emulated`
    options: {capacity: tiny}   # keyword arguments of the loader
    weights: w.safetensors      # a state dict (also .pt, .pth) for what the function returns
    preprocess: my.module:pre   # function(items) → {argument: tensor}; also postprocess and check: see
                                # docs/workers.md. A module's own methods of those names do the same
    precision: float32          # or float16, bfloat16
    inputs:  [{name: audio, dtype: FP32, shape: [1024]}]      # one request's, no batch dimension
    outputs: [{name: pitch_hz, dtype: FP32, shape: []}]
    samples: my.module:sample   # function(numpy.random.Generator) → one request's inputs, to profile with
    profile: {alpha_ms: 1.1, beta_ms: 5.2}   # or {points: {1: 6.3, 32: 41}} in ms, or {file: l.json}
    memory_mb: 400              # weights and workspace; a model that does not fit is not loaded. 0: not known
    load_ms: 900                # how long an emulated device takes to load it
    load_limit_s: 300           # a step of loading or warming up that takes longer has hung
    compile: true               # run it through torch.compile
    cuda_graphs: true           # on CUDA, capture a graph for some batch sizes and pad to the next one
    finite: true                # a request whose outputs hold a NaN or an infinity has FAILED

An emulated model needs a profile and has no code; its inputs and outputs, if any, are documentation:
it fetches nothing and returns no tensors. A real model without a profile is measured at start-up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from symphony.control import MAX_SLO_MS, ModelSpec, TensorSpec
from symphony.messages import Name
from symphony.profile import Profile, ProfileError, read_map
from symphony.profile_file import FORMAT, ProfileFile
from symphony.status import SymphonyError
from symphony.tensors import BYTES, DTYPES
from worker import zoo

EMULATED: Final = "emulated"
PRECISIONS: Final[dict[str, Literal["fp32", "fp16", "bf16"]]] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
}
"""PyTorch's names and those of profile files."""

_Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
_ProgramFile = Annotated[str, Field(pattern=r"^.+\.(pt2|ts|torchscript)$")]
_Ms = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DefinitionError(SymphonyError, ValueError):
    """A definition that cannot be used; the message names file, key and what was expected."""


class ProfileSource(BaseModel):
    """Where a latency profile comes from: a line, points in between which it is interpolated, or a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha_ms: _Ms | None = None
    beta_ms: _Ms | None = None
    points: dict[int, float] | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> ProfileSource:
        line = self.alpha_ms is not None or self.beta_ms is not None
        if line + (self.points is not None) + (self.file is not None) != 1:
            raise ValueError("expected {alpha_ms, beta_ms}, or {points: {1: ms, …}}, or {file: path}")
        if line and (self.alpha_ms is None or self.beta_ms is None):
            raise ValueError("alpha_ms and beta_ms are needed both")
        return self

    def resolve(self, max_batch: int, base: Path) -> Profile:
        """The table l(1…max_batch). Raises ProfileError."""
        if self.file is not None:
            measured = self.measured(base)
            profile = Profile.load(base / self.file) if measured is None else measured.profile()
            if profile.max_batch < max_batch:
                raise ProfileError(
                    f"{base / self.file} ends at batch {profile.max_batch}, max_batch is {max_batch}"
                )
            return Profile(profile.latency_ns[:max_batch])
        if self.points is not None:
            return Profile.points(self.points, max_batch)
        assert self.alpha_ms is not None
        assert self.beta_ms is not None
        return Profile.linear(self.alpha_ms, self.beta_ms, max_batch)

    def measured(self, base: Path) -> ProfileFile | None:
        """The file, where it is one that `symphony profile` wrote. Raises ProfileError."""
        if self.file is None:
            return None
        value = read_map(base / self.file)
        known = isinstance(value, dict) and value.get("format") == FORMAT
        return ProfileFile.load(base / self.file) if known else None


class Definition(BaseModel):
    """One model, as its definition file says. ``base``: the folder that relative paths start from.
    ``source``: that file, None where the definition stands in another one."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: Name
    slo_ms: Annotated[float, Field(gt=0, le=MAX_SLO_MS)]
    max_batch: Annotated[int, Field(ge=1, le=4096)]
    loader: Literal["emulated"] | _Reference | _ProgramFile
    weights: str | None = None
    check: _Reference | None = None
    preprocess: _Reference | None = None
    postprocess: _Reference | None = None
    options: dict[str, Any] = {}
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    samples: _Reference | None = None
    profile: ProfileSource | None = None
    memory_mb: Annotated[int, Field(ge=0)] = 0
    load_ms: _Ms = 0
    finite: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    load_limit_s: Annotated[float, Field(gt=0, le=86_400)] = 300
    base: Path = Field(default=Path("."), exclude=True)
    source: Path | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        for side, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise ValueError(f"{side}: two tensors of the same name")
            for spec in specs:
                if spec.dtype != BYTES and spec.dtype not in DTYPES:
                    known = ", ".join((*DTYPES, BYTES))
                    raise ValueError(
                        f"{side}: {spec.name!r} has dtype {spec.dtype!r}; expected one of {known}"
                    )
        if self.emulated and self.profile is None:
            raise ValueError("an emulated model needs a profile: it has nothing else to keep its time by")
        if not self.emulated and not (self.inputs and self.outputs):
            raise ValueError("a model with a loader needs inputs and outputs")
        return self

    @property
    def emulated(self) -> bool:
        """Whether only an emulated device can hold it."""
        return self.loader == EMULATED

    @property
    def file(self) -> Path | None:
        """The saved program that the loader names, or None."""
        return None if self.emulated or ":" in self.loader else self.base / self.loader

    def given_profile(self) -> Profile | None:
        """The profile that the definition gives, or None where it gives none.

        Raises:
            DefinitionError: holes, zeros, a falling latency, or a file that cannot be read.
        """
        if self.profile is None:
            return None
        try:
            return self.profile.resolve(self.max_batch, self.base)
        except (ProfileError, OSError) as error:
            raise DefinitionError(f"model {self.name!r}: profile: {error}") from None

    def profile_for(self, gpu_type: str) -> Profile | None:
        """:meth:`given_profile` on a real device of that type.

        Raises:
            DefinitionError: also if the file says that it was measured on another kind of device, or
                in another precision.
        """
        given = self.given_profile()
        try:
            measured = self.profile.measured(self.base) if self.profile is not None else None
            if measured is not None:
                measured.check_device(gpu_type, PRECISIONS[self.precision])
        except ProfileError as error:
            file = self.profile.file if self.profile is not None else ""
            raise DefinitionError(f"model {self.name!r}: profile {file}: {error}") from None
        return given

    def spec(self, profiles: Mapping[str, Profile], load_ms: float = 0.0) -> ModelSpec:
        """What the catalogue says of the model; ``profiles`` by GPU type, ``load_ms`` as measured."""
        return ModelSpec(
            name=self.name,
            slo_ms=self.slo_ms,
            max_batch=self.max_batch,
            inputs=self.inputs,
            outputs=self.outputs,
            profiles={gpu: list(profile.latency_ns) for gpu, profile in profiles.items()},
            memory_mb=self.memory_mb,
            load_ms=self.load_ms or load_ms,
        )


_REFERENCES: Final = ("loader", "samples", "check", "preprocess", "postprocess")


def load_definition(source: str | Path | Mapping[str, Any], base: Path | None = None) -> Definition:
    """A definition from the zoo by name, from a file, or from a map.

    Args:
        source: the name of a zoo entry, the path of a YAML file, or the map itself.
        base: the folder that relative paths start from; by default the file's own, or the current one.

    Raises:
        DefinitionError: it cannot be found, read or understood, or its profile is no profile.
    """
    base = base or Path(".")
    if isinstance(source, Mapping):
        return _validate(dict(source), f"definition of {source.get('name', 'a model')!r}", base)
    if str(source) in zoo.names():
        file = zoo.path(str(source))
    else:
        file = base / source
        if not file.is_file():
            raise DefinitionError(
                f"no model definition {str(source)!r}: neither a file nor one of the zoo's "
                f"({', '.join(zoo.names())})"
            )
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"{file}: cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-02-31 is a ValueError
        raise DefinitionError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise DefinitionError(f"{file}: expected a map with name, slo_ms, max_batch, loader …")
    return _validate(value, str(file), file.parent, file.absolute())


def _validate(value: dict[str, Any], origin: str, base: Path, source: Path | None = None) -> Definition:
    for key in ("base", "source"):
        if key in value:
            raise DefinitionError(f"{origin}: {key}: unknown key")
    try:
        definition = Definition(**value, base=base, source=source)
    except ValidationError as error:
        raise DefinitionError(f"{origin}: {'; '.join(_explain(error))}") from None
    except TypeError:
        raise DefinitionError(f"{origin}: expected keys that are words") from None
    try:
        definition.given_profile()
    except DefinitionError as error:
        raise DefinitionError(f"{origin}: {error}") from None
    return definition


def _explain(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            text = "unknown key"
        elif problem["loc"] and str(problem["loc"][0]) in _REFERENCES and problem["type"] != "missing":
            allowed = "'module:function'"
            if where.startswith("loader"):
                allowed = "'emulated', 'module:function' or a file .pt2, .ts or .torchscript"
            where, text = str(problem["loc"][0]), f"expected {allowed}, found {problem['input']!r}"
        else:
            text = problem["msg"].removeprefix("Value error, ")
        line = f"{where}: {text}" if where else text
        if line not in lines:
            lines.append(line)
    return lines
