"""The plan that the broker keeps, and which proposals may replace it.

A leader says which plan its own was made from. If the broker keeps another one meanwhile, somebody else
has planned: the proposal is declined, whatever its epoch, and the proposer must look again. So GPUs
that one leader has begun to move are never moved by another that does not know of it. A plan that is
not newer than the kept one is declined, too.
"""

from __future__ import annotations

from symphony.control import Member
from symphony.plans import Accepted, ClusterPlan, Declined, Propose


class Planning:
    """See the module's text. ``plan`` is None until a proposal was accepted."""

    def __init__(self) -> None:
        self.plan: ClusterPlan | None = None

    def propose(self, message: Propose, proposer: Member | None) -> Accepted | Declined:
        """Keep the plan or say why not.

        Args:
            message: the proposal.
            proposer: the live member with the proposal's id; None if there is none.
        """
        stamp = message.plan.stamp
        have = None if self.plan is None else self.plan.stamp
        problem = ""
        if proposer is None or proposer.role != "scheduler" or proposer.incarnation != message.incarnation:
            problem = f"{message.id!r} is no live scheduler of that incarnation"
        elif stamp.leader != message.id:
            problem = f"{message.id!r} proposes in the name of {stamp.leader!r}"
        elif have is not None and not stamp.newer_than(have):
            problem = f"{stamp} is older than what is in force, {have}"
        elif have is not None and message.base != have:
            problem = f"it was made from {message.base or 'no plan'}, but {have} is in force"
        if problem:
            return Declined(reason=problem, have=have)
        self.plan = message.plan
        return Accepted(stamp=stamp)
