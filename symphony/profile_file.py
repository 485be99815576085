"""The file that ``symphony profile`` writes: what was measured of one model on one kind of device.

JSON or YAML, one map::

    format: symphony-profile-2
    model: minilm
    device: NVIDIA-H100-80GB-HBM3     # the type that profiles are kept by; cpu on a CPU
    precision: fp16                   # fp32, fp16 or bf16
    torch: 2.13.0
    measured_at: 2026-01-31T12:00:00+00:00
    weights_mb: 45.4
    load_ms: 512.0
    batches:                          # ascending; sizes in between are interpolated
      - {b: 1, p50_ms: 2.1, p95_ms: 2.2, p99_ms: 2.3, memory_mb: 61.0}

These are the fields that every file holds; a batch's ``p95_ms`` makes the table l(b). The others tell
more and may be missing: see :class:`ProfileFile` and :class:`BatchFigures`.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from symphony.profile import MAX_BATCH, Profile, ProfileError, read_map

FORMAT: Final = "symphony-profile-2"
FALL: Final = 0.1
"""A fall of this share between two measured sizes, or of twice the stated spread, is noise or a size that the
hardware likes; the table is levelled out. What falls by more was measured wrong."""


def _as_text(value: Any) -> Any:
    """YAML makes a moment of what is not quoted."""
    return value.isoformat() if isinstance(value, date) else value


_Ms = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_PositiveMs = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class BatchFigures(BaseModel):
    """One batch size. Times in ms, memory in MB (2²⁰ bytes).

    ``p50_ms`` … ``max_ms``: how long the batch keeps the device, over ``runs`` runs after warm-up; on
    CUDA between two events of the compute stream. ``pre_ms``, ``copy_in_ms``, ``copy_out_ms``, ``post_ms``:
    medians of what overlaps other batches. ``memory_mb``: weights and workspace at the peak.
    ``spread``: how far apart medians of two measurements may lie, as a share.
    ``runs_with``: the size of the CUDA graph that this batch is padded to; 0: none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    b: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    p50_ms: _PositiveMs
    p95_ms: _PositiveMs
    p99_ms: _PositiveMs
    memory_mb: _Ms
    p90_ms: _Ms | None = None
    max_ms: _Ms | None = None
    pre_ms: _Ms | None = None
    copy_in_ms: _Ms | None = None
    copy_out_ms: _Ms | None = None
    post_ms: _Ms | None = None
    runs: int | None = None
    spread: _Ms | None = None
    runs_with: Annotated[int, Field(ge=0)] = 0


class ProfileFile(BaseModel):
    """See the module's text. ``spread``: the largest of the sizes'. ``notes``: what a reader should know,
    such as that the device was unstable. ``clocks_mhz``: lowest and highest seen, by clock."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    format: Literal["symphony-profile-2"] = FORMAT
    model: str
    device: str
    precision: Literal["fp32", "fp16", "bf16"]
    torch: str
    measured_at: Annotated[str, BeforeValidator(_as_text)]
    weights_mb: _Ms
    load_ms: _Ms
    batches: Annotated[list[BatchFigures], Field(min_length=1)]
    warm_up_ms: _Ms | None = None
    driver: str | None = None
    threads: int | None = None
    compile: bool = False
    cuda_graphs: bool = False
    clocks_mhz: dict[str, list[int]] = {}
    stable: bool = True
    notes: list[str] = []
    fit: dict[str, float] = {}

    @model_validator(mode="after")
    def _ascending(self) -> ProfileFile:
        sizes = [batch.b for batch in self.batches]
        if sizes != sorted(set(sizes)):
            raise ValueError(f"batches: expected ascending sizes, found {sizes}")
        return self

    @property
    def max_batch(self) -> int:
        """The largest size that was measured."""
        return self.batches[-1].b

    @property
    def spread(self) -> float:
        """The largest of the batches' spreads."""
        return max((batch.spread or 0.0 for batch in self.batches), default=0.0)

    def profile(self, max_batch: int | None = None) -> Profile:
        """The table l(1…max_batch) of the 95th percentiles.

        Raises:
            ProfileError: size 1 is missing, the file ends before ``max_batch``, or latencies fall.
        """
        points = {batch.b: batch.p95_ms for batch in self.batches}
        return Profile.points(
            points, max_batch or self.max_batch, tolerance=min(max(FALL, 2 * self.spread), 0.9)
        )

    def memory_mb(self, max_batch: int) -> float:
        """Weights and workspace at batches of up to ``max_batch``."""
        return max(batch.memory_mb for batch in self.batches if batch.b <= max_batch or batch.b == 1)

    def check_device(self, gpu_type: str, precision: str) -> None:
        """Raises ProfileError if it was measured on another kind of device, or in another precision."""
        if self.device != gpu_type:
            raise ProfileError(
                f"it was measured on {self.device!r}, but this device is {gpu_type!r}: "
                f"measure here with `symphony profile {self.model}`"
            )
        if self.precision != precision:
            raise ProfileError(f"it was measured in {self.precision}, but the model runs in {precision}")

    def differences(self, other: ProfileFile) -> list[str]:
        """Where another measurement of the same model lies outside both stated spreads; empty: it agrees."""
        theirs = {batch.b: batch for batch in other.batches}
        found = []
        for mine in self.batches:
            there = theirs.get(mine.b)
            if there is None:
                continue
            apart = abs(mine.p50_ms - there.p50_ms) / min(mine.p50_ms, there.p50_ms)
            allowed = (mine.spread or 0.0) + (there.spread or 0.0)
            if apart > allowed:
                found.append(
                    f"batch {mine.b}: {mine.p50_ms:.4g} and {there.p50_ms:.4g} ms are {apart:.1%} apart, "
                    f"the stated spreads allow {allowed:.1%}"
                )
        return found

    @classmethod
    def parse(cls, value: Any) -> ProfileFile:
        """From a map. Raises ProfileError: the first field that is wrong is named."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            text = first["msg"].removeprefix("Value error, ")
            raise ProfileError(f"{where}: {text}" if where else text) from None

    @classmethod
    def load(cls, path: str | Path) -> ProfileFile:
        """Raises ProfileError: the file is missing, unreadable or no such profile; the file is named."""
        value = read_map(path)
        try:
            return cls.parse(value)
        except ProfileError as error:
            raise ProfileError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write JSON. Raises ProfileError if that is not possible."""
        try:
            Path(path).write_text(json.dumps(self.as_map(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ProfileError(f"cannot write the profile {path}: {error.strerror}") from None

    def as_map(self) -> dict[str, Any]:
        """Plain values, without what is not known."""
        return self.model_dump(mode="json", exclude_none=True)
