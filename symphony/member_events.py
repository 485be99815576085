"""What a :class:`~symphony.membership.Membership` tells its owner, besides what changes in the cluster."""

from __future__ import annotations

from dataclasses import dataclass

from symphony.control import Member
from symphony.plans import PlanStamp
from symphony.replica import Change


@dataclass(slots=True, frozen=True)
class Joined:
    """The broker has taken this process in (again); ``member`` is the record that it keeps."""

    member: Member


@dataclass(slots=True, frozen=True)
class Refusal:
    """The broker said no; ``reason`` is for a person.

    ``final``: asking again would not help, and nothing more is asked until :meth:`Membership.update`.
    """

    reason: str
    final: bool


@dataclass(slots=True, frozen=True)
class SlotChanged:
    """A frontend that came back has another slot: request keys must carry ``new`` from now on."""

    old: int | None
    new: int | None


@dataclass(slots=True, frozen=True)
class Published:
    """A message of a topic that the owner asked for besides the registry's own."""

    topic: str
    broker: int
    seq: int
    body: bytes


@dataclass(slots=True, frozen=True)
class Proposed:
    """The broker has answered a proposal: accepted if ``reason`` is empty.

    ``stamp``: of the plan that is in force now; None if there is none.
    """

    reason: str
    stamp: PlanStamp | None


Event = Change | Joined | Refusal | SlotChanged | Published | Proposed
