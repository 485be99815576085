"""How a rate moves around what an experiment writes: steps, ramps, a sine."""

from __future__ import annotations

from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Step(Strict):
    """From ``at`` seconds on the rate is ``factor`` times what is written."""

    at: float = Field(ge=0)
    factor: float = Field(ge=0)


class Sine(Strict):
    """A rate that swings: factor 1 + amplitude·sin(2π t / period_s)."""

    amplitude: float = Field(ge=0, le=1)
    period_s: float = Field(gt=0)


class Modulation(Strict):
    """How the rate moves around what is written; one of the three.

    step: the factor holds from its time on (1 before the first). ramp: the factor moves on straight
    lines between the given points. sine: factor 1 + amplitude·sin(2π t / period_s).
    """

    step: tuple[Step, ...] | None = None
    ramp: tuple[Step, ...] | None = None
    sine: Sine | None = None

    @model_validator(mode="after")
    def _one(self) -> Modulation:
        if sum(x is not None for x in (self.step, self.ramp, self.sine)) != 1:
            raise ValueError("expected one of step, ramp and sine")
        points = self.step or self.ramp or ()
        if any(b.at <= a.at for a, b in pairwise(points)):
            raise ValueError("the times of the steps must rise")
        return self
