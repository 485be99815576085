"""How a shard follows workers and the cluster's plan: what it learns and uses, and what it announces."""

from __future__ import annotations

from typing import Any

from scheduler.assignment import Assignment
from scheduler.fleet import Fleet
from scheduler.table import ModelTable
from symphony.control import Member
from symphony.membership import Membership
from symphony.plans import ClusterPlan


class Following:
    """Joins the membership's view of workers, the plan, and the shard's fleet and model table."""

    def __init__(
        self, membership: Membership, fleet: Fleet, table: ModelTable, assignment: Assignment
    ) -> None:
        self._membership = membership
        self._fleet = fleet
        self._table = table
        self._assignment = assignment

    def plan(self, now: int, plan: ClusterPlan) -> None:
        """A newer plan: GPUs come and go."""
        self._assignment.follow(plan)
        workers = [member for member in self._membership.members.values() if member.role == "worker"]
        for worker in workers:
            self._fleet.saw(now, worker)
        self.learn(now, workers)

    def model(self, now: int, name: str) -> None:
        """A model's specification has come or changed."""
        workers = [worker.member for worker in self._fleet.workers.values()]
        if any(name in worker.models for worker in workers):
            self.learn(now, workers)

    def worker(self, now: int, member: Member) -> None:
        """A worker has joined or changed."""
        self._fleet.saw(now, member)
        self.learn(now, [member])

    def gone(self, now: int, member: Member) -> None:
        """A worker has left or died."""
        self._fleet.gone(now, member)

    def learn(self, now: int, members: list[Member]) -> None:
        """Take in the models of these workers, and place the workers' GPUs with what is known now."""
        for member in members:
            held = {models for _, models in self._assignment.of(member).values()}
            for name in sorted({name for models in held for name in models}):
                spec = self._membership.models.get(name)
                if spec is not None:
                    self._table.learn(now, spec)
            worker = self._fleet.workers.get(member.id)
            if worker is not None:
                self._fleet.place(now, worker)
        self.announce()

    def announce(self) -> None:
        """Tell the cluster which models this shard takes and, if there is a plan, on which GPUs.

        Without a plan it is every model that it has ever known, so that callers are told by this shard
        what is the matter. With one, other shards may serve what this one holds no more.
        """
        names, plan = self._table.names, self._assignment.plan
        record: dict[str, Any] = {"models": list(names)}
        if plan is not None:
            held = self._fleet.held()
            record["models"] = [name if number in held else "" for number, name in enumerate(names)]
            record |= {"owns": self._fleet.owned(), "adopted": plan.stamp}
        me = self._membership.me
        if any(getattr(me, key) != value for key, value in record.items()):
            self._membership.update(me.model_copy(update=record))
