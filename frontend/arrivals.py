"""When requests arrive: renewal processes, drawn in advance from a seed.

``constant`` has equal gaps (and a random phase, so that several models do not march in step),
``poisson`` exponential ones, ``gamma:SHAPE`` gamma-distributed ones of the same mean: a shape below 1
makes bursts (0.1 is the bursty load of the Symphony paper), 1 is Poisson, above 1 it is smoother.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from symphony.status import SymphonyError
from symphony.wire import I64


class ArrivalError(SymphonyError, ValueError):
    """An arrival process that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One process. ``kind``: ``constant``, ``poisson`` or ``gamma``; ``shape`` matters for gamma."""

    kind: str = "poisson"
    shape: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """``poisson``, ``constant`` or ``gamma:SHAPE``.

        Raises:
            ArrivalError: anything else.
        """
        kind, colon, shape = text.partition(":")
        if kind in ("poisson", "constant") and not colon:
            return cls(kind)
        if kind == "gamma":
            try:
                value = float(shape)
            except ValueError:
                value = math.nan
            if 0 < value < 1e6:
                return cls(kind, value)
            raise ArrivalError(f"gamma needs a shape above 0, as in gamma:0.1, not {text!r}")
        raise ArrivalError(f"arrivals must be poisson, constant or gamma:SHAPE, not {text!r}")

    def times(self, rate: float, seconds: float, rng: np.random.Generator) -> I64:
        """Arrivals in [0, ``seconds``) as ascending int64 nanoseconds.

        Args:
            rate: mean arrivals per second, above 0.
            seconds: length.
            rng: the only source of chance.
        """
        if self.kind == "constant":
            times = (np.arange(math.ceil(rate * seconds) + 1) + rng.random()) / rate
        else:
            times = self._renewal(rate, seconds, rng)
        inside: I64 = np.floor(times[times < seconds] * 1e9).astype(np.int64)
        return inside

    def _renewal(
        self, rate: float, seconds: float, rng: np.random.Generator
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        shape = 1.0 if self.kind == "poisson" else self.shape
        parts, reached = [], 0.0
        while reached < seconds:
            # Mean and three standard deviations more: nearly always enough at once.
            mean = rate * (seconds - reached)
            count = math.ceil(mean + 3 * math.sqrt(mean / shape)) + 16
            part = reached + np.cumsum(rng.gamma(shape, 1 / (rate * shape), count))
            parts.append(part)
            reached = float(part[-1])
        return np.concatenate(parts)


POISSON = Arrivals()
