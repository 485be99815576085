"""What the autoscaler decides, and what it remembers from one decision to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered between decisions; :func:`decide` returns the next one.

    requested: GPUs by type that were last asked for, None before the first sample. asked_at: when.
    changed_at: last decision for more or fewer; up_at: for more. attempt: how often the present request was
    made. usable: share of the fluid capacity that can be used, as learned under ``learned_need``.
    calibration: GPUs' time that was used per GPU of fluid need while the service was good; at most 1.
    settled_need: the need at which the last look for GPUs to take away found none.
    """

    requested: Mapping[str, int] | None = None
    asked_at: int = 0
    changed_at: int = 0
    up_at: int = 0
    attempt: int = 1
    refused: bool = False
    sequence: int = 0
    usable: float = 1.0
    learned_need: float = 0.0
    calibration: float = 1.0
    settled_need: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now, if ``kind`` is not ``hold``: ask the actuator for ``requested`` GPUs by type.

    planned: what the rules want; observed: ready and starting members. drain: GPUs to take away; the
    highest numbers first. attempt: above 1 if the same is asked for again. numbers: what it was decided on.
    """

    at: int
    kind: Literal["up", "down", "hold"]
    planned: dict[str, int]
    requested: dict[str, int]
    observed: dict[str, int]
    reason: str
    drain: list[int] = field(default_factory=list)
    attempt: int = 1
    sequence: int = 0
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """GPUs of all types that are requested."""
        return sum(self.requested.values())


def adopt(state: State, counts: Mapping[str, int], now: int) -> State:
    """Somebody else gave the sub-cluster so many GPUs by type (an epoch's plan): nothing of it is missing."""
    return replace(
        state,
        requested=dict(counts),
        asked_at=now,
        changed_at=now,
        attempt=1,
        refused=False,
        settled_need=0.0,
    )


def refuse(state: State) -> State:
    """The actuator has not accepted the last request: it is made again, soon at first."""
    return replace(state, refused=True)
