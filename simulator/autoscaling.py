"""The key ``autoscale`` of an experiment: who scales, within what limits, how long a GPU takes to come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

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


@dataclass(slots=True)
class Scaling:
    """What the autoscaler saw, and did: samples of every second, GPUs paid for, decisions.

    windows: (from, to) in ns, from each decision for more GPUs to when the last of them was ready.
    """

    samples: list[Sample] = field(default_factory=list)
    paid: list[int] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    windows: list[tuple[int, int]] = field(default_factory=list)
