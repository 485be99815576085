"""What a cluster's file may say about epochs and autoscaling: how often, how many GPUs, who carries it out.

The sections `epoch` and `autoscale` of the configuration (:mod:`symphony.config`), and of an experiment of
the simulator; ``docs/configuration.md`` and ``docs/autoscaling.md`` explain every key.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Pause = Annotated[float, Field(ge=0, le=86_400)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TypeLimits(_Section):
    """One GPU type that may be asked for; ``cost`` per GPU and hour, in any unit, orders the types."""

    type: Annotated[str, Field(min_length=1, max_length=128)]
    min: Count = 0
    max: Count = 1_000_000
    cost: Annotated[float, Field(gt=0, le=1e9)] = 1.0

    @model_validator(mode="after")
    def _ordered(self) -> TypeLimits:
        if self.min > self.max:
            raise ValueError(f"type {self.type}: min ({self.min}) is above max ({self.max})")
        return self


class AutoscaleConfig(_Section):
    """Autoscaling of every shard's sub-cluster; counts are GPUs per shard, shares of fluid capacity.

    actuator: who carries decisions out; ``none`` turns autoscaling off. command: the user's executable
    and its arguments, of the actuator ``command``. types: what may be asked for; none: the types that
    are there. startup_s: what a new GPU takes until it serves. window_s: what is looked at before GPUs
    are taken away; fast_s: before GPUs are added. up, target, down: utilization above which GPUs are
    added, that additions aim at, and that must not be exceeded after GPUs are taken away.
    """

    actuator: Literal["none", "local", "command"] = "none"
    command: list[Annotated[str, Field(min_length=1)]] = []
    command_timeout_s: Seconds = 30.0
    min: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    max: Annotated[int, Field(ge=1, le=1_000_000)] = 64
    types: list[TypeLimits] = []
    startup_s: Seconds = 30.0
    window_s: Seconds = 30.0
    fast_s: Seconds = 5.0
    up: Share = 0.97
    target: Share = 0.93
    down: Share = 0.93
    idle_share: Annotated[float, Field(ge=0, le=0.5)] = 0.5
    bad: Share = 0.01
    cooldown_up_s: Pause = 5.0
    cooldown_down_s: Pause = 30.0
    patience_s: Seconds | None = None
    backoff_max_s: Seconds = 600.0

    @property
    def patience(self) -> float:
        """Seconds after which GPUs that were asked for and have not come are asked for again."""
        return 2 * self.startup_s if self.patience_s is None else self.patience_s

    @model_validator(mode="after")
    def _consistent(self) -> AutoscaleConfig:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        if not self.target < self.up or not self.down < self.up:
            raise ValueError(
                f"target ({self.target:g}) and down ({self.down:g}) must be below up ({self.up:g}), "
                "or the number of GPUs would swing"
            )
        if self.fast_s > self.window_s:
            raise ValueError(f"fast_s ({self.fast_s:g}) must not be above window_s ({self.window_s:g})")
        if (self.actuator == "command") != bool(self.command):
            raise ValueError("actuator command and the key command belong together")
        names = [limits.type for limits in self.types]
        if len(set(names)) < len(names):
            raise ValueError("types: a type stands there twice")
        if self.types and sum(limits.min for limits in self.types) > self.max:
            raise ValueError("types: their minima add up to more than max")
        if self.types and sum(limits.max for limits in self.types) < self.min:
            raise ValueError("types: their maxima add up to less than min")
        return self


class EpochConfig(_Section):
    """How the leader plans: which shard has which GPUs and models.

    seconds: between two plans; 0: never. drift: share of the load that has moved and makes it plan at once,
    least_s after the last plan at the earliest. window_s: over which rates are measured. settle_s: how long
    shards and GPUs must have been the same before they count as come or gone. headroom: share of GPU
    time that is planned. grace_s: how long a model stays where requests are no longer sent to.
    patience_s: how long a plan may stand still on its way before make-before-break is given up.
    time_limit_s: of the solver.
    """

    seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    drift: Annotated[float, Field(gt=0, le=10)] = 0.25
    least_s: Seconds = 5.0
    window_s: Seconds = 10.0
    settle_s: Seconds = 2.0
    headroom: Share = 0.8
    grace_s: Pause = 2.0
    patience_s: Seconds = 10.0
    time_limit_s: Seconds = 10.0


def planned_headroom(headroom: float, autoscale: AutoscaleConfig | None) -> float:
    """The share of GPU time that plans may use while an autoscaler decides how many GPUs there are.

    Its room is the room for bursts: planned with less than what it lets GPUs be used, the load would have no
    place on the GPUs that it leaves.

    Args:
        headroom: as configured. autoscale: what decides about the number of GPUs, if anything does.
    """
    return headroom if autoscale is None else max(headroom, autoscale.up)
