"""The key ``autoscale`` of an experiment: who scales, within what limits, how long a GPU takes to come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scheduler.evidence import Sample
from symphony.scaling import AutoscaleConfig, Pause, Seconds, Share


class Autoscaling(AutoscaleConfig):
    """All keys of :class:`~symphony.scaling.AutoscaleConfig`, which are ours, and those of the baselines.

    policy: ``symphony``, ``queue`` (Ray Serve), ``utilization`` (Kubernetes HPA) or ``none``. The GPUs of the
    experiment are there at the start. settle_s: decisions before do not count in ``decisions_settled``.
    """

    policy: Literal["symphony", "queue", "utilization", "none"] = "symphony"
    settle_s: Pause = 120.0
    target_ongoing: float = Field(default=2.0, gt=0)
    look_back_s: Seconds = 30.0
    upscale_delay_s: Pause = 30.0
    downscale_delay_s: Pause = 600.0
    target_utilization: Share = 0.8
    tolerance: float = Field(default=0.1, ge=0, le=1)
    sync_s: Seconds = 15.0
    stabilization_s: Pause = 300.0


class Sharding(BaseModel):
    """The key ``shards``: several schedulers, each with a sub-cluster of the experiment's GPUs.

    Every ``epoch_s`` seconds the allocator plans on the rates of the last ``window_s``, for ``headroom`` of
    the GPUs' time (with an autoscaler: up to its ``up``), in at most ``time_limit_s`` of real time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1, le=64)
    epoch_s: int = Field(default=60, ge=1)
    window_s: int = Field(default=10, ge=1)
    headroom: Share = 0.8
    time_limit_s: Seconds = 10.0


def scaling_problem(
    settings: Autoscaling | None, shards: Sharding | None, gpus: int, types: Sequence[str]
) -> str:
    """Why such an experiment cannot be run, with the key; or an empty string."""
    if settings is None:
        return ""
    count = 1 if shards is None else shards.count
    if not settings.min <= gpus <= settings.max * count:
        limits = f"{settings.min} … {settings.max * count}"
        return f"gpus: {gpus} at the start: expected {limits}, the limits of autoscale"
    if len(types) > 1 and settings.policy in ("queue", "utilization"):
        return f"autoscale.policy: {settings.policy} knows one GPU type only"
    return ""


@dataclass(slots=True)
class Scaling:
    """What the autoscaler saw, and did: samples of every second, GPUs paid for, decisions.

    windows: (from, to) in ns, from each decision for more GPUs to when the last of them was ready.
    """

    samples: list[Sample] = field(default_factory=list)
    paid: list[int] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)
