"""What carries out the autoscaler's decisions, whatever is behind it.

An actuator is *asked* for a target, so many GPUs per type in a shard's sub-cluster, and told which GPUs may
go; it answers whether it has accepted that. Whether it really happens is not its word but the membership's:
GPUs that join, drain and leave. So an actuator may be a program, Ray, Kubernetes or a person, and one that
lies is found out by the same rule as one that is slow (:mod:`scheduler.autoscale`).

Targets, not differences: a request that is made twice changes nothing the second time, and a request that
was lost is made good by the next one. Nothing here blocks; times are ``time.monotonic_ns()``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from scheduler.decision import Decision
from symphony.control import ScaleDecision

Code = Literal["accepted", "refused", "failed", "timeout", "malformed", "missing", "superseded"]


@dataclass(frozen=True, slots=True)
class Request:
    """Have ``counts`` GPUs by type in this shard's sub-cluster; those of ``drain`` may go.

    key: of this request; another one with the same key is the same request.
    """

    key: str
    shard: str
    counts: Mapping[str, int]
    drain: tuple[int, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request was taken.

    code: ``accepted``; ``refused`` by the actuator; ``failed``: it went wrong; ``timeout``; ``malformed``:
    its answer cannot be read; ``missing``: there is no such program; ``superseded`` by a newer request.
    """

    key: str
    shard: str
    code: Code
    detail: str = ""
    seconds: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the GPUs can now be waited for."""
        return self.code == "accepted"


class Actuator(Protocol):
    """One way of getting GPUs and giving them back."""

    def submit(self, request: Request, now: int) -> None:
        """Begin; a newer request of the same shard takes the place of one that has not begun."""

    def poll(self, now: int) -> list[Outcome]:
        """Outcomes since the last call, in the order in which they were known."""

    def next_wakeup(self, now: int) -> int | None:
        """When :meth:`poll` wants to be called next, None if nothing is under way."""

    def close(self) -> None:
        """End what is under way; nothing is left behind."""


@dataclass(slots=True)
class Recent:
    """Keys of requests that were accepted lately: making one again is no new request."""

    most: int = 1_024
    keys: dict[str, None] = field(default_factory=dict)

    def add(self, key: str) -> None:
        """Remember, and forget the oldest."""
        self.keys[key] = None
        while len(self.keys) > self.most:
            del self.keys[next(iter(self.keys))]

    def __contains__(self, key: str) -> bool:
        return key in self.keys


def message_of(decision: Decision, epoch: int, leader: str, shard: str) -> ScaleDecision:
    """A decision as it goes to topic ``decision.<shard>``."""
    return ScaleDecision(
        epoch=epoch,
        leader=leader,
        shard=shard,
        sequence=decision.sequence,
        at=decision.at,
        kind=decision.kind,
        planned=decision.planned,
        requested=decision.requested,
        observed=decision.observed,
        drain=decision.drain,
        attempt=decision.attempt,
        reason=decision.reason[:1024],
        numbers=decision.numbers,
    )


def request_of(message: ScaleDecision) -> Request:
    """What an actuator is asked for by a decision that is not ``hold``."""
    return Request(
        key=f"{message.epoch}-{message.shard}-{message.sequence}",
        shard=message.shard,
        counts=message.requested,
        drain=tuple(message.drain),
        reason=message.reason,
    )
