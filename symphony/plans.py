"""The cluster's plan: which shard has which GPUs, what they hold, and where requests go.

There is one plan at a time, whole, never a difference to another. The leader among the shards makes it
and proposes it to the broker, which keeps it, puts it into every snapshot and publishes it on topic
``plan``. Its :class:`PlanStamp` orders plans: the broker and every follower refuse one that is
older than what they have, so of two leaders that both believe to be it, one is heard.

- Workers load and unload what the groups of their GPUs say, and tell in ``Member.holds`` what they hold.
- Shards dispatch to the GPUs of their active groups, and tell in ``Member.owns`` which those are and in
  ``Member.adopted`` as of which plan.
- Frontends split each model's requests by the weights of its route.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from symphony.messages import Name, Ranges

Weight = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlanStamp(_Message):
    """Whose plan it is, of which epoch, and how often it was revised in that epoch."""

    epoch: Annotated[int, Field(ge=1, lt=1 << 63)]
    leader: Name
    revision: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    def newer_than(self, other: PlanStamp | None) -> bool:
        """The higher epoch; in the same epoch the leader with the lower id; then the higher revision."""
        if other is None:
            return True
        if self.epoch != other.epoch:
            return self.epoch > other.epoch
        if self.leader != other.leader:
            return rank(self.leader) < rank(other.leader)
        return self.revision > other.revision

    def __str__(self) -> str:
        return f"epoch {self.epoch}.{self.revision} of {self.leader}"


class Group(_Message):
    """GPUs that are treated alike. ``models``: what they are to hold.

    ``active``: the shard may use them. Those that are not are on their way: the shard gives them back
    when nothing is out on them any more, or they load what they will be used for.
    """

    shard: Name
    gpus: Ranges
    models: list[Name] = []
    active: bool = True


class Failure(_Message):
    """A worker could not load ``model`` on a GPU of type ``gpu`` in epoch ``epoch``."""

    model: Name
    gpu: Annotated[str, Field(max_length=128)]
    epoch: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


class ClusterPlan(_Message):
    """See the module's text. ``at``: cluster time, ns. ``note``: for a person.

    ``failures``: what could not be loaded lately, so that another leader does not try it at once.

    ``routes``: for each model the weights of the shards that serve it. A model without a route goes to
    every shard that announces it.
    """

    stamp: PlanStamp
    at: int = 0
    groups: list[Group] = []
    routes: dict[Name, dict[Name, Weight]] = {}
    note: Annotated[str, Field(max_length=2_000)] = ""
    failures: Annotated[list[Failure], Field(max_length=10_000)] = []

    @model_validator(mode="after")
    def _disjoint(self) -> ClusterPlan:
        bounds = sorted(
            (first, last)
            for group in self.groups
            for first, last in zip(group.gpus[::2], group.gpus[1::2], strict=True)
        )
        for (_, before), (after, _) in itertools.pairwise(bounds):
            if after <= before:
                raise ValueError(f"GPU {after} is in two groups")
        return self


class Propose(_Message):
    """A leader's plan, made from the one of stamp ``base`` (nil: from none).

    ``id``, ``incarnation``: the scheduler that proposes. Answered by :class:`Accepted` or
    :class:`Declined`.
    """

    type: Literal["propose"] = "propose"
    v: Literal[1] = 1
    id: Name
    incarnation: int
    plan: ClusterPlan
    base: PlanStamp | None = None


class Accepted(_Message):
    """The plan of that stamp is kept and published."""

    type: Literal["accepted"] = "accepted"
    v: Literal[1] = 1
    stamp: PlanStamp


class Declined(_Message):
    """The plan is not taken; ``have`` is the stamp of the one that the broker keeps."""

    type: Literal["declined"] = "declined"
    v: Literal[1] = 1
    reason: str
    have: PlanStamp | None = None


class PlanEvent(_Message):
    """On topic ``plan``: the plan from now on."""

    type: Literal["plan"] = "plan"
    v: Literal[1] = 1
    plan: ClusterPlan


def rank(member: str) -> tuple[str, str]:
    """Orders ids as people count: ``shard-2`` before ``shard-10``."""
    return re.sub(r"\d+", lambda digits: digits.group().zfill(20), member), member
